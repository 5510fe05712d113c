//! W01, W06, W08: workers register, leave, return, and are listed.

use std::collections::BTreeMap;

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimState, WorkerId, WorkerSpec};

use crate::world::{LOADING, Seeded, World, done, id, name, request, spec, worker};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

fn incarnation(id: &str, incarnation: u64) -> WorkerSpec {
    WorkerSpec { incarnation, ..worker(id) }
}

#[tokio::test]
async fn w01_a_new_incarnation_ends_the_claims_of_the_old_one() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let old = world.hold("p", "k").await;
    let registered = world.s.register(&name("p"), incarnation("w", 1)).await.unwrap();
    assert!(!registered.created && !registered.worker.busy);
    assert_eq!(world.counts("p").await, (1, 0, 0));
    assert_eq!(world.state("k").await, ClaimState::Lost);
    assert_eq!(world.s.confirm(&id("k"), old).await, Err(GONE));
    let rows = world.rows("p").await;
    world.s.release(&id("k"), old).await.unwrap();
    assert_eq!((world.counts("p").await, world.rows("p").await), ((1, 0, 0), rows), "not credited twice");
    let new = world.hold("p", "k").await;
    assert!(new > old);
    assert_eq!(world.s.release(&id("k"), old).await, Err(RequestError::FenceMismatch));
    // An older incarnation of it reports something late.
    assert!(matches!(
        world.s.register(&name("p"), incarnation("w", 0)).await,
        Err(RequestError::FailedPrecondition(_))
    ));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, new);
    // The same incarnation registers again unchanged: nothing happens.
    let rows = world.rows("p").await;
    world.s.register(&name("p"), incarnation("w", 1)).await.unwrap();
    assert_eq!(world.rows("p").await, rows);
}

#[tokio::test]
async fn w01_a_deleted_worker_comes_back_only_with_a_new_incarnation() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let old = world.hold("p", "k").await;
    let w = WorkerId::new("w").unwrap();
    world.s.delete_worker(&name("p"), &w).await.unwrap();
    assert_eq!(world.s.delete_worker(&name("p"), &w).await, Err(RequestError::NotFound(ObjectKind::Worker)));
    assert_eq!(world.state("k").await, ClaimState::Lost);
    assert!(matches!(world.s.register(&name("p"), worker("w")).await, Err(RequestError::FailedPrecondition(_))));
    // Also after a restart, and for the whole time.
    let world = world.restarted().await;
    world.pass(59_999).await;
    assert!(matches!(world.s.register(&name("p"), worker("w")).await, Err(RequestError::FailedPrecondition(_))));
    assert!(world.s.register(&name("p"), incarnation("w", 1)).await.unwrap().created);
    world.s.release(&id("k"), old).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0));
    world.hold("p", "k").await;
    world.s.delete_worker(&name("p"), &w).await.unwrap();
    world.pass(60_000).await;
    assert!(world.s.register(&name("p"), worker("w")).await.unwrap().created, "it is forgotten after a minute");
    assert_eq!(world.restarted().await.counts("p").await, (1, 0, 0));
}

#[tokio::test]
async fn w06_a_pool_that_is_loading_is_not_called_empty() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    let again = World::closed(world.gate().copy().await);
    again.gate().hold_loads();
    let s = again.s.clone();
    let start = tokio::spawn(async move { s.start().await.unwrap() });
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert_eq!(again.claim("p", "other").await, Err(LOADING));
        assert_eq!(again.s.get_claim(&id("k")).await, Err(LOADING));
        assert_eq!(again.s.claim_batch(vec![request("p", "other")]).await, [Err(LOADING)]);
        assert!(!again.s.readiness().ready);
    }
    again.gate().open_gate();
    done(start).await;
    assert_eq!(again.s.get_claim(&id("k")).await.unwrap().fence, fence);
    assert!(again.s.readiness().ready);
}

#[tokio::test]
async fn w06_an_empty_directory_starts_ready() {
    let world = World::on_store().await;
    assert!(world.s.readiness().ready);
    assert_eq!(world.s.list_pools(None, 10).await.unwrap().items, []);
}

#[tokio::test]
async fn w08_pages_show_every_row_that_stays_once_while_others_come_and_go() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut random = Seeded(seed);
        let world = World::on_memory().await;
        let stay: Vec<_> = (0..50).map(|i| format!("stay{i}")).collect();
        let go: Vec<_> = (0..50).map(|i| format!("go{i}")).collect();
        let both: Vec<_> = stay.iter().chain(&go).map(String::as_str).collect();
        world.pool("p", spec(4, AckLevel::Durable), &both).await;
        let limit = 1 + random.below(9) as usize;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let (mut token, mut left, mut fresh) = (None::<String>, go, 0);
        loop {
            let page = world.s.list_workers(&name("p"), token.as_deref(), limit).await.unwrap();
            assert!(page.items.len() <= limit);
            for row in page.items {
                *seen.entry(row.registration.spec.id.to_string()).or_default() += 1;
            }
            token = page.next;
            if token.is_none() {
                break;
            }
            // Between two pages: some leave, one registers, and takes the ordinal of a forgotten one.
            for _ in 0..random.below(4) {
                if let Some(id) = left.pop() {
                    world.s.delete_worker(&name("p"), &WorkerId::new(&id).unwrap()).await.unwrap();
                }
            }
            if random.below(3) == 0 {
                world.pass(60_000).await;
            }
            if fresh < 60 {
                world.add("p", &[&format!("new{fresh}")]).await;
                fresh += 1;
            }
        }
        assert!(stay.iter().all(|id| seen.get(id) == Some(&1)), "{seen:?}");
        assert!(seen.iter().filter(|(id, _)| id.starts_with("go")).all(|(_, &times)| times == 1));
    }
}
