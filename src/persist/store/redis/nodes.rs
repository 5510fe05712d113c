//! The servers: connections, which of them serves a slot, and calls that follow their slot wherever it moved.
//!
//! One pipelined connection per server. Calls go out together, grouped by server; a server that says that a slot has
//! moved is believed, and the map of slots is read anew. Every connect and every answer has a time limit; after a
//! failure the connection is dropped, since what it still owes is unknown. Whoever calls sends again: every call here
//! may be repeated.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value, cmd};

use super::connect::{RedisConnector, ServerFault};
use super::keys::SLOTS;
use super::library::LIBRARY;
use super::url::{RedisTopology, ServerAddress};
use crate::metrics::{NodeMetrics, metrics};

/// How often a call may be sent elsewhere before it counts as failed.
const REDIRECTS_MAX: usize = 6;
/// Pause before a call whose keys are on their way to another server is tried again.
const MIGRATION_PAUSE: Duration = Duration::from_millis(20);

/// One command and the slot of its keys.
#[derive(Debug, Clone)]
pub(super) struct RedisCall {
    pub slot: u16,
    pub cmd: Cmd,
    /// Size of the rows in it, for the metrics; 0: it is no step.
    pub step_bytes: usize,
}

/// The server understood a command and refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandError {
    /// First word of the error, as in `WRONGTYPE`.
    pub code: String,
    /// All of it.
    pub text: String,
}

/// The answer to one call.
pub(super) type Answer = Result<Value, CommandError>;

/// A server.
pub(super) struct RedisNode {
    connector: RedisConnector,
    connection: tokio::sync::Mutex<Option<(u64, MultiplexedConnection)>>,
    connections: AtomicU64,
    metrics: NodeMetrics,
}

/// Connection to one server, for calls whose answers belong together: a cursor means nothing to another server, and
/// a write is waited for where it was made. What is sent on it is answered there or fails.
pub(super) struct NodeConnection {
    node: Arc<RedisNode>,
    number: u64,
    connection: MultiplexedConnection,
}

/// Calls for one server: which of them, and whether it must be asked although the slot is still on its way there.
type Group = (Arc<RedisNode>, Vec<(usize, bool)>);

/// Which server has which slots.
struct SlotMap {
    /// First and last slot, in order.
    ranges: Vec<(u16, u16, Arc<RedisNode>)>,
    /// The servers, in the order of their first slots.
    nodes: Vec<Arc<RedisNode>>,
}

/// All of them.
pub(super) struct RedisNodes {
    kind: RedisTopology,
    connector: RedisConnector,
    known: Mutex<HashMap<String, Arc<RedisNode>>>,
    map: ArcSwapOption<SlotMap>,
    stale: AtomicBool,
    refreshing: tokio::sync::Mutex<()>,
}

impl RedisNode {
    /// Sends `calls` down one connection; the flags say which must be asked for although the slot is still moving here.
    async fn send(&self, calls: &[(&RedisCall, bool)]) -> Result<Vec<redis::RedisResult<Value>>, ServerFault> {
        let (number, connection) = self.connected().await?;
        self.send_down(number, connection, calls).await
    }

