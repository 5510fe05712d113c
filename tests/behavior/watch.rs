//! Watches on a pool: which events are kept and for how long, what a watcher misses, and what no watcher may miss.

use std::time::Duration;

use hotpool::events::{EventPosition, PoolWatcher, WatchItem};
use hotpool::limits;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimRequest, PoolSpec};
use hotpool::scheduler::DeleteMode;

use crate::world::{WAIT_MS, World, done, id, name, request, spec, until};

/// Events so far, each as a short text, and the position of the last.
pub async fn read_items(watcher: &mut PoolWatcher) -> (Vec<String>, Option<EventPosition>) {
    let (mut words, mut last) = (Vec::new(), None);
    let mut items = Vec::new();
    while tokio::time::timeout(Duration::ZERO, watcher.next(&mut items)).await == Ok(true) {
        last = items.last().map(|(at, _)| *at).or(last);
        words.extend(items.drain(..).map(|(_, item)| describe(&item)));
    }
    (words, last)
}

fn describe(item: &WatchItem) -> String {
    match item {
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
async fn unwatched_pools_keep_no_events_and_watched_ones_keep_them_for_a_minute() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    claim_and_release(&world, "k").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    let (words, first) = read_items(&mut watcher).await;
    assert_eq!((words, first.unwrap().number), (vec!["started".to_owned()], 0), "what was before was not kept");
    claim_and_release(&world, "k").await;
    let (words, seen) = read_items(&mut watcher).await;
    assert_eq!(words, ["claimed w k", "released w k"]);
    drop(watcher);
    world.pass(limits::WATCH_LINGER_MS / 2).await;
    claim_and_release(&world, "l").await;
    let mut again = world.s.watch_pool(&name("a"), seen).unwrap();
    let (words, seen) = read_items(&mut again).await;
    assert_eq!(words, ["claimed w l", "released w l"]);
    // The minute counts from when the last watcher left.
    world.pass(2 * limits::WATCH_LINGER_MS).await;
    claim_and_release(&world, "m").await;
    assert_eq!(read_items(&mut again).await.0, ["claimed w m", "released w m"]);
    drop(again);
    world.pass(limits::WATCH_LINGER_MS + 1_000).await;
    claim_and_release(&world, "n").await;
    let mut late = world.s.watch_pool(&name("a"), seen).unwrap();
    let (words, at) = read_items(&mut late).await;
    assert_eq!(words, ["missed"]);
    assert!(at.unwrap().epoch > seen.unwrap().epoch && at.unwrap().number == 0);
    let yet_to_come = EventPosition { number: 1, ..at.unwrap() };
    let refused = world.s.watch_pool(&name("a"), Some(yet_to_come)).err();
    assert!(matches!(refused, Some(RequestError::Invalid { field, .. }) if field == "from"));
}

/// A deadline passes in a pool that nobody sends a request to since somebody watches it.
#[tokio::test]
async fn a_watcher_of_a_quiet_pool_learns_of_a_claim_that_expires() {
    let world = World::on_memory().await;
    world.pool("a", spec(1, AckLevel::Memory), &["w"]).await;
    let claim = ClaimRequest { reserve_ms: Some(1_000), ..request("a", "k") };
    world.s.claim(claim).await.unwrap();
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    assert_eq!(read_items(&mut watcher).await.0, ["started"]);
    for _ in 0..20 {
        world.clock.advance(Duration::from_millis(100));
        world.clock.tick();
    }
    let pool = world.s.inject_pool(&name("a")).unwrap();
    let runs = pool.shards[0].runs();
    pool.shards[0].tick(world.clock.engine_ms());
    until("the shard has run", async || pool.shards[0].runs() > runs).await;
    assert_eq!(read_items(&mut watcher).await.0, ["released w k reserve"]);
}

#[tokio::test]
async fn a_slow_watcher_learns_how_many_it_missed_and_continues_with_the_oldest() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut slow = world.s.watch_pool(&name("a"), None).unwrap();
    assert_eq!(read_items(&mut slow).await.0, ["started"]);
    let rounds = limits::WATCH_EVENTS_MAX / 2 + 50;
    for round in 0..rounds {
        claim_and_release(&world, &format!("k{round}")).await;
    }
    let (words, last) = read_items(&mut slow).await;
    assert_eq!((words[0].as_str(), words[1].as_str()), ("missed 100", "claimed w k50"));
    assert_eq!(words.len(), 1 + limits::WATCH_EVENTS_MAX);
    assert_eq!(
        (words.last().unwrap(), last.unwrap().number),
        (&format!("released w k{}", rounds - 1), 2 * rounds as u64)
    );
    claim_and_release(&world, "x").await;
    assert_eq!(read_items(&mut slow).await.0, ["claimed w x", "released w x"]);
}

