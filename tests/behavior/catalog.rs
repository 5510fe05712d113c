//! Changes of pools and quotas that the store did not accept in time: rejected, and not in force after a restart
//! either.

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, PoolSpec, Quota};
use hotpool::scheduler::DeleteMode;

use crate::world::{STORE, World, name, spec, until};

/// Real time for which a change waits for the store here, in milliseconds.
const SHORT_MS: u64 = 50;

fn quick() -> PoolSpec {
    PoolSpec { reserve_ms: 1_234, ..spec(1, AckLevel::Durable) }
}

fn claims(max: u64) -> Quota {
    Quota { claims: Some(max), ..Quota::default() }
}

/// Sets up the pools `p` and `q` and a quota of the namespace, on a store that accepts nothing more.
async fn stalled() -> World {
    let world = World::on_store().await;
    for pool in ["p", "q"] {
        world.pool(pool, spec(1, AckLevel::Durable), &[]).await;
    }
    world.s.put_quota("ns", None, claims(1)).await.unwrap();
    let copy = world.gate().copy().await;
    let stalled = World::closed_with(copy, SHORT_MS);
    stalled.s.start().await.unwrap();
    stalled.gate().hold_all();
    stalled
}

#[tokio::test]
async fn s11_a_specification_that_was_not_stored_in_time_is_not_in_force_after_a_restart() {
    let world = stalled().await;
    let before = world.s.get_pool(&name("p")).await.unwrap();
    assert_eq!(world.s.put_pool(name("p"), quick()).await, Err(STORE));
    let patched = world.s.update_pool(name("p"), None, |_| Ok(quick())).await;
    assert_eq!(patched, Err(STORE));
    let after = world.s.get_pool(&name("p")).await.unwrap();
    assert_eq!((&after.spec, after.version), (&before.spec, before.version));
    // The old specification is not durable before the store has it again.
    assert_eq!(world.s.put_pool(name("p"), before.spec.clone()).await, Err(STORE));
    world.gate().open_gate();
    until("the old one is durable", async || world.s.put_pool(name("p"), before.spec.clone()).await.is_ok()).await;
    let again = world.crashed().await.s.get_pool(&name("p")).await.unwrap();
    assert_eq!((again.spec, again.version), (before.spec, before.version));
}

#[tokio::test]
async fn s11_changes_of_pools_and_quotas_that_are_not_stored_in_time_are_undone() {
    let world = stalled().await;
    let before = world.s.get_pool(&name("q")).await.unwrap();
    assert_eq!(world.s.put_pool(name("new"), quick()).await, Err(STORE));
    assert_eq!(world.s.delete_pool(&name("q"), DeleteMode::RequireEmpty).await, Err(STORE));
    assert_eq!(world.s.put_quota("ns", None, claims(2)).await.unwrap_err(), STORE);
    assert_eq!(world.s.put_quota("ns", Some("t"), claims(3)).await.unwrap_err(), STORE);
    world.gate().open_gate();
    let again = world.restarted().await;
    assert_eq!(again.s.get_pool(&name("new")).await, Err(RequestError::NotFound(ObjectKind::Pool)));
    assert_eq!(again.s.get_pool(&name("q")).await.unwrap().spec, before.spec);
    let quotas = again.s.list_quotas(None, 10).unwrap().items;
    let quotas: Vec<_> = quotas.into_iter().map(|quota| (quota.tenant, quota.quota.claims)).collect();
    assert_eq!(quotas, [(None, Some(1))]);
    // The name is free, and a pool of that name is a new one.
    assert!(again.s.put_pool(name("new"), quick()).await.unwrap().0);
}
