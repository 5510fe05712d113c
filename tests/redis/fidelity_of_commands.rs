//! Fidelity of the simulated servers, command by command: functions with random arguments, pages of a scan, and errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hotpool::environment::Environment;
use hotpool::persist::store::redis::{RedisTransport as _, ServerConnection};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::{Cmd, ConnectionAddr, Pipeline, RedisConnectionInfo, RedisResult, Value, cmd};

use crate::fidelity::contents_of;
use crate::servers::Server;
use crate::simulated_redis::{ServerCondition, SimulatedRedis, SimulatedRedisSettings, StoredValue};

const LIBRARY: &str = include_str!("../../src/persist/store/redis/library.lua");
const NAME: &str = "raw";
const KEYS: [&str; 2] = ["{t}:a", "{t}:b"];
const OWNER: &str = "{t}:owner";
/// Name and number of keys of each function.
const FUNCTIONS: [(&str, usize); 7] =
    [("write_rows", 1), ("write_chunk", 2), ("install", 2), ("drop", 2), ("probe", 2), ("take", 0), ("renew", 0)];

/// A real server and a simulated one, with a connection to each.
struct Both {
    server: Server,
    real: redis::Connection,
    redis: SimulatedRedis,
    simulated: Arc<dyn ServerConnection>,
}

impl Both {
    async fn start() -> Self {
        let server = Server::start(&[]);
        let real = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let redis = SimulatedRedis::new(SimulatedRedisSettings::standalone(), Environment::system());
        let transport = redis.transport(Environment::system());
        let address = ConnectionAddr::Tcp("redis-0".to_owned(), 6379);
        let login = RedisConnectionInfo::default();
        let simulated = transport.connect(&address, &login, Duration::from_secs(5)).await.expect("connected");
        Self { server, real, redis, simulated }
    }

    /// Answers to a pipeline, which must be the same but for the place in the code where a function failed.
    async fn answers(&mut self, commands: &[Cmd]) -> Vec<RedisResult<Value>> {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let real: Vec<RedisResult<Value>> = pipeline.query(&mut self.real).expect("answers");
        let simulated = self.simulated.send(&pipeline).await.expect("answers");
        assert_eq!(real.len(), simulated.len());
        for ((command, real), simulated) in commands.iter().zip(&real).zip(&simulated) {
            let shown = String::from_utf8_lossy(&command.get_packed_command()).replace("\r\n", " ");
            match (real, simulated) {
                (Ok(real), Ok(simulated)) => assert_eq!(real, simulated, "{shown}"),
                (Err(real), Err(simulated)) => {
                    assert_eq!((real.kind(), real.code()), (simulated.kind(), simulated.code()), "{shown}");
                    let text = |error: &redis::RedisError| {
                        error.detail().map(|text| text.split(" script:").next().unwrap_or_default().to_owned())
                    };
                    assert_eq!(text(real), text(simulated), "{shown}");
                }
                (real, simulated) => panic!("{shown}: {real:?} on the real server, {simulated:?} on the simulated one"),
            }
        }
        simulated
    }

    async fn answer(&mut self, words: &[&str]) -> RedisResult<Value> {
        self.answers(&[command(words)]).await.remove(0)
    }

    fn put(&self, key: &str, value: StoredValue) {
        let _: i64 = self.server.query(&["DEL", key]);
        match &value {
            StoredValue::Text(text) => {
                let () = self.server.query(&["SET", key, std::str::from_utf8(text).expect("printable")]);
            }
            StoredValue::Hash(fields) => {
                let mut set = cmd("HSET");
                set.arg(key);
                for (field, value) in fields {
                    set.arg(field).arg(value);
                }
                let client = redis::Client::open(self.server.url()).unwrap();
                set.exec(&mut client.get_connection().unwrap()).expect("set");
            }
        }
        self.redis.put(key.as_bytes(), Some(value));
    }
}

fn command(words: &[&str]) -> Cmd {
    cmd(words[0]).arg(&words[1..]).take()
}

fn library() -> String {
    format!("#!lua name={NAME}\n{}", LIBRARY.replace("LIBRARY", NAME))
}

