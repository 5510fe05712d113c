//! S01 for `ack: memory`, whose replies a kill may undo: no worker runs two claims, and a running claim is readopted with its
//! fence as soon as its worker reports it.
//!
//! [`Truth`] is what the workers really run. Clients claim, start their claims (some late, but within the reservation), stop
//! and release. Then the service is killed, and the work goes on. After the restart the workers send truthful heartbeats,
//! while other clients claim as fast as they can. At the end the service must know everything that runs, and nothing else.
//!
//! Proved by breaking on purpose: a report that ends the suspicion before the reservations from before the kill have passed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::campaign::{Seeded, call, number};
use crate::client::Client;
use crate::server::{Server, until};

const POOL: &str = "/v1/pools/ns/memory";
const WORKERS: usize = 24;
const CLIENTS: u64 = 4;
/// Reservation that is long enough for a restart in the middle.
const RESERVE_MS: u64 = 3_000;

/// Claims that each worker really runs.
#[derive(Default)]
struct Truth {
    running: Mutex<BTreeMap<String, (String, u64)>>,
    /// Number of claims that were ever started.
    starts: AtomicU64,
}

impl Truth {
    fn start(&self, worker: &str, key: &str, fence: u64) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let before = self.running.lock().unwrap().insert(worker.to_owned(), (key.to_owned(), fence));
        assert_eq!(before, None, "{worker} runs that and is given {key} with {fence}");
    }

    fn stop(&self, worker: &str, fence: u64) {
        let mut running = self.running.lock().unwrap();
        if running.get(worker).is_some_and(|(_, of)| *of == fence) {
            running.remove(worker);
        }
    }

    fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    fn all(&self) -> BTreeMap<String, (String, u64)> {
        self.running.lock().unwrap().clone()
    }
}

/// Claim that a client was granted.
#[derive(Debug, Clone)]
struct Held {
    key: String,
    worker: String,
    fence: u64,
    since: Instant,
    started: bool,
}

/// Claims, starts, stops and releases until the service is gone, and returns the claims held then.
fn work(mut client: Client, me: &str, seed: u64, truth: &Truth, done: &AtomicBool) -> Vec<Held> {
    let (mut random, mut held, mut next) = (Seeded(seed), Vec::<Held>::new(), 0);
    while !done.load(Ordering::Relaxed) {
        if held.is_empty() || (held.len() < WORKERS / CLIENTS as usize && random.below(2) == 0) {
            next += 1;
            let key = format!("{me}-{next}");
            let body = json!({"namespace": "ns", "pool": "memory", "key": key});
            let Some((status, body)) = call(&mut client, "POST", "/v1/claims", &body) else { break };
            if status == 429 {
                continue;
            }
            assert_eq!(status, 201, "{body}");
            let (worker, fence) = (body["claim"]["worker"].as_str().unwrap(), body["claim"]["fence"].as_u64().unwrap());
            let started = random.below(4) > 0;
            if started {
                truth.start(worker, &key, fence);
            }
            held.push(Held { key, worker: worker.into(), fence, since: Instant::now(), started });
        } else {
            let at = random.below(held.len() as u64) as usize;
            if !held[at].started && held[at].since.elapsed() > Duration::from_millis(RESERVE_MS / 2) {
                held.remove(at);
                continue;
            }
            if !held[at].started {
                // Late, but within the reservation.
                truth.start(&held[at].worker, &held[at].key, held[at].fence);
                held[at].started = true;
            }
            let body = json!({"fence": held[at].fence});
            if random.below(2) == 0 {
                let path = format!("/v1/claims/ns/{}:confirm", held[at].key);
                let Some((status, body)) = call(&mut client, "POST", &path, &body) else { break };
                assert_eq!(status, 200, "{body}");
            } else {
                let Held { key, worker, fence, .. } = held.remove(at);
                truth.stop(&worker, fence);
                let Some((status, body)) = call(&mut client, "POST", &format!("/v1/claims/ns/{key}:release"), &body)
                else {
                    break;
                };
                assert_eq!(status, 200, "{body}");
            }
        }
    }
    held
}

