//! The engine's words in those of the oracle.

use hotpool::engine::{ClaimGrant, Effect, EndReason, EngineReply, ReportedClaim};
use hotpool::model::{ClaimId, ClaimState};

use crate::oracle::{self, Ended, Said};

/// What ended, and the one answer, which comes last.
pub fn split(effects: &[Effect<()>]) -> (Vec<Ended>, Option<EngineReply>) {
    let (mut ended, mut answer, mut remembered) = (Vec::new(), None, None);
    for effect in effects {
        assert!(answer.is_none(), "the answer is the last effect");
        match effect {
            Effect::Reply { answer: said, .. } => answer = Some(said.clone()),
            Effect::ClaimCommitted { .. } => panic!("there are no gangs here"),
            Effect::ClaimEnded { id, fence, end, .. } => {
                let state = match end {
                    EndReason::Lost => Some(ClaimState::Lost),
                    EndReason::CleanupTimedOut => Some(ClaimState::Releasing),
                    _ => None,
                };
                let expected = state.map(|state| (id.clone(), *fence, state));
                assert_eq!(remembered.take(), expected, "what is remembered is what ends next");
                ended.push((id.key().to_owned(), *fence, *end));
            }
            Effect::RetainEnded { id, grant } => remembered = Some((id.clone(), grant.handle.fence, grant.state)),
            Effect::ClaimAdopted { .. } | Effect::WorkerLost { .. } | Effect::WorkerDeleted { .. } => {}
        }
    }
    (ended, answer)
}

pub fn end_word(end: EndReason) -> &'static str {
    match end {
        EndReason::Released => "released",
        EndReason::ReservationExpired => "swept",
        EndReason::Expired => "expired",
        EndReason::CleanupTimedOut => "uncleaned",
        EndReason::NotReported => "missing",
        EndReason::Lost => "lost",
        EndReason::RolledBack => "given back",
    }
}

pub fn engine_names(named: Vec<oracle::Named>) -> Vec<ReportedClaim> {
    let id = |key: &str| ClaimId::new("ns", "t", key).unwrap();
    let name = |(key, fence, vacant): oracle::Named| ReportedClaim {
        id: id(&key),
        fence,
        key_vacant: vacant,
        predecessor_pending: false,
    };
    named.into_iter().map(name).collect()
}

fn fences(named: &[ReportedClaim]) -> Vec<u64> {
    let mut fences: Vec<u64> = named.iter().map(|name| name.fence).collect();
    fences.sort_unstable();
    fences
}

pub fn said_by(answer: EngineReply) -> Said {
    let held = |grant: &ClaimGrant| (grant.worker.spec.id.to_string(), grant.state == ClaimState::Active);
    match answer {
        EngineReply::Granted(grant) => {
            assert_eq!(grant.deadline_ms, None, "it runs from when the answer leaves");
            let (worker, active) = held(&grant);
            Said::Granted { worker, active }
        }
        EngineReply::Held(grant) => {
            let (worker, _) = held(&grant);
            Said::Held { worker, state: grant.state, deadline: grant.deadline_ms }
        }
        EngineReply::NoCapacity => Said::NoRoom,
        EngineReply::StaleHandle => Said::Gone,
        EngineReply::RolledBack => Said::GivenBack,
        EngineReply::ActiveConflict => Said::ActiveElsewhere,
        EngineReply::Released => Said::Released,
        EngineReply::Registered { created, worker, stop } => {
            Said::Registered { created, busy: worker.conditions.busy, stop: fences(&stop) }
        }
        EngineReply::HeartbeatHandled { claims, stop, superseded_by: late_for } => {
            let claims = claims.iter().map(|(_, grant)| grant.handle.fence).collect();
            Said::Heard { claims, stop: fences(&stop), late_for }
        }
        EngineReply::WorkerUpdated(look) => Said::Steered(look.conditions),
        EngineReply::Draining => Said::Draining,
        EngineReply::Quarantined { left_ms } => Said::Settling(left_ms),
        EngineReply::Cleared { cleared, suspect } => Said::Cleared { cleared, suspect },
        EngineReply::UnknownIncarnation { known } => Said::Newer { known },
        EngineReply::Releasing => Said::Releasing,
        EngineReply::TtlTooLong { max_ms } => Said::TtlTooLong(max_ms),
        EngineReply::NotActive => Said::NotActive,
        EngineReply::Deleted { .. } => Said::Deleted,
        EngineReply::UnknownWorker => Said::Unknown,
        EngineReply::StaleIncarnation { known, deleted } => Said::Stale { known, deleted },
        EngineReply::NotPlaced(why) => Said::NoFit(why),
        EngineReply::ResourceMismatch => Said::Mismatch,
        EngineReply::Committed(_) | EngineReply::GangMembers(_) => panic!("there are no gangs here"),
        EngineReply::Evicted | EngineReply::WorkerReserved => panic!("nobody waits here"),
        EngineReply::TooManyModels | EngineReply::GpuModelMismatch { .. } => panic!("not in an exclusive pool"),
        EngineReply::ShardFull => panic!("not that many"),
    }
}
