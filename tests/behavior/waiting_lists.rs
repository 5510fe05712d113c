//! Lists of claims that wait: by arrival, page by page, each once, with members of gangs.

use std::collections::BTreeMap;

use hotpool::limits;
use hotpool::model::claim_request::PoolChoice;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimState, ListedState, PoolName, QueuedClaimView, Quota,
};
use tokio::task::JoinHandle;

use crate::queued_claims::{MINUTE, of, one_full_worker, waiting, with_priority};
use crate::world::{Claimed, Seeded, World, done, id, name, spec, until};

fn only_waiting() -> ClaimFilter {
    ClaimFilter::default().in_states(&[ListedState::Waiting])
}

fn in_pool(pool: &str) -> ClaimFilter {
    ClaimFilter { namespace: Some("ns".into()), pool: Some(pool.into()), ..only_waiting() }
}

fn keys(views: &[QueuedClaimView]) -> Vec<&str> {
    views.iter().map(|view| view.id.key()).collect()
}

impl World {
    /// Claims that wait, read in pages of `limit`.
    async fn listed_waiting(&self, filter: &ClaimFilter, limit: usize) -> Vec<QueuedClaimView> {
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let page = self.s.list_claims(filter, token.as_deref(), limit).await.unwrap();
            assert!(page.items.is_empty() && page.waiting.len() <= limit, "{page:?}");
            all.extend(page.waiting);
            assert!(page.next.is_none() || page.next != token, "a page names another as the next: {token:?}");
            token = page.next;
            if token.is_none() {
                return all;
            }
        }
    }

    async fn begin_gang(&self, requests: Vec<ClaimRequest>) -> JoinHandle<Vec<Claimed>> {
        let before = self.waiters("p").await;
        let gang = self.begin(move |s| Box::pin(async move { s.claim_gang(requests).await })).await;
        until("it waits", async || self.waiters("p").await == before + 1).await;
        gang
    }
}

