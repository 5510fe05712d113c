//! Operational failures: each causes a clear error at startup or a clear state later, never a hang or a silent loss.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Running, Server, command};
use crate::servers::{Cluster, Server as Redis, free_port, until};

/// Short lease, so that a test sees it end.
const SHORT: &[(&str, &str)] = &[("HOTPOOL__STORE__COMMAND_MS", "400"), ("HOTPOOL__STORE__LEASE_MS", "3000")];

fn dir() -> TempDir {
    TempDir::new().expect("a directory")
}

fn arguments<'a>(data: &'a str, url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--store", url, "--data-dir", data], more].concat()
}

fn start(dir: &Path, url: &str, more: &[&str]) -> Server {
    let data = dir.join("data");
    Server::start_with(dir, &arguments(data.to_str().unwrap(), url, more), SHORT)
}

/// Output on stderr of a service that ends by itself with exit code 1 within 10 s.
fn refused(dir: &Path, url: &str, environment: &[(&str, &str)]) -> String {
    let data = dir.join("data");
    let mut child = Running(
        command(dir, &arguments(data.to_str().unwrap(), url, &[]), environment).stderr(Stdio::piped()).spawn().unwrap(),
    );
    let begin = Instant::now();
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{said}");
    said
}

/// Service that waits for its store: its process and a client.
fn waiting(dir: &Path, url: &str) -> (Running, Client) {
    let (data, port) = (dir.join("data"), free_port());
    let listen = format!("127.0.0.1:{port}");
    let arguments = arguments(data.to_str().unwrap(), url, &["--listen", &listen]);
    let child = Running(command(dir, &arguments, SHORT).spawn().unwrap());
    let mut client = None;
    until("the port is open", || {
        client = Client::connect(listen.parse().unwrap()).ok();
        client.is_some()
    });
    (child, client.unwrap())
}

fn pool(client: &mut Client, pool: &str, shards: u16, workers: usize) {
    client.put(&format!("/v1/pools/ns/{pool}"), &json!({"shards": shards})).expect(201);
    let workers: Vec<Value> = (0..workers).map(|i| json!({"id": format!("w{i}")})).collect();
    client.post(&format!("/v1/pools/ns/{pool}/workers:batch"), &json!({"workers": workers})).expect(200);
}

fn claim(client: &mut Client, pool: &str, key: &str) -> u16 {
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": pool, "key": key})).status
}

/// Number of acknowledged renewals.
fn renewals(client: &mut Client) -> u64 {
    client.metric(r#"hotpool_store_renewals_total{outcome="ok"}"#)
}

/// Waits for a renewal, of which a lease has three.
fn a_lease_goes_by(client: &mut Client) {
    let before = renewals(client);
    until("a lease has gone by", || renewals(client) >= before + 4);
}

fn why(client: &mut Client) -> String {
    client.get("/readyz").json().to_string()
}

#[test]
fn s10_a_wrong_password_ends_the_start_and_is_not_shown() {
    let (redis, dir) = (Redis::start(&["--requirepass", "sesame"]), dir());
    let said = refused(dir.path(), &format!("redis://:wr0ng@127.0.0.1:{}", redis.port), &[]);
    assert!(said.contains("password") && !said.contains("wr0ng"), "{said}");
    let said = refused(dir.path(), &redis.url(), &[]);
    assert!(said.contains("NOAUTH") || said.contains("uthentication"), "{said}");
    let server = start(dir.path(), &format!("redis://:sesame@127.0.0.1:{}", redis.port), &[]);
    assert!(!server.welcome.concat().contains("sesame"), "{:?}", server.welcome);
    assert_eq!(server.stop().code(), Some(0));
}

/// Certificate files of an authority, a server and a client.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Names must differ, or the certificates below would seem to have signed themselves.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &ca).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn s10_tls_on_one_side_only_ends_the_start_and_on_both_it_serves() {
    let (files, dir) = (dir(), dir());
    certificates(files.path());
    let file = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let port = free_port().to_string();
    let redis = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "yes",
    ]);
    let port = redis.tls_port();
    let trusting = [("HOTPOOL__STORE__TLS_CA_FILE", ca.as_str())];
    let showing = [trusting[0], ("HOTPOOL__STORE__TLS_CERT_FILE", &cert), ("HOTPOOL__STORE__TLS_KEY_FILE", &key)];
    let said = refused(dir.path(), &format!("redis://127.0.0.1:{port}"), &[]);
    assert!(said.contains("is it a TLS port (rediss://)?"), "{said}");
    let said = refused(dir.path(), &format!("rediss://127.0.0.1:{port}"), &[]);
    assert!(said.contains("TLS failed"), "an authority that the system does not know: {said}");
    let said = refused(dir.path(), &format!("rediss://127.0.0.1:{port}"), &trusting);
    assert!(said.contains("TLS failed") && said.to_lowercase().contains("certificate"), "no certificate shown: {said}");
    let plain = Redis::start(&[]);
    let said = refused(dir.path(), &format!("rediss://127.0.0.1:{}", plain.port), &trusting);
    assert!(said.contains("speaks without TLS"), "{said}");
    let url = format!("rediss://127.0.0.1:{port}");
    let data = dir.path().join("data");
    let server = Server::start_with(dir.path(), &arguments(data.to_str().unwrap(), &url, &[]), &showing);
    pool(&mut server.client(), "warm", 4, 1);
    assert_eq!(claim(&mut server.client(), "warm", "k"), 201);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn another_kind_of_server_ends_the_start_and_names_the_right_url() {
    let (plain, cluster, dir) = (Redis::start(&[]), Cluster::start(1, 0, &[]), dir());
    let said = refused(dir.path(), &format!("redis-cluster://127.0.0.1:{}", plain.port), &[]);
    assert!(said.contains("its URL begins with redis://"), "{said}");
    let said = refused(dir.path(), &cluster.masters[0].url(), &[]);
    assert!(said.contains("its URL begins with redis-cluster://"), "{said}");
    let said = refused(dir.path(), &format!("redis-sentinel://127.0.0.1:{}/main", plain.port), &[]);
    assert!(said.contains("its URL begins with redis://"), "{said}");
}

