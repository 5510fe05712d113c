//! Watching a pool: what is kept and for how long, what a watcher misses, and what no one may miss.

use std::time::Duration;

use hotpool::events::{EventPosition, PoolWatcher, WatchItem};
use hotpool::limits;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, PoolSpec};
use hotpool::scheduler::DeleteMode;

use crate::world::{WAIT_MS, World, done, id, name, request, spec, until};

/// What has been told by now, in a few words each, and where it stands.
pub async fn told(watcher: &mut PoolWatcher) -> (Vec<String>, Option<EventPosition>) {
    let (mut words, mut last) = (Vec::new(), None);
    let mut told = Vec::new();
    while tokio::time::timeout(Duration::ZERO, watcher.next(&mut told)).await == Ok(true) {
        last = told.last().map(|(at, _)| *at).or(last);
        words.extend(told.drain(..).map(|(_, told)| word(&told)));
    }
    (words, last)
}

fn word(told: &WatchItem) -> String {
    match told {
        WatchItem::Started => "started".to_owned(),
        WatchItem::Dropped(None) => "missed".to_owned(),
        WatchItem::Dropped(Some(count)) => format!("missed {count}"),
        WatchItem::Event(event) => {
            let claim = event.claim.as_ref().map(|claim| claim.id.key());
            let parts = [
                Some(event.kind.as_str()),
                Some(event.worker.spec.id.as_str()),
                claim,
                event.reason.map(|why| why.as_str()),
            ];
            parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
        }
    }
}

fn memory() -> PoolSpec {
    PoolSpec { reserve_ms: 0, ..spec(1, AckLevel::Memory) }
}

async fn claim_and_release(world: &World, key: &str) {
    let fence = world.claim("a", key).await.unwrap().claim.fence;
    world.s.release(&id(key), fence).await.unwrap();
}

#[tokio::test]
async fn nothing_is_kept_of_what_nobody_watches_and_for_a_minute_of_what_somebody_did() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    claim_and_release(&world, "k").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    let (words, first) = told(&mut watcher).await;
    assert_eq!((words, first.unwrap().number), (vec!["started".to_owned()], 0), "what was before was not kept");
    claim_and_release(&world, "k").await;
    let (words, seen) = told(&mut watcher).await;
    assert_eq!(words, ["claimed w k", "released w k"]);
    drop(watcher);
    world.pass(limits::WATCH_LINGER_MS / 2).await;
    claim_and_release(&world, "l").await;
    let mut again = world.s.watch_pool(&name("a"), seen).unwrap();
    let (words, seen) = told(&mut again).await;
    assert_eq!(words, ["claimed w l", "released w l"]);
    // The minute counts from when the last one left.
    world.pass(2 * limits::WATCH_LINGER_MS).await;
    claim_and_release(&world, "m").await;
    assert_eq!(told(&mut again).await.0, ["claimed w m", "released w m"]);
    drop(again);
    world.pass(limits::WATCH_LINGER_MS + 1_000).await;
    claim_and_release(&world, "n").await;
    let mut late = world.s.watch_pool(&name("a"), seen).unwrap();
    let (words, at) = told(&mut late).await;
    assert_eq!(words, ["missed"]);
    assert!(at.unwrap().epoch > seen.unwrap().epoch && at.unwrap().number == 0);
    let yet_to_come = EventPosition { number: 1, ..at.unwrap() };
    let refused = world.s.watch_pool(&name("a"), Some(yet_to_come)).err();
    assert!(matches!(refused, Some(RequestError::Invalid { field, .. }) if field == "from"));
}

#[tokio::test]
async fn a_slow_watcher_is_told_how_many_it_missed_and_goes_on_with_the_oldest() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut slow = world.s.watch_pool(&name("a"), None).unwrap();
    assert_eq!(told(&mut slow).await.0, ["started"]);
    let rounds = limits::WATCH_EVENTS_MAX / 2 + 50;
    for round in 0..rounds {
        claim_and_release(&world, &format!("k{round}")).await;
    }
    let (words, last) = told(&mut slow).await;
    assert_eq!((words[0].as_str(), words[1].as_str()), ("missed 100", "claimed w k50"));
    assert_eq!(words.len(), 1 + limits::WATCH_EVENTS_MAX);
    assert_eq!(
        (words.last().unwrap(), last.unwrap().number),
        (&format!("released w k{}", rounds - 1), 2 * rounds as u64)
    );
    claim_and_release(&world, "x").await;
    assert_eq!(told(&mut slow).await.0, ["claimed w x", "released w x"]);
}

#[tokio::test]
async fn a_shard_that_panics_cuts_the_thread() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.hold("a", "k").await;
    let (words, seen) = told(&mut watcher).await;
    assert_eq!(words, ["started", "claimed w k"]);
    world.s.inject_panic(&name("a"), 0);
    let mut words = Vec::new();
    until("the watcher is told", async || {
        words.extend(told(&mut watcher).await.0);
        !words.is_empty()
    })
    .await;
    assert_eq!(words, ["missed"]);
    let mut again = world.s.watch_pool(&name("a"), seen).unwrap();
    assert_eq!(told(&mut again).await.0, ["missed"]);
}

#[tokio::test]
async fn what_is_undone_is_told_as_well() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("a").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.gate().hold_all();
    let claim = world.begin_claim("a", "k").await;
    assert_eq!(told(&mut watcher).await.0, ["started", "claimed w k"], "it is decided, and not answered");
    world.pass(WAIT_MS + 1_000).await;
    done(claim).await.unwrap_err();
    assert_eq!(told(&mut watcher).await.0, ["released w k given_back"]);
    world.gate().open_gate();
    // A gang takes its workers, and gives them back if one of it has none.
    world.pool("b", spec(1, AckLevel::Durable), &["w1"]).await;
    let mut gang = world.s.watch_pool(&name("b"), None).unwrap();
    let outcomes = world.s.claim_gang(vec![request("b", "x"), request("b", "y")]).await;
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    let (words, _) = told(&mut gang).await;
    let taken = words.iter().filter(|word| word.starts_with("claimed")).count();
    assert_eq!(words.iter().filter(|word| word.ends_with("given_back")).count(), taken, "{words:?}");
}

/// Whoever watches and lists then has seen everything: also what a shard does in the very run that answers the list.
#[tokio::test]
async fn what_a_list_does_not_show_is_told_after_it() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let busy = world.busy("a").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    let lister = world.s.clone();
    let list = tokio::spawn(async move { lister.list_workers(&name("a"), None, 10).await.unwrap() });
    until("the list stands in the ring", async || busy.depth() == 1).await;
    let claim = world.begin_request_alone(request("a", "k"));
    busy.until_asked(2).await;
    assert!(done(list).await.items[0].claims.is_empty());
    assert!(done(claim).await.unwrap().created);
    assert_eq!(told(&mut watcher).await.0, ["started", "claimed w k"]);
}

#[tokio::test]
async fn the_end_of_the_pool_is_the_end_of_the_watch() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.hold("a", "k").await;
    world.s.delete_pool(&name("a"), DeleteMode::Force).await.unwrap();
    assert_eq!(told(&mut watcher).await.0, ["started", "claimed w k", "lost w k"]);
    assert!(!watcher.next(&mut Vec::new()).await);
    assert_eq!(
        world.s.watch_pool(&name("a"), None).err(),
        Some(RequestError::NotFound(hotpool::model::request_error::ObjectKind::Pool))
    );
}
