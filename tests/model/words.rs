//! The engine's words in those of the oracle.

use hotpool::engine::{Answer, Effect, End, Grant, Named};
use hotpool::model::{ClaimId, ClaimState};

use crate::oracle::{self, Ended, Said};

/// What ended, and the one answer, which comes last.
pub fn split(effects: &[Effect<()>]) -> (Vec<Ended>, Option<Answer>) {
    let (mut ended, mut answer, mut remembered) = (Vec::new(), None, None);
    for effect in effects {
        assert!(answer.is_none(), "the answer is the last effect");
        match effect {
            Effect::Reply { answer: said, .. } => answer = Some(said.clone()),
            Effect::Committed { .. } => panic!("there are no gangs here"),
            Effect::Ended { id, fence, end, .. } => {
                let state = match end {
                    End::Lost => Some(ClaimState::Lost),
                    End::Uncleaned => Some(ClaimState::Releasing),
                    _ => None,
                };
                let expected = state.map(|state| (id.clone(), *fence, state));
                assert_eq!(remembered.take(), expected, "what is remembered is what ends next");
                ended.push((id.key().to_owned(), *fence, *end));
            }
            Effect::Remember { id, grant } => remembered = Some((id.clone(), grant.place.fence, grant.state)),
            Effect::Adopted { .. } | Effect::Silent { .. } | Effect::Deleted { .. } => {}
        }
    }
    (ended, answer)
}

pub fn end_word(end: End) -> &'static str {
    match end {
        End::Released => "released",
        End::Swept => "swept",
        End::Expired => "expired",
        End::Uncleaned => "uncleaned",
        End::Missing => "missing",
        End::Lost => "lost",
        End::GivenBack => "given back",
    }
}

pub fn engine_names(named: Vec<oracle::Named>) -> Vec<Named> {
    let id = |key: &str| ClaimId::new("ns", "t", key).unwrap();
    let name = |(key, fence, vacant): oracle::Named| Named { id: id(&key), fence, vacant, pending: false };
    named.into_iter().map(name).collect()
}

fn fences(named: &[Named]) -> Vec<u64> {
    let mut fences: Vec<u64> = named.iter().map(|name| name.fence).collect();
    fences.sort_unstable();
    fences
}

pub fn said_by(answer: Answer) -> Said {
    let held = |grant: &Grant| (grant.worker.spec.id.to_string(), grant.state == ClaimState::Active);
    match answer {
        Answer::Granted(grant) => {
            assert_eq!(grant.deadline_ms, None, "it runs from when the answer leaves");
            let (worker, active) = held(&grant);
            Said::Granted { worker, active }
        }
        Answer::Held(grant) => {
            let (worker, _) = held(&grant);
            Said::Held { worker, state: grant.state, deadline: grant.deadline_ms }
        }
        Answer::NoRoom => Said::NoRoom,
        Answer::Gone => Said::Gone,
        Answer::GivenBack => Said::GivenBack,
        Answer::ActiveElsewhere => Said::ActiveElsewhere,
        Answer::Released => Said::Released,
        Answer::Registered { created, worker, stop } => {
            Said::Registered { created, busy: worker.axes.busy, stop: fences(&stop) }
        }
        Answer::Heard { claims, stop, late_for } => {
            let claims = claims.iter().map(|(_, grant)| grant.place.fence).collect();
            Said::Heard { claims, stop: fences(&stop), late_for }
        }
        Answer::Steered(look) => Said::Steered(look.axes),
        Answer::Draining => Said::Draining,
        Answer::Settling { left_ms } => Said::Settling(left_ms),
        Answer::Cleared { cleared, suspect } => Said::Cleared { cleared, suspect },
        Answer::UnknownIncarnation { known } => Said::Newer { known },
        Answer::Releasing => Said::Releasing,
        Answer::TtlTooLong { max_ms } => Said::TtlTooLong(max_ms),
        Answer::NotActive => Said::NotActive,
        Answer::Deleted => Said::Deleted,
        Answer::UnknownWorker => Said::Unknown,
        Answer::StaleIncarnation { known, deleted } => Said::Stale { known, deleted },
        Answer::NoFit(why) => Said::NoFit(why),
        Answer::Mismatch => Said::Mismatch,
        Answer::Committed(_) | Answer::Members(_) => panic!("there are no gangs here"),
        Answer::Evicted | Answer::Promised => panic!("nobody waits here"),
        Answer::TooManyModels | Answer::OtherCards { .. } => panic!("not in an exclusive pool"),
        Answer::ShardFull => panic!("not that many"),
    }
}
