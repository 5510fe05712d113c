//! First steps with the service: messages, help and documented examples.

use std::fmt;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Client, Response};
use crate::server::{Running, Server, command, fresh};

/// Sends a GET with an `Accept` header.
fn accepting(client: &mut Client, path: &str, accept: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n").as_bytes()).unwrap();
    client.receive().unwrap()
}

#[test]
fn the_root_redirects_to_the_viewer() {
    let (_dir, server, mut client) = fresh();
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = accepting(&mut client, "/", browser);
    assert_eq!((page.status, page.header("location")), (307, Some("/docs")));
    let (scrape, redirects) = (client.get("/metrics"), r#"hotpool_http_requests_total{route="/",status="307"} 1"#);
    assert!(scrape.text().contains(redirects), "{redirects} is not in {}", scrape.text());
    assert_eq!(accepting(&mut client, "/docs", browser).status, 200);
    for accept in ["*/*", "application/json"] {
        let answer = accepting(&mut client, "/", accept);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
        assert_eq!(answer.header("vary"), Some("accept"));
        for word in ["/docs", "/v1/openapi.json", "/readyz", "/metrics", env!("CARGO_PKG_VERSION")] {
            assert!(answer.text().contains(word), "{word} is not in {}", answer.text());
        }
        assert!(answer.text().lines().count() < 10, "{}", answer.text());
    }
    let without = client.get("/");
    assert_eq!(without.status, 200);
    client.request("POST", "/", b"").expect_error(405, "INVALID_ARGUMENT", Some("method"), None);
    client.get("/frobnicate").expect_error(404, "NOT_FOUND", Some("route"), None);
    drop(server);
}

/// JSON object whose fields keep their order.
struct InOrder<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = InOrder<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder<T>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(InOrder(fields))
            }
        }
        deserializer.deserialize_map(Fields(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
struct Document {
    paths: InOrder<InOrder<Value>>,
    tags: Vec<Value>,
    components: Value,
}

/// Operation as "Try it out" sends it.
struct Example {
    id: String,
    method: String,
    path: String,
    body: Option<Value>,
}

fn example(method: &str, path: &str, operation: &Value, document: &Document) -> Example {
    let id = operation["operationId"].as_str().unwrap().to_owned();
    let mut path = path.to_owned();
    for parameter in operation["parameters"].as_array().unwrap().iter().filter(|parameter| parameter["in"] == "path") {
        let name = parameter["name"].as_str().unwrap();
        let value = parameter["example"].as_str().unwrap_or_else(|| panic!("{id}: {name} has no example"));
        path = path.replace(&format!("{{{name}}}"), value);
    }
    let content = &operation["requestBody"]["content"]["application/json"];
    let body = operation.get("requestBody").map(|_| {
        assert!(content["example"].is_object(), "{id}: the body has no example");
        content["example"].clone()
    });
    let references =
        operation["parameters"].as_array().unwrap().iter().filter_map(|parameter| parameter["$ref"].as_str());
    let named = references.map(|of| &document.components["parameters"][of.rsplit('/').next().unwrap()]);
    let query = named.filter(|parameter| parameter["in"] == "query");
    let filled = query.filter_map(|of| Some(format!("{}={}", of["name"].as_str()?, of.get("example")?)));
    let query = filled.collect::<Vec<_>>().join("&");
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    Example { id, method: method.to_uppercase(), path, body }
}

/// Returns all operations: section by section as the viewer shows them, the deletions last, the last section first.
fn in_documented_order(document: &Document) -> Vec<Example> {
    let mut all = Vec::new();
    for tag in &document.tags {
        for (path, methods) in &document.paths.0 {
            let of_tag = methods.0.iter().filter(|(_, operation)| operation["tags"][0] == tag["name"]);
            all.extend(of_tag.map(|(method, operation)| example(method, path, operation, document)));
        }
    }
    let (mut deletions, mut all): (Vec<_>, Vec<_>) = all.into_iter().partition(|example| example.method == "DELETE");
    deletions.reverse();
    all.extend(deletions);
    all
}

#[test]
fn every_example_of_the_description_works_unchanged() {
    let (_dir, server, mut client) = fresh();
    let answer = client.get("/v1/openapi.json");
    let document: Document = serde_json::from_str(answer.text()).unwrap();
    let examples = in_documented_order(&document);
    let described: usize =
        answer.json()["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
    assert_eq!(examples.len(), described);
    // Twice: a repeated example still works, except that it creates nothing. The last claim is released the second
    // time.
    let mut fence = Value::Null;
    for round in 0..2 {
        for Example { id, method, path, body } in &examples {
            let mut body = body.clone().unwrap_or_default();
            // Like the viewer: the example's fence stands for that of the latest claim.
            if body.get("fence").is_some() {
                body["fence"] = fence.clone();
            }
            if id == "watchPool" {
                // The stream does not end by itself.
                let answered = first_bytes(server.address, path);
                assert!(answered.starts_with("HTTP/1.1 200"), "{id}: {answered}");
                continue;
            }
            let sent = if body.is_null() { String::new() } else { body.to_string() };
            let answer = client.request(method, path, sent.as_bytes());
            assert!(
                (200..300).contains(&answer.status),
                "round {round}, {id}: {method} {path} {sent}: {}",
                answer.text()
            );
            assert!(!answer.text().contains("\"error\":"), "round {round}, {id}: {}", answer.text());
            if id == "claim" {
                fence = answer.json()["claim"]["fence"].clone();
            }
        }
        let left = client.get("/v1/pools").expect(200);
        assert_eq!(left["items"], json!([]), "what was made is gone again");
    }
}

fn first_bytes(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .unwrap();
    let mut bytes = [0; 15];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn the_address_may_precede_the_command() {
    let (_dir, server, mut client) = fresh();
    client.put("/v1/pools/ns/warm", &json!({})).expect(201);
    let address = server.address.to_string();
    let run = |arguments: &[&str]| {
        let mut command = crate::cli::command(arguments);
        crate::cli::run(command.env("HOTPOOL_ADDR", "127.0.0.1:1"), "")
    };
    assert!(run(&["--addr", &address, "pools", "ls"]).stdout().contains("ns/warm"));
    assert!(run(&["pools", "--addr", &address, "ls"]).stdout().contains("ns/warm"));
    assert!(run(&["--addr", &address, "-o", "json", "--timeout-ms", "9000", "pools", "ls"]).json()["items"].is_array());
    assert!(run(&["-o", "table", "--addr", &address, "pools", "ls", "-o", "json"]).json()["items"].is_array());
    // An option after the command takes precedence.
    assert!(run(&["--addr", "127.0.0.1:2", "status", "--addr", &address]).stdout().contains("is ready"));
    run(&["--addr", "h:x", "pools", "ls"]).failed(64, &["must be http://HOST:PORT"]);
    run(&["--addr", &address, "serve"]).failed(64, &["--addr"]);
    run(&["--timeout-ms", "9", "completions", "bash"]).failed(64, &["--timeout-ms"]);
    run(&["--addr", &address, "store", "inspect", "file:/nowhere"]).failed(64, &["--addr"]);
    run(&["-o", "json", "store", "inspect", "file:/nowhere"]).failed(1, &["{\"error\":"]);
    // Read-only commands create nothing.
    let empty = TempDir::new().unwrap();
    let url = format!("file:{}", empty.path().display());
    run(&["store", "inspect", &url]).failed(1, &["there is no store in this directory"]);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_release_without_a_claim_reports_it() {
    let (_dir, server, mut client) = crate::server::with_pool(1);
    let nothing = "ns/none holds no claim: nothing to release\n";
    assert_eq!(server.cli("claims release ns/none --fence 7").stdout(), nothing);
    assert_eq!(server.cli("claims release ns/none --fence 7 --phase begin").stdout(), nothing);
    assert_eq!(server.cli("claims release ns/none --fence 7 -o json").json(), json!({"released": false}));
    let take = json!({"namespace": "ns", "pool": "warm", "key": "a"});
    let fence = client.post("/v1/claims", &take).expect(201)["claim"]["fence"].take();
    let body = json!({"fence": fence});
    let release = |client: &mut Client, body: &Value| client.post("/v1/claims/ns/a:release", body).expect(200);
    assert_eq!(release(&mut client, &json!({"fence": fence, "phase": "begin"})), json!({"released": true}));
    assert_eq!(release(&mut client, &body), json!({"released": true}));
    assert_eq!(release(&mut client, &body), json!({"released": false}));
    // The other claim commands.
    for line in ["claims confirm ns/none --fence 7", "claims renew ns/none --fence 7"] {
        server.cli(line).failed(4, &["claim not found"]);
    }
    server.cli("claims resize ns/none --fence 7 --cpu-milli 1").failed(4, &["claim not found"]);
    server.cli("claims release ns/none --current").failed(4, &["claim not found"]);
    for verb in ["cordon", "uncordon", "drain", "clear", "rm"] {
        server.cli(&format!("workers {verb} ns/warm none")).failed(4, &["none: worker not found"]);
    }
    for line in ["pools rm ns/none", "pools clear ns/none", "demand ns/none", "pools watch ns/none"] {
        server.cli(line).failed(4, &["pool not found"]);
    }
    server.cli("quotas rm ns/none").failed(4, &["quota not found"]);
}

/// Starts a service with these arguments, and returns the address of its ready line.
fn listens(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<SocketAddr>, Option<SocketAddr>, String) {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), arguments, environment);
    server.client().get("/healthz").expect(200);
    (Some(server.address), server.resp, server.welcome.join("\n"))
}

#[test]
fn the_listen_address_may_have_a_name_or_no_host() {
    let (http, resp, _) = listens(&["--listen", "localhost:0", "--resp-listen", "localhost:0"], &[]);
    assert!(http.unwrap().ip().is_loopback() && resp.unwrap().ip().is_loopback());
    let (http, resp, _) = listens(&["--listen", ":0", "--resp-listen", ":0", "--insecure"], &[]);
    assert!(http.unwrap().ip().is_unspecified() && resp.unwrap().ip().is_unspecified());
    // All interfaces: both families, where both exist.
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--listen", ":0", "--insecure"], &[]);
    let port = server.address.port();
    Client::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap().get("/healthz").expect(200);
    if server.address.is_ipv6() {
        Client::connect(format!("[::1]:{port}").parse().unwrap()).unwrap().get("/healthz").expect(200);
    }
    // From the file and the environment too.
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("hotpool.toml");
    std::fs::write(&file, "[server]\nlisten = \"localhost:0\"\nresp_listen = \"localhost:0\"\n").unwrap();
    let start = |environment: &[(&str, &str)]| {
        let mut service = std::process::Command::new(env!("CARGO_BIN_EXE_hotpool"));
        service
            .args(["serve", "--store", "memory:", "--config", file.to_str().unwrap()])
            .envs(environment.iter().copied());
        service.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = Running(service.spawn().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.0.stdout.take().unwrap()), &mut line).unwrap();
        line
    };
    assert!(start(&[]).starts_with("hotpool is ready on http://127.0.0.1:"));
    let line = start(&[("HOTPOOL__SERVER__LISTEN", ":0"), ("HOTPOOL__SERVER__INSECURE", "true")]);
    assert!(
        line.starts_with("hotpool is ready on http://[::]:") || line.starts_with("hotpool is ready on http://0.0.0.0:")
    );
}

/// Runs a service that must not start, and returns its exit code and stderr.
fn rejected(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let ended = command(dir, arguments, environment).output().unwrap();
    (ended.status.code(), std::fs::read_to_string(dir.join("log")).unwrap())
}

#[test]
fn an_impossible_address_is_rejected_with_an_alternative() {
    let dir = TempDir::new().unwrap();
    for (flag, address, parts) in [
        ("--listen", "localhost", "HOST:PORT, as in 127.0.0.1:7070, localhost:7070 or :7070"),
        ("--listen", "localhost:", "HOST:PORT"),
        ("--listen", "localhost:70000", "HOST:PORT"),
        ("--listen", "::1:7070", "[::1]:7070"),
        ("--listen", "no-such-host.invalid:0", "no-such-host.invalid"),
        ("--listen", ":0", "--insecure"),
        ("--resp-listen", ":0", "--insecure"),
        ("--resp-listen", "no-such-host.invalid:0", "no-such-host.invalid"),
        ("--resp-listen", "on", "must be HOST:PORT or off"),
    ] {
        let (code, text_output) = rejected(dir.path(), &[flag, address], &[]);
        assert_eq!(code, Some(64), "{flag} {address}: {text_output}");
        assert!(text_output.contains(parts), "{flag} {address}: {text_output}");
    }
}

#[test]
fn errors_in_a_file_are_reported_with_file_and_line() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("my.toml");
    let path = file.to_str().unwrap();
    let text_output = |text: &str, environment: &[(&str, &str)], more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let (code, text_output) = rejected(dir.path(), &[&["--config", path], more].concat(), environment);
        assert_eq!(code, Some(64), "{text_output}");
        text_output
    };
    let at = |line: u32| format!("{path}:{line}: ");
    let broken = text_output("[server]\nmax_connections = 7\nlisten = \n", &[], &[]);
    assert!(broken.contains(&at(3)), "{broken}");
    let all = text_output(
        "[server]\nmax_connections = 0\n\n[store]\nwait = 7\n[[pools]]\nname = \"a/b\"\n[[pools]]\nname = \"a/c\"\nshards = 3\nlabels = { x = 1 }\n",
        &[("HOTPOOL__SERVER__MAX_BODY_BYTES", "1")],
        &[],
    );
    for line in [
        format!("{}server.max_connections: must be 1 to 1000000, got 0", at(2)),
        format!("{}store.wait: unknown field", at(5)),
        format!("{}pools[1].shards: must be a power of two", at(10)),
        format!("{}pools[1].labels.x: ", at(11)),
        "hotpool: ".to_owned(),
        "server.max_body_bytes: must be".to_owned(),
    ] {
        assert!(all.contains(&line), "{line:?} is not in\n{all}");
    }
    // A value from elsewhere is not attributed to the file.
    assert!(!all.contains(": server.max_body_bytes"), "{all}");
    let over = text_output("[server]\nmax_connections = 7\n", &[("HOTPOOL__SERVER__MAX_CONNECTIONS", "0")], &[]);
    assert!(over.contains("server.max_connections: must be") && !over.contains(path), "{over}");
    let over = text_output("[server]\nlisten = \"127.0.0.1:1\"\n", &[], &["--listen", "0.0.0.0:0"]);
    assert!(over.contains("server.listen: 0.0.0.0:0 can be reached") && !over.contains(path), "{over}");
}