    async fn send_down(
        &self,
        number: u64,
        mut connection: MultiplexedConnection,
        calls: &[(&RedisCall, bool)],
    ) -> Result<Vec<redis::RedisResult<Value>>, ServerFault> {
        let mut pipeline = Pipeline::with_capacity(calls.len());
        pipeline.ignore_errors();
        for (call, ask) in calls {
            if *ask {
                pipeline.add_command(cmd("ASKING"));
            }
            pipeline.add_command(call.cmd.clone());
        }
        let answers: redis::RedisResult<Vec<redis::RedisResult<Value>>> = pipeline.query_async(&mut connection).await;
        match answers {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                let per_call = calls.iter().map(|(_, ask)| if *ask { answers.nth(1) } else { answers.next() });
                let answers: Option<Vec<_>> = per_call.collect();
                let steps = calls.iter().filter(|(call, _)| call.step_bytes > 0);
                self.metrics.steps.increment(steps.clone().count() as u64);
                self.metrics.bytes.increment(steps.map(|(call, _)| call.step_bytes as u64).sum());
                answers.ok_or_else(|| {
                    ServerFault::Unavailable(format!("{} left commands without an answer", self.connector))
                })
            }
            Err(error) => {
                self.drop_connection(number).await;
                Err(self.connector.map_call_error(&error))
            }
        }
    }

    async fn connected(&self) -> Result<(u64, MultiplexedConnection), ServerFault> {
        let mut connection = self.connection.lock().await;
        if let Some((number, connection)) = &*connection {
            return Ok((*number, connection.clone()));
        }
        let made = self.connector.connect().await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 1 {
            metrics().store_reconnects.increment(1);
        }
        *connection = Some((number, made.clone()));
        Ok((number, made))
    }

    async fn drop_connection(&self, number: u64) {
        let mut connection = self.connection.lock().await;
        connection.take_if(|(present, _)| *present == number);
    }
}

