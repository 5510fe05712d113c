//! Third-party clients: `redis-cli`, `redis-benchmark` and the `redis` crate.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use redis::{ConnectionLike as _, Value, cmd, pipe};

use super::wire::with_pool;

fn program(name: &str, port: u16, arguments: &[&str]) -> String {
    let output = Command::new(name)
        .args(["-p", &port.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name} is installed (tests/run.sh does that): {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}").trim_end().to_owned()
}

#[test]
fn redis_cli_drives_a_claim() {
    let (_dir, server, _client, _wire) = with_pool(1);
    let port = server.resp.unwrap().port();
    let cli = |arguments: &[&str]| program("redis-cli", port, arguments);
    assert_eq!(cli(&["PING"]), "PONG");
    let claim = cli(&["CLAIM", "ns/warm", "KEY", "a"]);
    let lines: Vec<&str> = claim.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("a", "w0", 3), "{claim}");
    let fence = lines[1];
    let again = cli(&["-3", "CLAIM", "ns/warm", "KEY", "a"]);
    assert!(again.starts_with(&format!("key a\nfence {fence}\nworker w0\nnode \ncreated_at_ms ")), "{again}");
    let none = "NOCAPACITY pool_exhausted no worker that the request allows is free";
    assert_eq!(cli(&["CLAIM", "ns/warm"]), none);
    assert_eq!(cli(&["--no-raw", "CONFIRM", "ns", "a", "1"]), "(error) FENCED the fence is not the holder's");
    assert_eq!(cli(&["--no-raw", "RELEASE", "ns", "a", fence]), "(integer) 1");
    assert!(cli(&["FLUSHALL"]).starts_with("ERR unknown command 'FLUSHALL'"));
    assert!(cli(&["INFO"]).contains("hotpool_version:"));
    // The client's help gets the commands from COMMAND DOCS.
    assert!(cli(&["COMMAND", "DOCS", "CLAIM"]).contains("AFFINITY"));
    // The client's own pipelining.
    let repeated = cli(&["-r", "3", "PING"]);
    assert_eq!(repeated.lines().count(), 3);
}

