use hyper::Request;

use super::*;

/// Guard of a service with these host names.
fn guard(hosts: &str) -> RequestGuard {
    RequestGuard::new(hosts.parse().unwrap())
}

/// Checks a request that is given as `METHOD TARGET VERSION` and one header per line.
fn verdict(guard: &RequestGuard, head: &str) -> Result<(), &'static str> {
    let mut lines = head.lines().map(str::trim);
    let mut parts = lines.next().unwrap().split(' ');
    let mut part = || parts.next().unwrap();
    let (method, target, version) = (part(), part(), part());
    let version = match version {
        "1.0" => Version::HTTP_10,
        "1.1" => Version::HTTP_11,
        "2" => Version::HTTP_2,
        other => panic!("{other}"),
    };
    let mut request = Request::builder().method(method).uri(target).version(version);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name, value.trim());
    }
    let request = request.body(()).unwrap();
    guard.check(&RequestHead::from(&request)).map_err(|rejection| rejection.label().as_str())
}

/// Parses the table of hosts in docs/OPERATING.md: a host, and whether it is served.
fn documented() -> Vec<(String, Result<(), &'static str>)> {
    let text = include_str!("../../docs/OPERATING.md");
    let (_, table) = text.split_once("| `Host` | answer |\n|---|---|\n").expect("the table of hosts");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let answer = match cells[1].trim_end_matches(" |") {
            "served" => Ok(()),
            "421" => Err("host"),
            "400" => Err("invalid_host"),
            other => panic!("{other}"),
        };
        let hosts = cells[0].split('`').skip(1).step_by(2).filter(|part| *part != "server.hosts");
        hosts.map(move |host| (host.to_owned(), answer)).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn h01_the_table_of_hosts_in_the_docs_is_true() {
    let guard = guard("pool.example.com");
    let rows = documented();
    assert!(rows.len() >= 40, "{rows:?}");
    for (host, answer) in rows {
        assert_eq!(verdict(&guard, &format!("GET /v1/pools 1.1\nhost: {host}")), answer, "{host}");
        assert_eq!(verdict(&guard, &format!("GET /healthz 1.1\nhost: {host}")), Ok(()), "a probe under {host}");
    }
}

#[test]
fn h01_hosts() {
    let none = guard("");
    for (host, answer) in [
        ("localhost", Ok(())),
        ("pool.example.com", Err("host")),
        ("", Err("host")),
        (".", Err("host")),
        ("..", Err("host")),
        ("localhost..", Err("host")),
        ("localhos", Err("host")),
        ("localhost2", Err("host")),
        ("xlocalhost", Err("host")),
        ("255.255.255.255", Ok(())),
        ("256.0.0.1", Err("host")),
        ("1.2.3", Err("host")),
        ("1.2.3.4.5", Err("host")),
        ("[::]", Ok(())),
        ("[1:2:3:4:5:6:7:8]:65535", Ok(())),
        ("[1:2:3:4:5:6:7]", Err("invalid_host")),
        ("[::1].evil.test", Err("invalid_host")),
        ("[::1]evil.test", Err("invalid_host")),
        ("[::1]:7070:7070", Err("invalid_host")),
        ("[]", Err("invalid_host")),
        (":7070", Err("host")),
        ("localhost:+80", Err("invalid_host")),
        ("localhost:-1", Err("invalid_host")),
        ("localhost:00080", Ok(())),
        ("localhost/", Err("invalid_host")),
        ("localhost\\@evil.test", Err("invalid_host")),
        ("http://localhost", Err("invalid_host")),
        ("localhost#evil.test", Err("invalid_host")),
        ("%6cocalhost", Err("invalid_host")),
        ("localhost%00.evil.test", Err("invalid_host")),
        ("evil.test localhost", Err("invalid_host")),
    ] {
        assert_eq!(verdict(&none, &format!("GET /v1/pools 1.1\nhost: {host}")), answer, "{host:?}");
    }
}

#[test]
fn h01_heads() {
    let guard = guard("pool.example.com");
    for (head, answer) in [
        // Hosts.
        ("GET /v1/pools 1.1", Err("invalid_host")),
        ("GET /v1/pools 1.0", Err("host")),
        ("GET /v1/pools 2", Err("invalid_host")),
        ("GET http://localhost/v1/pools 2", Ok(())),
        ("GET http://localhost/v1/pools 2\nhost: LOCALHOST", Ok(())),
        ("GET http://localhost:1/v1/pools 2\nhost: localhost:2", Err("invalid_host")),
        ("GET http://localhost/v1/pools 2\nhost: evil.test", Err("invalid_host")),
        ("GET http://evil.test/v1/pools 2\nhost: localhost", Err("invalid_host")),
        ("GET http://evil.test/v1/pools 2", Err("host")),
        ("GET http://user@localhost/v1/pools 2", Err("invalid_host")),
        ("GET /v1/pools 2\nhost: localhost", Ok(())),
        ("GET /v1/pools 1.1\nhost: localhost\nhost: localhost", Err("invalid_host")),
        ("GET http://localhost/v1/pools 1.1", Err("invalid_host")),
        ("GET http://localhost/v1/pools 1.0", Ok(())),
        // Probes.
        ("GET /healthz 1.0", Ok(())),
        ("HEAD /readyz 1.0", Ok(())),
        ("GET /healthz 1.1", Err("invalid_host")),
        ("GET /healthz 1.1\nhost: a\nhost: b", Err("invalid_host")),
        ("GET /healthz 1.1\nhost: ?\norigin: null\nsec-fetch-site: cross-site", Ok(())),
        ("GET /healthz?from=page 1.1\nhost: evil.test", Ok(())),
        ("GET /healthz/ 1.1\nhost: evil.test", Err("host")),
        ("GET /healthzz 1.1\nhost: evil.test", Err("host")),
        ("GET //healthz 1.1\nhost: evil.test", Err("host")),
        ("POST /healthz 1.1\nhost: evil.test", Err("host")),
        ("OPTIONS /healthz 1.1\nhost: localhost\norigin: http://evil.test", Err("origin")),
        ("POST http://evil.test/grpc.health.v1.Health/Check 2", Ok(())),
        ("POST /grpc.health.v1.Health/Check 1.1\nhost: evil.test", Err("host")),
        ("POST http://evil.test/grpc.health.v1.Health/Watch 2", Err("host")),
        ("GET /metrics 1.1\nhost: evil.test", Err("host")),
        // Origins.
        ("POST /v1/claims 1.1\nhost: localhost:7070\norigin: http://localhost:7070", Ok(())),
        ("POST /v1/claims 1.1\nhost: LOCALHOST.:7070\norigin: http://localhost:7070", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: http://localhost", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost:80\norigin: http://localhost", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: https://localhost:443", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost:80\norigin: https://localhost", Err("origin")),
        ("POST /v1/claims 1.1\nhost: [::1]:7070\norigin: http://[::1]:7070", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost:7070\norigin: http://localhost:3000", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost:7070\norigin: http://127.0.0.1:7070", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost:7070\norigin: http://localhost", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: null", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin:", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: localhost", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: file://", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: chrome-extension://localhost", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: http://localhost/", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: http://user@localhost", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: http://localhost\norigin: http://evil.test", Err("origin")),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: https://pool.example.com:8443", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost\norigin: https://pool.example.com.evil.test", Err("origin")),
        ("OPTIONS /v1/claims 1.1\nhost: localhost\norigin: http://evil.test", Err("origin")),
        ("GET /v1/claims 1.1\nhost: localhost\norigin: http://evil.test", Err("origin")),
        ("GET / 1.1\nhost: localhost\nupgrade: websocket\norigin: http://evil.test", Err("origin")),
        // Fetch metadata of browsers.
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site: none", Ok(())),
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site: same-origin", Ok(())),
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site: same-site", Err("fetch_site")),
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site: cross-site", Err("fetch_site")),
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site:", Err("fetch_site")),
        ("GET /v1/claims 1.1\nhost: localhost\nsec-fetch-site: none\nsec-fetch-site: cross-site", Err("fetch_site")),
        (
            "POST /v1/claims 1.1\nhost: localhost\norigin: http://pool.example.com\nsec-fetch-site: cross-site",
            Err("fetch_site"),
        ),
        ("POST /v1/claims 2\nhost: localhost\nsec-fetch-site: cross-site", Err("fetch_site")),
        // Content encodings.
        ("POST /v1/claims 1.1\nhost: localhost\ncontent-encoding: identity", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost\ncontent-encoding:", Ok(())),
        ("POST /v1/claims 1.1\nhost: localhost\ncontent-encoding: gzip", Err("content_encoding")),
        ("POST /v1/claims 1.1\nhost: localhost\ncontent-encoding: identity, gzip", Err("content_encoding")),
        (
            "POST /v1/claims 1.1\nhost: localhost\ncontent-encoding: identity\ncontent-encoding: br",
            Err("content_encoding"),
        ),
        ("POST http://localhost/hotpool.v1.ClaimService/TakeClaim 2\ngrpc-encoding: gzip\nte: trailers", Ok(())),
        // The first problem decides.
        ("POST /v1/claims 1.1\nhost: evil.test\norigin: http://evil.test\ncontent-encoding: gzip", Err("host")),
    ] {
        assert_eq!(verdict(&guard, head), answer, "{head}");
    }
}

#[test]
fn h01_links_lead_to_pages_alone() {
    let guard = guard("");
    let link = "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document";
    for (request, answer) in [
        ("GET /docs", Ok(())),
        ("GET /", Ok(())),
        ("POST /docs", Err("fetch_site")),
        ("HEAD /docs", Err("fetch_site")),
        ("GET /docs/swagger-ui.css", Err("fetch_site")),
        ("GET /v1/pools", Err("fetch_site")),
        ("GET /metrics", Err("fetch_site")),
    ] {
        assert_eq!(verdict(&guard, &format!("{request} 1.1\nhost: localhost\n{link}")), answer, "{request}");
    }
    for (wrong, right) in [("no-cors", "navigate"), ("iframe", "document"), ("embed", "document")] {
        let head = format!("GET /docs 1.1\nhost: localhost\n{}", link.replace(right, wrong));
        assert_eq!(verdict(&guard, &head), Err("fetch_site"), "{wrong}");
    }
    let rebound = format!("GET /docs 1.1\nhost: evil.test\n{link}");
    assert_eq!(verdict(&guard, &rebound), Err("host"));
}

#[test]
fn h01_refusals_repeat_little_and_nothing_that_is_not_plain() {
    let host = [&b"evil\"<script>\xff"[..], &[b'e'; 5_000]].concat();
    assert_eq!(escape_for_message(&host).len(), "evil\\\"<script>\\xff".len() + ECHO_BYTES_MAX - 14 + 3);
    let failure = ApiError::from(RequestRejection::ForeignHost(escape_for_message(&host)));
    assert!(failure.message.len() < 600 && failure.message.is_ascii(), "{}", failure.message);
    let body = serde_json::to_string(&failure).unwrap();
    assert!(body.contains("server.hosts") && body.contains("HOTPOOL__SERVER__HOSTS") && body.contains("--hosts"));
}