#[tokio::test]
async fn a_shard_that_panics_starts_a_new_epoch() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.hold("a", "k").await;
    let (words, seen) = read_items(&mut watcher).await;
    assert_eq!(words, ["started", "claimed w k"]);
    world.s.inject_panic(&name("a"), 0);
    let mut words = Vec::new();
    until("the watcher is notified", async || {
        words.extend(read_items(&mut watcher).await.0);
        !words.is_empty()
    })
    .await;
    assert_eq!(words, ["missed"]);
    let mut again = world.s.watch_pool(&name("a"), seen).unwrap();
    assert_eq!(read_items(&mut again).await.0, ["missed"]);
}

#[tokio::test]
async fn undone_changes_are_reported_too() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("a").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.gate().hold_all();
    let claim = world.begin_claim("a", "k").await;
    assert_eq!(read_items(&mut watcher).await.0, ["started", "claimed w k"], "it is decided, and not answered");
    world.pass(WAIT_MS + 1_000).await;
    done(claim).await.unwrap_err();
    assert_eq!(read_items(&mut watcher).await.0, ["released w k given_back"]);
    world.gate().open_gate();
    // A gang gets its workers, and is rolled back if one member has none.
    world.pool("b", spec(1, AckLevel::Durable), &["w1"]).await;
    let mut gang = world.s.watch_pool(&name("b"), None).unwrap();
    let outcomes = world.s.claim_gang(vec![request("b", "x"), request("b", "y")]).await;
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    let (words, _) = read_items(&mut gang).await;
    let taken = words.iter().filter(|describe| describe.starts_with("claimed")).count();
    assert_eq!(words.iter().filter(|describe| describe.ends_with("given_back")).count(), taken, "{words:?}");
}

/// A client that watches and then lists misses nothing, not even what a shard does in the run that answers the list.
#[tokio::test]
async fn changes_that_a_list_does_not_show_follow_it() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let busy = world.busy("a").await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    let lister = world.s.clone();
    let list = tokio::spawn(async move { lister.list_workers(&name("a"), None, 10).await.unwrap() });
    until("the list request is in the mailbox", async || busy.depth() == 1).await;
    let claim = world.begin_request_alone(request("a", "k"));
    busy.until_queued(2).await;
    assert!(done(list).await.items[0].claims.is_empty());
    assert!(done(claim).await.unwrap().created);
    assert_eq!(read_items(&mut watcher).await.0, ["started", "claimed w k"]);
}

#[tokio::test]
async fn the_watch_ends_with_the_pool() {
    let world = World::on_memory().await;
    world.pool("a", memory(), &["w"]).await;
    let mut watcher = world.s.watch_pool(&name("a"), None).unwrap();
    world.hold("a", "k").await;
    world.s.delete_pool(&name("a"), DeleteMode::Force).await.unwrap();
    assert_eq!(read_items(&mut watcher).await.0, ["started", "claimed w k", "lost w k"]);
    assert!(!watcher.next(&mut Vec::new()).await);
    assert_eq!(
        world.s.watch_pool(&name("a"), None).err(),
        Some(RequestError::NotFound(hotpool::model::request_error::ObjectKind::Pool))
    );
}
