//! Reads what a packing run plays: nodes, requests, the order in which they arrive, and the order among equal nodes.
//! Plain or gzip, which the first bytes tell.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::args::PackArgs;
use crate::trace;
use hotpool::engine::placement::bin_packing::{FleetIndex, GPU_MILLI, RequestShape, ResourceRequest, most_frequent};
use hotpool::limits::{AMOUNT_MAX, GPUS_MAX};
use hotpool::model::{GpuCapacity, WorkerCapacity};

/// Most nodes, and most requests: the orders are lists of 16-bit numbers.
const ROWS_MAX: usize = 1 << 16;
const MIB: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackInputError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}")]
    Io(String, std::io::Error),
    /// It is no CSV with the columns that are needed.
    #[error("{0}: {1}")]
    Csv(String, csv::Error),
    /// It says what cannot be.
    #[error("{0}: {1}")]
    Content(String, String),
}

/// A line of the nodes.
#[derive(Debug, Clone, Deserialize)]
struct NodeCsvRow {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: u32,
    model: String,
}

/// A line of the requests. `gpu_spec` is missing where no request names a model.
#[derive(Debug, Clone, Deserialize)]
struct RequestCsvRow {
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u16,
    gpu_milli: u16,
    #[serde(default)]
    gpu_spec: String,
}

/// A request, and the words by which its models were given.
#[derive(Debug, Clone)]
pub struct PackRequest {
    /// What it needs of one node.
    pub need: ResourceRequest,
    /// As the file has it: `A|B`, or empty.
    pub models: Arc<str>,
}

impl PackRequest {
    /// Thousandths of cards that it asks for.
    #[must_use]
    pub fn gpu_milli(&self) -> u64 {
        u64::from(self.need.gpu_milli) * u64::from(self.need.gpu_count)
    }
}

/// What a run plays.
#[derive(Debug)]
pub struct PackInput {
    /// Name and capacity of each node, in the order in which equal ones are taken.
    pub nodes: Vec<(String, WorkerCapacity)>,
    /// Numbers of models are those of every fleet that was [prepared](Self::fleet).
    pub requests: Vec<PackRequest>,
    /// Rows of `requests`, as they arrive.
    pub events: Vec<u16>,
    /// Every model, in the order of its number.
    models: Vec<String>,
}

impl PackInput {
    /// Reads all files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(args: &PackArgs) -> Result<Self, PackInputError> {
        let mut nodes: Vec<NodeCsvRow> = rows(&args.nodes)?;
        nodes.sort_by(|one, two| one.sn.cmp(&two.sn));
        let lines: Vec<RequestCsvRow> = rows(&args.requests)?;
        let events =
            args.events.as_deref().map_or_else(|| Ok((0..lines.len()).map(|n| n as u16).collect()), numbers)?;
        if let (Some(file), Some(event)) = (&args.events, events.iter().find(|&&event| event as usize >= lines.len())) {
            return Err(content_error(file, format!("row {event} of {} requests", lines.len())));
        }
        let ordered = match &args.rank {
            None => nodes,
            Some(file) => sort_by_rank(nodes, &numbers(file)?).map_err(|problem| content_error(file, problem))?,
        };
        let mut names = FleetIndex::default();
        let nodes: Vec<_> = ordered.into_iter().map(|node| capacity(&args.nodes, node)).collect::<Result<_, _>>()?;
        // The models of nodes first, in the order of their names.
        let mut models: Vec<String> =
            nodes.iter().filter_map(|(_, capacity)| capacity.gpu.as_ref().map(|gpu| gpu.model.to_string())).collect();
        models.sort_unstable();
        models.dedup();
        for line in lines.iter().filter(|line| line.num_gpu > 0) {
            let named = line.gpu_spec.split('|').filter(|name| !name.is_empty());
            named.for_each(|name| {
                if !models.iter().any(|known| known == name) {
                    models.push(name.to_owned())
                }
            });
        }
        models.iter().for_each(|model| _ = names.model(model));
        let requests = (1..).zip(lines).map(|(row, line)| request(&args.requests, row, line, &names));
        Ok(Self { requests: requests.collect::<Result<_, _>>()?, nodes, events, models })
    }

    /// A fleet without workers that knows the models by the numbers that `requests` use.
    #[must_use]
    pub fn fleet(&self) -> FleetIndex {
        let mut fleet = FleetIndex::default();
        self.models.iter().for_each(|model| _ = fleet.model(model));
        fleet
    }

    /// All cards of all nodes.
    #[must_use]
    pub fn cards(&self) -> u64 {
        self.nodes.iter().filter_map(|(_, capacity)| capacity.gpu.as_ref()).map(|gpu| u64::from(gpu.count)).sum()
    }

    /// What the requests typically ask for.
    #[must_use]
    pub fn request_mix(&self) -> Vec<(RequestShape, f64)> {
        let mut counts: BTreeMap<RequestShape, usize> = BTreeMap::new();
        self.requests.iter().for_each(|request| *counts.entry(RequestShape::of(&request.need)).or_default() += 1);
        most_frequent(counts.iter().map(|(kind, &count)| (kind, count)))
    }
}

