//! Input of a packing run: nodes, requests, the order of arrivals, and the order among equal nodes. Files are plain or
//! gzip, recognized by their first bytes.

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

/// Largest number of nodes and of requests: the orders are lists of 16-bit numbers.
const ROWS_MAX: usize = 1 << 16;
const MIB: u64 = 1 << 20;

/// Reasons why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackInputError {
    /// Input file that cannot be read.
    #[error("cannot read {0}: {1}")]
    Io(String, std::io::Error),
    /// Invalid CSV, or missing columns.
    #[error("{0}: {1}")]
    Csv(String, csv::Error),
    /// Values outside of their limits.
    #[error("{0}: {1}")]
    Content(String, String),
}

/// Row of the file of nodes.
#[derive(Debug, Clone, Deserialize)]
struct NodeCsvRow {
    sn: String,
    cpu_milli: u64,
    memory_mib: u64,
    gpu: u32,
    model: String,
}

/// Row of the file of requests. `gpu_spec` is missing if no request names a model.
#[derive(Debug, Clone, Deserialize)]
struct RequestCsvRow {
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u16,
    gpu_milli: u16,
    #[serde(default)]
    gpu_spec: String,
}

/// Request of a packing run, with the GPU models that it names.
#[derive(Debug, Clone)]
pub struct PackRequest {
    /// Resources that the request needs on one node.
    pub need: ResourceRequest,
    /// GPU models as in the file: `A|B`, or empty.
    pub models: Arc<str>,
}

impl PackRequest {
    /// Total thousandths of GPUs requested.
    #[must_use]
    pub fn gpu_milli(&self) -> u64 {
        u64::from(self.need.gpu_milli) * u64::from(self.need.gpu_count)
    }
}

/// Input of a packing run.
#[derive(Debug)]
pub struct PackInput {
    /// Name and capacity of each node, in the order in which equal nodes are picked.
    pub nodes: Vec<(String, WorkerCapacity)>,
    /// Requests of the file; their model ids match every fleet made by [`Self::fleet`].
    pub requests: Vec<PackRequest>,
    /// Rows of `requests` in the order of arrival.
    pub events: Vec<u16>,
    /// GPU models in the order of their ids.
    models: Vec<String>,
}

impl PackInput {
    /// Reads all input files.
    ///
    /// # Errors
    /// Fails with the first file that cannot be used.
    pub fn read(args: &PackArgs) -> Result<Self, PackInputError> {
        let mut nodes: Vec<NodeCsvRow> = rows(&args.nodes)?;
        nodes.sort_by(|one, two| one.sn.cmp(&two.sn));
        let requests_csv: Vec<RequestCsvRow> = rows(&args.requests)?;
        let events =
            args.events.as_deref().map_or_else(|| Ok((0..requests_csv.len()).map(|n| n as u16).collect()), numbers)?;
        if let (Some(file), Some(event)) =
            (&args.events, events.iter().find(|&&event| event as usize >= requests_csv.len()))
        {
            return Err(content_error(file, format!("row {event} of {} requests", requests_csv.len())));
        }
        let ordered = match &args.rank {
            None => nodes,
            Some(file) => sort_by_rank(file, nodes, &numbers(file)?)?,
        };
        let mut fleet = FleetIndex::default();
        let nodes: Vec<_> = ordered.into_iter().map(|node| capacity(&args.nodes, node)).collect::<Result<_, _>>()?;
        // Models of nodes come first, sorted by name.
        let mut models: Vec<String> =
            nodes.iter().filter_map(|(_, capacity)| capacity.gpu.as_ref().map(|gpu| gpu.model.to_string())).collect();
        models.sort_unstable();
        models.dedup();
        for row_csv in requests_csv.iter().filter(|row_csv| row_csv.num_gpu > 0) {
            let model_names = row_csv.gpu_spec.split('|').filter(|name| !name.is_empty());
            model_names.for_each(|name| {
                if !models.iter().any(|existing| existing == name) {
                    models.push(name.to_owned())
                }
            });
        }
        models.iter().for_each(|model| _ = fleet.model(model));
        let requests = (1..).zip(requests_csv).map(|(row, row_csv)| request(&args.requests, row, row_csv, &fleet));
        Ok(Self { requests: requests.collect::<Result<_, _>>()?, nodes, events, models })
    }

