//! RESP connection that sends given bytes, and parses replies with the `redis` crate.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use redis::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::server::Server;

/// Timeout of one reply: a test that reaches it has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Wire(BufReader<TcpStream>);

impl Wire {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// Reads the next reply from the connection.
    pub fn receive(&mut self) -> Value {
        let mut raw = Vec::new();
        self.take(&mut raw);
        redis::parse_redis_value(&raw).unwrap()
    }

    /// Reads the bytes of exactly one reply.
    fn take(&mut self, raw: &mut Vec<u8>) {
        let from = raw.len();
        let read = self.0.read_until(b'\n', raw).unwrap();
        assert!(read > 0, "closed in the middle of {:?}", String::from_utf8_lossy(raw));
        let line = std::str::from_utf8(&raw[from..]).unwrap().trim_end();
        let (kind, number) = line.split_at(1);
        let values = match kind {
            "$" if number != "-1" => {
                let end = raw.len() + number.parse::<usize>().unwrap() + 2;
                let from = raw.len();
                raw.resize(end, 0);
                self.0.read_exact(&mut raw[from..]).unwrap();
                0
            }
            "*" => number.parse().unwrap(),
            "%" => 2 * number.parse::<usize>().unwrap(),
            _ => 0,
        };
        (0..values).for_each(|_| self.take(raw));
    }

    /// Sends a command, split at blanks, and reads its reply.
    pub fn call(&mut self, command: &str) -> Value {
        self.send(&frame(command));
        self.receive()
    }

    /// Sends a command and returns its reply as text: errors in full, arrays in brackets.
    pub fn reply_text(&mut self, command: &str) -> String {
        self.send(&frame(command));
        text(&self.receive())
    }

    /// Reads everything until the service closes the connection.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A reset ends it too.
        let _ = self.0.read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    }
}

/// Encodes a command, split at blanks.
pub fn frame(command: &str) -> Vec<u8> {
    let args: Vec<&str> = command.split(' ').filter(|arg| !arg.is_empty()).collect();
    let bulk = |arg: &&str| format!("${}\r\n{arg}\r\n", arg.len());
    format!("*{}\r\n{}", args.len(), args.iter().map(bulk).collect::<String>()).into_bytes()
}

/// Formats a reply for a test.
pub fn text(value: &Value) -> String {
    match value {
        Value::Nil => "nil".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::Okay => "OK".to_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Value::Boolean(yes) => yes.to_string(),
        Value::Array(values) => format!("[{}]", values.iter().map(text).collect::<Vec<_>>().join(" ")),
        Value::Map(pairs) => {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
            format!("{{{}}}", pairs.join(" "))
        }
        Value::ServerError(error) => format!("-{} {}", error.code(), error.details().unwrap_or_default()),
        other => format!("{other:?}"),
    }
}

/// Returns the texts of an array.
pub fn texts(value: &Value) -> Vec<String> {
    let Value::Array(values) = value else { panic!("no array: {}", text(value)) };
    values.iter().map(text).collect()
}

/// Starts a service with RESP, with these environment variables.
pub fn start(dir: &Path, environment: &[(&str, &str)]) -> (Server, Client, Wire) {
    let server = Server::start_with(dir, &["--resp-listen", "127.0.0.1:0"], environment);
    let (client, wire) = (server.client(), Wire::connect(server.resp.unwrap()));
    (server, client, wire)
}

/// Starts a service with RESP and the pool `ns/warm` of workers `w0`, `w1`, ..., which answers from memory.
pub fn with_pool_in(workers: usize, environment: &[(&str, &str)]) -> (TempDir, Server, Client, Wire) {
    let dir = TempDir::new().unwrap();
    let (server, mut client, wire) = start(dir.path(), environment);
    client.put("/v1/pools/ns/warm", &json!({"shards": 4, "ack": "memory"})).expect(201);
    for from in (0..workers).step_by(10_000) {
        let all: Vec<_> = (from..workers.min(from + 10_000)).map(|i| json!({"id": format!("w{i}")})).collect();
        client.post("/v1/pools/ns/warm/workers:batch", &json!({"workers": all})).expect(200);
    }
    (dir, server, client, wire)
}

pub fn with_pool(workers: usize) -> (TempDir, Server, Client, Wire) {
    with_pool_in(workers, &[])
}
