//! What the process and its runtime use, read when somebody scrapes. The `process_*` names and their help are those of
//! Prometheus' client libraries.

use metrics::Gauge;
use metrics_process::Collector;
use tokio::runtime::Handle;

use super::{BUILD_INFO, RUNTIME_BUSY, RUNTIME_QUEUE, RUNTIME_TASKS, RUNTIME_WORKERS};

pub(super) struct ProcessGauges {
    process: Collector,
    build_info: Gauge,
    workers: Gauge,
    tasks: Gauge,
    queue: Gauge,
    busy: Gauge,
}

impl ProcessGauges {
    /// Made once the recorder is installed.
    pub(super) fn new() -> Self {
        let process = Collector::default();
        process.describe();
        Self {
            process,
            build_info: metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")),
            workers: metrics::gauge!(RUNTIME_WORKERS),
            tasks: metrics::gauge!(RUNTIME_TASKS),
            queue: metrics::gauge!(RUNTIME_QUEUE),
            busy: metrics::gauge!(RUNTIME_BUSY),
        }
    }

    pub(super) fn observe(&self) {
        self.process.collect();
        self.build_info.set(1.0);
        let Ok(runtime) = Handle::try_current() else { return };
        let runtime = runtime.metrics();
        let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64());
        self.workers.set(runtime.num_workers() as f64);
        self.tasks.set(runtime.num_alive_tasks() as f64);
        self.queue.set(runtime.global_queue_depth() as f64);
        self.busy.set(busy.sum::<f64>());
    }
}