fn hash(fields: impl IntoIterator<Item = (String, String)>) -> StoredValue {
    StoredValue::Hash(fields.into_iter().map(|(field, value)| (field.into_bytes(), value.into_bytes())).collect())
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

/// Call of a function with arguments that often fit what is stored.
fn random_call(random: &mut StdRng) -> Cmd {
    const EPOCHS: &[&str] = &["1", "1", "2", "2", "2", "3"];
    const OWNERS: &[&str] = &["x", "x", "x", "y"];
    const NUMBERS: &[&str] = &["0", "1", "1", "2", "2", "3", "100000000000001", "9007199254740991"];
    const GENERATIONS: &[&str] = &["7", "7", "8"];
    const CHUNKS: &[&str] = &["0", "0", "1", "2"];
    let (function, keys) = FUNCTIONS[random.random_range(0..FUNCTIONS.len())];
    let mut call = cmd("FCALL");
    call.arg(format!("{NAME}_{function}"));
    match keys {
        0 => call.arg(1).arg(OWNER),
        1 => call.arg(1).arg(pick(random, &KEYS)),
        _ if random.random_range(0..2) == 0 => call.arg(2).arg(KEYS[0]).arg(KEYS[1]),
        _ => call.arg(2).arg(KEYS[1]).arg(KEYS[0]),
    };
    let (epoch, owner) = (pick(random, EPOCHS), pick(random, OWNERS));
    match function {
        "write_rows" => call.arg(epoch).arg(owner).arg(pick(random, NUMBERS)).arg(pick(random, NUMBERS)),
        "write_chunk" => call.arg(epoch).arg(owner).arg(pick(random, GENERATIONS)).arg(pick(random, CHUNKS)),
        "install" => call
            .arg(epoch)
            .arg(owner)
            .arg(pick(random, GENERATIONS))
            .arg(pick(random, CHUNKS))
            .arg(pick(random, NUMBERS)),
        "drop" => call.arg(epoch).arg(owner),
        "probe" => call.arg(pick(random, &["0", "1", "2", "2", "3"])).arg(owner),
        "take" => {
            call.arg(owner).arg(epoch).arg(pick(random, &["", "1", "2", "3", "4"])).arg(pick(random, &["", "1", "2"]));
            call.arg("node").arg("who").arg(pick(random, &["0", "1000"]))
        }
        _ => {
            call.arg(owner).arg(epoch).arg("node").arg("who").arg("1000").arg(pick(random, NUMBERS));
            call.arg(pick(random, &["0", "1"])).arg(pick(random, NUMBERS))
        }
    };
    if matches!(function, "write_rows" | "write_chunk" | "install") {
        for _ in 0..random.random_range(0..3) {
            let count = random.random_range(1..4);
            let is_put = random.random_range(0..2) == 0;
            call.arg(if is_put { "P" } else { "D" }).arg(if is_put { 2 * count } else { count });
            for _ in 0..count {
                call.arg(pick(random, &["w:a", "w:b", "w:c", "s:"]));
                if is_put {
                    call.arg(pick(random, &["", "body", "another body"]));
                }
            }
        }
    }
    call
}

#[tokio::test]
async fn functions_with_random_arguments_answer_and_write_as_in_redis() {
    const SEEDS: u64 = 60;
    let mut both = Both::start().await;
    both.answer(&["FUNCTION", "LOAD", &library()]).await.expect("loaded");
    let mut replies: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut random = StdRng::seed_from_u64(seed);
        let _: () = both.server.query(&["FLUSHALL"]);
        both.redis.flush_all();
        for round in 0..12 {
            println!("seed {seed}, round {round}");
            match random.random_range(0..10) {
                0 => both.put(pick(&mut random, &[KEYS[0], KEYS[1], OWNER]), StoredValue::Text(b"mine".to_vec())),
                1 => {
                    let headers = ["2 x 2 of the future", "1 y 1 live 5 7", "junk", "2 x 1 new 1 7", "2 x 1 live x 7"];
                    let header = pick(&mut random, &headers);
                    both.put(pick(&mut random, &KEYS), hash([("#".to_owned(), header.to_owned())]));
                }
                2 => both.put(OWNER, hash([("epoch".to_owned(), "2".to_owned()), ("beat".to_owned(), "x".to_owned())])),
                _ => {}
            }
            let calls: Vec<Cmd> = (0..12).map(|_| random_call(&mut random)).collect();
            for reply in both.answers(&calls).await {
                let word = match reply {
                    Ok(Value::BulkString(word)) => String::from_utf8(word).expect("a word"),
                    Ok(Value::Array(parts)) => format!("{:?}", parts[0]),
                    Ok(other) => format!("{other:?}"),
                    Err(error) => error.code().unwrap_or("error").to_owned(),
                };
                *replies.entry(word).or_default() += 1;
            }
            assert_eq!(both.redis.contents(), contents_of(&both.server), "seed {seed}, round {round}");
        }
    }
    for word in ["ok", "duplicate", "gap", "fenced", "missing", "WRONGTYPE", "ERR"] {
        assert!(replies.get(word).is_some_and(|count| *count > 10), "{word} does not occur: {replies:?}");
    }
}

