//! What happens while a load runs: workers that come and go, a server that stops answering.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::claim_input::TargetPool;
use super::pacing::StopSignal;
use super::resp_pipeline::RespPipeline;
use super::run::RunPlan;
use super::scenario::{OutageKind, RedisFailover, WorkerChurn};
use super::stats::TargetError;
use super::target::LoadTarget;

/// Deletes the oldest workers and registers as many new ones, again and again until the end. Every change is made whole.
///
/// # Errors
/// The target's.
pub async fn run_churn(target: &LoadTarget, plan: &RunPlan, start: Instant, stop: &StopSignal) -> Result<()> {
    let Some(WorkerChurn { every_ms, workers }) = plan.churn else { return Ok(()) };
    let TargetPool { workers: mut next, slots, .. } = plan.fleet;
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
pub async fn run_failover(plan: &RunPlan, start: Instant, stop: &StopSignal) -> Result<()> {
    let Some((RedisFailover { at_s, how }, address)) = &plan.failover else { return Ok(()) };
    tokio::select! {
        () = tokio::time::sleep_until((start + Duration::from_secs_f64(*at_s)).into()) => {}
        () = stop.wait() => return Ok(()),
    }
    let said = |failure: TargetError| anyhow!("cannot stop {address}: {failure}");
    let pipe = RespPipeline::open(address, false).await.map_err(said)?;
    match how {
        OutageKind::PauseMs(ms) => {
            pipe.execute(&[b"CLIENT", b"PAUSE", ms.to_string().as_bytes(), b"ALL"]).await.map_err(said)?;
        }
        // Who ends does not answer.
        OutageKind::Shutdown => drop(pipe.execute(&[b"SHUTDOWN", b"NOSAVE"]).await),
    }
    Ok(())
}