#[tokio::test]
async fn w08_claims_that_wait_are_listed_only_where_their_state_is_named() {
    let (world, _) = one_full_worker().await;
    let _a = world.begin_queued(waiting("p", "a")).await;
    let _b = world.begin_queued(with_priority(waiting("p", "b"), 7)).await;
    world.pass(300).await;
    let page = async |states: &[ListedState], limit| {
        let filter = ClaimFilter::default().in_states(states).checked().unwrap();
        let page = world.s.list_claims(&filter, None, limit).await.unwrap();
        let held: Vec<_> = page.items.iter().map(|claim| claim.id.key().to_owned()).collect();
        (held, keys(&page.waiting).join(","), page.next.is_some())
    };
    let held = || vec!["held0".to_owned()];
    let (active, reserved) = (ListedState::Held(ClaimState::Active), ListedState::Held(ClaimState::Reserved));
    assert_eq!(page(&[], 10).await, (held(), String::new(), false));
    assert_eq!(page(&[active], 10).await, (held(), String::new(), false));
    assert_eq!(page(&[reserved], 10).await, (vec![], String::new(), false));
    assert_eq!(page(&[ListedState::Waiting], 10).await, (vec![], "a,b".into(), false));
    assert_eq!(page(&[ListedState::Waiting, active], 10).await, (held(), "a,b".into(), false), "held ones come first");
    assert_eq!(page(&[ListedState::Waiting, reserved], 10).await, (vec![], "a,b".into(), false));
    assert_eq!(page(&[ListedState::Waiting, active], 1).await, (held(), String::new(), true));
    assert_eq!(page(&[ListedState::Waiting, active], 2).await, (held(), "a".into(), true));

    // An item is what a query of its key shows.
    let listed = world.listed_waiting(&only_waiting(), 1).await;
    let shown = [world.view("a").await.unwrap(), world.view("b").await.unwrap()];
    assert_eq!(listed, shown);
    assert_eq!(listed.iter().map(|view| view.ahead).collect::<Vec<_>>(), [1, 0], "priority decides, not arrival");
    assert!(listed.iter().all(|view| view.reason == "pool_exhausted" && view.pools == [name("p")]));
    let now_ms = world.clock.unix_of(world.clock.engine_now_ms());
    assert_eq!(listed[0].queued_at_ms, now_ms - listed[0].waited_ms);

    // The pages of both kinds together have each claim once.
    let filter = ClaimFilter::default().in_states(&[active, ListedState::Waiting]);
    let (mut all, mut token) = (Vec::new(), None);
    loop {
        let page = world.s.list_claims(&filter, token.as_deref(), 1).await.unwrap();
        all.extend(page.items.iter().map(|claim| claim.id.key().to_owned()));
        all.extend(page.waiting.iter().map(|view| view.id.key().to_owned()));
        assert!(all.len() <= 3, "{all:?}");
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(all, ["held0", "a", "b"]);
}

#[tokio::test]
async fn w08_lists_of_claims_that_wait_have_each_once_while_others_come_and_go() {
    const CLAIMS: usize = 1_300;
    let (world, _) = one_full_worker().await;
    let tenant = |number: usize| if number.is_multiple_of(100) { "few" } else { ["even", "odd"][number % 2] };
    let begin = |number: usize| world.begin_request_alone(of(tenant(number), &format!("k{number}")));
    let mut begun: BTreeMap<usize, JoinHandle<Claimed>> = BTreeMap::new();
    for number in 0..CLAIMS {
        begun.insert(number, begin(number));
    }
    until("all wait", async || world.waiters("p").await == CLAIMS).await;
    let (mut random, mut fresh) = (Seeded(5), CLAIMS);
    for (what, filter) in [
        ("all", only_waiting()),
        ("half", ClaimFilter { tenant: Some("odd".into()), ..in_pool("p") }),
        ("few", ClaimFilter { tenant: Some("few".into()), ..only_waiting() }),
        ("none", ClaimFilter { tenant: Some("nobody".into()), ..only_waiting() }),
    ] {
        for limit in [9, 100, 1_000] {
            let wanted = |number: usize| filter.tenant.as_ref().is_none_or(|wanted| tenant(number) == wanted);
            // Claims with a number divisible by seven leave while the list is read, and others come.
            let (mut going, stays): (Vec<usize>, Vec<usize>) = begun.keys().partition(|number| *number % 7 == 0);
            let mut seen: Vec<String> = Vec::new();
            let mut token = None;
            loop {
                let page = world.s.list_claims(&filter, token.as_deref(), limit).await.unwrap();
                assert!(page.waiting.len() <= limit);
                seen.extend(page.waiting.iter().map(|view| view.id.key().to_owned()));
                token = page.next;
                if token.is_none() {
                    break;
                }
                for _ in 0..random.below(3) {
                    let Some(number) = going.pop() else { break };
                    let before = world.waiters("p").await;
                    begun.remove(&number).unwrap().abort();
                    begun.insert(fresh, begin(fresh));
                    fresh += 1;
                    until("one has left and one has come", async || {
                        let id = ClaimId::new("ns", tenant(number), &format!("k{number}")).unwrap();
                        world.waiters("p").await == before && world.s.claim_status(&id).await.is_err()
                    })
                    .await;
                }
            }
            let mut times: BTreeMap<&str, usize> = BTreeMap::new();
            seen.iter().for_each(|key| *times.entry(key).or_default() += 1);
            assert!(times.values().all(|&times| times == 1), "{what}, {limit} a page: nothing is listed twice");
            let number = |key: &str| key[1..].parse::<usize>().unwrap();
            assert!(times.keys().all(|key| wanted(number(key))), "{what}, {limit} a page");
            for stays in stays.into_iter().filter(|number| wanted(*number)) {
                assert!(times.contains_key(&*format!("k{stays}")), "{what}, {limit} a page: k{stays}");
            }
        }
    }
    begun.values().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn w08_claims_that_wait_are_listed_by_arrival_over_all_pools_and_once() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(2, AckLevel::Memory), &[]).await;
    world.pool("r", spec(1, AckLevel::Memory), &[]).await;
    let (other, _) = world.s.put_pool(PoolName::new("other", "p").unwrap(), spec(1, AckLevel::Memory)).await.unwrap();
    assert!(other);
    let in_pools = |key: &str, pools: &[&str]| {
        let pools = PoolChoice::Listed(pools.iter().map(|pool| name(pool)).collect());
        ClaimRequest { pools, ..waiting("p", key) }
    };
    let mut begun = Vec::new();
    for (key, pools) in [("a", &["q"][..]), ("b", &["p", "q"]), ("c", &["r", "q", "p"]), ("d", &["p"]), ("e", &["q"])] {
        begun.push(world.begin_request(in_pools(key, pools)).await);
        until("it waits", async || world.view(key).await.is_some()).await;
    }
    let elsewhere = ClaimRequest {
        id: ClaimId::new("other", "default", "f").unwrap(),
        pools: PoolChoice::One(PoolName::new("other", "p").unwrap()),
        ..waiting("p", "f")
    };
    begun.push(world.begin_request(elsewhere).await);
    until("it waits", async || world.s.waiting(&PoolName::new("other", "p").unwrap()) == 1).await;
    for limit in [1, 2, 3, 10] {
        assert_eq!(keys(&world.listed_waiting(&only_waiting(), limit).await), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(keys(&world.listed_waiting(&in_pool("p"), limit).await), ["b", "c", "d"]);
        assert_eq!(keys(&world.listed_waiting(&in_pool("q"), limit).await), ["a", "b", "c", "e"]);
        let namespace = ClaimFilter { namespace: Some("other".into()), ..only_waiting() };
        assert_eq!(keys(&world.listed_waiting(&namespace, limit).await), ["f"]);
    }
    let listed = world.listed_waiting(&only_waiting(), 10).await;
    let c = listed.iter().find(|view| view.id == id("c")).unwrap();
    assert_eq!((&c.pools[..], c.ahead), (&[name("r"), name("q"), name("p")][..], 0), "its best queue counts");
    assert_eq!(Some(c), world.view("c").await.as_ref());
    // A worker has none that waits.
    let worker = ClaimFilter { worker: Some("w0".into()), ..in_pool("p") };
    assert_eq!(world.listed_waiting(&worker, 10).await, []);
    let missing = ClaimFilter { pool: Some("none".into()), ..in_pool("p") };
    assert_eq!(world.listed_waiting(&missing, 10).await, []);
}

#[tokio::test]
async fn w08_members_of_gangs_that_wait_are_listed_each_once() {
    let (world, fence) = one_full_worker().await;
    let member = |tenant: &str, key: &str| of(tenant, key);
    let _first = world.begin_queued(waiting("p", "first")).await;
    let gang = world.begin_gang(["g0", "g1", "g2"].map(|key| member("default", key)).to_vec()).await;
    let _single = world.begin_queued(waiting("p", "g1")).await;
    let two = world.begin_gang(vec![member("default", "h0"), member("other", "h1")]).await;
    for limit in [1, 2, 3, 10] {
        let listed = world.listed_waiting(&only_waiting(), limit).await;
        assert_eq!(keys(&listed), ["first", "g0", "g2", "g1", "h0", "h1"], "g1 waits for itself, {limit} a page");
        let of_other = ClaimFilter { tenant: Some("other".into()), ..in_pool("p") };
        assert_eq!(keys(&world.listed_waiting(&of_other, limit).await), ["h1"]);
    }
    let listed = world.listed_waiting(&only_waiting(), 10).await;
    for view in listed.iter().filter(|view| view.id.tenant() == "default") {
        assert_eq!(Some(view), world.view(view.id.key()).await.as_ref());
    }
    let h1 = &listed[5];
    assert_eq!((h1.reason, &h1.pools[..], h1.ahead), ("unsatisfiable", &[name("p")][..], 1), "one gang is ahead");
    gang.abort();
    until("it has left", async || world.waiters("p").await == 3).await;
    assert_eq!(keys(&world.listed_waiting(&only_waiting(), 10).await), ["first", "g1", "h0", "h1"]);
    // A key that somebody holds is listed as held, and not as a member of a gang.
    world.s.release(&id("held0"), fence).await.unwrap();
    until("the first is served", async || world.view("first").await.is_none()).await;
    two.abort();
}

/// More members than a slice visits, and pages that end amid them.
#[tokio::test]
async fn w08_large_gangs_that_wait_are_listed_in_parts() {
    let (world, _) = one_full_worker().await;
    let names: Vec<String> = (0..1_500).map(|number| format!("g{number}")).collect();
    let tenant = |number: usize| if number % 500 == 499 { "few" } else { "default" };
    let requests = names.iter().enumerate().map(|(number, key)| of(tenant(number), key)).collect();
    let gang = world.begin_gang(requests).await;
    for limit in [7, 600, 1_000] {
        assert_eq!(keys(&world.listed_waiting(&only_waiting(), limit).await), names, "{limit} a page");
        let few = ClaimFilter { tenant: Some("few".into()), ..only_waiting() };
        assert_eq!(keys(&world.listed_waiting(&few, limit).await), ["g499", "g999", "g1499"], "{limit} a page");
    }
    gang.abort();
}

/// A filter that almost nothing passes: a page reads a bounded number of entries, and may be empty before the last.
#[tokio::test]
async fn w08_pages_of_claims_that_wait_end_early_where_few_match() {
    const MEMBERS: usize = limits::BATCH_ITEMS_MAX;
    let (world, _) = one_full_worker().await;
    // A page visits 512 members at a time.
    let gangs = limits::PAGE_SLICES_MAX * 512 / MEMBERS + 1;
    let mut begun = Vec::new();
    for gang in 0..gangs {
        let tenant = |member| if (gang + 1, member + 1) == (gangs, MEMBERS) { "last" } else { "default" };
        let member = |member| of(tenant(member), &format!("g{gang}-{member}"));
        begun.push(world.begin_gang((0..MEMBERS).map(member).collect()).await);
    }
    let filter = ClaimFilter { tenant: Some("last".into()), ..only_waiting() };
    let first = world.s.list_claims(&filter, None, 10).await.unwrap();
    assert_eq!((first.waiting.len(), first.next.is_some()), (0, true));
    let last = format!("g{}-{}", gangs - 1, MEMBERS - 1);
    assert_eq!(keys(&world.listed_waiting(&filter, 10).await), [last]);
    begun.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn w08_claims_that_wait_for_quota_say_so_and_filter_by_the_time_that_they_waited() {
    let (world, _) = one_full_worker().await;
    world.s.put_quota("ns", Some("poor"), Quota { claims: Some(0), ..Quota::default() }).await.unwrap();
    let poor = world.begin_queued(of("poor", "old")).await;
    world.pass(2_000).await;
    let _young = world.begin_queued(waiting("p", "young")).await;
    let listed = world.listed_waiting(&in_pool("p"), 10).await;
    let shown: Vec<_> = listed.iter().map(|view| (view.id.key(), view.reason, view.pools.len())).collect();
    assert_eq!(shown, [("old", "quota", 0), ("young", "pool_exhausted", 1)]);
    let older = |ms| ClaimFilter { older_than_ms: Some(ms), ..only_waiting() };
    assert_eq!(keys(&world.listed_waiting(&older(0), 10).await), ["old", "young"]);
    assert_eq!(keys(&world.listed_waiting(&older(2_000), 10).await), ["old"]);
    assert_eq!(keys(&world.listed_waiting(&older(MINUTE), 10).await), [""; 0]);
    world.s.put_quota("ns", Some("poor"), Quota::default()).await.unwrap();
    world.add("p", &["w1"]).await;
    done(poor).await.unwrap();
    assert_eq!(keys(&world.listed_waiting(&only_waiting(), 10).await), ["young"], "whoever is served waits no more");
}

#[tokio::test]
async fn w08_tokens_of_other_lists_are_refused() {
    let (world, _) = one_full_worker().await;
    let _a = world.begin_queued(waiting("p", "a")).await;
    let _b = world.begin_queued(waiting("p", "b")).await;
    let _c = world.begin_queued(waiting("p", "c")).await;
    // The first of them gets it, so each list has two pages.
    world.add("p", &["w1"]).await;
    let next = async |filter: &ClaimFilter| world.s.list_claims(filter, None, 1).await.unwrap().next;
    let waits = next(&only_waiting()).await.expect("a second page");
    let held = next(&ClaimFilter::default()).await.expect("a second page");
    let workers = world.s.list_workers(&name("p"), None, 1).await.unwrap().next.expect("a second page");
    let both = ClaimFilter::default().in_states(&[ListedState::Held(ClaimState::Active), ListedState::Waiting]);
    let refused = async |filter: &ClaimFilter, token: &str| {
        let listed = world.s.list_claims(filter, Some(token), 1).await;
        assert!(matches!(&listed, Err(RequestError::Invalid { field, .. }) if field == "page_token"), "{listed:?}");
    };
    refused(&ClaimFilter::default(), &waits).await;
    refused(&only_waiting(), &held).await;
    for filter in [&ClaimFilter::default(), &only_waiting(), &both] {
        for token in [&*workers, "ns/p", "", "waiting:", "waiting:1", "waiting:0-0", "waiting:x-0", "waiting:1-0-0"] {
            refused(filter, token).await;
        }
    }
    assert!(world.s.list_claims(&both, Some(&held), 1).await.is_ok());
    assert!(world.s.list_claims(&both, Some(&waits), 1).await.is_ok());
    for token in [&waits, &held] {
        let workers = world.s.list_workers(&name("p"), Some(token), 1).await;
        assert!(matches!(&workers, Err(RequestError::Invalid { field, .. }) if field == "page_token"), "{workers:?}");
    }
}
