//! Each command: arguments, replies, effects.

use serde_json::json;

use super::wire::{self, Wire, text, texts, with_pool};

#[test]
fn a_claim_lives_and_ends() {
    let (_dir, _server, mut client, mut wire) = with_pool(1);
    let claim = texts(&wire.call("CLAIM ns/warm KEY a"));
    let fence = &claim[1];
    assert_eq!(claim, ["a", fence, "w0", "nil"]);
    // The same key is the same claim, also over HTTP.
    assert_eq!(texts(&wire.call("claim ns/warm key a")), claim);
    let held = client.get("/v1/claims/ns/a").expect(200);
    assert_eq!(held["claim"]["fence"].to_string(), *fence);
    assert_eq!(texts(&wire.call(&format!("CONFIRM ns a {fence}"))), claim);
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["state"], "active");
    assert_eq!(wire.reply_text(&format!("RENEW ns a {fence}")), "nil");
    let until: u64 = wire.reply_text(&format!("RENEW ns a {fence} TTL 60000")).parse().unwrap();
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["expires_at_ms"], until);
    assert_eq!(wire.reply_text("RELEASE ns a 1"), "-FENCED the fence is not the holder's");
    assert_eq!(wire.reply_text(&format!("RELEASE ns a {fence}")), "1");
    assert_eq!(wire.reply_text(&format!("RELEASE ns a {fence}")), "0");
    assert_eq!(wire.reply_text(&format!("CONFIRM ns a {fence}")), "-NOTFOUND claim not found");
    client.get("/v1/claims/ns/a").expect(404);
    let series =
        |command, outcome| format!(r#"hotpool_resp_commands_total{{command="{command}",outcome="{outcome}"}}"#);
    let mut counted = |command, outcome| client.metric(&series(command, outcome));
    assert_eq!((counted("claim", "OK"), counted("release", "OK"), counted("release", "FENCED")), (2, 2, 1));
    assert_eq!((counted("confirm", "OK"), counted("confirm", "NOTFOUND"), counted("renew", "OK")), (1, 1, 2));
}

#[test]
fn a_star_stands_for_any_holder() {
    let (_dir, _server, mut client, mut wire) = with_pool(2);
    assert_eq!(wire.reply_text("RELEASE ns a *"), "0");
    wire.call("CLAIM ns/warm KEY a");
    wire.call("CLAIM ns/warm KEY a TENANT t");
    assert_eq!(wire.reply_text("RELEASE ns a * TENANT t"), "1");
    assert_eq!(client.get("/v1/claims").expect(200)["items"].as_array().unwrap().len(), 1);
    assert_eq!(wire.reply_text("RELEASE ns a * BEGIN"), "1");
    assert_eq!(client.get("/v1/claims/ns/a").expect(200)["claim"]["state"], "releasing");
    assert_eq!(wire.reply_text("CLAIM ns/warm KEY a"), {
        "-CONFLICT releasing the key's claim is being released; try again when that is finished"
    });
    assert_eq!(wire.reply_text("RELEASE ns a * FINISH"), "1");
    assert_eq!(wire.reply_text("RELEASE ns a * FINISH"), "0");
    // Only a release accepts it: a confirm for any holder would be one too many.
    assert_eq!(
        wire.reply_text("CONFIRM ns a *"),
        "-BADREQ fence must be a whole number from 0 to 9007199254740991, got \"*\""
    );
}

#[test]
fn a_claim_without_a_key_gets_one() {
    let (_dir, _server, _client, mut wire) = with_pool(2);
    let (one, other) = (texts(&wire.call("CLAIM ns/warm")), texts(&wire.call("CLAIM ns/warm")));
    assert_eq!((one[0].len(), other[0].len()), (36, 36));
    assert!(one[0] != other[0] && one[2] != other[2]);
    assert_eq!(
        wire.reply_text("CLAIM ns/warm"),
        "-NOCAPACITY pool_exhausted no worker that the request allows is free"
    );
    assert_eq!(wire.reply_text(&format!("RELEASE ns {} {}", one[0], one[1])), "1");
}

