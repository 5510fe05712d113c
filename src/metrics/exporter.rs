//! Exporter of all metrics in Prometheus' text format, for the service's scrapes.

use std::io;
use std::sync::Arc;

use metrics::{KeyName, Recorder as _};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

use super::process::{ProcessGauges, write_runtime_busy};
use super::{ALL, MetricDefinition, MetricKind, PoolMetrics, write_pools};

/// Reason for which no exporter could be installed.
#[derive(Debug, thiserror::Error)]
pub enum MetricsInstallError {
    /// Error of the exporter in a bucket list.
    #[error("metrics: {0}")]
    Build(#[from] BuildError),
    /// Recorder of the program that is installed already.
    #[error("metrics: another recorder is installed in this process")]
    RecorderInstalled,
}

/// Exporter that renders scrapes and bounds the memory of histograms. Cheap to clone.
#[derive(Clone)]
pub struct MetricsExporter {
    handle: PrometheusHandle,
    process: Arc<ProcessGauges>,
}

impl MetricsExporter {
    /// Writes all metrics of the process and of these pools in Prometheus' text format. Metrics of the runtime are those of the
    /// calling task's runtime.
    ///
    /// # Errors
    /// Errors of `out`.
    pub fn write(&self, pools: &[Arc<PoolMetrics>], out: &mut impl io::Write) -> io::Result<()> {
        self.process.observe();
        self.handle.render_to_write(out)?;
        write_runtime_busy(out)?;
        write_pools(pools, out)
    }

    /// Moves raw histogram samples into their buckets; call it every few seconds, or they accumulate.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Installs the exporter of this process, or returns the installed one. Call it before the first metric is used, and
/// [`MetricsExporter::upkeep`] regularly from then on.
///
/// # Errors
/// [`MetricsInstallError::RecorderInstalled`] if the program has a recorder of its own.
pub fn install() -> Result<MetricsExporter, MetricsInstallError> {
    static INSTALLED: Mutex<Option<MetricsExporter>> = Mutex::new(None);
    let mut installed = INSTALLED.lock();
    if let Some(exporter) = &*installed {
        return Ok(exporter.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        // Histograms of pools are rendered by `write_pools`.
        if let MetricKind::Histogram(buckets) = metric.kind
            && !metric.labels.contains(&"pool")
        {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    for MetricDefinition { name, kind, help, .. } in ALL.iter().filter(|metric| !metric.labels.contains(&"pool")) {
        let name = KeyName::from_const_str(name);
        match kind {
            MetricKind::Counter => recorder.describe_counter(name, None, (*help).into()),
            MetricKind::Gauge => recorder.describe_gauge(name, None, (*help).into()),
            MetricKind::Histogram(_) => recorder.describe_histogram(name, None, (*help).into()),
        }
    }
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| MetricsInstallError::RecorderInstalled)?;
    let exporter = MetricsExporter { handle, process: Arc::new(ProcessGauges::new()) };
    Ok(installed.insert(exporter).clone())
}
