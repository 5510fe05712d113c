//! Commands about workers that a label selector chooses.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::Client;
use crate::server::fresh;

const POOL: &str = "/v1/pools/ns/warm";

/// Returns the ids of the workers with this `schedulability`.
fn ids_with(client: &mut Client, schedulability: &str) -> BTreeSet<String> {
    let all = client.get(&format!("{POOL}/workers?limit=1000")).expect(200)["items"].take();
    let fit = |worker: &&Value| worker["schedulability"] == schedulability;
    all.as_array().unwrap().iter().filter(fit).map(|worker| worker["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn workers_are_cordoned_uncordoned_and_drained_by_their_labels() {
    let (_dir, server, mut client) = fresh();
    server.cli("pools put ns/warm --shards 4").stdout();
    server.cli("workers add ns/warm a b --label topology.kubernetes.io/zone=z1").stdout();
    server.cli("workers add ns/warm c --label topology.kubernetes.io/zone=z2").stdout();
    server.cli("workers add ns/warm d").stdout();
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();

    // A dry run changes nothing.
    let dry = server.cli("workers cordon ns/warm --selector topology.kubernetes.io/zone=z1 --dry-run");
    let output = ids(&["ns/warm a would be cordoned", "ns/warm b would be cordoned", "2 of 4 workers match"]);
    assert_eq!(lines(dry.stdout()), output);
    assert_eq!(ids_with(&mut client, "cordoned"), ids(&[]));

    let done = server.cli("workers cordon ns/warm --selector topology.kubernetes.io/zone=z1");
    let output = ids(&["ns/warm a cordoned", "ns/warm b cordoned", "2 of 4 workers match"]);
    assert_eq!(lines(done.stdout()), output);
    assert_eq!(ids_with(&mut client, "cordoned"), ids(&["a", "b"]));
    let json = server.cli("workers uncordon ns/warm --selector topology.kubernetes.io/zone -o json").json();
    assert_eq!(json["items"].as_array().unwrap().len(), 3);
    assert_eq!(ids_with(&mut client, "open"), ids(&["a", "b", "c", "d"]));
    server.cli("workers drain ns/warm --selector !topology.kubernetes.io/zone").stdout();
    assert_eq!(ids_with(&mut client, "draining"), ids(&["d"]));

    // A failure is reported, and does not affect the others.
    let some = server.cli("workers uncordon ns/warm --selector !x");
    assert_eq!((some.code, some.out.lines().count()), (Some(3), 4), "{some:?}");
    assert!(some.out.contains("4 of 4 workers match, 1 failed"), "{some:?}");
    assert!(some.err.starts_with("hotpool: d: the worker is draining"), "{some:?}");

    assert_eq!(server.cli("workers cordon ns/warm --selector x=y").stdout(), "0 of 4 workers match\n");
    server.cli("workers cordon ns/warm --selector =").failed(64, &["--selector", "expected a label key"]);
    server.cli("workers cordon ns/warm a --selector x").failed(64, &["cannot be used with"]);
    server.cli("workers cordon ns/warm a --dry-run").failed(64, &["cannot be used with"]);
    server.cli("workers cordon ns/warm").failed(64, &["--selector"]);
    server.cli("workers cordon ns/none --selector x").failed(4, &["pool not found"]);
    server.cli("workers clear ns/warm --selector x").failed(64, &["--selector"]);
    server.cli("workers rm ns/warm --selector x").failed(64, &["--selector"]);
}

#[test]
fn a_selector_goes_through_every_page() {
    let (_dir, server, mut client) = fresh();
    server.cli("pools put ns/warm --shards 2").stdout();
    server.cli("workers add ns/warm --count 1500 --label zone=a").stdout();
    server.cli("workers add ns/warm --count 700 --prefix b- --label zone=b").stdout();
    let done = server.cli("workers cordon ns/warm --selector zone=a");
    assert_eq!(done.stdout().lines().last(), Some("1500 of 2200 workers match"));
    assert_eq!(done.out.lines().count(), 1501);
    assert_eq!(client.get(POOL).expect(200)["pool"]["workers"]["cordoned"], json!(1500));
}
