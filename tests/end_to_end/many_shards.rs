//! H05: cost of unused shards, and the limit on their number.

use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;
use crate::server::Server;

const SHARD_KIB_MAX: u64 = 32;

fn put(client: &mut Client, pool: &str, shards: u16) -> crate::client::Response {
    client.put(&format!("/v1/pools/ns/{pool}"), &json!({"shards": shards}))
}

#[test]
fn h05_an_empty_shard_costs_kilobytes() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &[]);
    let mut client = server.client();
    // The first pool starts threads, buffers and tables.
    put(&mut client, "first", 1_024).expect(201);
    let before = server.resident_kib();
    for pool in ["second", "third", "fourth"] {
        put(&mut client, pool, 1_024).expect(201);
    }
    let shard_kib = (server.resident_kib() - before) / (3 * 1_024);
    println!("an empty shard takes {shard_kib} KiB");
    assert!(shard_kib <= SHARD_KIB_MAX, "an empty shard takes {shard_kib} KiB, allowed are {SHARD_KIB_MAX}");
}

#[test]
fn h05_shards_of_all_pools_have_a_limit_and_no_pool_is_lost_to_a_lower_one() {
    let dir = TempDir::new().unwrap();
    let start = |most: &str| Server::start_with(dir.path(), &[], &[("HOTPOOL__SERVER__MAX_SHARDS", most)]);
    let refusal = |most: usize, there: usize, more: usize| {
        format!(
            "at most {most} shards are allowed over all pools (server.max_shards): there are {there}, and this pool would add {more}; \
             give it fewer, delete pools, or raise server.max_shards"
        )
    };
    let refused = |client: &mut Client, pool: &str, shards: u16, message: &str| {
        let answer = put(client, pool, shards);
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.text().contains(message), "{message} is not in {}", answer.text());
        client.get(&format!("/v1/pools/ns/{pool}")).expect_error(404, "NOT_FOUND", None, None);
    };
    let names = |client: &mut Client| {
        let pools = client.get("/v1/pools").expect(200)["items"].take();
        pools.as_array().unwrap().iter().map(|pool| pool["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };

    let server = start("20");
    let mut client = server.client();
    put(&mut client, "a", 16).expect(201);
    refused(&mut client, "b", 8, &refusal(20, 16, 8));
    put(&mut client, "b", 4).expect(201);
    refused(&mut client, "c", 1, &refusal(20, 20, 1));
    put(&mut client, "a", 16).expect(200);
    let scraped = client.get("/metrics");
    assert!(scraped.text().contains("hotpool_shards_max 20"), "{}", scraped.text());
    // Deleted pools no longer count.
    client.delete("/v1/pools/ns/b").expect(200);
    put(&mut client, "c", 1).expect(201);
    put(&mut client, "b", 2).expect(201);
    refused(&mut client, "d", 2, &refusal(20, 19, 2));
    assert_eq!(server.stop().code(), Some(0));

    // A restart counts what is stored; one with a lower limit serves all of it.
    let server = start("20");
    let mut client = server.client();
    refused(&mut client, "d", 2, &refusal(20, 19, 2));
    put(&mut client, "d", 1).expect(201);
    assert_eq!(server.stop().code(), Some(0));
    let server = start("4");
    let mut client = server.client();
    assert_eq!(names(&mut client), ["a", "b", "c", "d"]);
    put(&mut client, "a", 16).expect(200);
    client.put("/v1/pools/ns/a/workers/w", &json!({})).expect(201);
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "a", "key": "k"})).expect(201);
    refused(&mut client, "e", 1, &refusal(4, 20, 1));
    client.delete("/v1/pools/ns/a?force=true").expect(200);
    refused(&mut client, "e", 1, &refusal(4, 4, 1));
    client.delete("/v1/pools/ns/d").expect(200);
    put(&mut client, "e", 1).expect(201);
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("server.max_shards"), "{log}");
}