#[test]
fn every_option_of_a_claim_arrives() {
    let (_dir, _server, mut client, mut wire) = with_pool(0);
    client.put("/v1/pools/ns/gpu", &json!({"mode": "shared", "shards": 1})).expect(201);
    assert_eq!(wire.reply_text("REGISTER ns/gpu g1 CPU 8000 MEM 1000 SLOTS 9 GPU A10 2 NODE n1 LABEL zone a"), "1");
    let claim = "CLAIM ns/gpu KEY k TENANT t AFFINITY w WAIT 0 TTL 5000 RESERVE 0 ACK durable CPU 1000 MEM 10 SLOTS 2 \
                 GPU T4,A10 1 500";
    let answer = texts(&wire.call(claim));
    assert_eq!((&*answer[0], &*answer[2], &*answer[3]), ("k", "g1", "n1"));
    let held = client.get("/v1/claims/ns/k?tenant=t").expect(200)["claim"].take();
    assert_eq!(held["state"], "active");
    assert!(held["expires_at_ms"].is_number(), "{held}");
    let gpu = json!({"model": "A10", "count": 1, "milli": 500, "cards": held["resources"]["gpu"]["cards"]});
    assert_eq!(held["resources"], json!({"cpu_milli": 1000, "memory_bytes": 10, "slots": 2, "gpu": gpu}));
    // `*` accepts GPUs of any model.
    assert!(text(&wire.call("CLAIM ns/gpu KEY l GPU * 1 100")).contains("g1"));
}

#[test]
fn a_batch_is_answered_claim_by_claim() {
    let (_dir, _server, mut client, mut wire) = with_pool(2);
    let answers = texts(&wire.call("CLAIMS 3 ns/warm KEYS a b c"));
    assert!(answers[0].starts_with("[a ") && answers[1].starts_with("[b "), "{answers:?}");
    assert_eq!(answers[2], "-NOCAPACITY pool_exhausted no worker that the request allows is free");
    let answers = texts(&wire.call("CLAIMS 2 ns/warm KEYS a b! TTL 5000"));
    assert!(answers[0].starts_with("[a "), "{answers:?}");
    assert_eq!(answers[1], "-BADREQ keys[1].key may hold only [A-Za-z0-9._-]; byte 1 is not one of them");
    assert_eq!(wire.reply_text("CLAIMS 2 ns/warm KEYS a"), "-BADREQ keys is required");
    assert_eq!(wire.reply_text("CLAIMS 10001 ns/warm"), "-BADREQ n must be a whole number from 0 to 10000, got 10001");
    assert_eq!(wire.reply_text("CLAIMS 0 ns/warm"), "[]");
    assert_eq!(wire.reply_text("RELEASE ns a *"), "1");
    let made = texts(&wire.call("CLAIMS 1 ns/warm"));
    assert_eq!(made[0].split(' ').next().unwrap().len(), 37);
    let series = r#"hotpool_resp_commands_total{command="claims",outcome="OK"}"#;
    assert_eq!(client.metric(series), 4);
}

#[test]
fn workers_register_and_report_their_claims() {
    let (_dir, _server, mut client, mut wire) = with_pool(0);
    let command = "REGISTER ns/warm w1 CPU 2000 MEM 4096 SLOTS 3 GPU A10 1 NODE n1 LABEL zone a LABEL rack 7 \
                INCARNATION 5 EXPIRES 9000000000000";
    assert_eq!(wire.reply_text(command), "1");
    assert_eq!(wire.reply_text(command), "0");
    let worker = client.get("/v1/pools/ns/warm/workers/w1").expect(200)["worker"].take();
    assert_eq!(worker["labels"], json!({"zone": "a", "rack": "7"}));
    let gpu = json!({"model": "A10", "count": 1});
    assert_eq!(worker["capacity"], json!({"cpu_milli": 2000, "memory_bytes": 4096, "slots": 3, "gpu": gpu}));
    assert_eq!((&worker["node"], &worker["incarnation"]), (&json!("n1"), &json!(5)));
    assert_eq!(worker["expires_at_ms"], json!(9_000_000_000_000_u64));
    let claim = texts(&wire.call("CLAIM ns/warm KEY a TENANT t"));
    let fence = &claim[1];
    let heartbeat = format!("HEARTBEAT ns/warm w1 INCARNATION 5 SEQ 1 CLAIMS 2 t/a {fence} b 7");
    assert_eq!(wire.reply_text(&heartbeat), format!("[claims [[t a {fence}]] stop [[default b 7]]]"));
    assert_eq!(client.get("/v1/claims/ns/a?tenant=t").expect(200)["claim"]["state"], "active");
    assert_eq!(wire.reply_text("HEARTBEAT ns/warm w1 INCARNATION 5"), format!("[claims [[t a {fence}]] stop []]"));
    assert!(wire.reply_text("HEARTBEAT ns/warm w1 INCARNATION 4").starts_with("-CONFLICT state "));
    assert_eq!(wire.reply_text("HEARTBEAT ns/warm w2"), "-NOTFOUND worker not found");
    let wrong = wire.reply_text("HEARTBEAT ns/warm w1 CLAIMS 2 a 1 a!");
    assert!(wrong.starts_with("-BADREQ claims[1].fence is required"), "{wrong}");
}

