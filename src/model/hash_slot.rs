//! Hash slots of Redis Cluster, which also number the partitions of keys. Pure.

/// Number of slots of a Redis Cluster.
pub const SLOTS: u16 = 16_384;

/// Slot of a text: CRC16 (XMODEM) modulo the number of slots, as Redis Cluster specifies. Redis hashes only what is
/// between the braces of `{...}`; names contain no braces, so a name and the same name in braces have one slot.
#[must_use]
pub fn slot_of(text: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(text) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(slot_of(b"123456789"), 0x31c3 % SLOTS, "the check value of the cluster's specification");
        // Answers of `CLUSTER KEYSLOT`.
        let known = [("foo", 12_182), ("bar", 5_061), ("hello", 866), ("somekey", 11_058), ("", 0)];
        assert_eq!(known.map(|(text, _)| slot_of(text.as_bytes())), known.map(|(_, slot)| slot));
    }
}
