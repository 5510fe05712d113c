use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::thread::{JoinHandle, spawn};

use serde_json::{Value, json};

use super::{Ran, command, run};
use crate::server::with_pool;

/// Runs a command against an address that may have no service.
fn at(address: impl std::fmt::Display, line: &str) -> Ran {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    run(command(&arguments).env("HOTPOOL_ADDR", address.to_string()), "")
}

/// Opens a port that answers one connection with these bytes, whatever the request, and then closes it.
fn answers(bytes: impl Into<Vec<u8>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, bytes) = (listener.local_addr().unwrap(), bytes.into());
    let answering = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(&bytes);
    });
    (address, answering)
}

/// Formats an HTTP response.
fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn wrong_usage_exits_with_64_and_a_hint() {
    let cases = [
        ("", "Usage: hotpool"),
        ("pool ls", "pools"),
        ("pools", "Usage: hotpool pools"),
        ("pools list", "unrecognized subcommand"),
        ("pools show", "<NS/POOL>"),
        ("pools show warm", "must be NAMESPACE/POOL, as in demo/warm"),
        ("pools show a/b/c", "[A-Za-z0-9._-]"),
        ("pools show /b", "must be 1 to 255 bytes, got 0"),
        ("pools put demo/warm --shards four", "--shards"),
        ("pools put demo/warm --label tier", "must be KEY=VALUE"),
        ("pools put demo/warm --label tier=a --label tier=b", "tier is given twice"),
        ("pools set demo/warm --label tier=a --label tier=b", "tier is given twice"),
        ("workers add demo/warm w --label zone=a --label zone=b", "zone is given twice"),
        ("claims take demo/warm --label job=a --label job=b", "job is given twice"),
        ("pools ls --output xml", "[possible values: table, json]"),
        ("pools ls --timeout-ms 0", "--timeout-ms"),
        ("pools ls --addr https://localhost", "speaks no TLS"),
        ("pools ls --addr http://h:70000", "must be http://HOST:PORT"),
        ("workers add demo/warm", "<ID>"),
        ("workers add demo/warm a/b", "[A-Za-z0-9._-]"),
        ("workers add demo/warm w1 --from 3", "--count"),
        ("workers add demo/warm --count 0", "--count"),
        ("workers add demo/warm w1 --memory-bytes 4G", "known: Ki, Mi, Gi, Ti"),
        ("workers add demo/warm w1 --gpu a100", "must be MODEL=COUNT"),
        ("workers cordon demo/warm", "<ID|--selector <SELECTOR>>"),
        ("workers rm demo/warm", "<ID>"),
        ("claims take demo/a --gpu a100", "must be [MODEL,..]:COUNT[:MILLI]"),
        ("claims resize demo/job-1 --cpu-milli 1", "--fence <N>|--current"),
        ("pools put demo/a --spare-gpu-workers maybe", "[possible values: true, false]"),
        ("pools put demo/a --typical-requests {", "must be JSON"),
        ("claims take", "<NS/POOL>"),
        ("claims take demo/a other/b", "of one namespace"),
        ("claims take demo/a --pool-selector x --namespace demo", "cannot be used with"),
        ("claims take --pool-selector x", "--namespace"),
        ("claims show job-1", "must be NAMESPACE/KEY, as in demo/job-1"),
        ("claims confirm demo/job-1", "--fence <N>|--current"),
        ("claims take demo/a --prefer-node-ms 5", "--prefer-node"),
        ("claims take demo/a --wait-ms long", "--wait-ms"),
        ("quotas put demo/a/b --claims 1", "[A-Za-z0-9._-]"),
        ("quotas put demo/a --memory-bytes 1G", "known: Ki, Mi, Gi, Ti"),
        ("quotas show", "<NS[/TENANT]>"),
        ("demand demo", "must be NAMESPACE/POOL"),
        ("claims confirm demo/job-1 --fence 1 --current", "cannot be used with"),
        ("claims release demo/job-1 --fence -1", "-1"),
        ("status --watch 0", "--watch"),
        ("serve --addr h:1", "--addr"),
    ];
    for (line, parts) in cases {
        at("http://127.0.0.1:1", line).failed(64, &[parts]);
    }
    run(command(&["pools", "ls"]).env("HOTPOOL_ADDR", "nowhere:x"), "")
        .failed(64, &["nowhere:x", "must be http://HOST:PORT"]);
}

#[test]
fn help_is_no_error_and_has_examples() {
    for (line, parts) in [
        ("--help", "Exit codes of the commands: 0 success; 1 an error"),
        ("claims take --help", "hotpool claims take demo/warm --key job-1"),
        ("workers add --help", "--count 100 --prefix w-"),
        ("pools put --help", "hotpool pools put demo/warm"),
        ("status --help", "hotpool status --watch 5"),
    ] {
        let help = at("h:1", line);
        assert!(help.stdout().contains(parts), "{line}: {}", help.out);
    }
}

