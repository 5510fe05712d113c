//! Disruptions during a load: workers that are replaced, and a Redis server that stops responding.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::claim_input::TargetPool;
use super::pacing::StopSignal;
use super::resp_pipeline::{RespPipeline, WriteMode};
use super::run::RunPlan;
use super::scenario::{OutageKind, RedisFailover, WorkerChurn};
use super::stats::TargetError;
use super::target::LoadTarget;

/// Replaces the oldest workers by as many new ones, periodically until the run ends. A change that has begun is
/// completed.
///
/// # Errors
/// Fails if the target rejects a change.
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

/// Makes a Redis server stop responding at its scheduled time.
///
/// # Errors
/// Fails if the server is unreachable or rejects the command.
pub async fn run_failover(plan: &RunPlan, start: Instant, stop: &StopSignal) -> Result<()> {
    let Some((RedisFailover { at_s, how }, address)) = &plan.failover else { return Ok(()) };
    tokio::select! {
        () = tokio::time::sleep_until((start + Duration::from_secs_f64(*at_s)).into()) => {}
        () = stop.wait() => return Ok(()),
    }
    let failed = |failure: TargetError| anyhow!("cannot stop {address}: {failure}");
    let redis = RespPipeline::open(address, WriteMode::Immediate).await.map_err(failed)?;
    match how {
        OutageKind::PauseMs(ms) => {
            redis.execute(&[b"CLIENT", b"PAUSE", ms.to_string().as_bytes(), b"ALL"]).await.map_err(failed)?;
        }
        // A server that shuts down does not reply.
        OutageKind::Shutdown => drop(redis.execute(&[b"SHUTDOWN", b"NOSAVE"]).await),
    }
    Ok(())
}
