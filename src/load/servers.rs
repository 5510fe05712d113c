//! Servers that a comparison starts and stops: a Redis Cluster, PostgreSQL, the service from the binary beside this one, and bare
//! servers.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tempfile::TempDir;

use super::claim_input::TargetPool;
use super::resp_pipeline::{RespPipeline, WriteMode};
use super::stats::TargetError;
use super::url::TargetUrl;

/// Longest wait for a server to start or change.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two checks of a server.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of slots in a Redis Cluster.
const SLOTS: usize = 16_384;

/// Child process that is killed when dropped.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // The process may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Finds a free port below the ephemeral range, so that the system does not assign it before it is used.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(64);
    for _ in 0..20_000 {
        let candidate = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (candidate % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Converts a client error to an error of the setup.
fn to_anyhow(failure: TargetError) -> anyhow::Error {
    anyhow!("{failure}")
}

/// Redis Cluster masters that share the slots, without persistence.
pub struct TestCluster {
    /// Address of each master, as `HOST:PORT`.
    pub hosts: Vec<String>,
    _servers: Vec<ChildGuard>,
    _dirs: Vec<TempDir>,
}

impl TestCluster {
    /// Starts the masters, forms the cluster and waits until it serves.
    ///
    /// # Errors
    /// Fails if `redis-server` is not installed, or the cluster does not form in time.
    pub async fn start(masters: usize) -> Result<Self> {
        let mut cluster = Self { hosts: Vec::new(), _servers: Vec::new(), _dirs: Vec::new() };
        let mut addresses = Vec::new();
        for _ in 0..masters {
            let (port, bus, dir) = (free_port()?.to_string(), free_port()?.to_string(), TempDir::new()?);
            let mut command = Command::new("redis-server");
            command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus, "--dir"]).arg(dir.path());
            let child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start redis-server")?;
            cluster.hosts.push(format!("127.0.0.1:{port}"));
            cluster._servers.push(ChildGuard(child));
            cluster._dirs.push(dir);
            addresses.push((port, bus));
        }
        let mut connections = Vec::new();
        for host in &cluster.hosts {
            connections.push(connect_when_ready(host).await?);
        }
        for (n, connection) in connections.iter().enumerate() {
            let (first, last) = (n * SLOTS / masters, (n + 1) * SLOTS / masters - 1);
            let (first, last, epoch) = (first.to_string(), last.to_string(), (n + 1).to_string());
            connection
                .execute(&[b"CLUSTER", b"ADDSLOTSRANGE", first.as_bytes(), last.as_bytes()])
                .await
                .map_err(to_anyhow)?;
            connection.execute(&[b"CLUSTER", b"SET-CONFIG-EPOCH", epoch.as_bytes()]).await.map_err(to_anyhow)?;
            let (port, bus) = &addresses[n];
            connections[0]
                .execute(&[b"CLUSTER", b"MEET", b"127.0.0.1", port.as_bytes(), bus.as_bytes()])
                .await
                .map_err(to_anyhow)?;
        }
        let start = Instant::now();
        for connection in &connections {
            loop {
                let info = connection.execute(&[b"CLUSTER", b"INFO"]).await.map_err(to_anyhow)?;
                let info = info.text().unwrap_or_default().to_owned();
                let all = format!("cluster_known_nodes:{masters}\r");
                if info.contains("cluster_state:ok") && info.contains(&all) {
                    break;
                }
                if start.elapsed() > START_TIMEOUT {
                    bail!("the cluster does not serve within {} s", START_TIMEOUT.as_secs());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(cluster)
    }
}

/// Connects to a server as soon as it replies.
async fn connect_when_ready(host: &str) -> Result<RespPipeline> {
    let start = Instant::now();
    loop {
        match RespPipeline::open(host, WriteMode::Immediate).await {
            Ok(connection) => return Ok(connection),
            Err(failure) if start.elapsed() > START_TIMEOUT => return Err(to_anyhow(failure)),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Bytes that each server has read from its clients so far.
///
/// # Errors
/// Fails if a server does not report the figure.
pub async fn bytes_read(hosts: &[String]) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for host in hosts {
        let connection = RespPipeline::open(host, WriteMode::Immediate).await.map_err(to_anyhow)?;
        let info = connection.execute(&[b"INFO", b"stats"]).await.map_err(to_anyhow)?;
        let line = info.text().unwrap_or_default().lines().find_map(|line| line.strip_prefix("total_net_input_bytes:"));
        all.push(
            line.and_then(|bytes| bytes.trim().parse().ok())
                .with_context(|| format!("{host} does not report total_net_input_bytes"))?,
        );
    }
    Ok(all)
}

/// PostgreSQL server with an empty database, killed when dropped.
pub struct PostgresServer {
    /// Address of the server, as `HOST:PORT`. Its user and its database are called `postgres`.
    pub host: String,
    _process: ChildGuard,
    _dir: TempDir,
}

/// Directory where Debian puts the programs of each version.
const POSTGRES_VERSIONS: &str = "/usr/lib/postgresql";
/// User that runs the server if this process runs as root, which PostgreSQL refuses.
const POSTGRES_USER: &str = "postgres";

/// Directory of the programs of PostgreSQL: the newest version of Debian's packages.
fn postgres_programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir(POSTGRES_VERSIONS).into_iter().flatten().flatten();
    let numbered = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let newest = numbered.max_by_key(|(version, _)| *version).map(|(_, path)| path.join("bin"));
    newest.context("PostgreSQL is not installed; install the Debian package postgresql")
}

/// User and group, by number, that the server runs as; none if this process may run it itself.
fn postgres_owner() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let entry =
        users.lines().map(|entry| entry.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == POSTGRES_USER);
    let number = |fields: &[&str], index: usize| fields.get(index)?.parse().ok();
    let owner = entry.and_then(|fields| Some((number(&fields, 2)?, number(&fields, 3)?)));
    owner.map(Some).context("PostgreSQL does not run as root, and there is no user called postgres")
}

impl PostgresServer {
    /// Starts a server on a directory of its own, with the settings of a new installation, and waits until it serves.
    ///
    /// # Errors
    /// Fails if PostgreSQL is not installed, or does not start in time.
    pub async fn start() -> Result<Self> {
        let (programs, owner, dir) = (postgres_programs()?, postgres_owner()?, TempDir::new()?);
        let (data, port) = (dir.path().join("data"), free_port()?.to_string());
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(group))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.current_dir(dir.path()).stdin(Stdio::null());
            if let Some((user, group)) = owner {
                command.uid(user).gid(group);
            }
            command
        };
        let mut create = command("initdb");
        create.arg("--pgdata").arg(&data).args([
            "--auth=trust",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        let created = tokio::task::spawn_blocking(move || create.output()).await?.context("cannot start initdb")?;
        if !created.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&created.stderr).trim());
        }
        let mut serve = command("postgres");
        serve.arg("-D").arg(&data).args(["-p", &port, "-c", "listen_addresses=127.0.0.1"]);
        serve.args(["-c", "unix_socket_directories=", "-c", "max_connections=400"]);
        let log = dir.path().join("log");
        let child = serve.stdout(Stdio::null()).stderr(File::create(&log)?).spawn().context("cannot start postgres")?;
        let server = Self { host: format!("127.0.0.1:{port}"), _process: ChildGuard(child), _dir: dir };
        server.wait_until_ready(&log).await?;
        Ok(server)
    }

    async fn wait_until_ready(&self, log: &Path) -> Result<()> {
        let start = Instant::now();
        let url = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", &self.host["127.0.0.1:".len()..]);
        while tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err() {
            if start.elapsed() > START_TIMEOUT {
                bail!("PostgreSQL is not ready: {}", std::fs::read_to_string(log).unwrap_or_default());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Service process, killed when dropped.
pub struct ServiceProcess {
    /// Address of the HTTP and gRPC listener, as `HOST:PORT`.
    pub http: String,
    /// Address of the RESP listener, as `HOST:PORT`.
    pub resp: String,
    _process: ChildGuard,
    _dir: TempDir,
}

impl ServiceProcess {
    /// Starts the binary beside this one with a store, and waits until it is ready.
    ///
    /// # Errors
    /// Fails with the service's log if the binary is missing or does not become ready.
    pub async fn start(store: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let data = dir.path().join("data");
        Self::start_in(dir, &["--store", store, "--data-dir", &data.display().to_string()]).await
    }

    /// Starts the binary beside this one with these options, and waits until it is ready.
    ///
    /// # Errors
    /// Fails like [`Self::start`].
    pub async fn start_with(options: &[&str]) -> Result<Self> {
        Self::start_in(TempDir::new()?, options).await
    }

    async fn start_in(dir: TempDir, options: &[&str]) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("hotpool");
        let log = dir.path().join("log");
        let mut command = Command::new(&binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--resp-listen", "127.0.0.1:0"]);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let (process, addresses) = start_listening(&mut command).await?;
        let Some((http, resp)) = addresses else {
            bail!("the service is not ready: {}", std::fs::read_to_string(&log).unwrap_or_default());
        };
        Ok(Self { http, resp, _process: process, _dir: dir })
    }
}

/// Starts a program and reads the addresses of its HTTP and its RESP listener from its first output, if it has them.
async fn start_listening(command: &mut Command) -> Result<(ChildGuard, Option<(String, String)>)> {
    let name = command.get_program().display().to_string();
    let mut process = ChildGuard(command.spawn().with_context(|| format!("cannot start {name}"))?);
    let stdout = process.0.stdout.take().context("no output")?;
    let read = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(START_TIMEOUT, read).await;
    let line = line.with_context(|| format!("{name} did not become ready in time"))???;
    let after = |scheme: &str| {
        let (_, rest) = line.split_once(scheme)?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    Ok((process, after("http://").zip(after("redis://"))))
}

/// Process with bare servers, killed when dropped.
pub struct EchoProcess {
    http: String,
    resp: String,
    _process: ChildGuard,
}

impl EchoProcess {
    /// Starts bare servers that grant from this fleet, and write to a log if there is one.
    ///
    /// # Errors
    /// Fails if they do not become ready.
    pub async fn start(fleet: &TargetPool, log: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["echo", "--workers", &fleet.workers.to_string(), "--slots", &fleet.slots.max(1).to_string()]);
        if let Some(log) = log {
            command.arg("--log").arg(log);
        }
        let (process, addresses) = start_listening(command.stdin(Stdio::null()).stdout(Stdio::piped())).await?;
        let (http, resp) = addresses.context("the bare servers are not ready")?;
        Ok(Self { http, resp, _process: process })
    }

    /// URL of the server for a scheme of the service.
    ///
    /// # Errors
    /// The scheme is none of the service.
    pub fn url(&self, scheme: &str) -> Result<TargetUrl> {
        let (address, query) = match scheme {
            "resp" => (&self.resp, format!("?http={}", self.http)),
            _ => (&self.http, String::new()),
        };
        format!("echo+{scheme}://{address}{query}").parse().map_err(anyhow::Error::msg)
    }
}
