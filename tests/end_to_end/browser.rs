//! Real Chromium: what pages of other sites can do to a service, and whether the service's own page works.

mod attacker;
#[allow(dead_code, reason = "shared with the tests of the harness, which use all of it")]
mod devtools;

use serde_json::{Value, json};
use tempfile::TempDir;

use self::attacker::Attacker;
use self::devtools::Browser;
use crate::client::Client;
use crate::server::Server;

/// Starts a service with RESP, the pool `ns/warm` and two workers.
fn service(dir: &TempDir) -> (Server, Client) {
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let mut client = server.client();
    client.put("/v1/pools/ns/warm", &json!({"shards": 1, "ack": "memory"})).expect(201);
    for worker in ["w0", "w1"] {
        client.put(&format!("/v1/pools/ns/warm/workers/{worker}"), &json!({})).expect(201);
    }
    (server, client)
}

#[track_caller]
fn expect_untouched(client: &mut Client, after: &str) {
    let pool = client.get("/v1/pools/ns/warm");
    assert_eq!(pool.status, 200, "{after}: the pool is gone");
    let pool = pool.json();
    let claims = client.get("/v1/claims").expect(200);
    let workers = client.get("/v1/pools/ns/warm/workers").expect(200);
    let open = |worker: &Value| worker["schedulability"] == "open";
    assert!(
        claims["items"] == json!([]) && workers["items"].as_array().unwrap().iter().all(open),
        "{after}: {claims} {workers}"
    );
    assert_eq!(pool["pool"]["workers"]["total"], 2, "{after}");
}

#[test]
fn h01_pages_of_other_sites_change_nothing_and_read_nothing() {
    let dir = TempDir::new().unwrap();
    let (server, mut client) = service(&dir);
    let attacker = Attacker::start(server.address, server.resp.unwrap());
    let mut browser = Browser::start("MAP evil.test 127.0.0.1");
    // A page of another origin: requests that it may send without a preflight, preflights, and what it reads.
    for page in ["rebound", ""] {
        let page = format!("http://evil.test:{}/{page}", attacker.port());
        browser.open(&page);
        let tried = browser.evaluate("window.tries");
        let tried = tried.as_object().unwrap_or_else(|| panic!("{page}: {tried}"));
        assert!(tried.len() >= 6, "{page}: {tried:?}");
        for (name, outcome) in tried {
            assert_eq!(outcome, "nothing read", "{page}: {name}");
        }
        expect_untouched(&mut client, &page);
    }
    // A form that navigates the whole window shows the rejection, and no more.
    browser.open(&format!("http://evil.test:{}/form", attacker.port()));
    let shown = browser.wait_for("location.pathname == '/v1/claims' && document.body.innerText");
    assert!(shown.as_str().unwrap().contains("PERMISSION_DENIED"), "{shown}");
    expect_untouched(&mut client, "a form on the top level");
    // The guard rejected all of it: a browser that could not connect would have shown the same.
    let scrape = client.get("/metrics");
    for reason in ["host", "origin"] {
        let series = format!(r#"hotpool_requests_refused_total{{reason="{reason}"}} "#);
        let count = scrape.text().lines().find_map(|line| line.strip_prefix(series.as_str()));
        assert!(count.is_some_and(|count| count.parse::<u32>().unwrap() >= 4), "{reason}: {count:?}");
    }
    // The RESP port rejected it too, once for each page.
    assert!(scrape.text().contains(r#"hotpool_resp_connections_ended_total{reason="http"} 2"#), "{}", scrape.text());
}

#[test]
fn h01_links_to_the_viewer_can_be_followed() {
    let dir = TempDir::new().unwrap();
    let (server, _client) = service(&dir);
    let attacker = Attacker::start(server.address, server.resp.unwrap());
    let mut browser = Browser::start("MAP evil.test 127.0.0.1");
    browser.open(&format!("http://evil.test:{}/link", attacker.port()));
    browser.wait_for("location.pathname == '/docs' && document.querySelectorAll('.opblock').length > 20");
}

#[test]
fn h01_the_viewer_works_under_its_policy() {
    let dir = TempDir::new().unwrap();
    let (server, _client) = service(&dir);
    let mut browser = Browser::start("MAP evil.test 127.0.0.1");
    browser.open(&format!("http://localhost:{}/docs", server.address.port()));
    browser.wait_for("document.querySelectorAll('.opblock').length > 20");
    for (operation, path) in [("pools-listPools", "/v1/pools"), ("claims-claim", "/v1/claims")] {
        let block = format!("document.getElementById('operations-{operation}')");
        browser.evaluate(&format!("{block}.querySelector('.opblock-summary-control').click()"));
        for button in [".try-out__btn", ".execute"] {
            browser.wait_for(&format!("{block}.querySelector('{button}')"));
            browser.evaluate(&format!("{block}.querySelector('{button}').click()"));
        }
        let status =
            format!("{block}.querySelector('.live-responses-table tr.response .response-col_status')?.innerText");
        let status = browser.wait_for(&status);
        let status: u16 = status.as_str().unwrap().split_whitespace().next().unwrap().parse().unwrap();
        assert!([200, 201, 400, 404, 429].contains(&status), "{path}: {status}");
    }
    // The status of a response is not a message of the page.
    let complaints: Vec<String> = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}
