//! Logs: to stderr, as lines for people or as JSON. What is logged is `RUST_LOG`'s.

use std::io::IsTerminal as _;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::server::config::LogFormat;

/// What is logged when `RUST_LOG` does not say. ractor tells of every actor's start and stop.
const FILTER_DEFAULT: &str = "info,ractor=warn";

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` cannot be read.
    #[error("RUST_LOG: {0}")]
    Filter(String),
    /// The program has set up logging already.
    #[error("logging: {0}")]
    AlreadyInstalled(String),
}

/// Starts logging; once per process.
///
/// # Errors
/// A filter that cannot be read.
pub fn start(format: LogFormat) -> Result<(), TelemetryError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => parse_filter(&filter),
        Ok(_) | Err(std::env::VarError::NotPresent) => parse_filter(FILTER_DEFAULT),
        Err(error) => Err(TelemetryError::Filter(error.to_string())),
    }?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // Told of on stderr, a line that cannot be written there (its terminal is gone, its disk full) would panic.
        .log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let started = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    started.map_err(|error| TelemetryError::AlreadyInstalled(error.to_string()))
}

/// Reads directives such as `info,hotpool=debug`: a level for all targets, or for those that begin with a name.
fn parse_filter(filter: &str) -> Result<Targets, TelemetryError> {
    let wrong = |text: String| TelemetryError::Filter(text);
    for directive in filter.split(',').map(str::trim) {
        if directive.starts_with('=') {
            return Err(wrong(format!("{directive:?} names no target before the =")));
        }
        if directive.contains(['[', '{']) {
            return Err(wrong(format!("{directive:?} chooses by a span; only targets and levels are understood")));
        }
    }
    filter.parse().map_err(|error: tracing_subscriber::filter::ParseError| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_by_target_and_anything_else_is_refused_by_name() {
        for good in ["info", "off", FILTER_DEFAULT, "warn, hotpool::change=debug", "hotpool=trace"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for (bad, named) in [("info,=", "\"=\""), ("info,hotpool[claim]=debug", "span"), ("hotpool=loud", "level")] {
            let refused = parse_filter(bad).expect_err(bad).to_string();
            assert!(refused.starts_with("RUST_LOG: ") && refused.contains(named), "{bad}: {refused}");
        }
    }
}
