//! Examples of docs/API.md and the tour of README.md, run against a service.
//!
//! Every `http` block of API.md is a request, in order, all to one service, and the `json` block after it is the
//! response. An `http waits` block is a request that is answered only after later ones; `json waits` is the response to
//! the first such. Values that differ in every run, fences and times, are compared by position: a fence is the same
//! wherever the page has the same. With `HOTPOOL_BLESS=1` the responses, and the fences in the requests, are recorded
//! anew.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, spawn};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Server, fresh};

/// Fields whose value differs in every run.
const VOLATILE: [&str; 9] = [
    "expires_at_ms",
    "created_at_ms",
    "activated_at_ms",
    "queued_at_ms",
    "lag_ms",
    "waited_ms",
    "left_ms",
    "oldest_ms",
    "estimate_ms",
];

fn page(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

/// Fenced block: its kind, the number of its first line, its lines.
struct Block<'a> {
    kind: &'a str,
    line: usize,
    lines: Vec<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (line, content) in text.lines().enumerate() {
        match (content.strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some(Block { kind, line: line + 1, lines: Vec::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.lines.push(content),
            (None, None) => {}
        }
    }
    blocks
}

/// Fences of the page, each with its fence in this run.
#[derive(Default)]
struct Fences(BTreeMap<u64, u64>);

impl Fences {
    /// Replaces the page's fences by those of this run.
    fn translate(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match field.as_u64().filter(|_| name == "fence") {
                        Some(fence) => *field = self.0.get(&fence).copied().unwrap_or(fence).into(),
                        None => self.translate(field),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.translate(item)),
            _ => {}
        }
    }

    /// Compares a response of the page with the actual one, and returns the differences.
    fn compare(&mut self, text_output: &Value, got: &Value, path: &str) -> Vec<String> {
        let name = path.rsplit('.').next().unwrap_or_default();
        match (text_output, got) {
            (Value::Object(text_output), Value::Object(got)) => {
                let names: std::collections::BTreeSet<_> = text_output.keys().chain(got.keys()).collect();
                let mut wrong = Vec::new();
                for name in names {
                    let path = format!("{path}.{name}");
                    match (text_output.get(name), got.get(name)) {
                        (Some(text_output), Some(got)) => wrong.extend(self.compare(text_output, got, &path)),
                        (Some(_), None) => wrong.push(format!("{path} is not answered")),
                        (None, _) => wrong.push(format!("{path} is not on the page")),
                    }
                }
                wrong
            }
            (Value::Array(text_output), Value::Array(got)) if text_output.len() == got.len() => {
                let pairs = text_output.iter().zip(got).enumerate();
                pairs
                    .flat_map(|(at, (text_output, got))| self.compare(text_output, got, &format!("{path}[{at}]")))
                    .collect()
            }
            // The version of a pool is drawn like a fence; that of a worker is a count.
            (Value::Number(text_output), Value::Number(got))
                if name == "fence" || name == "version" && text_output.as_u64() > Some(1 << 40) =>
            {
                let (text_output, got) = (text_output.as_u64().unwrap(), got.as_u64().unwrap());
                let stands_for = *self.0.entry(text_output).or_insert(got);
                if stands_for == got {
                    Vec::new()
                } else {
                    vec![format!("{path} is not the fence {text_output} of before")]
                }
            }
            (Value::Number(_), Value::Number(_)) if VOLATILE.contains(&name) => Vec::new(),
            (text_output, got) if text_output == got => Vec::new(),
            (text_output, got) => vec![format!("{path} is {text_output} on the page and {got} here")],
        }
    }
}

/// Request of an example, as it is sent.
struct Ask {
    method: String,
    path: String,
    body: Value,
    line: usize,
}

impl Ask {
    fn of(block: &Block<'_>, fences: &Fences) -> Self {
        let (method, path) = block.lines[0].split_once(' ').expect("METHOD path");
        let body = block.lines[1..].join("\n");
        let mut body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("line {}: {error}", block.line))
        };
        fences.translate(&mut body);
        Self { method: method.to_owned(), path: path.to_owned(), body, line: block.line }
    }

    fn send(&self, client: &mut Client) -> String {
        let body = if self.body.is_null() { String::new() } else { self.body.to_string() };
        let answer = client.request(&self.method, &self.path, body.as_bytes());
        let mut text_output = answer.text().to_owned();
        assert_eq!(answer.status >= 400, text_output.starts_with(r#"{"error""#), "line {}: {text_output}", self.line);
        // The page omits it from its errors, because it differs in every response.
        if let Some(id) = answer.header("x-request-id") {
            text_output = text_output.replace(&format!(r#","request_id":"{id}""#), "");
        }
        text_output
    }

    /// Sends a claim that stays queued.
    fn begin(self, server: &Server) -> JoinHandle<String> {
        let word = |name: &str| self.body[name].as_str().expect("a claim").to_owned();
        let path = format!("/v1/claims/{}/{}", word("namespace"), word("key"));
        let mut client = server.client();
        let waits = spawn(move || self.send(&mut client));
        while server.client().get(&path).status != 200 {
            assert!(!waits.is_finished(), "{path} does not wait");
        }
        waits
    }
}

#[test]
fn the_examples_of_the_api_page_match_the_service() {
    let bless = std::env::var_os("HOTPOOL_BLESS").is_some_and(|bless| bless == "1");
    let (path, text) = page("docs/API.md");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let kinds = ["http", "json", "http waits", "json waits"];
    let blocks: Vec<_> = blocks(&text).into_iter().filter(|block| kinds.contains(&block.kind)).collect();
    assert!(blocks.len() > 40, "examples were found: {}", blocks.len());
    let (_dir, server, mut client) = fresh();
    let mut fences = Fences::default();
    let mut wrong = Vec::new();
    let mut waits = VecDeque::new();
    let mut blocks = blocks.iter();
    while let Some(block) = blocks.next() {
        let (got, request, answer) = match block.kind {
            "http" => {
                let answer = blocks.next().filter(|answer| answer.kind == "json");
                let answer = answer.unwrap_or_else(|| panic!("line {}: a request without an answer", block.line));
                (Ask::of(block, &fences).send(&mut client), block, answer)
            }
            "http waits" => {
                waits.push_back((Ask::of(block, &fences).begin(&server), block));
                continue;
            }
            "json waits" => {
                let (waiting, request) = waits.pop_front().expect("a request that waits");
                (waiting.join().unwrap(), request, block)
            }
            other => panic!("line {}: {other} without a request", block.line),
        };
        assert_eq!(answer.lines.len(), 1, "line {}: an answer is one line", answer.line);
        let text_output =
            serde_json::from_str(answer.lines[0]).unwrap_or_else(|error| panic!("line {}: {error}", answer.line));
        let differs = fences.compare(&text_output, &serde_json::from_str(&got).unwrap(), "");
        wrong.extend(differs.into_iter().map(|what| format!("line {}: {what}", answer.line + 1)));
        lines[answer.line].clone_from(&got);
        for at in (request.line..).take(request.lines.len()) {
            for (text_output, got) in &fences.0 {
                lines[at] = lines[at].replace(&text_output.to_string(), &got.to_string());
            }
        }
    }
    assert!(waits.is_empty(), "each request that waits is answered");
    if bless {
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    } else {
        assert!(
            wrong.is_empty(),
            "docs/API.md differs from the responses of the service; HOTPOOL_BLESS=1 rewrites it:\n{wrong:#?}"
        );
    }
}

/// Returns the output of `redis-cli` for one command, typed as a person would.
fn redis_cli(port: u16, command: &str) -> String {
    let mut cli = Command::new("redis-cli");
    cli.args(["--no-raw", "-p", &port.to_string()]).args(command.split(' ')).stdin(Stdio::null());
    let output = cli.output().expect("redis-cli is installed (tests/run.sh does that)");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Returns the numbers of a text that differ in every run: fences and times.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|word| word.len() > 12).map(|word| word.parse().unwrap()).collect()
}

#[test]
fn the_redis_cli_session_of_the_api_page_is_current() {
    let bless = std::env::var_os("HOTPOOL_BLESS").is_some_and(|bless| bless == "1");
    let (path, text) = page("docs/API.md");
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    server.client().put("/v1/pools/demo/resp", &serde_json::json!({"ack": "memory"})).expect(201);
    let port = server.resp.unwrap().port();
    let mut session = String::new();
    let (mut text_output, mut wrong, mut fences) = (String::new(), Vec::new(), BTreeMap::new());
    let blocks: Vec<_> = blocks(&text).into_iter().filter(|block| block.kind == "resp").collect();
    let [block] = &*blocks else { panic!("one session") };
    let mut lines = block.lines.iter().peekable();
    while let Some(line) = lines.next() {
        let command = line.strip_prefix("> ").unwrap_or_else(|| panic!("no command: {line}"));
        let mut shown = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("> ")) {
            shown.push(*line);
        }
        let shown = shown.join("\n");
        let translate = |text: &str, fences: &BTreeMap<u64, u64>| {
            numbers(text).into_iter().fold(text.to_owned(), |text, number| {
                text.replace(&number.to_string(), &fences.get(&number).unwrap_or(&number).to_string())
            })
        };
        let command = translate(command, &fences);
        let got = redis_cli(port, &command);
        for (text_output, got) in numbers(&shown).into_iter().zip(numbers(&got)) {
            fences.entry(text_output).or_insert(got);
        }
        if translate(&shown, &fences) != got {
            wrong.push(format!("{command}:\n{shown}\non the page, and here\n{got}"));
        }
        session += &format!("> {command}\n{got}\n");
        text_output += &format!("{line}\n{shown}\n");
    }
    if bless {
        std::fs::write(path, text.replace(&text_output, &session)).unwrap();
    } else {
        assert!(
            wrong.is_empty(),
            "docs/API.md differs from the responses of the service; HOTPOOL_BLESS=1 rewrites it:\n{wrong:#?}"
        );
    }
}

/// Returns the directory of traces.
fn traces() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    std::env::var_os("HOTPOOL_TRACES").map_or_else(beside, PathBuf::from)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Path of the load harness: it is another package of the workspace, and its binary lies next to the service's: `cargo
/// build --bins` builds both.
fn harness() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_hotpool")).with_file_name("hotpool-load");
    assert!(program.exists(), "{} is not built; run cargo build --bins", program.display());
    program
}