#[test]
fn redis_benchmark_loads_it() {
    let (_dir, server, mut client, mut wire) = with_pool(30_000);
    let port = server.resp.unwrap().port();
    for depth in ["1", "16"] {
        let response =
            program("redis-benchmark", port, &["-c", "50", "-n", "10000", "-P", depth, "-q", "CLAIM", "ns/warm"]);
        assert!(response.contains("requests per second"), "{response}");
        assert!(!response.contains("WARNING") && !response.to_lowercase().contains("error"), "{response}");
    }
    assert_eq!(client.metric(r#"hotpool_resp_commands_total{command="claim",outcome="OK"}"#), 20_000);
    assert!(wire.reply_text("POOLS").contains("reserved 20000"), "every one of them holds a worker");
    let release = ["-c", "50", "-n", "10000", "-P", "16", "-r", "1000", "-q", "RELEASE", "ns", "__rand_int__", "*"];
    let response = program("redis-benchmark", port, &release);
    assert!(response.contains("requests per second"), "{response}");
    assert_eq!(client.metric(r#"hotpool_resp_commands_total{command="release",outcome="OK"}"#), 10_000);
}

#[test]
fn the_redis_crate_speaks_both_protocols() {
    let (_dir, server, _client, _wire) = with_pool(3);
    let address = server.resp.unwrap();
    for (protocol, key) in [("resp2", "a"), ("resp3", "b")] {
        let client = redis::Client::open(format!("redis://{address}/?protocol={protocol}")).unwrap();
        let mut connection = client.get_connection().unwrap();
        assert!(connection.check_connection());
        let claim = cmd("CLAIM").arg("ns/warm").arg("KEY").arg(key).to_owned();
        let fence = match protocol {
            "resp3" => {
                let map: HashMap<String, Value> = claim.query(&mut connection).unwrap();
                assert_eq!(map["key"], Value::BulkString(key.into()));
                assert_eq!(map["node"], Value::Nil);
                let Value::Int(fence) = map["fence"] else { panic!("{map:?}") };
                fence
            }
            _ => {
                let (held, fence, _worker, node): (String, i64, String, Option<String>) =
                    claim.query(&mut connection).unwrap();
                assert_eq!((&*held, node), (key, None));
                fence
            }
        };
        let released: i64 = cmd("RELEASE").arg("ns").arg(key).arg(fence).query(&mut connection).unwrap();
        assert_eq!(released, 1);
        let error = cmd("CLAIM").arg("ns/nowhere").exec(&mut connection).unwrap_err();
        assert_eq!((error.code(), error.detail()), (Some("NOTFOUND"), Some("pool not found")));
        let mut pipeline = pipe();
        for i in 0..100 {
            pipeline.cmd("CLAIM").arg("ns/warm").arg("KEY").arg(format!("{key}{}", i % 2)).ignore();
        }
        for i in 0..2 {
            pipeline.cmd("RELEASE").arg("ns").arg(format!("{key}{i}")).arg("*");
        }
        let released: Vec<i64> = pipeline.query(&mut connection).unwrap();
        assert_eq!(released, [1, 1]);
    }
}

/// Returns the output of a script that uses a client library of another language.
fn script(interpreter: &str, arguments: &[&str], port: u16) -> String {
    let output = Command::new(interpreter)
        .args(arguments)
        .env("PORT", port.to_string())
        // Directory of Debian's packages for Node.
        .env("NODE_PATH", "/usr/share/nodejs:/usr/lib/nodejs")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{interpreter} is installed (tests/run.sh does that): {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.trim_end().to_owned()
}

#[test]
fn a_python_client_drives_claims() {
    let (_dir, server, _client, _wire) = with_pool(2);
    let response = script(
        "/usr/bin/python3",
        &[
            "-c",
            r#"
import os, redis
client = redis.Redis(port=int(os.environ["PORT"]), decode_responses=True)
assert client.ping()
key, fence, worker, node = client.execute_command("CLAIM", "ns/warm", "KEY", "a", "TTL", 60000)
print(key, worker, node)
assert client.execute_command("CLAIM", "ns/warm", "KEY", "a")[1] == fence
assert client.execute_command("CONFIRM", "ns", "a", fence)
pipeline = client.pipeline(transaction=False)
for key in ("b", "c"):
    pipeline.execute_command("CLAIM", "ns/warm", "KEY", key)
claimed, refused = pipeline.execute(raise_on_error=False)
print(claimed[0], type(refused).__name__, refused)
print([client.execute_command("RELEASE", "ns", key, "*") for key in ("a", "b", "c")])
try:
    client.set("x", 1)
except redis.ResponseError as error:
    print(str(error)[:21])
"#,
        ],
        server.resp.unwrap().port(),
    );
    let lines: Vec<&str> = response.lines().collect();
    let none = "b ResponseError NOCAPACITY pool_exhausted no worker that the request allows is free";
    assert!(matches!(lines[0], "a w0 None" | "a w1 None"), "{response}");
    assert_eq!(lines[1..], [none, "[1, 1, 0]", "unknown command 'SET'"]);
}

#[test]
fn c14_a_python_pipeline_is_a_transaction() {
    let (_dir, server, mut client, _wire) = with_pool(2);
    let response = script(
        "/usr/bin/python3",
        &[
            "-c",
            r#"
import os, redis
client = redis.Redis(port=int(os.environ["PORT"]), decode_responses=True)
pipeline = client.pipeline()
for key in ("a", "b", "c"):
    pipeline.execute_command("CLAIM", "ns/warm", "KEY", key, "RESERVE", 0)
a, b, c = pipeline.execute(raise_on_error=False)
print(a[0], b[0], type(c).__name__, c)
for key in ("a", "b"):
    pipeline.execute_command("RELEASE", "ns", key, "*")
print(pipeline.execute())
pipeline.execute_command("CLAIM", "ns/warm", "KEY", "d", "RESERVE", 0)
pipeline.set("x", 1)
try:
    pipeline.execute()
except redis.ResponseError as error:
    print(str(error)[:39])
try:
    with client.pipeline() as watching:
        watching.watch("x")
except redis.ResponseError as error:
    print(str(error)[:22])
print(client.ping())
"#,
        ],
        server.resp.unwrap().port(),
    );
    let lines: Vec<&str> = response.lines().collect();
    assert_eq!(lines[0], "a b ResponseError NOCAPACITY pool_exhausted no worker that the request allows is free");
    let rejected = "Command # 2 (SET x 1) of pipeline cause";
    assert_eq!(lines[1..], ["[1, 1]", rejected, "WATCH is not supported", "True"]);
    assert_eq!(client.get("/v1/claims").expect(200)["items"].as_array().unwrap().len(), 0);
}

#[test]
fn c14_a_node_multi_is_a_transaction() {
    let (_dir, server, mut client, _wire) = with_pool(1);
    let response = script(
        "node",
        &[
            "-e",
            r#"
const { createClient } = require("redis");
(async () => {
  const client = createClient({ socket: { host: "127.0.0.1", port: Number(process.env.PORT) } });
  await client.connect();
  const claim = (key) => ["CLAIM", "ns/warm", "KEY", key, "RESERVE", "0"];
  const [a, again] = await client.multi().addCommand(claim("a")).addCommand(claim("a")).exec();
  console.log(a[0], again[1] === a[1]);
  const [released] = await client.multi().addCommand(["RELEASE", "ns", "a", "*"]).exec();
  console.log(released);
  await client.multi().addCommand(claim("b")).addCommand(["SET", "x", "1"]).exec()
    .then(() => console.log("done"), (error) => console.log("refused"));
  console.log(await client.ping());
  await client.quit();
})().catch((error) => { console.error(error); process.exit(1); });
"#,
        ],
        server.resp.unwrap().port(),
    );
    assert_eq!(response, "a true\n1\nrefused\nPONG");
    assert_eq!(client.get("/v1/claims").expect(200)["items"].as_array().unwrap().len(), 0);
}

#[test]
fn c14_an_atomic_pipe_of_the_redis_crate_is_a_transaction() {
    let (_dir, server, mut client, _wire) = with_pool(2);
    for protocol in ["resp2", "resp3"] {
        let address = format!("redis://{}/?protocol={protocol}", server.resp.unwrap());
        let mut connection = redis::Client::open(address).unwrap().get_connection().unwrap();
        let mut pipeline = pipe();
        pipeline.atomic();
        for key in ["a", "b"] {
            pipeline.cmd("CLAIM").arg("ns/warm").arg("KEY").arg(key).ignore();
        }
        for key in ["a", "b", "c"] {
            pipeline.cmd("RELEASE").arg("ns").arg(key).arg("*");
        }
        let released: Vec<i64> = pipeline.query(&mut connection).unwrap();
        assert_eq!(released, [1, 1, 0]);
        let mut rejected = pipe();
        rejected.atomic().cmd("CLAIM").arg("ns/warm").arg("KEY").arg("a").cmd("SET").arg("x").arg("1");
        rejected.exec(&mut connection).unwrap_err();
        assert_eq!(client.get("/v1/claims").expect(200)["items"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn a_node_client_drives_claims() {
    let (_dir, server, _client, _wire) = with_pool(2);
    let response = script(
        "node",
        &[
            "-e",
            r#"
const { createClient } = require("redis");
(async () => {
  const client = createClient({ socket: { host: "127.0.0.1", port: Number(process.env.PORT) } });
  await client.connect();
  const claim = (key) => client.sendCommand(["CLAIM", "ns/warm", "KEY", key]);
  // Sent at once: the client makes a pipeline of them.
  const [a, b, c] = await Promise.allSettled(["a", "b", "c"].map(claim));
  console.log(a.value[0], b.value[0], c.reason.message);
  const fence = String(a.value[1]);
  const release = (key, fence) => client.sendCommand(["RELEASE", "ns", key, fence]);
  console.log(await release("a", fence), await release("a", fence), await release("b", "*"));
  await client.quit();
})().catch((error) => { console.error(error); process.exit(1); });
"#,
        ],
        server.resp.unwrap().port(),
    );
    let none = "NOCAPACITY pool_exhausted no worker that the request allows is free";
    assert_eq!(response, format!("a b {none}\n1 0 1"));
}