fn content_error(file: &Path, problem: String) -> PackInputError {
    PackInputError::Content(file.display().to_string(), problem)
}

fn rows<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Vec<T>, PackInputError> {
    let name = || file.display().to_string();
    let text = trace::open(file).map_err(|error| PackInputError::Io(name(), error))?;
    let rows: Result<Vec<T>, _> = csv::Reader::from_reader(text).deserialize().take(ROWS_MAX + 1).collect();
    let rows = rows.map_err(|error| PackInputError::Csv(name(), error))?;
    match rows.len() {
        0 => Err(content_error(file, "has no rows".into())),
        1..=ROWS_MAX => Ok(rows),
        _ => Err(content_error(file, format!("has more than {ROWS_MAX} rows"))),
    }
}

/// Little-endian 16-bit numbers.
fn numbers(file: &Path) -> Result<Vec<u16>, PackInputError> {
    let failed = |error| PackInputError::Io(file.display().to_string(), error);
    let mut bytes = Vec::new();
    // A thousand rounds through the largest list of requests; more is no list of this kind.
    let limit = (ROWS_MAX * 2_000) as u64;
    trace::open(file).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() || bytes.len() % 2 != 0 {
        return Err(content_error(file, format!("has {} bytes, which is no list of 16-bit numbers", bytes.len())));
    }
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}

/// The nodes in the order of their ranks.
fn sort_by_rank(nodes: Vec<NodeCsvRow>, ranks: &[u16]) -> Result<Vec<NodeCsvRow>, String> {
    if ranks.len() != nodes.len() {
        return Err(format!("ranks {} nodes, there are {}", ranks.len(), nodes.len()));
    }
    let mut ranked: Vec<(u16, NodeCsvRow)> = ranks.iter().copied().zip(nodes).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    match ranked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(twice) => Err(format!("gives rank {} twice", twice[0].0)),
        None => Ok(ranked.into_iter().map(|(_, node)| node).collect()),
    }
}

fn capacity(file: &Path, node: NodeCsvRow) -> Result<(String, WorkerCapacity), PackInputError> {
    let gpu = (node.gpu > 0).then(|| GpuCapacity { model: node.model.into(), count: node.gpu });
    let memory_bytes = node.memory_mib.saturating_mul(MIB);
    let capacity = WorkerCapacity { cpu_milli: node.cpu_milli, memory_bytes, slots: 0, gpu };
    match capacity.check(&node.sn) {
        Ok(()) => Ok((node.sn, capacity)),
        Err(refusal) => Err(content_error(file, refusal.to_string())),
    }
}

fn request(file: &Path, row: usize, line: RequestCsvRow, names: &FleetIndex) -> Result<PackRequest, PackInputError> {
    let wrong = |problem: &str| content_error(file, format!("request {row}: {problem}"));
    let memory_bytes = line.memory_mib.saturating_mul(MIB);
    if line.cpu_milli > AMOUNT_MAX || memory_bytes > AMOUNT_MAX || u32::from(line.num_gpu) > GPUS_MAX {
        return Err(wrong("asks for more than any worker may have"));
    }
    let card_milli = if line.num_gpu == 0 { 0 } else { line.gpu_milli.min(GPU_MILLI) };
    if line.num_gpu > 0 && (card_milli == 0 || (line.num_gpu > 1 && card_milli < GPU_MILLI)) {
        return Err(wrong("asks for shares of several cards, or for nothing of one"));
    }
    let words = if line.num_gpu == 0 { "" } else { line.gpu_spec.as_str() };
    let models = words.split('|').filter_map(|name| names.known_model(name)).collect();
    let cards = line.num_gpu;
    let need = ResourceRequest {
        cpu_milli: line.cpu_milli,
        memory_bytes,
        slots: 0,
        gpu_count: cards,
        gpu_milli: card_milli,
        models,
        until_ms: 0,
    };
    Ok(PackRequest { need, models: words.into() })
}
