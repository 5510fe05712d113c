//! What happens while a load runs: workers that come and go, a server that stops answering.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::ask::Fleet;
use super::pace::Stop;
use super::pipe::Pipe;
use super::run::Plan;
use super::scenario::{Churn, Failover, Outage};
use super::stats::Failure;
use super::target::Target;

/// Deletes the oldest workers and registers as many new ones, again and again until the end. Every change is made whole.
///
/// # Errors
/// The target's.
pub async fn churn(target: &Target, plan: &Plan, start: Instant, stop: &Stop) -> Result<()> {
    let Some(Churn { every_ms, workers }) = plan.churn else { return Ok(()) };
    let Fleet { workers: mut next, slots, .. } = plan.fleet;
    let mut oldest = 0;
    for change in 1.. {
        let due = start + Duration::from_millis(every_ms) * change;
        if due >= start + plan.duration || next.saturating_add(workers) > plan.workers_ever() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = stop.wait() => break,
        }
        target.register(next..next + workers, slots).await.context("cannot register more workers")?;
        for worker in oldest..oldest + workers {
            target.delete_worker(worker).await.context("cannot delete a worker")?;
        }
        next += workers;
        oldest += workers;
    }
    Ok(())
}

/// Makes a Redis server stop answering when it is time.
///
/// # Errors
/// It is not there, or does not allow it.
pub async fn fail_over(plan: &Plan, start: Instant, stop: &Stop) -> Result<()> {
    let Some((Failover { at_s, how }, address)) = &plan.failover else { return Ok(()) };
    tokio::select! {
        () = tokio::time::sleep_until((start + Duration::from_secs_f64(*at_s)).into()) => {}
        () = stop.wait() => return Ok(()),
    }
    let said = |failure: Failure| anyhow!("cannot stop {address}: {failure}");
    let pipe = Pipe::open(address, false).await.map_err(said)?;
    match how {
        Outage::PauseMs(ms) => {
            pipe.ask(&[b"CLIENT", b"PAUSE", ms.to_string().as_bytes(), b"ALL"]).await.map_err(said)?;
        }
        // Who ends does not answer.
        Outage::Shutdown => drop(pipe.ask(&[b"SHUTDOWN", b"NOSAVE"]).await),
    }
    Ok(())
}