#[tokio::test]
async fn errors_are_those_of_redis() {
    let mut both = Both::start().await;
    both.answer(&["FCALL", "raw_probe", "1", KEYS[0]]).await.expect_err("no library yet");
    both.answer(&["FUNCTION", "LOAD", &library()]).await.expect("loaded");
    both.answer(&["FUNCTION", "LOAD", &library()]).await.expect_err("loaded already");
    both.answer(&["FCALL", "other_probe", "1", KEYS[0]]).await.expect_err("no such library");
    for words in [&["CLUSTER", "SLOTS"][..], &["ASKING"], &["HSCAN", KEYS[0], "x", "COUNT", "10"]] {
        both.answer(words).await.expect_err("an error");
    }
    assert_eq!(both.answer(&["HGETALL", OWNER]).await, Ok(Value::Array(vec![])));
    assert_eq!(both.answer(&["WAIT", "1", "10"]).await, Ok(Value::Int(0)), "there is no replica");
    both.put(OWNER, StoredValue::Text(b"mine".to_vec()));
    both.answer(&["HGETALL", OWNER]).await.expect_err("of another type");
    both.answer(&["HSCAN", OWNER, "0", "COUNT", "10"]).await.expect_err("of another type");
    let take = ["FCALL", "raw_take", "1", OWNER, "x", "1", "", "", "node", "who", "0"];
    both.answer(&take).await.expect_err("of another type");
    let write = ["FCALL", "raw_write_rows", "1", KEYS[0], "1", "x", "0", "1", "P", "2", "w:a", "body"];
    let probe = ["FCALL", "raw_probe", "2", KEYS[0], KEYS[1], "1", "x"];
    let _: () = both.server.query(&["CONFIG", "SET", "maxmemory", "1"]);
    both.redis.impose(0, ServerCondition::Full, Duration::from_secs(3_600));
    both.answer(&write).await.expect_err("full");
    both.answer(&probe).await.expect("it needs next to nothing");
    both.answer(&["FUNCTION", "LOAD", &library()]).await.expect_err("full");
    assert_eq!(both.redis.contents(), contents_of(&both.server));
}

/// Fields and values of all pages from `cursor` on.
async fn scan(both: &mut Both, key: &str, begin: &str) -> [BTreeMap<Vec<u8>, Vec<u8>>; 2] {
    let mut found = [BTreeMap::new(), BTreeMap::new()];
    for (at, found) in found.iter_mut().enumerate() {
        let mut cursor = begin.to_owned();
        loop {
            let page = command(&["HSCAN", key, &cursor, "COUNT", "100"]);
            let page = if at == 0 {
                page.query(&mut both.real)
            } else {
                let mut pipeline = Pipeline::new();
                pipeline.ignore_errors().add_command(page);
                both.simulated.send(&pipeline).await.expect("an answer").remove(0)
            };
            let (next, pairs): (String, BTreeMap<Vec<u8>, Vec<u8>>) =
                redis::from_redis_value(page.expect("a page")).expect("a page");
            found.extend(pairs);
            if next == "0" {
                break;
            }
            cursor = next;
        }
    }
    found
}

#[tokio::test]
async fn a_scan_has_every_field_and_a_foreign_cursor_means_something_for_small_hashes_only() {
    let mut both = Both::start().await;
    for (fields, value_len) in [(1, 1), (512, 64), (513, 1), (2, 65), (5_000, 10)] {
        let value = "v".repeat(value_len);
        both.put(KEYS[0], hash((0..fields).map(|field| (format!("w:{field}"), value.clone()))));
        let [real, simulated] = scan(&mut both, KEYS[0], "0").await;
        assert_eq!(real.len(), fields);
        assert_eq!(real, simulated);
        let [real, simulated] = scan(&mut both, KEYS[0], "9223372036854775813").await;
        let is_list = fields <= 512 && value_len <= 64;
        if is_list {
            assert_eq!(real.len(), fields, "{fields} fields of {value_len} bytes");
            assert_eq!(real, simulated);
        } else if fields > 100 {
            assert!(real.len() < fields && simulated.len() < fields, "{} and {}", real.len(), simulated.len());
        }
    }
}
