//! Clients that keep a journal of their replies, and the comparison of all journals with the state of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::client::Client;

const CLIENTS: u64 = 6;
/// Number of keys of one client: few, so that each is reused often.
const KEYS: u64 = 5;
pub const POOL: &str = "/v1/pools/ns/warm";

/// Request that got no answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Doubt {
    Claim,
    Confirm,
    Release,
}

/// Knowledge of a client about one of its keys.
#[derive(Debug, Clone, Default)]
struct Key {
    /// Fence, worker, and whether it was confirmed.
    held: Option<(u64, String, bool)>,
    doubt: Option<Doubt>,
    /// Highest fence that the key ever had.
    last: u64,
}

#[derive(Debug, Clone, Default)]
struct Journal {
    keys: BTreeMap<String, Key>,
    registered: BTreeSet<String>,
    /// Registration that got no answer.
    maybe: BTreeSet<String>,
}

/// Random generator with a printed seed (SplitMix64).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

/// Sends one request; none: the service is gone, and the outcome is unknown.
pub fn call(client: &mut Client, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let body = body.to_string();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(&[head.as_bytes(), body.as_bytes()].concat()).ok()?;
    let answer = client.receive().ok()?;
    Some((answer.status, answer.json()))
}

/// Runs one client until the service is gone. `answered` is notified of every answer.
fn load(mut client: Client, me: u64, mut journal: Journal, mut random: Seeded, answered: &Sender<()>) -> Journal {
    loop {
        let name = format!("c{me}-{}", random.below(KEYS));
        if random.below(20) == 0 {
            let id = format!("w{me}-{}", journal.registered.len() + journal.maybe.len());
            journal.maybe.insert(id.clone());
            let Some((status, _)) = call(&mut client, "PUT", &format!("{POOL}/workers/{id}"), &json!({})) else {
                break;
            };
            assert!(matches!(status, 200 | 201 | 503), "{status}");
            if status != 503 {
                journal.maybe.remove(&id);
                journal.registered.insert(id);
            }
        } else {
            let key = journal.keys.entry(name.clone()).or_default();
            let again = key.doubt.is_some();
            let verb = match (&key.held, key.doubt) {
                (_, Some(verb)) => verb,
                (None, None) => Doubt::Claim,
                (Some((.., false)), None) if random.below(2) == 0 => Doubt::Confirm,
                (Some(_), None) if random.below(8) == 0 => Doubt::Claim,
                (Some(_), None) => Doubt::Release,
            };
            key.doubt = Some(verb);
            let fence = key.held.as_ref().map_or(0, |held| held.0);
            let answer = match verb {
                Doubt::Claim => {
                    call(&mut client, "POST", "/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": name}))
                }
                Doubt::Confirm => {
                    call(&mut client, "POST", &format!("/v1/claims/ns/{name}:confirm"), &json!({"fence": fence}))
                }
                Doubt::Release => {
                    call(&mut client, "POST", &format!("/v1/claims/ns/{name}:release"), &json!({"fence": fence}))
                }
            };
            let Some((status, body)) = answer else { break };
            // The store did not confirm it in time, or the lease lapsed: the outcome is unknown.
            if status != 503 {
                key.doubt = None;
                settle(key, verb, again, status, &body);
            }
        }
        if answered.send(()).is_err() {
            break;
        }
    }
    journal
}