/// Sends a heartbeat of every worker with the claims that it runs.
fn heartbeat(client: &mut Client, truth: &Truth) {
    for i in 0..WORKERS {
        let worker = format!("m{i}");
        let running: Vec<Value> =
            truth.all().get(&worker).map(|(key, fence)| json!({"key": key, "fence": fence})).into_iter().collect();
        let response =
            client.post(&format!("{POOL}/workers/{worker}:heartbeat"), &json!({"claims": running})).expect(200);
        for stop in response["stop"].as_array().unwrap() {
            // Claims that were just released may be among them; running ones must not.
            let now =
                truth.all().get(&worker).map(|(key, fence)| json!({"key": key, "tenant": "default", "fence": fence}));
            assert_ne!(Some(stop), now.as_ref(), "{worker} runs nothing that is wrong");
        }
    }
}

fn suspects(client: &mut Client) -> u64 {
    client.get(POOL).expect(200)["pool"]["workers"]["suspect"].as_u64().unwrap()
}

#[test]
fn s01_no_worker_runs_two_claims_over_kill_9_with_answers_from_memory() {
    let seed = number("HOTPOOL_CRASH_SEED", u64::from(std::process::id()));
    let rounds = number("HOTPOOL_CRASH_ROUNDS", 3);
    println!("reproduce with HOTPOOL_CRASH_SEED={seed} HOTPOOL_CRASH_ROUNDS={rounds}");
    let dir = TempDir::new().unwrap();
    let truth = Truth::default();
    let mut server = Server::start(dir.path());
    let mut client = server.client();
    client.put(POOL, &json!({"shards": 4, "ack": "memory", "reserve_ms": RESERVE_MS})).expect(201);
    let workers: Vec<_> = (0..WORKERS).map(|i| json!({"id": format!("m{i}")})).collect();
    client.post(&format!("{POOL}/workers:batch"), &json!({"workers": workers})).expect(200);
    let mut adopted = 0;
    for round in 0..rounds {
        let mut random = Seeded(seed ^ (round << 32));
        let never = AtomicBool::new(false);
        let held: Vec<Held> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|me| {
                    let (client, truth, never) = (server.client(), &truth, &never);
                    let seed = seed ^ (round << 40) ^ (me << 50);
                    scope.spawn(move || work(client, &format!("r{round}c{me}"), seed, truth, never))
                })
                .collect();
            let starts = truth.starts() + 20 + random.below(300);
            until("the clients have started so many claims", || truth.starts() >= starts);
            server.kill();
            clients.into_iter().flat_map(|client| client.join().expect("a client saw what may not be")).collect()
        });
        server = Server::start(dir.path());
        client = server.client();
        assert_eq!(suspects(&mut client), WORKERS as u64, "nothing has spoken for anybody yet");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Other clients claim all the time.
            let (others, their_truth, their_end) = (server.client(), &truth, &over);
            let others =
                scope.spawn(move || work(others, &format!("r{round}other"), seed ^ 77, their_truth, their_end));
            heartbeat(&mut client, &truth);
            // Clients that got a reply before the kill may still start their claims.
            for late in held.iter().filter(|late| !late.started) {
                if late.since.elapsed() < Duration::from_millis(RESERVE_MS - 500) {
                    truth.start(&late.worker, &late.key, late.fence);
                }
            }
            until("all workers are confirmed", || {
                heartbeat(&mut client, &truth);
                suspects(&mut client) == 0
            });
            over.store(true, Ordering::Relaxed);
            for Held { key, worker, fence, started, .. } in others.join().expect("a client saw what may not be") {
                if started {
                    truth.stop(&worker, fence);
                }
                client.post(&format!("/v1/claims/ns/{key}:release"), &json!({"fence": fence})).expect(200);
            }
        });
        heartbeat(&mut client, &truth);
        let known: BTreeMap<String, (String, u64)> = client
            .pages("/v1/claims?namespace=ns&pool=memory")
            .iter()
            .flatten()
            .map(|claim| {
                let text = |field: &str| claim[field].as_str().unwrap().to_owned();
                (text("worker"), (text("key"), claim["fence"].as_u64().unwrap()))
            })
            .collect();
        assert_eq!(known, truth.all(), "what runs is known, and nothing else");
        for (worker, (key, fence)) in known {
            truth.stop(&worker, fence);
            client.post(&format!("/v1/claims/ns/{key}:release"), &json!({"fence": fence})).expect(200);
        }
        let here = client.metric(r#"hotpool_claims_readopted_total{pool="ns/memory"}"#);
        println!("round {round}: {} held at the kill, {here} of them adopted", held.len());
        adopted += here;
    }
    println!("{adopted} adopted in all");
    assert_eq!(server.stop().code(), Some(0));
    let server = Server::start(dir.path());
    assert_eq!(suspects(&mut server.client()), 0, "after a clean stop no worker is suspect");
}
