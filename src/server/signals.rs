//! Signals that would end the process by default, and that are sent for other reasons: supervisors and log rotation have
//! settings or log files read again by them, a terminal that closes sends one to all that it started. None of them ends the
//! service. One that is ignored when the process starts, as `nohup` has it, stays ignored.

use futures::future::join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Harmless signals, caught from when this is made until the process ends.
#[derive(Debug)]
pub struct HarmlessSignals(Vec<(&'static str, Signal)>);

impl HarmlessSignals {
    /// Catches them; before anything that takes time. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system does not let signals be caught.
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

    /// Logs each that comes, and each that has come since they were caught.
    pub async fn log(self) {
        join_all(self.0.into_iter().map(async |(name, mut signal)| {
            while signal.recv().await.is_some() {
                tracing::info!(signal = name, "{name}: nothing is done; settings are read at the start, SIGTERM stops");
            }
        }))
        .await;
    }
}

const fn mask_of(kind: SignalKind) -> u64 {
    1 << (kind.as_raw_value() - 1)
}

/// Signals that this process ignores, a bit each.
fn ignored_mask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
