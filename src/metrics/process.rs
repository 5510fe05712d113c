//! Resources that the process and its runtime use, read at each scrape. The `process_*` names and their help texts are those
//! of Prometheus' client libraries.

use std::io;

use metrics::Gauge;
use metrics_process::Collector;
use tokio::runtime::Handle;

use super::exposition::write_heading;
use super::{ALL, BUILD_INFO, RUNTIME_BUSY, RUNTIME_QUEUE, RUNTIME_TASKS, RUNTIME_WORKERS};

pub(super) struct ProcessGauges {
    process: Collector,
    build_info: Gauge,
    workers: Gauge,
    tasks: Gauge,
    queue: Gauge,
}

impl ProcessGauges {
    /// Creates the gauges; call it after the recorder is installed.
    pub(super) fn new() -> Self {
        let process = Collector::default();
        process.describe();
        Self {
            process,
            build_info: metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")),
            workers: metrics::gauge!(RUNTIME_WORKERS),
            tasks: metrics::gauge!(RUNTIME_TASKS),
            queue: metrics::gauge!(RUNTIME_QUEUE),
        }
    }

    pub(super) fn observe(&self) {
        self.process.collect();
        self.build_info.set(1.0);
        let Ok(runtime) = Handle::try_current() else { return };
        let runtime = runtime.metrics();
        self.workers.set(runtime.num_workers() as f64);
        self.tasks.set(runtime.num_alive_tasks() as f64);
        self.queue.set(runtime.global_queue_depth() as f64);
    }
}

/// Writes the counter `hotpool_runtime_busy_seconds_total`. Counters of the `metrics` facade are whole numbers, so it is rendered
/// here.
pub(super) fn write_runtime_busy(out: &mut impl io::Write) -> io::Result<()> {
    let Ok(runtime) = Handle::try_current() else { return Ok(()) };
    let runtime = runtime.metrics();
    let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64());
    let definition = ALL.iter().find(|metric| metric.name == RUNTIME_BUSY).expect("the table has every name");
    let mut heading = String::new();
    write_heading(definition, &mut heading);
    writeln!(out, "{heading}{RUNTIME_BUSY} {}", busy.sum::<f64>())
}