#[test]
fn an_unreachable_service_is_named_with_a_hint() {
    // Bound and closed again: nothing listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let parts = [&*format!("cannot reach the service at http://{address}"), "refused", "hotpool serve", "HOTPOOL_ADDR"];
    for line in ["status", "pools ls", "pools put demo/warm", "claims take demo/warm", "workers add demo/warm w1"] {
        at(address, line).failed(1, &parts);
    }
    let text_output = at(address, "workers rm demo/warm w1 w2 --output json");
    assert_eq!(text_output.code, Some(1));
    let text_output: Value = serde_json::from_str(text_output.err.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&text_output["error"]["code"], &text_output["error"]["reason"]),
        (&json!("UNAVAILABLE"), &json!("unreachable"))
    );
    at("no-such-host.invalid", "status").failed(1, &["cannot reach the service at http://no-such-host.invalid:7070"]);
}

#[test]
fn the_flag_takes_precedence_over_the_variable() {
    let (_dir, server, _client) = with_pool(1);
    let ran = at("127.0.0.1:1", &format!("pools ls --addr http://{}/", server.address));
    assert!(ran.stdout().contains("ns/warm"));
}

#[test]
fn invalid_responses_are_detected() {
    let rubbish: &[&[u8]] = &[
        b"",
        b"-ERR unknown command 'GET'\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"pool\":",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n<html></html>\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"pool\":{}}",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nNot found",
        b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}",
    ];
    for bytes in rubbish {
        let (address, answering) = answers(*bytes);
        let ran = at(address, "pools show demo/warm");
        ran.failed(
            1,
            &[&format!("http://{address} does not answer as this version of hotpool does"), "unexpected_answer"],
        );
        answering.join().unwrap();
    }
    // A path that another version does not have is not a missing worker.
    let route = http("404 Not Found", r#"{"error":{"code":"NOT_FOUND","reason":"route","message":"no such route"}}"#);
    let (address, answering) = answers(route);
    at(address, "pools clear demo/warm").failed(1, &["no such route (NOT_FOUND, route)"]);
    answering.join().unwrap();
}

#[test]
fn a_temporary_failure_is_an_error_and_no_rejection() {
    let busy = r#"{"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"a queue is full; retry later"}}"#;
    let (address, answering) = answers(http("503 Service Unavailable", busy));
    at(address, "claims take demo/warm").failed(1, &["a queue is full; retry later (UNAVAILABLE, overloaded)"]);
    answering.join().unwrap();
    let late = r#"{"error":{"code":"DEADLINE_EXCEEDED","message":"the outcome is unknown"}}"#;
    let (address, answering) = answers(http("504 Gateway Timeout", late));
    at(address, "claims take demo/warm").failed(1, &["the outcome is unknown (DEADLINE_EXCEEDED)"]);
    answering.join().unwrap();
}

#[test]
fn a_missing_response_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = at(listener.local_addr().unwrap(), "claims take demo/warm --timeout-ms 100");
    ran.failed(1, &["no answer from", "within 100 ms", "unknown", "DEADLINE_EXCEEDED"]);
}

#[test]
fn a_service_that_is_not_ready_is_shown_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let loading = r#"{"error":{"code":"UNAVAILABLE","reason":"loading","message":"recovering from the store"}}"#;
    let answering = spawn(move || {
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(http("503 Service Unavailable", loading).as_bytes()).unwrap();
        }
    });
    let shown = at(address, "status");
    assert_eq!((shown.code, shown.err.as_str()), (Some(1), ""));
    assert_eq!(shown.out, format!("http://{address} is NOT READY\n  recovering from the store\n"));
    let shown = at(address, "status -o json");
    let json: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(
        (shown.code, &json["ready"], &json["reasons"][0]),
        (Some(1), &json!(false), &json!("recovering from the store"))
    );
    answering.join().unwrap();
}

#[test]
fn a_closed_output_pipe_is_no_error() {
    let (_dir, server, _client) = with_pool(1);
    // More output than a pipe can hold.
    server.cli("workers add ns/warm --count 3000").stdout();
    for output in ["table", "json"] {
        let mut listing = command(&["workers", "ls", "ns/warm", "-o", output, "--addr", &server.address.to_string()]);
        let mut child = listing.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 10]).unwrap();
        drop(out);
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
    }
    // A full disk is an error.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let address = server.address.to_string();
    let ended = command(&["pools", "ls", "--addr", &address]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("No space left"));
}