    /// Creates an empty fleet with the model ids that `requests` use.
    #[must_use]
    pub fn fleet(&self) -> FleetIndex {
        let mut fleet = FleetIndex::default();
        self.models.iter().for_each(|model| _ = fleet.model(model));
        fleet
    }

    /// Number of GPUs over all nodes.
    #[must_use]
    pub fn gpus(&self) -> u64 {
        self.nodes.iter().filter_map(|(_, capacity)| capacity.gpu.as_ref()).map(|gpu| u64::from(gpu.count)).sum()
    }

    /// Mix of the most frequent request shapes.
    #[must_use]
    pub fn request_mix(&self) -> Vec<(RequestShape, f64)> {
        let mut counts: BTreeMap<RequestShape, usize> = BTreeMap::new();
        self.requests.iter().for_each(|request| *counts.entry(RequestShape::of(&request.need)).or_default() += 1);
        most_frequent(counts.iter().map(|(shape, &count)| (shape, count)))
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

/// Reads a list of little-endian 16-bit numbers.
fn numbers(file: &Path) -> Result<Vec<u16>, PackInputError> {
    let io_error = |error| PackInputError::Io(file.display().to_string(), error);
    let mut bytes = Vec::new();
    // Enough for a thousand passes over the largest file of requests.
    let limit = (ROWS_MAX * 2_000) as u64;
    trace::open(file).map_err(io_error)?.take(limit).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.is_empty() || bytes.len() % 2 != 0 {
        return Err(content_error(file, format!("{} bytes are not a list of 16-bit numbers", bytes.len())));
    }
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}

/// Sorts the nodes by their ranks.
fn sort_by_rank(file: &Path, nodes: Vec<NodeCsvRow>, ranks: &[u16]) -> Result<Vec<NodeCsvRow>, PackInputError> {
    if ranks.len() != nodes.len() {
        return Err(content_error(file, format!("ranks {} nodes, there are {}", ranks.len(), nodes.len())));
    }
    let mut ranked: Vec<(u16, NodeCsvRow)> = ranks.iter().copied().zip(nodes).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    match ranked.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(duplicate) => Err(content_error(file, format!("gives rank {} twice", duplicate[0].0))),
        None => Ok(ranked.into_iter().map(|(_, node)| node).collect()),
    }
}

fn capacity(file: &Path, node: NodeCsvRow) -> Result<(String, WorkerCapacity), PackInputError> {
    let gpu = (node.gpu > 0).then(|| GpuCapacity { model: node.model.into(), count: node.gpu });
    let memory_bytes = node.memory_mib.saturating_mul(MIB);
    let capacity = WorkerCapacity { cpu_milli: node.cpu_milli, memory_bytes, slots: 0, gpu };
    match capacity.check(&node.sn) {
        Ok(()) => Ok((node.sn, capacity)),
        Err(error) => Err(content_error(file, error.to_string())),
    }
}

fn request(file: &Path, row: usize, row_csv: RequestCsvRow, fleet: &FleetIndex) -> Result<PackRequest, PackInputError> {
    let invalid = |problem: &str| content_error(file, format!("request {row}: {problem}"));
    let memory_bytes = row_csv.memory_mib.saturating_mul(MIB);
    if row_csv.cpu_milli > AMOUNT_MAX || memory_bytes > AMOUNT_MAX || u32::from(row_csv.num_gpu) > GPUS_MAX {
        return Err(invalid("exceeds the limits of a worker's capacity"));
    }
    let gpu_milli = if row_csv.num_gpu == 0 { 0 } else { row_csv.gpu_milli.min(GPU_MILLI) };
    if row_csv.num_gpu > 0 && (gpu_milli == 0 || (row_csv.num_gpu > 1 && gpu_milli < GPU_MILLI)) {
        return Err(invalid("gpu_milli must be 1 to 1000, and 1000 with several GPUs"));
    }
    let model_spec = if row_csv.num_gpu == 0 { "" } else { row_csv.gpu_spec.as_str() };
    let models = model_spec.split('|').filter_map(|name| fleet.known_model(name)).collect();
    let gpus = row_csv.num_gpu;
    let need = ResourceRequest {
        cpu_milli: row_csv.cpu_milli,
        memory_bytes,
        slots: 0,
        gpu_count: gpus,
        gpu_milli,
        models,
        until_ms: 0,
    };
    Ok(PackRequest { need, models: model_spec.into() })
}
