//! Starts and stops the binary.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;

/// Timeout for anything that a service does.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Service process of a test.
pub struct Server {
    pub address: SocketAddr,
    /// Address of the RESP edge, if `--resp-listen` was among the arguments.
    pub resp: Option<SocketAddr>,
    /// Lines that the service printed when it was ready.
    pub welcome: Vec<String>,
    pub child: Running,
}

/// Path of the service's binary. For tests of another package Cargo does not provide it: it lies next to that package's
/// own binary, and `cargo build --bins` builds both.
fn program() -> PathBuf {
    let program = match option_env!("CARGO_BIN_EXE_hotpool") {
        Some(program) => PathBuf::from(program),
        None => std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("hotpool"),
    };
    assert!(program.exists(), "{} is not built; run cargo build --bins", program.display());
    program
}

/// Command of the service, with a data directory and a log file.
pub fn command(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program());
    command.arg("serve").args(arguments).envs(environment.iter().copied());
    if !arguments.contains(&"--store") && !arguments.contains(&"--data-dir") {
        command.arg("--data-dir").arg(dir.join("data"));
    }
    if !arguments.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    if !arguments.contains(&"--resp-listen") {
        command.args(["--resp-listen", "off"]);
    }
    let log = File::create(dir.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}

/// Wraps a command in a line of shell, which changes what the process inherits.
pub fn through_sh(line: &str, plain: &Command, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{line}; exec \"$0\" \"$@\"")).arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let log = File::create(dir.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}

impl Server {
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[], &[])
    }

    /// Starts the service and waits until it is ready.
    pub fn start_with(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_command(dir, command(dir, arguments, environment))
    }

    /// Runs the result of [`command`], perhaps through another program, and waits until the service is ready.
    pub fn start_command(dir: &Path, mut command: Command) -> Self {
        command.stdout(Stdio::piped());
        let mut child = Running(command.spawn().unwrap());
        let mut out = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut welcome = Vec::new();
        // The ready line, `try:`, and three commands.
        for line in out.by_ref().take(5) {
            welcome.push(line.unwrap());
        }
        let response = |scheme| welcome.first().and_then(|line| address_in(line, scheme));
        let Some(address) = response("http://") else {
            let status = child.0.wait().unwrap();
            panic!("the service is not ready ({status}): {}", std::fs::read_to_string(dir.join("log")).unwrap());
        };
        Self { address, resp: response("redis://"), welcome, child }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Resident memory of the process, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says it");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends SIGTERM to the service.
    pub fn terminate(&self) {
        signal("TERM", self.child.0.id());
    }

    /// Waits for the end of the process.
    pub fn wait(mut self) -> ExitStatus {
        self.child.0.wait().unwrap()
    }

    /// Stops the service as an operator would.
    pub fn stop(self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Kills the service, like a power cut.
    pub fn kill(self) {
        drop(self.child);
    }
}

/// Process that ends with its scope, also when the test fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn address_in(line: &str, scheme: &str) -> Option<SocketAddr> {
    // The store may be a Redis as well.
    let (ready, _) = line.split_once("(store:")?;
    let (_, rest) = ready.split_once(scheme)?;
    rest.split(' ').next()?.parse().ok()
}

impl Server {
    /// Runs `meanwhile` while the service is stopped: it finds everything done when it continues.
    pub fn paused<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        signal("STOP", self.child.0.id());
        // The signal stops one thread after the other, and a running one could reply.
        until("every thread of the service is stopped", || is_stopped(self.child.0.id()));
        let done = meanwhile();
        signal("CONT", self.child.0.id());
        done
    }
}

/// Polls for the effect of another process; fails with `what` after [`TIMEOUT`].
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        std::thread::yield_now();
    }
}

/// Whether every thread of a process is stopped, by its state in `/proc`.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap()).all(|stat| {
        // The name of the thread, in parentheses, may contain any character.
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    })
}

pub fn signal(name: &str, process: u32) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {process}")).status().unwrap();
    assert!(sent.success());
}

/// Starts a service on a fresh directory, with a client.
pub fn fresh() -> (TempDir, Server, Client) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    (dir, server, client)
}

/// Starts a service with the pool `ns/warm` of `workers` workers `w0`, `w1`, ...
pub fn with_pool(workers: usize) -> (TempDir, Server, Client) {
    let (dir, server, mut client) = fresh();
    client.put("/v1/pools/ns/warm", &json!({"shards": 4})).expect(201);
    let all: Vec<_> = (0..workers).map(|i| json!({"id": format!("w{i}")})).collect();
    let answer = client.post("/v1/pools/ns/warm/workers:batch", &json!({"workers": all})).expect(200);
    assert!(answer["items"].as_array().unwrap().iter().all(|item| item["created"] == true), "{answer}");
    (dir, server, client)
}
