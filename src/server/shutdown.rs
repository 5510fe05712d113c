//! Signals that stop the service.

use tokio::signal::unix::{SignalKind, signal};

/// Returns a future that resolves at the first SIGTERM or SIGINT. Call it before anything starts: from then on the signals no
/// longer kill the process.
///
/// # Errors
/// Error of the operating system if the signals cannot be caught.
pub fn shutdown_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: stopping");
    })
}