impl RedisNodes {
    pub fn new(kind: RedisTopology, connector: RedisConnector) -> Self {
        Self {
            kind,
            connector,
            known: Mutex::default(),
            map: ArcSwapOption::empty(),
            stale: AtomicBool::new(true),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// Sends calls to the servers that have their slots, all at once, and again where they are sent on to. Per call
    /// its answer, in order, or why it has none: whether such a one was carried out is unknown.
    ///
    /// # Errors
    /// It is not known which server has which slot.
    pub async fn call(&self, calls: &[RedisCall]) -> Result<Vec<Result<Answer, ServerFault>>, ServerFault> {
        let mut answers: Vec<Option<Result<Answer, ServerFault>>> = vec![None; calls.len()];
        // Which are open, and where they were sent on to.
        let mut open: Vec<(usize, Option<Arc<RedisNode>>)> = (0..calls.len()).map(|at| (at, None)).collect();
        for _ in 0..REDIRECTS_MAX {
            let map = self.map().await?;
            let mut groups: Vec<Group> = Vec::new();
            for (at, sent_to) in open.drain(..) {
                let ask = sent_to.is_some();
                let Some(node) = sent_to.or_else(|| map.node(calls[at].slot)) else {
                    self.mark_stale();
                    answers[at] = Some(Err(ServerFault::Unavailable(format!("no server has slot {}", calls[at].slot))));
                    continue;
                };
                match groups.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &node)) {
                    Some((_, group)) => group.push((at, ask)),
                    None => groups.push((node, vec![(at, ask)])),
                }
            }
            let sent = groups.into_iter().map(|(node, group)| async move {
                let sent: Vec<_> = group.iter().map(|(at, ask)| (&calls[*at], *ask)).collect();
                let answered = node.send(&sent).await;
                (node, group, answered)
            });
            let mut pause = false;
            for (node, group, answered) in join_all(sent).await {
                let answered = match answered {
                    Ok(answered) => answered,
                    Err(fault) => {
                        self.mark_stale();
                        for (at, _) in group {
                            answers[at] = Some(Err(fault.clone()));
                        }
                        continue;
                    }
                };
                for ((at, _), answer) in group.into_iter().zip(answered) {
                    match answer {
                        Ok(value) => answers[at] = Some(Ok(Ok(value))),
                        Err(error) => match self.classify_error(&node, &error) {
                            CallAction::Answer(refused) => answers[at] = Some(Ok(Err(refused))),
                            CallAction::Redirect(to) => open.push((at, to)),
                            CallAction::RetryLater => {
                                pause = true;
                                open.push((at, None));
                            }
                            CallAction::LoadLibrary => match node.load_library().await {
                                Ok(()) => open.push((at, None)),
                                Err(fault) => {
                                    self.mark_stale();
                                    answers[at] = Some(Err(fault));
                                }
                            },
                            CallAction::Fail(fault) => answers[at] = Some(Err(fault)),
                        },
                    }
                }
            }
            if open.is_empty() {
                break;
            }
            if pause {
                tokio::time::sleep(MIGRATION_PAUSE).await;
            }
        }
        let lost = || Err(ServerFault::Unavailable("its keys are on their way from one server to another".to_owned()));
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect())
    }

    /// A connection to the server that has the slot at present.
    pub async fn connection(&self, slot: u16) -> Result<NodeConnection, ServerFault> {
        let node = self.map().await?.node(slot).ok_or_else(|| {
            self.mark_stale();
            ServerFault::Unavailable(format!("no server has slot {slot}"))
        })?;
        let (number, connection) = node.connected().await.inspect_err(|_| self.mark_stale())?;
        Ok(NodeConnection { node, number, connection })
    }

    /// Sends one call on one connection. A redirect is not followed: it is `Away`, and so is a broken connection.
    pub async fn call_on(&self, to: &NodeConnection, call: &RedisCall) -> Result<Answer, ServerFault> {
        let sent = to.node.send_down(to.number, to.connection.clone(), &[(call, false)]).await;
        let error = match sent.inspect_err(|_| self.mark_stale())?.pop() {
            Some(Ok(value)) => return Ok(Ok(value)),
            Some(Err(error)) => error,
            None => return Err(ServerFault::Unavailable(format!("{} gave no answer", to.node.connector))),
        };
        match self.classify_error(&to.node, &error) {
            CallAction::Answer(refused) => Ok(Err(refused)),
            CallAction::Fail(fault) => Err(fault),
            CallAction::Redirect(_) | CallAction::RetryLater | CallAction::LoadLibrary => {
                Err(ServerFault::Unavailable(format!("{}: {error}", to.node.connector)))
            }
        }
    }

    /// Which writer serves the slot best: those of one server should go together.
    pub fn writer_partition(&self, slot: u16) -> usize {
        let map = self.map.load();
        let at = map.as_ref().and_then(|map| {
            let node = map.node(slot)?;
            map.nodes.iter().position(|other| Arc::ptr_eq(other, &node))
        });
        at.unwrap_or(0)
    }

    fn classify_error(&self, node: &RedisNode, error: &redis::RedisError) -> CallAction {
        use redis::{ErrorKind, ServerErrorKind as Server};
        let text = || format!("{}: {error}", node.connector);
        match error.kind() {
            ErrorKind::Server(Server::Moved) => {
                self.mark_stale();
                CallAction::Redirect(None)
            }
            ErrorKind::Server(Server::Ask) => match error.redirect_node() {
                Some((address, _)) => CallAction::Redirect(self.node_at(address)),
                None => CallAction::Fail(ServerFault::Unavailable(text())),
            },
            ErrorKind::Server(Server::TryAgain) => CallAction::RetryLater,
            ErrorKind::Server(Server::ReadOnly | Server::ClusterDown | Server::MasterDown) => {
                self.mark_stale();
                CallAction::Fail(ServerFault::Unavailable(text()))
            }
            ErrorKind::Server(Server::BusyLoading) => CallAction::Fail(ServerFault::Unavailable(text())),
            _ if error.detail().is_some_and(|detail| detail.contains("Function not found")) => CallAction::LoadLibrary,
            _ => {
                let code = error.code().unwrap_or("ERR").to_owned();
                match code.as_str() {
                    "OOM" => CallAction::Fail(ServerFault::Unavailable(format!(
                        "{} is full (maxmemory): {error}",
                        node.connector
                    ))),
                    // No replica is in reach, a save failed, a script is stuck: it may pass.
                    "NOREPLICAS" | "MISCONF" | "BUSY" => CallAction::Fail(ServerFault::Unavailable(text())),
                    "NOAUTH" | "NOPERM" | "WRONGPASS" => CallAction::Fail(ServerFault::Unusable(text())),
                    _ => CallAction::Answer(CommandError { code, text: text() }),
                }
            }
        }
    }

    fn mark_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    async fn map(&self) -> Result<Arc<SlotMap>, ServerFault> {
        let fresh = || self.map.load_full().filter(|_| !self.stale.load(Ordering::Acquire));
        if let Some(map) = fresh() {
            return Ok(map);
        }
        let _one_at_a_time = self.refreshing.lock().await;
        if let Some(map) = fresh() {
            return Ok(map);
        }
        self.stale.store(false, Ordering::Release);
        let read = match &self.kind {
            RedisTopology::Standalone(address) => Ok(vec![(0, SLOTS - 1, self.node(address))]),
            RedisTopology::Unix(_) => Ok(vec![(0, SLOTS - 1, self.node_named("", || self.connector.clone()))]),
            RedisTopology::Cluster(seeds) => self.resolve_cluster(seeds).await,
            RedisTopology::Sentinel(sentinels, master) => self.resolve_sentinel(sentinels, master).await,
        };
        let mut ranges = read.inspect_err(|_| self.mark_stale())?;
        ranges.sort_by_key(|range| range.0);
        let mut nodes: Vec<Arc<RedisNode>> = Vec::new();
        for (_, _, node) in &ranges {
            if !nodes.iter().any(|other| Arc::ptr_eq(other, node)) {
                nodes.push(Arc::clone(node));
            }
        }
        let map = Arc::new(SlotMap { ranges, nodes });
        self.map.store(Some(Arc::clone(&map)));
        Ok(map)
    }

    /// Asks all nodes that are known for the slots; the first that answers is believed.
    async fn resolve_cluster(&self, seeds: &[ServerAddress]) -> Result<Vec<(u16, u16, Arc<RedisNode>)>, ServerFault> {
        let mut nodes: Vec<Arc<RedisNode>> = self.map.load_full().map(|map| map.nodes.clone()).unwrap_or_default();
        for seed in seeds {
            let node = self.node(seed);
            if !nodes.iter().any(|other| Arc::ptr_eq(other, &node)) {
                nodes.push(node);
            }
        }
        let asked = nodes.into_iter().map(|node| async move {
            let call = RedisCall { slot: 0, cmd: cmd("CLUSTER").arg("SLOTS").take(), step_bytes: 0 };
            let answer = node.send(&[(&call, false)]).await?.pop();
            match answer {
                Some(Ok(value)) => parse_cluster_slots(&value, &node.connector.host()).ok_or_else(|| {
                    ServerFault::Unavailable(format!("{} knows of no slots: the cluster is not set up", node.connector))
                }),
                Some(Err(error)) => Err(node.connector.map_call_error(&error)),
                None => Err(ServerFault::Unavailable(format!("{} gave no answer", node.connector))),
            }
        });
        let ranges = first_ok(asked).await?;
        Ok(ranges.into_iter().map(|(from, to, at)| (from, to, self.node(&at))).collect())
    }

    /// Asks all sentinels for the master; the first that knows it is believed.
    async fn resolve_sentinel(
        &self,
        sentinels: &[ServerAddress],
        master: &str,
    ) -> Result<Vec<(u16, u16, Arc<RedisNode>)>, ServerFault> {
        let asked = sentinels.iter().map(|sentinel| {
            let sentinel = self.connector.to_sentinel(sentinel);
            async move { sentinel.ask_master(master).await }
        });
        let address = first_ok(asked).await?;
        Ok(vec![(0, SLOTS - 1, self.node(&address))])
    }

    fn node(&self, address: &ServerAddress) -> Arc<RedisNode> {
        self.node_named(&address.to_string(), || self.connector.with_address(address))
    }

    /// The node at `host:port`, as a redirection names it.
    fn node_at(&self, text: &str) -> Option<Arc<RedisNode>> {
        let (host, port) = text.rsplit_once(':')?;
        Some(self.node(&ServerAddress { host: host.to_owned(), port: port.parse().ok()? }))
    }

    fn node_named(&self, name: &str, connector: impl FnOnce() -> RedisConnector) -> Arc<RedisNode> {
        let mut known = self.known.lock();
        let make = || {
            let connector = connector();
            let metrics = NodeMetrics::new(&connector.to_string());
            let (connection, connections) = Default::default();
            Arc::new(RedisNode { connector, connection, connections, metrics })
        };
        Arc::clone(known.entry(name.to_owned()).or_insert_with(make))
    }
}

