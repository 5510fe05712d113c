//! Servers: their connections, the map of slots, and calls that follow a slot when it moves.
//!
//! There is one pipelined connection per server. Calls are sent together, grouped by server. When a server reports that a
//! slot has moved, the map of slots is read again. Every connect and every answer has a time limit; after a failure the
//! connection is dropped, since its outstanding answers are unknown. Callers retry: every call here is idempotent.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use redis::{Cmd, ErrorKind, Pipeline, ServerErrorKind, Value, cmd};

use super::connect::{RedisConnector, ServerFault};
use super::library::LIBRARY;
use super::transport::ServerConnection;
use super::url::{RedisTopology, ServerAddress};
use crate::environment::Environment;
use crate::metrics::{NodeMetrics, metrics};
use crate::model::hash_slot::SLOTS;

/// Maximum number of redirections of a call before it fails.
const REDIRECTS_MAX: usize = 6;
/// Pause before a call whose slot is migrating is retried.
const MIGRATION_PAUSE: Duration = Duration::from_millis(20);

/// Command with the slot of its keys.
#[derive(Debug, Clone)]
pub(super) struct RedisCall {
    pub slot: u16,
    pub cmd: Cmd,
    /// Size of the rows, for the metrics; none if the call is not a batch.
    pub batch_bytes: Option<usize>,
}

/// Error that a server returned for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandError {
    /// First word of the error, such as `WRONGTYPE`.
    pub code: String,
    /// Text of the error, with the server.
    pub text: String,
}

/// Answer to one call.
pub(super) type Answer = Result<Value, CommandError>;

/// Redis server with its connection.
pub(super) struct RedisNode {
    connector: RedisConnector,
    connection: tokio::sync::Mutex<Option<(u64, Arc<dyn ServerConnection>)>>,
    connections: AtomicU64,
    metrics: NodeMetrics,
}

/// Connection to one server, for calls that must share one: a cursor means nothing to another server, and `WAIT` covers the
/// writes of its own connection. A call on it is answered by that server or fails.
pub(super) struct NodeConnection {
    node: Arc<RedisNode>,
    number: u64,
    connection: Arc<dyn ServerConnection>,
}

/// Indices of the calls for one server, each with whether it needs ASKING, because the slot is still migrating there.
type CallGroup = (Arc<RedisNode>, Vec<(usize, bool)>);

/// Map from slots to servers.
struct SlotMap {
    /// First slot, last slot and server, in order.
    ranges: Vec<(u16, u16, Arc<RedisNode>)>,
    /// Servers, in the order of their first slots.
    nodes: Vec<Arc<RedisNode>>,
}

/// All servers of the store.
pub(super) struct RedisNodes {
    kind: RedisTopology,
    connector: RedisConnector,
    environment: Environment,
    known: Mutex<BTreeMap<String, Arc<RedisNode>>>,
    map: ArcSwapOption<SlotMap>,
    stale: AtomicBool,
    refreshing: tokio::sync::Mutex<()>,
}

impl RedisNode {
    /// Sends `calls` on one connection, with ASKING before those whose flag is set.
    async fn send(&self, calls: &[(&RedisCall, bool)]) -> Result<Vec<redis::RedisResult<Value>>, ServerFault> {
        let (number, connection) = self.connected().await?;
        self.send_on(number, &*connection, calls).await
    }

    async fn send_on(
        &self,
        number: u64,
        connection: &dyn ServerConnection,
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
        match connection.send(&pipeline).await {
            Ok(answers) => {
                let is_replica = |answer: &redis::RedisResult<Value>| {
                    answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly))
                };
                if answers.iter().any(is_replica) {
                    // The name may lead to the new master, but this connection leads to the old one.
                    self.drop_connection(number).await;
                }
                let mut answers = answers.into_iter();
                let per_call = calls.iter().map(|(_, ask)| if *ask { answers.nth(1) } else { answers.next() });
                let answers: Option<Vec<_>> = per_call.collect();
                let batches = calls.iter().filter_map(|(call, _)| call.batch_bytes);
                self.metrics.writes.increment(batches.clone().count() as u64);
                self.metrics.bytes.increment(batches.map(|bytes| bytes as u64).sum());
                answers
                    .ok_or_else(|| ServerFault::Unavailable(format!("{} did not answer all commands", self.connector)))
            }
            Err(error) => {
                self.drop_connection(number).await;
                Err(self.connector.map_call_error(&error))
            }
        }
    }

    async fn connected(&self) -> Result<(u64, Arc<dyn ServerConnection>), ServerFault> {
        let mut connection = self.connection.lock().await;
        if let Some((number, connection)) = &*connection {
            return Ok((*number, Arc::clone(connection)));
        }
        let created = self.connector.connect().await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if number > 1 {
            metrics().store_reconnects.increment(1);
        }
        *connection = Some((number, Arc::clone(&created)));
        Ok((number, created))
    }

    async fn drop_connection(&self, number: u64) {
        let mut connection = self.connection.lock().await;
        connection.take_if(|(present, _)| *present == number);
    }
}