#[test]
fn explanations_and_pools_match_http() {
    let (_dir, _server, mut client, mut wire) = with_pool(1);
    wire.call("HELLO 3");
    let explained = wire.reply_text("EXPLAIN ns/warm CPU 5");
    assert!(explained.contains("outcome=refused") && explained.contains("reason=unsatisfiable"), "{explained}");
    assert!(wire.reply_text("EXPLAIN ns/warm").contains("would_take={pool=warm worker=w0}"));
    let pools = wire.reply_text("POOLS");
    assert!(pools.starts_with("{items=[{"), "{pools}");
    for part in ["name=warm", "idle=1", "ack=memory", "shards=4"] {
        assert!(pools.contains(part), "{part} is not in {pools}");
    }
    client.put("/v1/pools/ns/zwei", &json!({})).expect(201);
    let first = wire.reply_text("POOLS LIMIT 1");
    assert!(first.contains("next_page_token=ns/warm") && !first.contains("zwei"), "{first}");
    let second = wire.reply_text("POOLS LIMIT 1 AFTER ns/warm");
    assert!(second.contains("name=zwei") && !second.contains("next_page_token"), "{second}");
    assert_eq!(wire.reply_text("POOLS LIMIT 0"), "-BADREQ limit must be a whole number from 1 to 1000");
}

#[test]
fn hello_chooses_the_protocol() {
    let (_dir, _server, _client, mut wire) = with_pool(1);
    let version = env!("CARGO_PKG_VERSION");
    let hello = wire.reply_text("HELLO 3 SETNAME me");
    assert!(hello.starts_with(&format!("{{server=hotpool version={version} mode=standalone")), "{hello}");
    assert!(hello.contains("proto=3"), "{hello}");
    assert_eq!(wire.reply_text("CLIENT GETNAME"), "me");
    let claim = wire.reply_text("CLAIM ns/warm KEY a");
    let (fence, times) = claim.split_once(" worker=w0 node=nil ").expect("a map");
    let fence = fence.strip_prefix("{key=a fence=").expect("a fence");
    assert!(times.starts_with("created_at_ms=") && !times.contains("activated_at_ms"), "{claim}");
    let confirmed = wire.reply_text(&format!("CONFIRM ns a {fence}"));
    assert!(confirmed.contains(times.trim_end_matches('}')) && confirmed.contains(" activated_at_ms="), "{confirmed}");
    wire.send(b"*1\r\n$5\r\nRESET\r\n");
    assert_eq!(text(&wire.receive()), "RESET");
    assert_eq!(
        wire.reply_text("CLAIM ns/warm KEY a"),
        format!("[a {fence} w0 nil]"),
        "four, for who takes them by number"
    );
    assert_eq!(wire.reply_text("CLIENT GETNAME"), "nil");
    assert!(wire.reply_text("HELLO 2").starts_with("[server hotpool"));
    assert_eq!(wire.reply_text("HELLO 4"), "-NOPROTO unsupported protocol version: use 2 or 3");
    for requested in ["AUTH secret", "AUTH user secret", "HELLO 3 AUTH user secret SETNAME me"] {
        assert!(
            wire.reply_text(requested).starts_with("-ERR AUTH called without any password configured"),
            "{requested}"
        );
    }
    assert!(wire.reply_text("CLAIM ns/warm KEY a").starts_with("[a "), "a HELLO that is refused changes nothing");
}

