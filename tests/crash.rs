//! S01: `kill -9` of the real binary in the middle of a load over real HTTP, and what a restart finds.
//!
//! Each client keeps a journal of what it was answered and of the one request that it was not. After the restart
//! every durable answer must stand: what was granted and not asked back is held with the same fence by the same worker,
//! what was released is gone; the request in doubt may have happened or not. The rounds share one directory, so a
//! restart after a restart is part of it. `HOTPOOL_CRASH_ROUNDS` says how many (5), `HOTPOOL_CRASH_SEED` which.
//!
//! It caught, when broken on purpose: answers that leave before the store has their record (`may_leave` always true).

#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "it/client.rs"]
mod client;
#[path = "crash/memory_ack.rs"]
mod memory_ack;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "it/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Sender, channel};

use client::Client;
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;

const CLIENTS: u64 = 6;
/// Keys of one client: few, so that a key is used again and again.
const KEYS: u64 = 5;
const POOL: &str = "/v1/pools/ns/warm";

/// What was asked and not answered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doubt {
    Claim,
    Confirm,
    Release,
}

/// What a client knows of one of its keys.
#[derive(Debug, Clone, Default)]
struct Key {
    /// Fence, worker, and whether it was confirmed.
    held: Option<(u64, String, bool)>,
    doubt: Option<Doubt>,
    /// The highest fence that it ever had.
    last: u64,
}

#[derive(Debug, Clone, Default)]
struct Journal {
    keys: BTreeMap<String, Key>,
    registered: BTreeSet<String>,
    /// A registration without an answer.
    maybe: BTreeSet<String>,
}

/// SplitMix64.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

/// One request; none: the service is gone, and nobody knows what became of it.
fn ask(client: &mut Client, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let body = body.to_string();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: crash\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(&[head.as_bytes(), body.as_bytes()].concat()).ok()?;
    let answer = client.receive().ok()?;
    Some((answer.status, answer.json()))
}

/// One client until the service is gone. `answered` hears of every answer.
fn load(mut client: Client, me: u64, mut journal: Journal, mut random: Seeded, answered: &Sender<()>) -> Journal {
    loop {
        let name = format!("c{me}-{}", random.below(KEYS));
        if random.below(20) == 0 {
            let id = format!("w{me}-{}", journal.registered.len());
            journal.maybe.insert(id.clone());
            let Some((status, _)) = ask(&mut client, "PUT", &format!("{POOL}/workers/{id}"), &json!({})) else { break };
            assert!(status == 201 || status == 200, "{status}");
            journal.maybe.remove(&id);
            journal.registered.insert(id);
        } else {
            let key = journal.keys.entry(name.clone()).or_default();
            let verb = match &key.held {
                None => Doubt::Claim,
                Some((.., false)) if random.below(2) == 0 => Doubt::Confirm,
                Some(_) if random.below(8) == 0 => Doubt::Claim,
                Some(_) => Doubt::Release,
            };
            key.doubt = Some(verb);
            let fence = key.held.as_ref().map_or(0, |held| held.0);
            let answer = match verb {
                Doubt::Claim => {
                    ask(&mut client, "POST", "/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": name}))
                }
                Doubt::Confirm => {
                    ask(&mut client, "POST", &format!("/v1/claims/ns/{name}:confirm"), &json!({"fence": fence}))
                }
                Doubt::Release => {
                    ask(&mut client, "POST", &format!("/v1/claims/ns/{name}:release"), &json!({"fence": fence}))
                }
            };
            let Some((status, body)) = answer else { break };
            key.doubt = None;
            settle(key, verb, status, &body);
        }
        if answered.send(()).is_err() {
            break;
        }
    }
    journal
}

/// Takes an answer into the journal; it must fit what the client knew.
fn settle(key: &mut Key, verb: Doubt, status: u16, body: &Value) {
    match (verb, status) {
        (Doubt::Claim, 200 | 201) => {
            let claim = &body["claim"];
            let (fence, worker) = (claim["fence"].as_u64().unwrap(), claim["worker"].as_str().unwrap().to_owned());
            match &key.held {
                None => {
                    assert!(fence > key.last && status == 201, "fences grow: {body} after {}", key.last);
                    key.held = Some((fence, worker, false));
                    key.last = fence;
                }
                Some(held) => assert_eq!((held.0, &held.1, status), (fence, &worker, 200), "the same claim again"),
            }
        }
        (Doubt::Claim, 429) => assert!(key.held.is_none(), "{body}"),
        (Doubt::Confirm, 200) => {
            if let Some(held) = &mut key.held {
                held.2 = true;
            }
        }
        (Doubt::Release, 200) => key.held = None,
        _ => panic!("{verb:?}: {status} {body}"),
    }
}

/// All pages of a listing.
fn list(client: &mut Client, path: &str) -> Vec<Value> {
    let (mut rows, mut token) = (Vec::new(), String::new());
    loop {
        let join = if path.contains('?') { '&' } else { '?' };
        let from = if token.is_empty() { path.to_owned() } else { format!("{path}{join}page_token={token}") };
        let page = client.get(&from).expect(200);
        rows.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next_page_token"].as_str() {
            Some(next) => next.clone_into(&mut token),
            None => return rows,
        }
    }
}

