//! Translation of the engine's replies into those of the oracle.

use hotpool::engine::{ClaimGrant, Effect, EndReason, EngineReply, ReportedClaim};
use hotpool::model::{ClaimId, ClaimState};

use crate::oracle::{self, Ended, Reply};

/// Claims that the effects end.
pub fn ended_claims(effects: &[Effect]) -> Vec<Ended> {
    let (mut ended, mut remembered) = (Vec::new(), None);
    for effect in effects {
        match effect {
            Effect::ClaimCommitted { .. } => panic!("this test has no gangs"),
            Effect::ClaimEnded { id, fence, end, .. } => {
                let state = match end {
                    EndReason::Lost => Some(ClaimState::Lost),
                    EndReason::CleanupTimedOut => Some(ClaimState::Releasing),
                    _ => None,
                };
                let expected = state.map(|state| (id.clone(), *fence, state));
                assert_eq!(remembered.take(), expected, "the retained claim is the next to end");
                ended.push((id.key().to_owned(), *fence, *end));
            }
            Effect::RetainEnded { id, grant } => remembered = Some((id.clone(), grant.handle.fence, grant.state)),
            Effect::ClaimAdopted { .. } | Effect::WorkerLost { .. } | Effect::WorkerDeleted { .. } => {}
        }
    }
    ended
}

pub fn end_name(end: EndReason) -> &'static str {
    match end {
        EndReason::Released => "released",
        EndReason::ReservationExpired => "reservation expired",
        EndReason::Expired => "expired",
        EndReason::CleanupTimedOut => "cleanup timed out",
        EndReason::NotReported => "not reported",
        EndReason::Lost => "lost",
        EndReason::RolledBack => "rolled back",
    }
}

pub fn to_reported_claims(reports: Vec<oracle::Report>) -> Vec<ReportedClaim> {
    let id = |key: &str| ClaimId::new("ns", "t", key).unwrap();
    let report = |(key, fence, vacant): oracle::Report| ReportedClaim {
        id: id(&key),
        fence,
        key_vacant: vacant,
        predecessor_pending: false,
    };
    reports.into_iter().map(report).collect()
}

fn fences(reports: &[ReportedClaim]) -> Vec<u64> {
    let mut fences: Vec<u64> = reports.iter().map(|report| report.fence).collect();
    fences.sort_unstable();
    fences
}

pub fn to_reply(answer: EngineReply) -> Reply {
    let live = |grant: &ClaimGrant| (grant.worker.spec.id.to_string(), grant.state == ClaimState::Active);
    match answer {
        EngineReply::Granted(grant) => {
            assert_eq!(grant.deadline_ms, None, "the deadline starts when the reply is sent");
            let (worker, active) = live(&grant);
            Reply::Granted { worker, active }
        }
        EngineReply::Held(grant) => {
            let (worker, _) = live(&grant);
            Reply::Held { worker, state: grant.state, deadline: grant.deadline_ms }
        }
        EngineReply::NoCapacity => Reply::NoCapacity,
        EngineReply::StaleHandle => Reply::StaleHandle,
        EngineReply::RolledBack => Reply::RolledBack,
        EngineReply::ActiveConflict => Reply::ActiveConflict,
        EngineReply::Released => Reply::Released,
        EngineReply::Registered { created, worker, stop } => {
            Reply::Registered { created, busy: worker.conditions.busy, stop: fences(&stop) }
        }
        EngineReply::HeartbeatHandled { claims, stop, superseded_by: late_for } => {
            let claims = claims.iter().map(|(_, grant)| grant.handle.fence).collect();
            Reply::HeartbeatHandled { claims, stop: fences(&stop), late_for }
        }
        EngineReply::WorkerUpdated(snapshot) => Reply::Updated(snapshot.conditions),
        EngineReply::Draining => Reply::Draining,
        EngineReply::Quarantined { left_ms } => Reply::Quarantined(left_ms),
        EngineReply::Cleared { cleared, suspect } => Reply::Cleared { cleared, suspect },
        EngineReply::UnknownIncarnation { known } => Reply::UnknownIncarnation { known },
        EngineReply::Releasing => Reply::Releasing,
        EngineReply::TtlTooLong { max_ms } => Reply::TtlTooLong(max_ms),
        EngineReply::NotActive => Reply::NotActive,
        EngineReply::Deleted { .. } => Reply::Deleted,
        EngineReply::UnknownWorker => Reply::Unknown,
        EngineReply::StaleIncarnation { known, deleted } => Reply::StaleIncarnation { known, deleted },
        EngineReply::NotPlaced(failure) => Reply::NotPlaced(failure),
        EngineReply::ResourceMismatch => Reply::ResourceMismatch,
        EngineReply::Committed(_) | EngineReply::GangMembers(_) => panic!("this test has no gangs"),
        EngineReply::Evicted | EngineReply::WorkerReserved(_) => panic!("no claim waits here"),
        EngineReply::TooManyModels | EngineReply::GpuModelMismatch { .. } => panic!("impossible in an exclusive pool"),
        EngineReply::ShardFull => panic!("the shard is not full"),
    }
}
