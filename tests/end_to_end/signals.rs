//! H02: signals that mean "reload your settings" or "reopen your logs" never end the service.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Running, Server, command, fresh, signal, through_sh};

/// Signals that end a process by default, and which supervisors send for other reasons.
const HARMLESS: [&str; 4] = ["HUP", "USR1", "USR2", "ALRM"];
const TIMEOUT: Duration = Duration::from_secs(30);

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap()
}

/// Waits for something that the service does by itself; fails as soon as it has ended.
fn until(service: &mut Running, what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        if let Some(status) = service.0.try_wait().unwrap() {
            panic!("the service ended ({status}) before: {what}");
        }
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        std::thread::yield_now();
    }
}

/// Sends a signal repeatedly until the process has ended, and returns the exit code.
fn flood_until_the_end(service: &mut Running, name: &str) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = service.0.try_wait().unwrap() {
            assert!(status.code().is_some(), "a signal ended the service: {status}");
            return status.code();
        }
        assert!(begun.elapsed() < TIMEOUT, "it does not end");
        signal(name, service.0.id());
    }
}

/// Reads a signal mask of a process from the system.
fn signals(process: u32, mask: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(mask)?.strip_prefix(':'));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

#[test]
fn h02_a_running_service_logs_signals_and_continues() {
    let (dir, mut server, mut client) = fresh();
    for name in HARMLESS {
        signal(name, server.child.0.id());
        until(&mut server.child, &format!("SIG{name} is logged"), || {
            log_of(dir.path()).contains(&format!("SIG{name}"))
        });
        client.get("/healthz").expect(200);
    }
    assert_eq!(server.stop().code(), Some(0));
}

/// The configuration is a pipe without a writer, so the service is blocked on reading it.
#[test]
fn h02_before_its_configuration_is_read_and_while_it_stops() {
    let dir = TempDir::new().unwrap();
    let pipe = dir.path().join("config.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let arguments = ["--config", pipe.to_str().unwrap(), "--listen", &address.to_string()];
    let mut service = Running(command(dir.path(), &arguments, &[]).spawn().unwrap());
    // Opens when the service has opened the pipe to read.
    let mut writer = File::options().write(true).open(&pipe).unwrap();
    for name in HARMLESS {
        signal(name, service.0.id());
    }
    // A process that was ended by a signal reads nothing.
    let _ = writer.write_all(b"[log]\n");
    drop(writer);
    until(&mut service, "it answers", || Client::connect(address).is_ok());
    for name in HARMLESS {
        until(&mut service, "it is logged", || log_of(dir.path()).contains(&format!("SIG{name}")));
    }
    // Half a request delays the shutdown for a while.
    let mut client = Client::connect(address).unwrap();
    client.send(b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60\r\n\r\n{").unwrap();
    signal("TERM", service.0.id());
    assert_eq!(flood_until_the_end(&mut service, "HUP"), Some(0));
}

#[test]
fn h02_while_the_store_is_recovered() {
    let dir = TempDir::new().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // The store's address is not served, so the recovery waits.
    let (address, nowhere) = (free(), format!("redis://{}", free()));
    let data = dir.path().join("data");
    let arguments =
        ["--store", nowhere.as_str(), "--data-dir", data.to_str().unwrap(), "--listen", &address.to_string()];
    let mut service = Running(command(dir.path(), &arguments, &[]).spawn().unwrap());
    until(&mut service, "it answers", || Client::connect(address).is_ok());
    Client::connect(address).unwrap().get("/readyz").expect_error(503, "UNAVAILABLE", Some("loading"), None);
    for name in HARMLESS {
        signal(name, service.0.id());
        until(&mut service, "it is logged", || log_of(dir.path()).contains(&format!("SIG{name}")));
    }
    Client::connect(address).unwrap().get("/healthz").expect(200);
    signal("TERM", service.0.id());
    assert_eq!(flood_until_the_end(&mut service, "HUP"), Some(0));
}

#[test]
fn h02_what_nohup_ignores_stays_ignored() {
    let dir = TempDir::new().unwrap();
    let ignoring = through_sh("trap '' HUP", &command(dir.path(), &[], &[]), dir.path());
    let server = Server::start_command(dir.path(), ignoring);
    let (hangup, process) = (1, server.child.0.id());
    assert_eq!(signals(process, "SigIgn") & hangup, hangup);
    assert_eq!(signals(process, "SigCgt") & hangup, 0);
    signal("HUP", process);
    server.client().get("/healthz").expect(200);
    assert_eq!(server.stop().code(), Some(0));
    assert!(!log_of(dir.path()).contains("SIGHUP"));
}

/// A closed terminal, or a full disk under the log, does not end the service.
#[test]
fn h02_an_unwritable_log_does_not_end_the_service() {
    let dir = TempDir::new().unwrap();
    let mut full = command(dir.path(), &[], &[]);
    full.stderr(File::options().write(true).open("/dev/full").unwrap());
    let server = Server::start_command(dir.path(), full);
    signal("HUP", server.child.0.id());
    let mut client = server.client();
    client.put("/v1/pools/ns/warm", &serde_json::json!({})).expect(201);
    client.delete("/v1/pools/ns/warm").expect(200);
    assert_eq!(server.stop().code(), Some(0), "SIGTERM is logged too");
}