impl RedisNode {
    async fn load_library(&self) -> Result<(), ServerFault> {
        let load = cmd("FUNCTION").arg("LOAD").arg(&LIBRARY.code).take();
        let call = RedisCall { slot: 0, cmd: load, step_bytes: 0 };
        match self.send(&[(&call, false)]).await?.pop() {
            Some(Ok(_)) => Ok(()),
            // Somebody else was faster; whatever has this name has this text.
            Some(Err(error)) if error.to_string().contains("already exists") => Ok(()),
            Some(Err(error)) => Err(self.connector.map_call_error(&error)),
            None => Err(ServerFault::Unavailable(format!("{} gave no answer", self.connector))),
        }
    }
}

impl SlotMap {
    fn node(&self, slot: u16) -> Option<Arc<RedisNode>> {
        let at = self.ranges.partition_point(|range| range.1 < slot);
        self.ranges.get(at).filter(|range| range.0 <= slot).map(|range| Arc::clone(&range.2))
    }
}

/// The first that succeeds, of all at once: whoever is silent holds nobody up. If none does, a fault that will not pass
/// is worth more than one that may.
async fn first_ok<T>(
    asked: impl IntoIterator<Item = impl Future<Output = Result<T, ServerFault>>>,
) -> Result<T, ServerFault> {
    let mut asked: FuturesUnordered<_> = asked.into_iter().collect();
    let mut worst = ServerFault::Unavailable("no server is known that could be asked".to_owned());
    let mut asked_any = false;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(good) => return Ok(good),
            Err(fault) if !asked_any || matches!(fault, ServerFault::Unusable(_)) => worst = fault,
            Err(_) => {}
        }
        asked_any = true;
    }
    Err(worst)
}

