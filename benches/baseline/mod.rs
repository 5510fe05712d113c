//! The usual way on a Redis Cluster: `SPOP` from the pool's idle set, then versioned rows, each a `WATCH` and a transaction; and
//! what any way costs, in claims a second and processor time.

use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::aio::MultiplexedConnection;

use crate::flush;
use crate::processor::cpu_s;
use crate::servers::Cluster;

/// One client of the usual way: its own connections, as `WATCH` demands.
struct Usual {
    connections: Vec<(u16, MultiplexedConnection)>,
}

const IDLE: &str = "idle:{hot}";

impl Usual {
    async fn connect(cluster: &Cluster) -> Self {
        let mut connections = Vec::new();
        for (i, server) in cluster.masters.iter().enumerate() {
            let client = redis::Client::open(server.url()).expect("a URL");
            let connection = client.get_multiplexed_async_connection().await.expect("connects");
            connections.push((((i + 1) * 16_384 / cluster.masters.len() - 1) as u16, connection));
        }
        Self { connections }
    }

    /// Which server has the slot of a tag.
    fn at(&self, tag: &str) -> usize {
        let slot = crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % 16_384;
        self.connections.iter().position(|(last, _)| slot <= *last).expect("all slots are served")
    }

    fn of(&mut self, tag: &str) -> &mut MultiplexedConnection {
        let at = self.at(tag);
        &mut self.connections[at].1
    }

    /// `SPOP`, the worker's row read and written under its version, the holder's row written under its version.
    async fn claim(&mut self, key: &str) -> bool {
        let worker: Option<String> = redis::cmd("SPOP").arg(IDLE).query_async(self.of("hot")).await.expect("SPOP");
        let Some(worker) = worker else { return false };
        let row: Option<String> =
            redis::cmd("GET").arg(format!("worker:{{{worker}}}")).query_async(self.of(&worker)).await.expect("GET");
        assert!(row.is_some(), "a worker has a row");
        self.versioned(&worker, &format!("worker:{{{worker}}}"), key).await;
        self.versioned(key, &format!("holder:{{{key}}}"), &worker).await;
        true
    }

    async fn versioned(&mut self, tag: &str, name: &str, value: &str) {
        let connection = self.of(tag);
        let _: () = redis::cmd("WATCH").arg(name).query_async(connection).await.expect("WATCH");
        let row: Option<String> = redis::cmd("GET").arg(name).query_async(connection).await.expect("GET");
        let version = row.and_then(|row| row.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
        let mut write = redis::pipe();
        write.atomic().cmd("SET").arg(name).arg(format!("{} {value}", version + 1));
        let written: Option<(String,)> = write.query_async(connection).await.expect("EXEC");
        assert!(written.is_some(), "nobody else writes this row");
    }
}

/// What claiming costs.
#[derive(Clone, Copy)]
pub struct Cost {
    pub per_s: f64,
    /// Microseconds of processor time a claim: of this program, and of the servers.
    ours_us: f64,
    servers_us: f64,
}

impl Cost {
    /// Of as many claims a second as `claims` reaches.
    pub async fn of(cluster: &Cluster, claims: impl Future<Output = f64>) -> Self {
        let used = || {
            let servers: f64 = cluster.masters.iter().map(|server| cpu_s(server.pid())).sum();
            [cpu_s(std::process::id()), servers]
        };
        let (before, start) = (used(), Instant::now());
        let per_s = claims.await;
        let claims = per_s * start.elapsed().as_secs_f64();
        let [ours_us, servers_us] = std::array::from_fn(|i| (used()[i] - before[i]) * 1e6 / claims);
        Self { per_s, ours_us, servers_us }
    }

    pub fn us(&self) -> f64 {
        self.ours_us + self.servers_us
    }

    pub fn print(&self, what: &str) {
        let Self { per_s, ours_us, servers_us } = self;
        println!("{what:<64} {per_s:>8.0} claims/s, processor us a claim: here {ours_us:.2}, servers {servers_us:.2}");
    }
}

/// The usual way, by so many clients.
pub async fn usual(cluster: &Cluster, clients: usize, time: Duration) -> Cost {
    const WORKERS: usize = 200_000;
    flush(cluster);
    let mut setup = Usual::connect(cluster).await;
    for from in (0..WORKERS).step_by(1_000) {
        let names: Vec<String> = (from..from + 1_000).map(|n| format!("worker-{n:07}")).collect();
        let _: i64 = redis::cmd("SADD").arg(IDLE).arg(&names).query_async(setup.of("hot")).await.expect("SADD");
        let mut rows: [redis::Pipeline; 3] = Default::default();
        for name in &names {
            rows[setup.at(name)].cmd("SET").arg(format!("worker:{{{name}}}")).arg("1 -").ignore();
        }
        for (at, rows) in rows.iter().enumerate() {
            let _: () = rows.query_async(&mut setup.connections[at].1).await.expect("SET");
        }
    }
    let clients: Vec<Usual> = join_all((0..clients).map(|_| Usual::connect(cluster))).await;
    Cost::of(cluster, async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..)
            .zip(clients)
            .map(|(client, mut usual)| {
                tokio::spawn(async move {
                    let mut claims = 0_usize;
                    while start.elapsed() < time && usual.claim(&format!("{client}-{claims}")).await {
                        claims += 1;
                    }
                    claims
                })
            })
            .collect();
        let claims: usize = join_all(tasks).await.into_iter().map(|claims| claims.expect("no panic")).sum();
        claims as f64 / start.elapsed().as_secs_f64()
    })
    .await
}
