//! Servers of a baseline, the slots that they own, and connections to them. The slots of a cluster are read once; a
//! cluster that moves them during a load replies with errors.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OnceCell;

use super::BaselineState;
use crate::http_calls::target_error;
use crate::resp_pipeline::{PipelineReplies, RespPipeline, RespValue, WriteMode, encode_command};
use crate::stats::TargetError;

/// Number of keys that a server examines for one page of a `SCAN`.
const SCAN_COUNT: &[u8] = b"1000";
/// Number of slots in a Redis Cluster.
const SLOTS: u16 = 16_384;

/// Commands for one server, with the positions of their replies.
type NodeCommands<'w> = (Vec<usize>, Vec<Vec<&'w [u8]>>);

/// Servers, and the slots that each owns.
pub(super) struct BaselineNodes {
    /// Last slot of each span and the index of its server, ascending.
    spans: Vec<(u16, usize)>,
    addresses: Vec<String>,
}

impl BaselineNodes {
    /// Reads the slots from the first host that responds.
    pub(super) async fn discover(hosts: &[String]) -> Result<Self, TargetError> {
        let mut last_error = target_error("no host given".into(), false);
        for host in hosts {
            match RespPipeline::open(host, WriteMode::Immediate).await {
                Ok(connection) => return Self::identify(&connection, host).await,
                Err(failure) => last_error = failure,
            }
        }
        Err(last_error)
    }

    async fn identify(connection: &RespPipeline, host: &str) -> Result<Self, TargetError> {
        let info = connection.execute(&[b"INFO", b"cluster"]).await?;
        if !info.text().unwrap_or_default().contains("cluster_enabled:1") {
            return Ok(Self { spans: vec![(SLOTS - 1, 0)], addresses: vec![host.to_owned()] });
        }
        let mut nodes = Self { spans: Vec::new(), addresses: Vec::new() };
        let unreadable = || target_error(format!("{host} returned an unreadable CLUSTER SLOTS reply"), false);
        for span in connection.execute(&[b"CLUSTER", b"SLOTS"]).await?.items() {
            let [_, last_slot, master, ..] = span.items() else { return Err(unreadable()) };
            let [at, port, ..] = master.items() else { return Err(unreadable()) };
            let (last_slot, port) = last_slot.number().zip(port.number()).ok_or_else(unreadable)?;
            let address = format!("{}:{port}", at.text().ok_or_else(unreadable)?);
            let node = nodes.addresses.iter().position(|existing| *existing == address).unwrap_or_else(|| {
                nodes.addresses.push(address);
                nodes.addresses.len() - 1
            });
            nodes.spans.push((u16::try_from(last_slot).map_err(|_| unreadable())?, node));
        }
        nodes.spans.sort_unstable();
        if nodes.spans.last().map(|(last_slot, _)| *last_slot) != Some(SLOTS - 1) {
            return Err(target_error(format!("the cluster of {host} does not serve all slots"), false));
        }
        Ok(nodes)
    }

    pub(super) const fn count(&self) -> usize {
        self.addresses.len()
    }

    /// Index of the server that owns a key.
    pub(super) fn node_of(&self, name: &str) -> usize {
        if self.spans.len() == 1 {
            return self.spans[0].1;
        }
        let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(name, |(tag, _)| tag);
        let slot = crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % SLOTS;
        let at = self.spans.partition_point(|(last_slot, _)| *last_slot < slot);
        self.spans[at].1
    }
}

/// Connections to every server, each opened on first use.
pub(super) struct BaselineConnections {
    pipes: Vec<OnceCell<RespPipeline>>,
    mode: WriteMode,
}

impl BaselineConnections {
    pub(super) fn new(nodes: &BaselineNodes, mode: WriteMode) -> Self {
        Self { pipes: (0..nodes.count()).map(|_| OnceCell::new()).collect(), mode }
    }

    pub(super) async fn connection(&self, nodes: &BaselineNodes, node: usize) -> Result<&RespPipeline, TargetError> {
        self.pipes[node].get_or_try_init(|| RespPipeline::open(&nodes.addresses[node], self.mode)).await
    }
}