/// Runs a block of commands and returns its stdout.
fn shell(dir: &Path, server: &Server, block: &Block<'_>, line: usize) -> String {
    let address = server.address.to_string();
    let script = block.lines.join("\n");
    let script = script
        .replace("127.0.0.1:7070", &address)
        .replace("--duration-s 30", "--duration-s 1")
        .replace("--duration-s 5", "--duration-s 0.3")
        .replace("6390", &free_port().to_string())
        .replace("7072", &free_port().to_string())
        // Before the paths of this checkout, which may be under it.
        .replace("/tmp", dir.to_str().unwrap())
        .replace("target/release/hotpool", env!("CARGO_BIN_EXE_hotpool"))
        .replace("cargo run --release --bin hotpool-load --", harness().to_str().unwrap())
        .replace("../shared/traces", traces().to_str().unwrap());
    let mut command = Command::new("sh");
    command.args(["-e", "-c", &script]).current_dir(dir).env("HOTPOOL_ADDR", &address);
    let ended = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "README.md, line {line}: {}\n{script}\n{out}\n{err}", ended.status);
    out.into_owned()
}

#[test]
fn the_tour_of_the_readme_works() {
    let (_, text) = page("README.md");
    let (before, tour) = text.split_once("\n## Five minutes\n").expect("README.md has a section `## Five minutes`");
    let tour = tour.split("\n## ").next().unwrap_or_default();
    let (dir, server, mut client) = fresh();
    let mut fences = Fences::default();
    let (mut ran, mut last) = (0, String::new());
    for block in blocks(tour) {
        let line = before.lines().count() + 2 + block.line;
        match block.kind {
            "sh" if block.lines[0].contains("../shared/traces") && !traces().is_dir() => {
                eprintln!("SKIPPED lines of the README from {line} on: there are no traces in {}", traces().display());
            }
            "sh" => {
                last = shell(dir.path(), &server, &block, line);
                ran += block.lines.len();
            }
            "json" => {
                // Responses of several commands follow each other without a line between them.
                let got =
                    serde_json::Deserializer::from_str(&last).into_iter::<Value>().last().expect("an answer").unwrap();
                let text_output = serde_json::from_str(block.lines[0]).unwrap();
                let wrong = fences.compare(&text_output, &got, "");
                assert!(wrong.is_empty(), "README.md, line {line}: {wrong:#?}");
            }
            other => panic!("README.md, line {line}: what is {other:?}?"),
        }
    }
    assert!(ran >= 15, "commands were found: {ran}");
    // The effects are visible, and the released claims are gone.
    assert_eq!(client.get("/v1/pools/demo/batch").expect(200)["pool"]["workers"]["total"], 10);
    assert_eq!(client.get("/v1/claims").expect(200)["items"], serde_json::json!([]));
}