#[test]
fn a_data_directory_may_be_given_where_it_is_unused() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let server = Server::start_with(dir.path(), &["--store", "memory:", "--data-dir", data.to_str().unwrap()], &[]);
    server.client().get("/readyz").expect(200);
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("--data-dir is not used") && log.contains("memory:"), "{log}");
    assert_eq!(server.stop().code(), Some(0));
    assert!(!data.exists());
    // On its own it means file:DIR, whatever the file says.
    let file = dir.path().join("hotpool.toml");
    std::fs::write(&file, "[store]\nurl = \"memory:\"\n").unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let server = Server::start_with(dir.path(), &arguments, &[]);
    assert!(server.welcome[0].contains(&format!("(store: file:{})", data.display())), "{:?}", server.welcome);
    drop(server);
    let (code, text_output) = rejected(dir.path(), &["--store", "file:/a", "--data-dir", "/b"], &[]);
    assert_eq!(code, Some(64), "{text_output}");
}

#[test]
fn a_port_that_is_still_held_is_waited_for() {
    for flag in ["--listen", "--resp-listen"] {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let dir = TempDir::new().unwrap();
        let mut child = Running(command(dir.path(), &[flag, &address.to_string()], &[]).spawn().unwrap());
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
        while !log().contains("in use") {
            assert!(child.0.try_wait().unwrap().is_none(), "it did not wait: {}", log());
            std::thread::yield_now();
        }
        drop(holder);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.0.stdout.take().unwrap()), &mut line).unwrap();
        assert!(line.contains(&address.to_string()), "{line:?}: {}", log());
        assert!(log().contains(&address.to_string()), "{}", log());
    }
}
