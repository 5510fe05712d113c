//! Logs to stderr, as text for people or as JSON, filtered by `RUST_LOG`.

use std::io::IsTerminal as _;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::server::config::LogFormat;

/// Filter without `RUST_LOG`. ractor logs the start and stop of every actor at info.
const FILTER_DEFAULT: &str = "info,ractor=warn";

/// Reason for which logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Invalid value of `RUST_LOG`.
    #[error("RUST_LOG: {0}")]
    Filter(String),
    /// Logging that the program has set up already.
    #[error("logging: {0}")]
    AlreadyInstalled(String),
}

/// Starts logging, once per process.
///
/// # Errors
/// [`TelemetryError`] for an invalid filter, or if logging is set up already.
pub fn start(format: LogFormat) -> Result<(), TelemetryError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => parse_filter(&filter),
        Ok(_) | Err(std::env::VarError::NotPresent) => parse_filter(FILTER_DEFAULT),
        Err(error) => Err(TelemetryError::Filter(error.to_string())),
    }?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // Reporting a failed write to stderr on stderr itself would panic (closed terminal, full disk).
        .log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let started = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    started.map_err(|error| TelemetryError::AlreadyInstalled(error.to_string()))
}

/// Parses directives such as `info,hotpool=debug`: a level for all targets, or for those that begin with a name.
fn parse_filter(filter: &str) -> Result<Targets, TelemetryError> {
    let invalid = |text: String| TelemetryError::Filter(text);
    for directive in filter.split(',').map(str::trim) {
        if directive.starts_with('=') {
            return Err(invalid(format!("{directive:?} names no target before the =; use target=level")));
        }
        if directive.contains(['[', '{']) {
            return Err(invalid(format!("{directive:?} filters by a span; only targets and levels are supported")));
        }
    }
    filter.parse().map_err(|error: tracing_subscriber::filter::ParseError| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_levels_by_target_and_anything_else_is_rejected_by_name() {
        for good in ["info", "off", FILTER_DEFAULT, "warn, hotpool::change=debug", "hotpool=trace"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for (bad, named) in [("info,=", "\"=\""), ("info,hotpool[claim]=debug", "span"), ("hotpool=loud", "level")] {
            let refused = parse_filter(bad).expect_err(bad).to_string();
            assert!(refused.starts_with("RUST_LOG: ") && refused.contains(named), "{bad}: {refused}");
        }
    }
}