/// Compares what is there with what everybody was told, and settles every doubt by it.
fn compare(client: &mut Client, journals: &mut [Journal]) {
    let mut held: BTreeMap<String, (u64, String, bool)> = BTreeMap::new();
    let mut busy = BTreeSet::new();
    for claim in list(client, "/v1/claims?namespace=ns&pool=warm") {
        let (key, worker) = (claim["key"].as_str().unwrap(), claim["worker"].as_str().unwrap());
        assert!(busy.insert(worker.to_owned()), "worker {worker} is held twice");
        let found = (claim["fence"].as_u64().unwrap(), worker.to_owned(), claim["state"] == "active");
        assert!(held.insert(key.to_owned(), found).is_none(), "key {key} is held twice");
    }
    let workers: Vec<String> =
        list(client, &format!("{POOL}/workers")).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let known: BTreeSet<String> = workers.iter().cloned().collect();
    assert_eq!(known.len(), workers.len(), "no worker is listed twice");
    let counts = client.get(POOL).expect(200)["pool"]["workers"].take();
    let count = |of: &str| usize::try_from(counts[of].as_u64().unwrap()).unwrap();
    assert_eq!((count("total"), count("busy")), (workers.len(), held.len()), "no capacity is lost or made");
    assert_eq!(count("idle") + count("busy"), count("total"));
    for journal in journals {
        assert!(journal.registered.is_subset(&known), "a registered worker is gone");
        let there = std::mem::take(&mut journal.maybe).into_iter().filter(|id| known.contains(id));
        journal.registered.extend(there);
        for (name, key) in &mut journal.keys {
            let found = held.remove(name);
            let told = format!("{name}: told {key:?}, found {found:?}");
            match (&key.held, key.doubt.take(), &found) {
                (Some(told_of), doubt, Some(found)) => {
                    assert_eq!((told_of.0, &told_of.1), (found.0, &found.1), "{told}");
                    let may_differ = doubt == Some(Doubt::Confirm) && found.2;
                    assert!(told_of.2 == found.2 || may_differ, "{told}");
                }
                (Some(_), doubt, None) => assert_eq!(doubt, Some(Doubt::Release), "{told}"),
                (None, doubt, Some(found)) => {
                    assert_eq!(doubt, Some(Doubt::Claim), "{told}");
                    assert!(found.0 > key.last, "{told}");
                    key.last = found.0;
                }
                (None, _, None) => {}
            }
            key.held = found;
        }
    }
    assert_eq!(held, BTreeMap::new(), "claims that nobody asked for");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn s01_every_durable_answer_survives_kill_9_in_the_middle_of_a_load() {
    let seed = number("HOTPOOL_CRASH_SEED", u64::from(std::process::id()));
    let rounds = number("HOTPOOL_CRASH_ROUNDS", 5);
    println!("reproduce with HOTPOOL_CRASH_SEED={seed} HOTPOOL_CRASH_ROUNDS={rounds}");
    let mut random = Seeded(seed);
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path());
    let mut client = server.client();
    // The reservations must outlive the test: what is gone was released.
    client.put(POOL, &json!({"shards": 4, "reserve_ms": 3_600_000})).expect(201);
    let workers: Vec<_> = (0..CLIENTS * 3).map(|i| json!({"id": format!("base{i}")})).collect();
    client.post(&format!("{POOL}/workers:batch"), &json!({"workers": workers})).expect(200);
    let mut journals: Vec<Journal> = (0..CLIENTS).map(|_| Journal::default()).collect();
    let mut highest = 0;
    for round in 0..rounds {
        let (answered, answers) = channel();
        let clients: Vec<_> = (0..CLIENTS)
            .zip(std::mem::take(&mut journals))
            .map(|(me, journal)| {
                let (client, answered) = (server.client(), answered.clone());
                let random = Seeded(seed ^ (round << 40) ^ (me << 50));
                std::thread::spawn(move || load(client, me, journal, random, &answered))
            })
            .collect();
        drop(answered);
        // Early, late, or right at the beginning.
        let kill_after = [3, 100, 1_000][random.below(3) as usize] + random.below(400);
        assert_eq!(answers.iter().take(kill_after as usize).count() as u64, kill_after, "a client ended too early");
        server.kill();
        journals = clients.into_iter().map(|client| client.join().expect("a client saw what may not be")).collect();
        let doubts = journals.iter().flat_map(|journal| journal.keys.values()).filter(|key| key.doubt.is_some());
        println!("round {round}: killed after {kill_after} answers, {} requests in doubt", doubts.count());
        server = Server::start(dir.path());
        client = server.client();
        compare(&mut client, &mut journals);
        // Fences grow over the restart, whatever was lost.
        highest = journals.iter().flat_map(|journal| journal.keys.values()).map(|key| key.last).fold(highest, u64::max);
        client.put(&format!("{POOL}/workers/spare{round}"), &json!({})).expect(201);
        let body = json!({"namespace": "ns", "pool": "warm", "key": format!("spare{round}")});
        let taken = client.post("/v1/claims", &body).expect(201)["claim"].take();
        let fence = taken["fence"].as_u64().unwrap();
        assert!(fence > highest, "{fence} after {highest}");
        highest = fence;
        let release = format!("/v1/claims/ns/spare{round}:release");
        client.post(&release, &json!({"fence": fence})).expect(200);
    }
    for (name, key) in journals.iter().flat_map(|journal| &journal.keys) {
        if let Some((fence, ..)) = key.held {
            client.post(&format!("/v1/claims/ns/{name}:release"), &json!({"fence": fence})).expect(200);
        }
    }
    let counts = client.get(POOL).expect(200)["pool"]["workers"].take();
    assert_eq!((&counts["busy"], &counts["idle"]), (&json!(0), &counts["total"]));
    assert_eq!(server.stop().code(), Some(0));
}
