//! Slots and partitions of keys, compared with the answers of a real Redis server.

use hotpool::admission::key::partition::{PARTITIONS, PartitionNumber, hashed_text};
use hotpool::model::ClaimId;
use hotpool::model::hash_slot::slot_of;

use crate::servers::Server;

fn slot_of_redis(server: &Server, text: &str) -> u16 {
    server.query(&["CLUSTER", "KEYSLOT", text])
}

#[test]
fn slots_and_partitions_of_keys_are_those_of_redis() {
    let server = Server::start(&["--cluster-enabled", "yes"]);
    let longest = "x".repeat(255);
    let keys: Vec<String> = (0..500).map(|number| format!("job-{number}.a_B")).chain([longest]).collect();
    for (tenant, key) in
        ["default", "team", "Default"].into_iter().flat_map(|tenant| keys.iter().map(move |key| (tenant, key)))
    {
        let id = ClaimId::new("ns", tenant, key).expect("a name");
        let text = hashed_text(&id);
        let slot = slot_of_redis(&server, text);
        assert_eq!(slot_of(text.as_bytes()), slot, "{text}");
        assert_eq!(slot_of_redis(&server, &format!("ns/pool{{{text}}}")), slot, "the tag of {text} in an argument");
        assert_eq!(PartitionNumber::of_key(&id).get(), slot >> 4, "{text}");
        assert!(PartitionNumber::of_key(&id).get() < PARTITIONS);
        let account = slot_of_redis(&server, &format!("ns/{tenant}"));
        assert_eq!(PartitionNumber::of_account(&id).get(), account >> 4, "{tenant}");
    }
}
