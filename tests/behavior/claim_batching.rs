//! Single claims of several callers that are submitted as one batch.

use hotpool::model::AckLevel;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::scheduler::ClaimBatchBuilder;

use crate::world::{World, request, spec};

#[tokio::test]
async fn the_shard_is_visited_once_for_all_and_each_has_its_own_reply() {
    let world = World::on_memory().await;
    world.pool("a", spec(1, AckLevel::Memory), &["u", "v", "w"]).await;
    let mut gathered = ClaimBatchBuilder::default();
    let mut gather = |pool, key| world.s.gather(request(pool, key), &mut gathered).unwrap();
    let claims = ["x", "x", "y", "z"].map(|key| gather("a", key));
    let lost = gather("nowhere", "lost");
    assert_eq!(world.counts("a").await.0, 3, "nothing is decided yet");
    let busy = world.busy("a").await;
    world.s.decide_gathered(&mut gathered);
    assert_eq!(busy.depth(), 1);
    drop(busy);
    let mut outcomes = Vec::new();
    for claim in claims {
        let taken = claim.await.unwrap();
        outcomes.push((taken.claim.id.key().to_owned(), taken.created));
    }
    assert_eq!(outcomes, [("x", true), ("x", false), ("y", true), ("z", true)].map(|(key, new)| (key.to_owned(), new)));
    assert_eq!(lost.await.unwrap_err(), RequestError::NotFound(ObjectKind::Pool));
    assert_eq!(world.counts("a").await.0, 0);
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_decision_gets_nothing() {
    let world = World::on_memory().await;
    world.pool("a", spec(1, AckLevel::Memory), &["w"]).await;
    let mut gathered = ClaimBatchBuilder::default();
    drop(world.s.gather(request("a", "x"), &mut gathered).unwrap());
    world.s.decide_gathered(&mut gathered);
    world.quiet().await;
    assert!(world.is_vacant("x"));
    assert_eq!(world.counts("a").await.0, 1);
}
