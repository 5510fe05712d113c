//! Signals that would end the process by default but are sent for other reasons: by supervisors and log rotation to reload
//! settings or log files, and by a closing terminal. None of them ends the service. A signal that is ignored when the process
//! starts, as under `nohup`, stays ignored.

use futures::future::join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Harmless signals, which are caught from the creation of this value until the process ends.
#[derive(Debug)]
pub struct HarmlessSignals(Vec<(&'static str, Signal)>);

impl HarmlessSignals {
    /// Catches the signals. Call it before any slow work, in a tokio runtime.
    ///
    /// # Errors
    /// Error of the operating system if the signals cannot be caught.
    pub fn catch() -> std::io::Result<Self> {
        let all = [
            ("SIGHUP", SignalKind::hangup()),
            ("SIGUSR1", SignalKind::user_defined1()),
            ("SIGUSR2", SignalKind::user_defined2()),
            ("SIGALRM", SignalKind::alarm()),
        ];
        let ignored = ignored_mask();
        let caught = all.into_iter().filter(|(_, kind)| ignored & mask_of(*kind) == 0);
        Ok(Self(caught.map(|(name, kind)| Ok((name, signal(kind)?))).collect::<std::io::Result<_>>()?))
    }

    /// Logs each signal, including those received since they were caught.
    pub async fn log(self) {
        join_all(self.0.into_iter().map(async |(name, mut signal)| {
            while signal.recv().await.is_some() {
                tracing::info!(signal = name, "{name}: ignored; settings are read at startup, send SIGTERM to stop");
            }
        }))
        .await;
    }
}

const fn mask_of(kind: SignalKind) -> u64 {
    1 << (kind.as_raw_value() - 1)
}

/// Mask of the signals that this process ignores.
fn ignored_mask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
