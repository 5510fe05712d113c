//! The servers, which of them has a name, and who speaks to them. A cluster is asked once where its slots are; one that
//! moves them while it is loaded answers with errors.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OnceCell;

use super::BaselineState;
use crate::http_calls::target_error;
use crate::resp_pipeline::{Replies, RespPipeline, RespValue, encode_command};
use crate::stats::TargetError;

/// Names that a server is asked to look at for one page of a listing.
const SCAN_COUNT: &[u8] = b"1000";
/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// Commands for one server, and the places of their answers among all.
type NodeCommands<'w> = (Vec<usize>, Vec<Vec<&'w [u8]>>);

/// Where the slots are.
pub(super) struct BaselineNodes {
    /// Last slot of a span, and whose it is; ascending.
    spans: Vec<(u16, usize)>,
    addresses: Vec<String>,
}

impl BaselineNodes {
    /// Asks the first host that answers.
    pub(super) async fn discover(hosts: &[String]) -> Result<Self, TargetError> {
        let mut last = target_error("no host to ask".into(), false);
        for host in hosts {
            match RespPipeline::open(host, false).await {
                Ok(pipe) => return Self::ask(&pipe, host).await,
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn ask(pipe: &RespPipeline, host: &str) -> Result<Self, TargetError> {
        let about = pipe.execute(&[b"INFO", b"cluster"]).await?;
        if !about.text().unwrap_or_default().contains("cluster_enabled:1") {
            return Ok(Self { spans: vec![(SLOTS - 1, 0)], addresses: vec![host.to_owned()] });
        }
        let mut nodes = Self { spans: Vec::new(), addresses: Vec::new() };
        let unclear = || target_error(format!("{host} does not say where its slots are"), false);
        for span in pipe.execute(&[b"CLUSTER", b"SLOTS"]).await?.items() {
            let [_, last, master, ..] = span.items() else { return Err(unclear()) };
            let [at, port, ..] = master.items() else { return Err(unclear()) };
            let (last, port) = last.number().zip(port.number()).ok_or_else(unclear)?;
            let address = format!("{}:{port}", at.text().ok_or_else(unclear)?);
            let node = nodes.addresses.iter().position(|known| *known == address).unwrap_or_else(|| {
                nodes.addresses.push(address);
                nodes.addresses.len() - 1
            });
            nodes.spans.push((u16::try_from(last).map_err(|_| unclear())?, node));
        }
        nodes.spans.sort_unstable();
        if nodes.spans.last().map(|(last, _)| *last) != Some(SLOTS - 1) {
            return Err(target_error(format!("the cluster of {host} does not serve all slots"), false));
        }
        Ok(nodes)
    }

    pub(super) const fn count(&self) -> usize {
        self.addresses.len()
    }

    /// Whose a name with a hash tag is.
    pub(super) fn node_of(&self, name: &str) -> usize {
        if self.spans.len() == 1 {
            return self.spans[0].1;
        }
        let tag = name.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(name, |(tag, _)| tag);
        let slot = crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % SLOTS;
        let at = self.spans.partition_point(|(last, _)| *last < slot);
        self.spans[at].1
    }
}

/// A connection to each server, opened when it is first needed.
pub(super) struct BaselineConnections {
    pipes: Vec<OnceCell<RespPipeline>>,
    coalesces: bool,
}

impl BaselineConnections {
    /// `gathers`: many use it at once.
    pub(super) fn new(nodes: &BaselineNodes, gathers: bool) -> Self {
        Self { pipes: (0..nodes.count()).map(|_| OnceCell::new()).collect(), coalesces: gathers }
    }

    pub(super) async fn connection(&self, nodes: &BaselineNodes, node: usize) -> Result<&RespPipeline, TargetError> {
        self.pipes[node].get_or_try_init(|| RespPipeline::open(&nodes.addresses[node], self.coalesces)).await
    }
}

/// One claim or release under way: speaks on a lane, and counts.
pub(super) struct BaselineSession<'a> {
    pub(super) base: &'a BaselineState,
    lane: &'a BaselineConnections,
    trips: u64,
}

impl<'a> BaselineSession<'a> {
    pub(super) const fn new(base: &'a BaselineState, lane: &'a BaselineConnections) -> Self {
        Self { base, lane, trips: 0 }
    }

    /// Adds its round trips to what they were for.
    pub(super) fn add_round_trips(&self, to: &AtomicU64) {
        to.fetch_add(self.trips, Ordering::Relaxed);
    }

    /// An attempt came to nothing.
    pub(super) fn count_retry(&self) {
        self.base.trips.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// One command, to the server of `name`: one round trip.
    pub(super) async fn execute(&mut self, name: &str, words: &[&[u8]]) -> Result<RespValue, TargetError> {
        self.trips += 1;
        let pipe = self.lane.connection(&self.base.nodes, self.base.nodes.node_of(name)).await?;
        pipe.execute(words).await
    }

    /// Several commands to one server, in one writing: one round trip.
    pub(super) async fn pipeline(&mut self, node: usize, commands: &[Vec<&[u8]>]) -> Result<Replies, TargetError> {
        self.trips += 1;
        let pipe = self.lane.connection(&self.base.nodes, node).await?;
        pipe.call(commands.len(), |out| commands.iter().for_each(|words| encode_command(out, words))).await
    }

    /// Commands whose second word is a name, each to its server: a round trip for each server. Their answers in order.
    pub(super) async fn execute_each<'w>(
        &mut self,
        commands: impl Iterator<Item = Vec<&'w str>>,
    ) -> Result<Vec<RespValue>, TargetError> {
        let mut of_node: Vec<NodeCommands<'_>> = vec![NodeCommands::default(); self.base.nodes.count()];
        let mut count = 0;
        for words in commands {
            let (places, commands) = &mut of_node[self.base.nodes.node_of(words[1])];
            places.push(count);
            commands.push(words.into_iter().map(str::as_bytes).collect());
            count += 1;
        }
        let mut answers = vec![RespValue::Nil; count];
        for (node, (places, commands)) in of_node.iter().enumerate() {
            if commands.is_empty() {
                continue;
            }
            for (place, reply) in places.iter().zip(self.pipeline(node, commands).await?) {
                answers[*place] = reply.into_result()?;
            }
        }
        Ok(answers)
    }

    /// Writes values under names: a round trip for each server that has one of them.
    pub(super) async fn set_all<'w>(
        &mut self,
        rows: impl Iterator<Item = (&'w str, &'w str)>,
    ) -> Result<(), TargetError> {
        self.execute_each(rows.map(|(name, value)| vec!["SET", name, value])).await.map(drop)
    }

    /// All names that match a pattern: a round trip for each page of each server.
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

    /// One page of a server's names that match, and where the next one begins; `0`: there is none.
    pub(super) async fn page(
        &mut self,
        node: usize,
        cursor: &str,
        pattern: &str,
    ) -> Result<(String, Vec<String>), TargetError> {
        let words: Vec<&[u8]> = vec![b"SCAN", cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT];
        let page = self.pipeline(node, &[words]).await?.pop().unwrap_or(RespValue::Nil).into_result()?;
        let [next, names] = page.items() else { return Err(target_error("a page that is none".into(), false)) };
        let text = |value: &RespValue| value.text().unwrap_or_default().to_owned();
        Ok((text(next), names.items().iter().map(text).collect()))
    }
}