/// Claim or release in progress, which counts its round trips.
pub(super) struct BaselineSession<'a> {
    pub(super) base: &'a BaselineState,
    connections: &'a BaselineConnections,
    trips: u64,
}

impl<'a> BaselineSession<'a> {
    pub(super) const fn new(base: &'a BaselineState, connections: &'a BaselineConnections) -> Self {
        Self { base, connections, trips: 0 }
    }

    /// Adds the round trips of this session to a counter.
    pub(super) fn add_round_trips(&self, to: &AtomicU64) {
        to.fetch_add(self.trips, Ordering::Relaxed);
    }

    /// Counts an attempt that has to be repeated.
    pub(super) fn count_retry(&self) {
        self.base.trips.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends one command to the server that owns `name`: one round trip.
    pub(super) async fn execute(&mut self, name: &str, words: &[&[u8]]) -> Result<RespValue, TargetError> {
        self.trips += 1;
        let connection = self.connections.connection(&self.base.nodes, self.base.nodes.node_of(name)).await?;
        connection.execute(words).await
    }

    /// Sends several commands to one server at once: one round trip.
    pub(super) async fn pipeline(
        &mut self,
        node: usize,
        commands: &[Vec<&[u8]>],
    ) -> Result<PipelineReplies, TargetError> {
        self.trips += 1;
        let connection = self.connections.connection(&self.base.nodes, node).await?;
        connection.call(commands.len(), |out| commands.iter().for_each(|words| encode_command(out, words))).await
    }

    /// Sends commands whose second word is a key, each to its server: one round trip per server. Returns the replies
    /// in order.
    pub(super) async fn execute_each<'w>(
        &mut self,
        commands: impl Iterator<Item = Vec<&'w str>>,
    ) -> Result<Vec<RespValue>, TargetError> {
        let mut by_node: Vec<NodeCommands<'_>> = vec![NodeCommands::default(); self.base.nodes.count()];
        let mut count = 0;
        for words in commands {
            let (positions, commands) = &mut by_node[self.base.nodes.node_of(words[1])];
            positions.push(count);
            commands.push(words.into_iter().map(str::as_bytes).collect());
            count += 1;
        }
        let mut replies = vec![RespValue::Nil; count];
        for (node, (positions, commands)) in by_node.iter().enumerate() {
            if commands.is_empty() {
                continue;
            }
            for (position, reply) in positions.iter().zip(self.pipeline(node, commands).await?) {
                replies[*position] = reply.into_result()?;
            }
        }
        Ok(replies)
    }

    /// Writes values under keys: one round trip per server that owns any of them.
    pub(super) async fn set_all<'w>(
        &mut self,
        rows: impl Iterator<Item = (&'w str, &'w str)>,
    ) -> Result<(), TargetError> {
        self.execute_each(rows.map(|(name, value)| vec!["SET", name, value])).await.map(drop)
    }

    /// Lists all keys that match a pattern: one round trip per page and server.
    pub(super) async fn names(&mut self, pattern: &str) -> Result<Vec<String>, TargetError> {
        let mut names = Vec::new();
        for node in 0..self.base.nodes.count() {
            let mut cursor = "0".to_owned();
            loop {
                let page = self.page(node, &cursor, pattern).await?;
                names.extend(page.1);
                cursor = page.0;
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(names)
    }

    /// Reads one page of a server's keys that match a pattern, and the cursor of the next page; `0` ends the scan.
    pub(super) async fn page(
        &mut self,
        node: usize,
        cursor: &str,
        pattern: &str,
    ) -> Result<(String, Vec<String>), TargetError> {
        let words: Vec<&[u8]> = vec![b"SCAN", cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
        let page = self.pipeline(node, &[words]).await?.pop().unwrap_or(RespValue::Nil).into_result()?;
        let [next, names] = page.items() else { return Err(target_error("an invalid SCAN reply".into(), false)) };
        let text = |value: &RespValue| value.text().unwrap_or_default().to_owned();
        Ok((text(next), names.items().iter().map(text).collect()))
    }
}
