//! Baseline on a Redis Cluster: `SPOP` from the pool's idle set, then versioned rows, each by a `WATCH` and a
//! transaction. Also the cost of claims in processor time.

use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::aio::MultiplexedConnection;

use crate::flush;
use crate::processor::cpu_s;
use crate::servers::Cluster;

/// Baseline client with its own connections, as `WATCH` requires.
struct BaselineClient {
    connections: Vec<(u16, MultiplexedConnection)>,
}

const IDLE: &str = "idle:{hot}";

impl BaselineClient {
    async fn connect(cluster: &Cluster) -> Self {
        let mut connections = Vec::new();
        for (i, server) in cluster.masters.iter().enumerate() {
            let client = redis::Client::open(server.url()).expect("a URL");
            let connection = client.get_multiplexed_async_connection().await.expect("connects");
            connections.push((((i + 1) * 16_384 / cluster.masters.len() - 1) as u16, connection));
        }
        Self { connections }
    }

    /// Index of the server that owns the slot of a tag.
    fn node_of(&self, tag: &str) -> usize {
        let slot = crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % 16_384;
        self.connections.iter().position(|(last, _)| slot <= *last).expect("all slots are served")
    }

    fn connection_of(&mut self, tag: &str) -> &mut MultiplexedConnection {
        let node = self.node_of(tag);
        &mut self.connections[node].1
    }

    /// Claims by `SPOP`, and writes the rows of worker and holder under their versions.
    async fn claim(&mut self, key: &str) -> bool {
        let worker: Option<String> =
            redis::cmd("SPOP").arg(IDLE).query_async(self.connection_of("hot")).await.expect("SPOP");
        let Some(worker) = worker else { return false };
        let row: Option<String> = redis::cmd("GET")
            .arg(format!("worker:{{{worker}}}"))
            .query_async(self.connection_of(&worker))
            .await
            .expect("GET");
        assert!(row.is_some(), "a worker has a row");
        self.versioned(&worker, &format!("worker:{{{worker}}}"), key).await;
        self.versioned(key, &format!("holder:{{{key}}}"), &worker).await;
        true
    }

    async fn versioned(&mut self, tag: &str, name: &str, value: &str) {
        let connection = self.connection_of(tag);
        let _: () = redis::cmd("WATCH").arg(name).query_async(connection).await.expect("WATCH");
        let row: Option<String> = redis::cmd("GET").arg(name).query_async(connection).await.expect("GET");
        let version = row.and_then(|row| row.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
        let mut write = redis::pipe();
        write.atomic().cmd("SET").arg(name).arg(format!("{} {value}", version + 1));
        let written: Option<(String,)> = write.query_async(connection).await.expect("EXEC");
        assert!(written.is_some(), "no other client writes this row");
    }
}

/// Rate and processor time of claims.
#[derive(Clone, Copy)]
pub struct ClaimCost {
    pub per_s: f64,
    /// Processor microseconds per claim in this program.
    harness_us: f64,
    servers_us: f64,
}

impl ClaimCost {
    /// Measures the processor time while `claims` runs and returns its rate.
    pub async fn measure(cluster: &Cluster, claims: impl Future<Output = f64>) -> Self {
        let used = || {
            let servers: f64 = cluster.masters.iter().map(|server| cpu_s(server.pid())).sum();
            [cpu_s(std::process::id()), servers]
        };
        let (before, start) = (used(), Instant::now());
        let per_s = claims.await;
        let claims = per_s * start.elapsed().as_secs_f64();
        let [harness_us, servers_us] = std::array::from_fn(|i| (used()[i] - before[i]) * 1e6 / claims);
        Self { per_s, harness_us, servers_us }
    }

    pub fn us(&self) -> f64 {
        self.harness_us + self.servers_us
    }

    pub fn print(&self, what: &str) {
        let Self { per_s, harness_us, servers_us } = self;
        println!(
            "{what:<64} {per_s:>8.0} claims/s, processor us per claim: harness {harness_us:.2}, servers {servers_us:.2}"
        );
    }
}

/// Measures the baseline with `clients` clients.
pub async fn measure_baseline(cluster: &Cluster, clients: usize, time: Duration) -> ClaimCost {
    const WORKERS: usize = 200_000;
    flush(cluster);
    let mut loader = BaselineClient::connect(cluster).await;
    for from in (0..WORKERS).step_by(1_000) {
        let names: Vec<String> = (from..from + 1_000).map(|n| format!("worker-{n:07}")).collect();
        let _: i64 =
            redis::cmd("SADD").arg(IDLE).arg(&names).query_async(loader.connection_of("hot")).await.expect("SADD");
        let mut rows: [redis::Pipeline; 3] = Default::default();
        for name in &names {
            rows[loader.node_of(name)].cmd("SET").arg(format!("worker:{{{name}}}")).arg("1 -").ignore();
        }
        for (at, rows) in rows.iter().enumerate() {
            let _: () = rows.query_async(&mut loader.connections[at].1).await.expect("SET");
        }
    }
    let clients: Vec<BaselineClient> = join_all((0..clients).map(|_| BaselineClient::connect(cluster))).await;
    ClaimCost::measure(cluster, async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..)
            .zip(clients)
            .map(|(client, mut client_connection)| {
                tokio::spawn(async move {
                    let mut claims = 0_usize;
                    while start.elapsed() < time && client_connection.claim(&format!("{client}-{claims}")).await {
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