/// Adds an answer to the journal; it must be consistent with it.
fn settle(key: &mut Key, verb: Doubt, again: bool, status: u16, body: &Value) {
    match (verb, status) {
        (Doubt::Claim, 200 | 201) => {
            let claim = &body["claim"];
            let (fence, worker) = (claim["fence"].as_u64().unwrap(), claim["worker"].as_str().unwrap().to_owned());
            match &key.held {
                None => {
                    assert!(fence > key.last && (again || status == 201), "fences grow: {body} after {}", key.last);
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

/// Compares the state of the service with all journals, and resolves every doubt by it.
fn compare(client: &mut Client, journals: &mut [Journal]) {
    let mut held: BTreeMap<String, (u64, String, bool)> = BTreeMap::new();
    let mut busy = BTreeSet::new();
    for claim in client.pages("/v1/claims?namespace=ns&pool=warm").concat() {
        let (key, worker) = (claim["key"].as_str().unwrap(), claim["worker"].as_str().unwrap());
        assert!(busy.insert(worker.to_owned()), "worker {worker} is held twice");
        let found = (claim["fence"].as_u64().unwrap(), worker.to_owned(), claim["state"] == "active");
        assert!(held.insert(key.to_owned(), found).is_none(), "key {key} is held twice");
    }
    let workers: Vec<String> = client
        .pages(&format!("{POOL}/workers"))
        .iter()
        .flatten()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect();
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
            let difference = format!("{name}: acknowledged {key:?}, found {found:?}");
            match (&key.held, key.doubt.take(), &found) {
                (Some(acknowledged), doubt, Some(found)) => {
                    assert_eq!((acknowledged.0, &acknowledged.1), (found.0, &found.1), "{difference}");
                    let may_differ = doubt == Some(Doubt::Confirm) && found.2;
                    assert!(acknowledged.2 == found.2 || may_differ, "{difference}");
                }
                (Some(_), doubt, None) => assert_eq!(doubt, Some(Doubt::Release), "{difference}"),
                (None, doubt, Some(found)) => {
                    assert_eq!(doubt, Some(Doubt::Claim), "{difference}");
                    assert!(found.0 > key.last, "{difference}");
                    key.last = found.0;
                }
                (None, _, None) => {}
            }
            key.held = found;
        }
    }
    assert_eq!(held, BTreeMap::new(), "claims that no client requested");
}

pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Campaign of clients over several restarts of the service.
pub struct Campaign {
    seed: u64,
    pub rounds: u64,
    pub random: Seeded,
    journals: Vec<Journal>,
    round: u64,
    highest: u64,
}

/// Clients that are running.
pub struct Load {
    answers: Receiver<()>,
    clients: Vec<JoinHandle<Journal>>,
}

impl Load {
    /// Waits for this number of answers.
    pub fn answers(&self, n: u64) {
        assert_eq!(self.answers.iter().take(n as usize).count() as u64, n, "a client ended too early");
    }
}

impl Campaign {
    /// Reads the number of rounds and the seed from `HOTPOOL_CRASH_ROUNDS` and `HOTPOOL_CRASH_SEED`.
    pub fn new(rounds: u64) -> Self {
        let seed = number("HOTPOOL_CRASH_SEED", u64::from(std::process::id()));
        let rounds = number("HOTPOOL_CRASH_ROUNDS", rounds);
        println!("reproduce with HOTPOOL_CRASH_SEED={seed} HOTPOOL_CRASH_ROUNDS={rounds}");
        let journals = (0..CLIENTS).map(|_| Journal::default()).collect();
        Self { seed, rounds, random: Seeded(seed), journals, round: 0, highest: 0 }
    }

    /// Creates the pool and some workers.
    pub fn prepare(&self, client: &mut Client) {
        // The reservations must outlive the test, so that only released claims are gone.
        client.put(POOL, &json!({"shards": 4, "reserve_ms": 3_600_000})).expect(201);
        let workers: Vec<_> = (0..CLIENTS * 3).map(|i| json!({"id": format!("base{i}")})).collect();
        client.post(&format!("{POOL}/workers:batch"), &json!({"workers": workers})).expect(200);
    }

    /// Starts all clients of a round.
    pub fn load(&mut self, address: SocketAddr) -> Load {
        let (answered, answers) = channel();
        let journals = (0..CLIENTS).zip(std::mem::take(&mut self.journals));
        let clients = journals.map(|(me, journal)| {
            let (client, answered) = (Client::connect(address).unwrap(), answered.clone());
            let random = Seeded(self.seed ^ (self.round << 40) ^ (me << 50));
            std::thread::spawn(move || load(client, me, journal, random, &answered))
        });
        let clients = clients.collect();
        self.round += 1;
        Load { answers, clients }
    }

    /// Number of answers to wait for: early, late, or right at the beginning.
    pub fn some_answers(&mut self) -> u64 {
        [3, 100, 1_000][self.random.below(3) as usize] + self.random.below(400)
    }

    /// Stops the clients, unless the end of the service has, and collects their journals.
    pub fn end(&mut self, load: Load) {
        let Load { answers, clients } = load;
        drop(answers);
        self.journals =
            clients.into_iter().map(|client| client.join().expect("a client saw what may not be")).collect();
        let doubts = self.journals.iter().flat_map(|journal| journal.keys.values()).filter(|key| key.doubt.is_some());
        println!("round {}: {} requests in doubt", self.round, doubts.count());
    }

    /// Checks the state of the service against all journals, and that fences grow whatever was lost.
    pub fn check(&mut self, client: &mut Client) {
        compare(client, &mut self.journals);
        let keys = self.journals.iter().flat_map(|journal| journal.keys.values());
        self.highest = keys.map(|key| key.last).fold(self.highest, u64::max);
        let spare = format!("spare{}", self.round);
        client.put(&format!("{POOL}/workers/{spare}"), &json!({}));
        let body = json!({"namespace": "ns", "pool": "warm", "key": spare});
        let taken = client.post("/v1/claims", &body).expect(201)["claim"].take();
        let fence = taken["fence"].as_u64().unwrap();
        assert!(fence > self.highest, "{fence} after {}", self.highest);
        self.highest = fence;
        client.post(&format!("/v1/claims/ns/{spare}:release"), &json!({"fence": fence})).expect(200);
    }

    /// Releases everything and checks that no claim is left.
    pub fn finish(self, client: &mut Client) {
        for (name, key) in self.journals.iter().flat_map(|journal| &journal.keys) {
            if let Some((fence, ..)) = key.held {
                client.post(&format!("/v1/claims/ns/{name}:release"), &json!({"fence": fence})).expect(200);
            }
        }
        let counts = client.get(POOL).expect(200)["pool"]["workers"].take();
        assert_eq!((&counts["busy"], &counts["idle"]), (&json!(0), &counts["total"]));
    }
}