impl RedisNodes {
    pub fn new(kind: RedisTopology, connector: RedisConnector, environment: Environment) -> Self {
        Self {
            kind,
            connector,
            environment,
            known: Mutex::default(),
            map: ArcSwapOption::empty(),
            stale: AtomicBool::new(true),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// Source of the time of these servers' timers.
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Sends calls to the servers of their slots, all at once, and follows redirections. Returns for each call, in order, its
    /// answer or the fault that prevented one; a call without an answer may have been executed.
    ///
    /// # Errors
    /// The map of slots cannot be read.
    pub async fn call(&self, calls: &[RedisCall]) -> Result<Vec<Result<Answer, ServerFault>>, ServerFault> {
        let mut answers: Vec<Option<Result<Answer, ServerFault>>> = vec![None; calls.len()];
        // Calls without an answer, and the server that each was redirected to.
        let mut open: Vec<(usize, Option<Arc<RedisNode>>)> = (0..calls.len()).map(|at| (at, None)).collect();
        for _ in 0..REDIRECTS_MAX {
            let map = self.map().await?;
            let mut groups: Vec<CallGroup> = Vec::new();
            for (at, redirect) in open.drain(..) {
                let ask = redirect.is_some();
                let Some(node) = redirect.or_else(|| map.node(calls[at].slot)) else {
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
                let mut library: Option<Result<(), ServerFault>> = None;
                for ((at, _), answer) in group.into_iter().zip(answered) {
                    match answer {
                        Ok(value) => answers[at] = Some(Ok(Ok(value))),
                        Err(error) => match self.classify_error(&node, &error) {
                            CallAction::Answer(refused) => answers[at] = Some(Ok(Err(refused))),
                            CallAction::Redirect(to) => open.push((at, to)),
                            CallAction::RetryLater => {
                                crate::reached!("Redis: a slot is migrating");
                                pause = true;
                                open.push((at, None));
                            }
                            CallAction::LoadLibrary => {
                                crate::reached!("Redis: the functions are lost");
                                // Once for all calls that lack it.
                                let loaded = match &library {
                                    Some(loaded) => loaded.clone(),
                                    None => library.insert(node.load_library().await).clone(),
                                };
                                match loaded {
                                    Err(fault) => {
                                        self.mark_stale();
                                        answers[at] = Some(Err(fault));
                                    }
                                    Ok(()) => open.push((at, None)),
                                }
                            }
                            CallAction::Fail(fault) => answers[at] = Some(Err(fault)),
                        },
                    }
                }
            }
            if open.is_empty() {
                break;
            }
            if pause {
                self.environment.sleep(MIGRATION_PAUSE).await;
            }
        }
        let migrating = || Err(ServerFault::Unavailable("the slot is migrating between servers".to_owned()));
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(migrating)).collect())
    }

    /// Connection to the server that has the slot at present.
    pub async fn connection(&self, slot: u16) -> Result<NodeConnection, ServerFault> {
        let node = self.map().await?.node(slot).ok_or_else(|| {
            self.mark_stale();
            ServerFault::Unavailable(format!("no server has slot {slot}"))
        })?;
        let (number, connection) = node.connected().await.inspect_err(|_| self.mark_stale())?;
        Ok(NodeConnection { node, number, connection })
    }

    /// Sends one call on one connection. A redirection is not followed: like a broken connection it is
    /// [`ServerFault::Unavailable`].
    pub async fn call_on(&self, to: &NodeConnection, call: &RedisCall) -> Result<Answer, ServerFault> {
        let sent = to.node.send_on(to.number, &*to.connection, &[(call, false)]).await;
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

    /// Writer partition of a slot: slots of one server share a partition.
    pub fn writer_partition(&self, slot: u16) -> usize {
        let map = self.map.load();
        let at = map.as_ref().and_then(|map| {
            let node = map.node(slot)?;
            map.nodes.iter().position(|other| Arc::ptr_eq(other, &node))
        });
        at.unwrap_or(0)
    }

    fn classify_error(&self, node: &RedisNode, error: &redis::RedisError) -> CallAction {
        use ServerErrorKind as Server;
        let text = || format!("{}: {error}", node.connector);
        match error.kind() {
            ErrorKind::Server(Server::Moved) => {
                crate::reached!("Redis: a slot has moved");
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
                    // Temporary: no replica is reachable, a save failed, or a script is stuck.
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

    /// Asks all known nodes for the map of slots and uses the first answer.
    async fn resolve_cluster(&self, seeds: &[ServerAddress]) -> Result<Vec<(u16, u16, Arc<RedisNode>)>, ServerFault> {
        let mut nodes: Vec<Arc<RedisNode>> = self.map.load_full().map(|map| map.nodes.clone()).unwrap_or_default();
        for seed in seeds {
            let node = self.node(seed);
            if !nodes.iter().any(|other| Arc::ptr_eq(other, &node)) {
                nodes.push(node);
            }
        }
        let answers = nodes.into_iter().map(|node| async move {
            let call = RedisCall { slot: 0, cmd: cmd("CLUSTER").arg("SLOTS").take(), batch_bytes: None };
            let answer = node.send(&[(&call, false)]).await?.pop();
            match answer {
                Some(Ok(value)) => parse_cluster_slots(&value, &node.connector.host()).ok_or_else(|| {
                    ServerFault::Unavailable(format!("{} reports no slots: create the cluster first", node.connector))
                }),
                Some(Err(error)) => Err(node.connector.map_call_error(&error)),
                None => Err(ServerFault::Unavailable(format!("{} gave no answer", node.connector))),
            }
        });
        let ranges = first_ok(answers).await?;
        Ok(ranges.into_iter().map(|(from, to, at)| (from, to, self.node(&at))).collect())
    }

    /// Asks all sentinels for the master and uses the first answer.
    async fn resolve_sentinel(
        &self,
        sentinels: &[ServerAddress],
        master: &str,
    ) -> Result<Vec<(u16, u16, Arc<RedisNode>)>, ServerFault> {
        let answers = sentinels.iter().map(|sentinel| {
            let sentinel = self.connector.to_sentinel(sentinel);
            async move { sentinel.ask_master(master).await }
        });
        let address = first_ok(answers).await?;
        Ok(vec![(0, SLOTS - 1, self.node(&address))])
    }

    fn node(&self, address: &ServerAddress) -> Arc<RedisNode> {
        self.node_named(&address.to_string(), || self.connector.with_address(address))
    }

    /// Node at `host:port`, as a redirection names it.
    fn node_at(&self, text: &str) -> Option<Arc<RedisNode>> {
        let (host, port) = text.rsplit_once(':')?;
        Some(self.node(&ServerAddress { host: host.to_owned(), port: port.parse().ok()? }))
    }

    fn node_named(&self, name: &str, connector: impl FnOnce() -> RedisConnector) -> Arc<RedisNode> {
        let mut known = self.known.lock();
        let create = || {
            let connector = connector();
            let metrics = NodeMetrics::new(&connector.to_string());
            let (connection, connections) = Default::default();
            Arc::new(RedisNode { connector, connection, connections, metrics })
        };
        Arc::clone(known.entry(name.to_owned()).or_insert_with(create))
    }
}

impl RedisNode {
    async fn load_library(&self) -> Result<(), ServerFault> {
        let load = cmd("FUNCTION").arg("LOAD").arg(&LIBRARY.code).take();
        let call = RedisCall { slot: 0, cmd: load, batch_bytes: None };
        match self.send(&[(&call, false)]).await?.pop() {
            Some(Ok(_)) => Ok(()),
            // Another process loaded it first; the name determines the code.
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

/// Returns the first success of concurrent calls, so that a silent server delays nothing. If none succeeds, a permanent fault
/// takes precedence over a temporary one.
async fn first_ok<T>(
    calls: impl IntoIterator<Item = impl Future<Output = Result<T, ServerFault>>>,
) -> Result<T, ServerFault> {
    let mut calls: FuturesUnordered<_> = calls.into_iter().collect();
    let mut worst = ServerFault::Unavailable("no server is known".to_owned());
    let mut any_answered = false;
    while let Some(answer) = calls.next().await {
        match answer {
            Ok(value) => return Ok(value),
            Err(fault) if !any_answered || matches!(fault, ServerFault::Unusable(_)) => worst = fault,
            Err(_) => {}
        }
        any_answered = true;
    }
    Err(worst)
}

/// Next action after a call was answered with an error.
enum CallAction {
    Answer(CommandError),
    Redirect(Option<Arc<RedisNode>>),
    RetryLater,
    LoadLibrary,
    Fail(ServerFault),
}

/// Parses `CLUSTER SLOTS`: first slot, last slot and master. A node that does not name its own address has `host`.
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
    fn cluster_slots_are_parsed_with_and_without_an_address() {
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