#[test]
fn s10_the_start_waits_for_an_unreachable_or_silent_server_and_names_the_reason() {
    let (dir, silent_dir) = (dir(), dir());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_silent, mut client) = waiting(silent_dir.path(), &format!("redis://{}", silent.local_addr().unwrap()));
    until("it says why", || why(&mut client).contains("does not answer within 400 ms"));
    assert_eq!(claim(&mut client, "warm", "k"), 503);
    let mut redis = Redis::start(&[]);
    redis.kill();
    let (_away, mut client) = waiting(dir.path(), &redis.url());
    until("it says why", || why(&mut client).contains("refuses connections"));
    client.get("/healthz").expect(200);
    redis.restart();
    until("it is ready", || client.get("/readyz").status == 200);
    pool(&mut client, "warm", 4, 1);
    assert_eq!(claim(&mut client, "warm", "k"), 201);
}

#[test]
fn a_second_process_fails_while_the_owner_lives_and_serves_at_once_after_it_stopped() {
    let (redis, first_dir, second_dir) = (Redis::start(&[]), dir(), dir());
    let first = start(first_dir.path(), &redis.url(), &[]);
    let said = refused(second_dir.path(), &redis.url(), SHORT);
    assert!(said.contains(&format!("pid {}", first.child.0.id())) && said.contains("--standby"), "{said}");
    let said = refused(first_dir.path(), &redis.url(), SHORT);
    assert!(said.contains("is in use by another process"), "{said}");
    pool(&mut first.client(), "warm", 4, 1);
    assert_eq!(claim(&mut first.client(), "warm", "k"), 201);
    assert_eq!(first.stop().code(), Some(0));
    let begin = Instant::now();
    let second = start(second_dir.path(), &redis.url(), &[]);
    assert!(begin.elapsed() < Duration::from_secs(3), "the lease of 3 s was released at the stop");
    second.client().get("/v1/claims/ns/k").expect(200);
}

