//! H03: data of the service is readable by its owner alone.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Running, Server, command, through_sh};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Returns the modes of everything in a directory, by name.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut modes: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), mode(&entry.path()))).collect();
    modes.sort();
    modes
}

#[track_caller]
fn is_private(dir: &Path, names: &[&str]) {
    let expected: Vec<_> = names.iter().map(|name| ((*name).to_owned(), 0o600)).collect();
    assert_eq!((mode(dir), modes(dir)), (0o700, expected), "{:o}: {:?}", mode(dir), modes(dir));
}

/// Returns the log lines that warn of a directory or file that others can read.
fn warnings(dir: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(dir.join("log")).unwrap();
    log.lines().filter(|line| line.contains("can read or change")).map(ToOwned::to_owned).collect()
}

/// Creates a data directory as earlier versions left it, with everything in it open to all.
fn wide(dir: &Path) {
    let data = dir.join("data");
    assert_eq!(Server::start(dir).stop().code(), Some(0));
    set_mode(&data, 0o755);
    for entry in std::fs::read_dir(&data).unwrap() {
        set_mode(&entry.unwrap().path(), 0o644);
    }
}

#[test]
fn h03_data_is_readable_by_its_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let dir = TempDir::new().unwrap();
        let under = through_sh(&format!("umask {umask}"), &command(dir.path(), &[], &[]), dir.path());
        let server = Server::start_command(dir.path(), under);
        server.client().put("/v1/pools/ns/warm", &json!({})).expect(201);
        let data = dir.path().join("data");
        is_private(&data, &["lock", "log-000000000001", "store"]);
        assert_eq!(server.stop().code(), Some(0));
        // A file that was set aside is written again.
        std::fs::rename(data.join("log-000000000001"), data.join("log-000000000001.unsynced")).unwrap();
        set_mode(&data.join("log-000000000001.unsynced"), 0o644);
        let under = through_sh(&format!("umask {umask}"), &command(dir.path(), &[], &[]), dir.path());
        let server = Server::start_command(dir.path(), under);
        server.client().get("/v1/pools/ns/warm").expect(200);
        is_private(&data, &["lock", "log-000000000001", "store"]);
        assert_eq!(warnings(dir.path()), [""; 0]);
    }
}

#[test]
fn h03_the_directory_of_a_redis_store_is_restricted_too() {
    let dir = TempDir::new().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, nowhere) = (free().to_string(), format!("redis://{}", free()));
    let data = dir.path().join("data");
    let arguments = ["--store", nowhere.as_str(), "--data-dir", data.to_str().unwrap(), "--listen", &address];
    let plain = command(dir.path(), &arguments, &[]);
    let mut service = Running(through_sh("umask 000", &plain, dir.path()).spawn().unwrap());
    while !Client::connect(address.parse().unwrap()).is_ok_and(|mut client| client.get("/healthz").status == 200) {
        assert!(service.0.try_wait().unwrap().is_none(), "the service ended");
        std::thread::yield_now();
    }
    is_private(&data, &["lock", "node-id"]);
}

#[test]
fn h03_an_open_directory_is_restricted_if_it_has_only_the_services_files() {
    let dir = TempDir::new().unwrap();
    wide(dir.path());
    let server = Server::start(dir.path());
    is_private(&dir.path().join("data"), &["lock", "log-000000000001", "store"]);
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(warnings(dir.path()), [""; 0]);
}

#[test]
fn h03_a_directory_with_other_files_is_unchanged_and_warned_about_once() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    wide(dir.path());
    std::fs::write(data.join("notes"), "mine").unwrap();
    set_mode(&data.join("notes"), 0o644);
    let server = Server::start(dir.path());
    let left: Vec<_> = [("lock", 0o600), ("log-000000000001", 0o600), ("notes", 0o644), ("store", 0o600)]
        .map(|(n, m)| (n.to_owned(), m))
        .into();
    assert_eq!((mode(&data), modes(&data)), (0o755, left));
    assert_eq!(server.stop().code(), Some(0));
    let warned = warnings(dir.path());
    assert!(matches!(&warned[..], [one] if one.contains(data.to_str().unwrap()) && one.contains("0755")), "{warned:?}");
}

#[test]
fn h03_a_link_to_the_directory_is_followed_and_one_in_it_is_not() {
    let dir = TempDir::new().unwrap();
    wide(dir.path());
    let (data, real, file) = (dir.path().join("data"), dir.path().join("real"), dir.path().join("file"));
    std::fs::rename(&data, &real).unwrap();
    std::os::unix::fs::symlink(&real, &data).unwrap();
    std::fs::rename(real.join("log-000000000001"), &file).unwrap();
    std::os::unix::fs::symlink(&file, real.join("log-000000000001")).unwrap();
    let server = Server::start(dir.path());
    assert_eq!((mode(&real), mode(&file)), (0o700, 0o644), "what lies elsewhere is left alone");
    assert_eq!(server.stop().code(), Some(0));
    let warned = warnings(dir.path());
    assert!(matches!(&warned[..], [one] if one.contains("log-000000000001") && one.contains("0644")), "{warned:?}");
}

#[test]
fn h03_a_directory_of_another_user_is_unchanged() {
    let dir = TempDir::new().unwrap();
    wide(dir.path());
    let data = dir.path().join("data");
    if std::os::unix::fs::chown(&data, Some(65_534), None).is_err() {
        eprintln!("SKIPPED: only root can change the owner of a directory");
        return;
    }
    let server = Server::start(dir.path());
    assert_eq!((mode(&data), std::fs::metadata(&data).unwrap().uid()), (0o755, 65_534));
    assert_eq!(server.stop().code(), Some(0));
    let warned = warnings(dir.path());
    assert!(matches!(&warned[..], [one] if one.contains(data.to_str().unwrap()) && one.contains("0755")), "{warned:?}");
}