#[test]
fn the_first_commands_of_clients_are_answered() {
    let (_dir, _server, _client, mut wire) = with_pool(0);
    for (requested, answer) in [
        ("PING", "PONG"),
        ("ping hi", "hi"),
        ("ECHO hi", "hi"),
        ("SELECT 0", "OK"),
        ("SELECT 1", "-ERR DB index is out of range: only database 0 exists"),
        ("CLIENT SETNAME a", "OK"),
        ("CLIENT SETINFO LIB-NAME x", "OK"),
        ("CLIENT SETINFO LIB-NAME", "-ERR wrong number of arguments for 'client' command"),
        ("CLIENT KILL x", "-ERR unknown subcommand 'KILL'; known: ID, GETNAME, SETNAME, SETINFO, LIST, INFO"),
        ("CONFIG GET save", "[save ]"),
        ("CONFIG GET save appendonly maxmemory", "[appendonly no save ]"),
        ("CONFIG SET save x", "-ERR unknown subcommand 'SET'; known: GET"),
        ("COMMAND COUNT", "25"),
        ("COMMAND INFO nothing", "[nil]"),
        ("COMMAND INFO release", "[[release -4 [write fast] 0 0 0 [] [] [] []]]"),
        ("COMMAND FOO", "-ERR unknown subcommand 'FOO'; known: COUNT, LIST, INFO, DOCS"),
        ("PING a b", "-ERR wrong number of arguments for 'ping' command"),
    ] {
        assert_eq!(wire.reply_text(requested), answer, "{requested}");
    }
    for command in texts(&wire.call("COMMAND LIST")) {
        let docs = wire.reply_text(&format!("COMMAND DOCS {command}"));
        assert!(docs.starts_with(&format!("[{command} [summary ")), "{docs}");
    }
    let info = wire.reply_text("INFO");
    assert!(info.contains("\r\nloading:0\r\n") && info.contains("ready:1"), "{info}");
    assert!(wire.reply_text("CLIENT LIST").contains(" name=a "));
    let (id, other) =
        (wire.reply_text("CLIENT ID"), Wire::connect(wire.stream().peer_addr().unwrap()).reply_text("CLIENT ID"));
    assert!(id.parse::<u64>().unwrap() < other.parse::<u64>().unwrap());
    assert_eq!(wire.reply_text("QUIT"), "OK");
    assert_eq!(wire.rest(), "");
}

#[test]
fn an_unknown_command_gets_a_hint() {
    let (_dir, _server, mut client, mut wire) = with_pool(0);
    for name in ["FLUSHALL", "SET", "GET", "MONITOR", "SUBSCRIBE", "claim\r\n+OK"] {
        let response = wire.reply_text(&format!("{name} a b"));
        assert!(response.starts_with("-ERR unknown command '"), "{response}");
        assert!(response.contains("COMMAND LIST"), "{response}");
    }
    assert!(wire.reply_text(&"x".repeat(60_000)).len() < 300);
    assert_eq!(
        wire.reply_text("RELEASE ns a"),
        "-ERR wrong number of arguments for 'release' command: RELEASE ns key fence|* [TENANT tenant] [BEGIN|FINISH]"
    );
    assert_eq!(wire.reply_text("PING"), "PONG");
    let series = r#"hotpool_resp_commands_total{command="unknown",outcome="ERR"}"#;
    assert_eq!(client.metric(series), 8);
}

#[test]
fn a_repeated_command_name_is_described_once() {
    const NAMES: usize = 4_000;
    let (_dir, _server, _client, mut wire) = with_pool(1);
    let named = |verb: &str| format!("COMMAND {verb}{}", " claim".repeat(NAMES));
    let once = wire.reply_text("COMMAND DOCS claim");
    assert!(wire.reply_text(&named("DOCS")) == once, "more than one description");
    // The replies are one for each name, and no more than there are commands.
    assert_eq!(
        wire.reply_text("COMMAND INFO claim nothing claim"),
        wire.reply_text("COMMAND INFO CLAIM nothing CLAIM")
    );
    let refused = wire.reply_text(&named("INFO"));
    assert!(refused.starts_with("-ERR ") && refused.len() < 1_000, "{} bytes", refused.len());
    let parameters = wire.reply_text(&format!("CONFIG GET{}", " databases".repeat(NAMES)));
    assert!(parameters == wire.reply_text("CONFIG GET databases"), "more than one answer");
}

#[test]
fn people_may_type_it() {
    let (_dir, _server, _client, mut wire) = with_pool(1);
    wire.send(b"\r\nPING\r\nCLAIM ns/warm   KEY a\nRELEASE ns a *\r\n");
    assert_eq!(text(&wire.receive()), "PONG");
    assert!(text(&wire.receive()).starts_with("[a "));
    assert_eq!(text(&wire.receive()), "1");
}

#[test]
fn it_can_be_off() {
    let dir = tempfile::TempDir::new().unwrap();
    let server = crate::server::Server::start_with(dir.path(), &["--resp-listen", "off"], &[]);
    assert_eq!(server.resp, None);
    let dir = tempfile::TempDir::new().unwrap();
    let (server, _client, mut wire) = wire::start(dir.path(), &[]);
    assert_eq!(wire.reply_text("PING"), "PONG");
    // An idle connection does not delay the shutdown.
    let begun = std::time::Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
}