#[test]
fn s10_a_full_server_is_reported_and_recovers() {
    let (redis, dir) = (Redis::start(&[]), dir());
    let server = start(dir.path(), &redis.url(), &[]);
    let mut client = server.client();
    pool(&mut client, "warm", 4, 10);
    client.put("/v1/pools/ns/memory", &json!({"ack": "memory", "lag_max_ms": 60_000})).expect(201);
    client.put("/v1/pools/ns/memory/workers/w", &json!({})).expect(201);
    assert_eq!(claim(&mut client, "warm", "before"), 201);
    let _: () = redis.query(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(claim(&mut client, "warm", "full"), 503);
    assert!(why(&mut client).contains("maxmemory"), "{}", why(&mut client));
    // Longer than the lease: a full server does not end the ownership, so memory-acknowledged claims go on.
    a_lease_goes_by(&mut client);
    assert!(!why(&mut client).contains("lapsed"), "{}", why(&mut client));
    let body = json!({"namespace": "ns", "pool": "memory", "key": "m"});
    assert_eq!(client.post("/v1/claims", &body).status, 201);
    let _: () = redis.query(&["CONFIG", "SET", "maxmemory", "0"]);
    until("it is ready again", || client.get("/readyz").status == 200);
    assert_eq!(claim(&mut client, "warm", "after"), 201);
    assert_eq!(client.get("/v1/claims/ns/full").status, 404, "the unacknowledged claim was rolled back");
    client.get("/v1/claims/ns/before").expect(200);
}

#[test]
fn s06_unreadable_rows_stop_their_shard_by_name_and_no_other() {
    let (redis, dir) = (Redis::start(&[]), dir());
    let server = start(dir.path(), &redis.url(), &[]);
    pool(&mut server.client(), "warm", 4, 40);
    assert_eq!(server.stop().code(), Some(0));
    let shard = |i: usize| -> String {
        let keys: Vec<String> = redis.query(&["KEYS", &format!("hotpool:*.{i}:a")]);
        keys.into_iter().find(|key| !key.contains(":0.0:")).unwrap()
    };
    let _: () = redis.query(&["SET", &shard(1), "a string"]);
    let fields: Vec<String> = redis.query(&["HKEYS", &shard(2)]);
    let worker = fields.iter().find(|field| field.starts_with("w:")).unwrap();
    let _: i64 = redis.query(&["HSET", &shard(2), worker, "\u{9}of the future"]);
    let (_process, mut client) = waiting(dir.path(), &redis.url());
    until("two shards are refused", || {
        let why = why(&mut client);
        why.contains("shard 1 of ns/warm does not serve") && why.contains("shard 2 of ns/warm does not serve")
    });
    let said = why(&mut client);
    assert!(said.contains("is a string") && said.contains("unknown version 9"), "{said}");
    let served = (0..60).filter(|i| claim(&mut client, "warm", &format!("k{i}")) == 201).count();
    assert!(served > 0, "the others serve");
    assert_eq!(claim(&mut client, "warm", "more"), 503, "and are not called full");
    // Rows that Redis loses of a serving shard are written again, although two other shards stay unreadable.
    let lost = shard(0);
    let _: i64 = redis.query(&["DEL", &lost]);
    until("the lost shard is rewritten", || {
        let keys: Vec<String> = redis.query(&["KEYS", &format!("{}*", lost.trim_end_matches('a'))]);
        keys.iter().any(|key| redis.query::<i64>(&["HLEN", key]) > 1)
    });
}

#[test]
fn a_pool_deleted_while_redis_is_unreachable_is_gone_when_it_is_back() {
    let (redis, dir) = (Redis::start(&[]), dir());
    let server = start(dir.path(), &redis.url(), &[]);
    let mut client = server.client();
    pool(&mut client, "warm", 4, 10);
    pool(&mut client, "other", 1, 1);
    redis.signal("STOP");
    let mut leaving = server.client();
    leaving.send(b"DELETE /v1/pools/ns/warm?force=true HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    // Once it has begun, the caller does not wait for the end.
    until("its deletion has begun", || client.get("/v1/pools/ns/warm").status == 404);
    drop(leaving);
    redis.signal("CONT");
    until("the pool is gone", || client.get("/v1/pools/ns/warm").status == 404);
    until("nothing is left of it", || redis.query::<Vec<String>>(&["KEYS", "hotpool:*"]).len() == 3);
    pool(&mut client, "warm", 4, 10);
    assert_eq!(claim(&mut client, "warm", "k"), 201);
    // After several renewals no deleted key has reappeared, and gaps are still closed.
    a_lease_goes_by(&mut client);
    assert_eq!(redis.query::<Vec<String>>(&["KEYS", "hotpool:*"]).len(), 7, "the catalog, the owner, five shards");
    let _: () = redis.query(&["FLUSHALL"]);
    until("all rows are rewritten", || redis.query::<Vec<String>>(&["KEYS", "hotpool:*"]).len() == 7);
    assert_eq!(claim(&mut client, "other", "k2"), 201);
}

#[test]
fn a_missing_library_is_loaded_again_and_a_paused_server_is_retried() {
    let (redis, dir) = (Redis::start(&[]), dir());
    let server = start(dir.path(), &redis.url(), &[]);
    let mut client = server.client();
    pool(&mut client, "warm", 4, 10);
    let _: () = redis.query(&["FUNCTION", "FLUSH"]);
    assert_eq!(claim(&mut client, "warm", "flushed"), 201);
    let _: () = redis.query(&["CLIENT", "PAUSE", "900", "ALL"]);
    assert_eq!(claim(&mut client, "warm", "paused"), 201);
    let port = redis.port;
    let sleeping = std::thread::spawn(move || {
        let mut connection =
            redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap().get_connection().unwrap();
        redis::cmd("DEBUG").arg("SLEEP").arg("0.9").query::<()>(&mut connection).unwrap();
    });
    assert_eq!(claim(&mut client, "warm", "asleep"), 201);
    sleeping.join().unwrap();
    until("it is ready", || client.get("/readyz").status == 200);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_unix_socket_a_database_and_a_prefix_can_be_chosen() {
    let (redis, dir, other_dir) = (Redis::start(&[]), dir(), dir());
    let socket = format!("redis+unix://{}", redis.socket().display());
    let server = start(dir.path(), &socket, &[]);
    pool(&mut server.client(), "warm", 4, 1);
    let data = other_dir.path().join("data");
    let url = format!("{}/3", redis.url());
    let arguments = arguments(data.to_str().unwrap(), &url, &[]);
    let other = Server::start_with(other_dir.path(), &arguments, &[("HOTPOOL__STORE__KEY_PREFIX", "mine")]);
    pool(&mut other.client(), "warm", 4, 1);
    assert_eq!(claim(&mut other.client(), "warm", "k"), 201);
    assert_eq!(claim(&mut server.client(), "warm", "k"), 201, "two services, one server");
    let strangers: Vec<String> = redis.query(&["KEYS", "mine*"]);
    assert_eq!(strangers, Vec::<String>::new(), "they are in database 3");
}

#[test]
fn a_master_behind_a_sentinel_is_followed_when_it_changes() {
    let (mut master, dir) = (Redis::start(&[]), dir());
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    until("it follows", || replica.query::<String>(&["INFO", "replication"]).contains("master_link_status:up"));
    let sentinel = Redis::sentinel("main", master.port);
    let url = format!("redis-sentinel://127.0.0.1:{}/main", sentinel.port);
    until("the sentinel knows the replica", || {
        sentinel
            .try_ask::<Vec<redis::Value>>(&["SENTINEL", "REPLICAS", "main"])
            .is_ok_and(|replicas| replicas.len() == 1)
    });
    let server = start(dir.path(), &url, &[]);
    let mut client = server.client();
    pool(&mut client, "warm", 4, 10);
    assert_eq!(claim(&mut client, "warm", "before"), 201);
    master.kill();
    until("the replica is promoted", || {
        replica.try_ask::<String>(&["INFO", "replication"]).is_ok_and(|about| about.contains("role:master"))
    });
    until("durable claims go on", || claim(&mut client, "warm", "after") < 300);
    client.get("/v1/claims/ns/before").expect(200);
    let said = refused(TempDir::new().unwrap().path(), &sentinel.url(), &[]);
    assert!(said.contains("redis-sentinel://"), "{said}");
}

#[test]
fn the_contents_of_a_store_are_printed_without_taking_it_over() {
    let (redis, dir) = (Redis::start(&[]), dir());
    let server = start(dir.path(), &redis.url(), &[]);
    let mut client = server.client();
    pool(&mut client, "warm", 4, 3);
    assert_eq!(claim(&mut client, "warm", "job-1"), 201);
    client.put("/v1/quotas/ns/acme", &json!({"claims": 7})).expect(201);
    let inspect = |more: &[&str]| {
        let hotpool = env!("CARGO_BIN_EXE_hotpool");
        let out =
            std::process::Command::new(hotpool).args(["store", "inspect", &redis.url()]).args(more).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, text, _) = inspect(&["--rows"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("ns/warm") && text.contains("default/job-1#") && text.contains("reserved"), "{text}");
    assert!(text.contains("ns/acme") && text.contains(r#""claims":7"#), "{text}");
    let (_, json, _) = inspect(&["-o", "json", "--rows"]);
    let contents: Value = serde_json::from_str(&json).unwrap();
    let shards = contents["pools"][0]["shards"].as_array().unwrap();
    assert_eq!(shards.iter().map(|shard| shard["workers"].as_u64().unwrap()).sum::<u64>(), 3);
    assert_eq!(shards.iter().map(|shard| shard["held"].as_u64().unwrap()).sum::<u64>(), 1);
    let (code, _, said) = inspect(&["--pool", "ns/none"]);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(claim(&mut client, "warm", "job-2"), 201, "the service still owns it");
}
