//! Real Redis servers on free ports, ended with their handle.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redis::{Client, Connection, FromRedisValue};
use tempfile::TempDir;

/// Longest wait for a server in any operation.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns a port below those that the system assigns, from a range of this process, so that no other test and no outgoing
/// connection gets it before it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let row = std::process::id().wrapping_mul(64);
    let mut ports = std::iter::repeat_with(|| {
        let at = row.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        10_000 + u16::try_from(at % 20_000).expect("below 20,000")
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("endless")
}

/// Process of a `redis-server` on a free port, killed with its handle.
pub struct Server {
    child: Child,
    pub port: u16,
    bus: u16,
    args: Vec<String>,
    dir: TempDir,
}

impl Server {
    /// Starts a server with these arguments beside port and directory.
    pub fn start(args: &[&str]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let (port, bus) = (free_port(), free_port());
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let child = spawn(port, bus, &args, dir.path());
        let server = Self { child, port, bus, args, dir };
        server.wait();
        server
    }

    /// Starts a sentinel that watches the master of this name at this port.
    pub fn sentinel(name: &str, master: u16) -> Self {
        let (dir, port) = (TempDir::new().expect("a directory"), free_port());
        let lines = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 3000\n"
        );
        std::fs::write(dir.path().join("sentinel.conf"), lines).expect("a file");
        let mut command = Command::new("redis-server");
        command.arg(dir.path().join("sentinel.conf")).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is installed (tests/run.sh does that)");
        let server = Self { child, port, bus: 0, args: Vec::new(), dir };
        server.wait();
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Kills the server with `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Restarts the server from its disk.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, self.bus, &self.args, self.dir.path());
        self.wait();
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Runs one command, which must succeed.
    pub fn query<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub fn try_ask<T: FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]).query(&mut self.connection()?)
    }

    fn connection(&self) -> redis::RedisResult<Connection> {
        let url = match self.args.iter().position(|arg| arg == "--requirepass") {
            Some(at) => format!("redis://:{}@127.0.0.1:{}", self.args[at + 1], self.port),
            None => self.url(),
        };
        Client::open(url)?.get_connection_with_timeout(Duration::from_secs(5))
    }

    fn wait(&self) {
        if self.args.iter().any(|arg| arg == "--tls-port") {
            until("the TLS port is open", || std::net::TcpStream::connect(("127.0.0.1", self.tls_port())).is_ok());
            return;
        }
        until("the server answers", || self.try_ask::<String>(&["PING"]).is_ok());
    }

    /// Waits for a server that was started with `--tls-port`.
    pub fn tls_port(&self) -> u16 {
        let at = self.args.iter().position(|arg| arg == "--tls-port").expect("a TLS server");
        self.args[at + 1].parse().expect("a port")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, bus: u16, args: &[String], dir: &std::path::Path) -> Child {
    let mut command = Command::new("redis-server");
    let is_tls = args.iter().any(|arg| arg == "--tls-port");
    command.args(["--port", &if is_tls { 0 } else { port }.to_string()]);
    command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(dir);
    command.args(["--enable-debug-command", "yes", "--unixsocket"]).arg(dir.join("redis.sock"));
    if args.iter().any(|arg| arg == "--cluster-enabled") {
        command.args(["--cluster-port", &bus.to_string()]);
    }
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is installed (tests/run.sh does that)")
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill");
    assert!(sent.success(), "cannot send {name}");
}

/// Cluster of masters that share the slots, each with this many replicas.
pub struct Cluster {
    pub masters: Vec<Server>,
    pub replicas: Vec<Server>,
}

const CLUSTERED: &[&str] = &["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];

impl Cluster {
    pub fn start(masters: usize, replicas: usize, args: &[&str]) -> Self {
        let args = [CLUSTERED, args].concat();
        let start = |n: usize| -> Vec<Server> { (0..n).map(|_| Server::start(&args)).collect() };
        let cluster = Self { masters: start(masters), replicas: start(masters * replicas) };
        let slots = 16_384;
        for (i, server) in cluster.masters.iter().enumerate() {
            let (from, to) = (i * slots / masters, (i + 1) * slots / masters - 1);
            let _: () = server.query(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            let _: () = server.query(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
        }
        for server in cluster.all().skip(1) {
            cluster.masters[0].meet(server);
        }
        let all = cluster.all().count();
        until("every node knows all others", || {
            cluster.all().all(|server| server.info("cluster_known_nodes") == all.to_string())
        });
        for (i, server) in cluster.replicas.iter().enumerate() {
            let master: String = cluster.masters[i % masters].query(&["CLUSTER", "MYID"]);
            until("it replicates", || server.try_ask::<()>(&["CLUSTER", "REPLICATE", &master]).is_ok());
        }
        cluster.settle();
        cluster
    }

    pub fn all(&self) -> impl Iterator<Item = &Server> {
        self.masters.iter().chain(&self.replicas)
    }

    /// Waits until the cluster serves and every replica follows.
    pub fn settle(&self) {
        until("the cluster serves", || self.all().all(|server| server.info("cluster_state") == "ok"));
        for server in &self.replicas {
            until("it follows", || {
                let about: String = server.query(&["INFO", "replication"]);
                about.contains("master_link_status:up") && about.contains("master_sync_in_progress:0")
            });
        }
    }

    /// Adds a master without slots.
    pub fn add(&self) -> Server {
        let server = Server::start(CLUSTERED);
        self.masters[0].meet(&server);
        let all = self.all().count() + 1;
        until("every node knows it", || {
            self.all().all(|other| other.info("cluster_known_nodes") == all.to_string())
                && server.info("cluster_state") == "ok"
        });
        server
    }

    /// Rebalances the slots over all masters, one slot at a time, while the cluster serves.
    pub fn rebalance(&self) {
        let node = format!("127.0.0.1:{}", self.masters[0].port);
        let arguments = ["--cluster", "rebalance", &node, "--cluster-use-empty-masters"];
        let done = Command::new("redis-cli").args(arguments).stdout(Stdio::null()).status().expect("redis-cli");
        assert!(done.success(), "the slots were not moved");
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.masters.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }
}

impl Server {
    /// A field of `CLUSTER INFO`; empty if it does not answer.
    pub fn info(&self, field: &str) -> String {
        let about: String = self.try_ask(&["CLUSTER", "INFO"]).unwrap_or_default();
        let line = about.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Introduces another node to this one.
    pub fn meet(&self, other: &Self) {
        let (port, bus) = (other.port.to_string(), other.bus.to_string());
        let _: () = self.query(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    }
}

/// Polls a condition: the competing side is another process, so there is nothing to wait on.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
