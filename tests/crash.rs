//! S01: `kill -9` of the real binary in the middle of a load over real HTTP, and what a restart finds.
//!
//! Each client keeps a journal of its replies and of the one request without a reply. After the restart every durable reply
//! must still hold: granted claims are held with the same fence by the same worker, released ones are gone; the request in
//! doubt may have happened or not. The rounds share one directory, so that restarts after restarts are covered.
//! `HOTPOOL_CRASH_ROUNDS` sets the number of rounds (5), `HOTPOOL_CRASH_SEED` the seed.
//!
//! Proved by breaking on purpose: replies that leave before the store has their record (`may_leave` always true).

#[path = "crash/campaign.rs"]
mod campaign;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "end_to_end/client.rs"]
mod client;
#[path = "crash/memory_ack.rs"]
mod memory_ack;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "crash/redis.rs"]
mod redis;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "end_to_end/server.rs"]
mod server;
#[allow(dead_code, reason = "shared with the tests of the Redis store, which use all of it")]
#[path = "redis/servers.rs"]
mod servers;

use campaign::Campaign;
use server::Server;
use tempfile::TempDir;

#[test]
fn s01_every_durable_answer_survives_kill_9_in_the_middle_of_a_load() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(dir.path());
    let mut campaign = Campaign::new(5);
    campaign.prepare(&mut server.client());
    for _ in 0..campaign.rounds {
        let load = campaign.load(server.address);
        load.answers(campaign.some_answers());
        server.kill();
        campaign.end(load);
        server = Server::start(dir.path());
        campaign.check(&mut server.client());
    }
    campaign.finish(&mut server.client());
    assert_eq!(server.stop().code(), Some(0));
}