/// What becomes of a call that was answered with an error.
enum CallAction {
    Answer(CommandError),
    Redirect(Option<Arc<RedisNode>>),
    RetryLater,
    LoadLibrary,
    Fail(ServerFault),
}

/// Reads `CLUSTER SLOTS`: first and last slot, and the master. A node that does not name its own address has `host`.
fn parse_cluster_slots(value: &Value, host: &str) -> Option<Vec<(u16, u16, ServerAddress)>> {
    let Value::Array(entries) = value else { return None };
    let number = |value: &Value| if let Value::Int(n) = value { u16::try_from(*n).ok() } else { None };
    let ranges: Option<Vec<_>> = entries
        .iter()
        .map(|entry| {
            let Value::Array(entry) = entry else { return None };
            let [from, to, Value::Array(master), ..] = entry.as_slice() else { return None };
            let [name, port, ..] = master.as_slice() else { return None };
            let name = match name {
                Value::BulkString(name) => String::from_utf8(name.clone()).ok()?,
                Value::SimpleString(name) => name.clone(),
                _ => String::new(),
            };
            let host = if matches!(name.as_str(), "" | "?") { host.to_owned() } else { name };
            Some((number(from)?, number(to)?, ServerAddress { host, port: number(port)? }))
        })
        .collect();
    ranges.filter(|ranges| !ranges.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn slots_are_read_with_and_without_an_address() {
        let entry = |from, to, host, port| {
            let master = vec![host, Value::Int(port), text("id")];
            Value::Array(vec![Value::Int(from), Value::Int(to), Value::Array(master)])
        };
        let value = Value::Array(vec![
            entry(0, 100, text("a"), 1),
            entry(101, 16_383, text(""), 2),
            entry(7, 8, Value::Nil, 3),
        ]);
        let at = |host: &str, port| ServerAddress { host: host.to_owned(), port };
        let read = parse_cluster_slots(&value, "asked").expect("slots");
        assert_eq!(read, [(0, 100, at("a", 1)), (101, 16_383, at("asked", 2)), (7, 8, at("asked", 3))]);
        assert_eq!(parse_cluster_slots(&Value::Array(vec![]), "h"), None, "no slots: not a cluster yet");
        assert_eq!(parse_cluster_slots(&Value::Array(vec![Value::Nil]), "h"), None);
    }
}
