//! Lists and deletions that shards carry out in slices: every remaining row appears once while others come and go, and
//! a deleted pool leaves nothing.

use std::collections::BTreeMap;

use hotpool::limits;
use hotpool::model::{AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimState};
use hotpool::scheduler::DeleteMode;

use crate::world::{Seeded, World, id, name, spec, worker};

/// Number of claims in one shard: several slices.
const CLAIMS: usize = 3 * limits::SLICE_ENTRIES as usize + 77;

fn of_tenant(tenant: &str, key: &str) -> ClaimRequest {
    ClaimRequest::new(ClaimId::new("ns", tenant, key).unwrap(), name("p"))
}

/// Sets up one shard with as many claims as workers: few of one tenant, half of another.
async fn full() -> World {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &[]).await;
    for from in (0..CLAIMS).step_by(1_000) {
        let to = CLAIMS.min(from + 1_000);
        let workers = (from..to).map(|i| worker(&format!("w{i}")).into()).collect();
        let registered = world.s.register_batch(&name("p"), workers).await.unwrap();
        assert!(registered.iter().all(Result::is_ok));
        let tenant = |i: usize| match i {
            _ if i % 1_000 == 7 => "few",
            _ if i.is_multiple_of(2) => "even",
            _ => "odd",
        };
        let claimed = world.s.claim_batch((from..to).map(|i| of_tenant(tenant(i), &format!("k{i}"))).collect()).await;
        assert!(claimed.iter().all(Result::is_ok));
    }
    world
}

#[tokio::test]
async fn w08_filtered_lists_of_claims_have_each_once_while_others_come_and_go() {
    let world = full().await;
    let mut random = Seeded(3);
    let filters = [
        ("none", ClaimFilter { tenant: Some("nobody".into()), ..ClaimFilter::default() }),
        ("few", ClaimFilter { tenant: Some("few".into()), ..ClaimFilter::default() }),
        ("half", ClaimFilter { tenant: Some("even".into()), ..ClaimFilter::default() }),
        ("all", ClaimFilter::default()),
    ];
    let mut fresh = 0;
    for (what, filter) in filters {
        for limit in [7, 100, 1_000] {
            let wanted = |id: &ClaimId| filter.tenant.as_ref().is_none_or(|tenant| id.tenant() == tenant);
            let before = world.listed(&ClaimFilter::default()).await;
            // Claims with a number divisible by nine are released while the list is read.
            let goes = |id: &ClaimId| id.key()[1..].parse::<usize>().unwrap().is_multiple_of(9);
            let mut going: Vec<_> = before.iter().filter(|(id, _)| goes(id)).cloned().collect();
            let stays: Vec<_> = before.iter().filter(|(id, _)| !goes(id) && wanted(id)).map(|(id, _)| id).collect();
            let mut seen: BTreeMap<String, usize> = BTreeMap::new();
            let mut token = None;
            loop {
                let page = world.s.list_claims(&filter, token.as_deref(), limit).await.unwrap();
                assert!(page.items.len() <= limit);
                for claim in page.items {
                    assert!(wanted(&claim.id), "{} is not wanted", claim.id.key());
                    *seen.entry(claim.id.key().to_owned()).or_default() += 1;
                }
                token = page.next;
                if token.is_none() {
                    break;
                }
                for _ in 0..random.below(4) {
                    let Some((id, fence)) = going.pop() else { break };
                    world.s.release(&id, fence).await.unwrap();
                    // Another claim takes its ordinal, which may have been passed or not.
                    fresh += 1;
                    let key = format!("k{}", 9 * (CLAIMS + fresh));
                    world.s.claim(of_tenant(["even", "odd"][fresh % 2], &key)).await.unwrap();
                }
            }
            assert!(stays.iter().all(|id| seen.get(id.key()) == Some(&1)), "{what}, {limit} a page");
            assert!(seen.values().all(|&times| times == 1), "{what}: nothing is listed twice");
        }
    }
}

#[tokio::test]
async fn w08_a_list_can_be_limited_to_one_worker() {
    let world = full().await;
    for number in [0, 1_500, CLAIMS - 1] {
        let filter = ClaimFilter {
            namespace: Some("ns".into()),
            pool: Some("p".into()),
            worker: Some(format!("w{number}")),
            ..ClaimFilter::default()
        };
        let page = world.s.list_claims(&filter, None, 10).await.unwrap();
        let on: Vec<_> = page.items.iter().map(|claim| claim.worker.spec.id.as_str()).collect();
        assert_eq!((on, page.next), (vec![format!("w{number}").as_str()], None));
        let other = ClaimFilter { tenant: Some("nobody".into()), ..filter };
        assert_eq!(world.s.list_claims(&other, None, 10).await.unwrap().items, []);
    }
}

/// L03: more workers than one run ends.
#[tokio::test]
async fn l03_a_forced_deletion_ends_all_claims_of_a_large_shard() {
    let world = full().await;
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    for number in [0, 1, 7, CLAIMS - 1] {
        for tenant in ["few", "even", "odd"] {
            let id = ClaimId::new("ns", tenant, &format!("k{number}")).unwrap();
            let state = world.s.get_claim(&id).await.map(|claim| claim.state);
            assert!(matches!(state, Err(_) | Ok(ClaimState::Lost)), "{state:?}");
        }
    }
    world.is_clean().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let claim = world.s.claim(ClaimRequest::new(id("k"), name("p"))).await.unwrap().claim;
    assert_eq!(claim.worker.spec.id.as_str(), "w");
}

impl World {
    async fn listed(&self, filter: &ClaimFilter) -> Vec<(ClaimId, u64)> {
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let page = self.s.list_claims(filter, token.as_deref(), 1_000).await.unwrap();
            all.extend(page.items.into_iter().map(|claim| (claim.id, claim.fence)));
            token = page.next;
            if token.is_none() {
                return all;
            }
        }
    }
}
