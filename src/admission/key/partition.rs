//! Partitions of keys and of tenants' accounts. Pure.
//!
//! Over several nodes each partition has one owner, which alone decides about the keys and accounts in it. A partition
//! is 16 adjacent slots of Redis Cluster, so a client library for clusters computes the owner of a key without one of
//! ours. A key of the tenant `default` is hashed as it is, one of another tenant as `tenant/key`, and the account of a
//! tenant as `namespace/tenant`. Namespaces do not count: keys that are equal but for their namespace share a partition.
//!
//! Partitions divide the directory among several nodes. A single process owns all of them, so only tests ask for them.
//! The mapping is part of the protocol between nodes and with their clients, and must not change.

use crate::model::hash_slot::{SLOTS, slot_of};
use crate::model::{ClaimId, DEFAULT_TENANT};

/// Number of partitions, fixed as that of slots is.
pub const PARTITIONS: u16 = 1_024;

const SLOTS_PER_PARTITION: u16 = SLOTS / PARTITIONS;

const _: () = assert!(SLOTS_PER_PARTITION * PARTITIONS == SLOTS, "partitions cover all slots");

/// Number of a partition, below [`PARTITIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionNumber(u16);

impl PartitionNumber {
    /// Partition of a claim's key.
    #[must_use]
    pub fn of_key(id: &ClaimId) -> Self {
        Self::of_slot(slot_of(hashed_text(id).as_bytes()))
    }

    /// Partition of the account of a claim's tenant.
    #[must_use]
    pub fn of_account(id: &ClaimId) -> Self {
        Self::of_slot(slot_of(id.owner_bytes()))
    }

    /// Partition as a number, from 0.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    fn of_slot(slot: u16) -> Self {
        assert!(slot < SLOTS, "a slot is below their number");
        Self(slot / SLOTS_PER_PARTITION)
    }
}

/// Text whose slot is that of the key.
#[must_use]
pub fn hashed_text(id: &ClaimId) -> &str {
    if id.tenant() == DEFAULT_TENANT { id.key() } else { id.tenant_and_key() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tenant: &str, key: &str) -> ClaimId {
        ClaimId::new("ns", tenant, key).unwrap()
    }

    #[test]
    fn a_partition_is_sixteen_slots_of_the_hashed_text() {
        for (tenant, key, text) in [("default", "foo", "foo"), ("team", "foo", "team/foo"), ("defaul", "t", "defaul/t")]
        {
            assert_eq!(hashed_text(&id(tenant, key)), text);
            assert_eq!(PartitionNumber::of_key(&id(tenant, key)).get(), slot_of(text.as_bytes()) >> 4);
        }
        // Pinned: 12,182 is what Redis answers to `CLUSTER KEYSLOT foo`.
        assert_eq!(PartitionNumber::of_key(&id("default", "foo")).get(), 12_182 >> 4);
        let [account, other] = ["default", "team"].map(|tenant| PartitionNumber::of_account(&id(tenant, "foo")).get());
        assert_eq!(account, slot_of(b"ns/default") >> 4, "also of the tenant `default`");
        assert_eq!(other, slot_of(b"ns/team") >> 4);
    }

    #[test]
    fn keys_of_two_namespaces_share_a_partition_and_accounts_do_not() {
        let [a, b] = ["a", "b"].map(|namespace| ClaimId::new(namespace, "default", "foo").unwrap());
        assert_eq!(PartitionNumber::of_key(&a), PartitionNumber::of_key(&b));
        assert_ne!(PartitionNumber::of_account(&a), PartitionNumber::of_account(&b));
    }

    #[test]
    fn every_partition_gets_its_part_of_many_keys() {
        let mut counts = vec![0_u32; PARTITIONS.into()];
        for number in 0..64 * u32::from(PARTITIONS) {
            counts[usize::from(PartitionNumber::of_key(&id("default", &format!("job-{number}"))).get())] += 1;
        }
        let (least, most) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        assert!(least >= 16 && most <= 192, "{least} to {most} keys a partition, where 64 are expected");
    }
}
