//! Logs: to stderr, as lines for people or as JSON. What is logged is `RUST_LOG`'s.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

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
    Taken(String),
}

/// Starts logging; once per process.
///
/// # Errors
/// A filter that cannot be read.
pub fn start(format: LogFormat) -> Result<(), TelemetryError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).map_err(|error| error.to_string()),
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(EnvFilter::new(FILTER_DEFAULT)),
        Err(error) => Err(error.to_string()),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter.map_err(TelemetryError::Filter)?)
        .with_writer(std::io::stderr)
        // Told of on stderr, a line that cannot be written there (its terminal is gone, its disk full) would panic.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| TelemetryError::Taken(error.to_string()))
}
