//! Reusable numbers for values that come and go, found by one index: a slot, and how often the slot was used. The
//! table is as large as the most values that existed at once, and a stale number finds nothing.

use crate::limits;

/// Maximum number of slots: existing pools, and those being created or deleted.
const SLOTS_MAX: u32 = 2 * limits::POOLS_MAX as u32;

const _: () = assert!(SLOTS_MAX.is_power_of_two(), "the slot is the low bits of a number");

/// Slot with the number that it stands for at present.
#[derive(Debug, Clone)]
struct NumberSlot<T> {
    number: u32,
    state: SlotState<T>,
}

#[derive(Debug, Clone)]
enum SlotState<T> {
    Free,
    Reserved,
    Used(T),
}

/// Table of values by their numbers.
#[derive(Debug, Clone)]
pub(super) struct NumberTable<T>(Vec<NumberSlot<T>>);

impl<T> Default for NumberTable<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> NumberTable<T> {
    /// Value under this number, unless the number is stale.
    pub fn get(&self, number: u32) -> Option<&T> {
        match self.0.get((number % SLOTS_MAX) as usize)? {
            NumberSlot { number: current, state: SlotState::Used(value) } if *current == number => Some(value),
            _ => None,
        }
    }

    /// Reserves a number that is not in use. A slot repeats a number only after 2^19 reuses.
    ///
    /// # Panics
    /// If more than [`SLOTS_MAX`] numbers exist at once, which the limit on pools excludes.
    pub fn reserve(&mut self) -> u32 {
        let free = self.0.iter_mut().find(|slot| matches!(slot.state, SlotState::Free));
        if let Some(slot) = free {
            (slot.number, slot.state) = (slot.number.wrapping_add(SLOTS_MAX), SlotState::Reserved);
            return slot.number;
        }
        let number = self.0.len() as u32;
        assert!(number < SLOTS_MAX, "B1: pools are bounded");
        self.0.push(NumberSlot { number, state: SlotState::Reserved });
        number
    }

    /// Stores the value under a reserved number.
    pub fn insert(&mut self, number: u32, value: T) {
        let slot = &mut self.0[(number % SLOTS_MAX) as usize];
        assert_eq!(slot.number, number, "a number is reserved before it is used");
        slot.state = SlotState::Used(value);
    }

    /// Frees a number for reuse.
    pub fn remove(&mut self, number: u32) {
        if let Some(slot) = self.0.get_mut((number % SLOTS_MAX) as usize).filter(|slot| slot.number == number) {
            slot.state = SlotState::Free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_large_as_the_most_values_at_once() {
        let mut table = NumberTable::default();
        let stays = table.reserve();
        table.insert(stays, "stays");
        let mut freed = Vec::new();
        for _ in 0..10_000 {
            let number = table.reserve();
            assert_eq!(table.get(number), None, "reserved");
            table.insert(number, "comes and goes");
            assert_eq!(table.get(number), Some(&"comes and goes"));
            table.remove(number);
            freed.push(number);
        }
        assert_eq!(table.0.len(), 2);
        assert_eq!(table.get(stays), Some(&"stays"));
        assert!(freed.iter().all(|&number| table.get(number).is_none()));
        freed.sort_unstable();
        freed.dedup();
        assert_eq!(freed.len(), 10_000, "a number is not used again soon");
        table.remove(freed[0]);
        let number = table.reserve();
        table.insert(number, "another");
        table.remove(freed[1]);
        assert_eq!(table.get(number), Some(&"another"), "an earlier number of the slot frees nothing");
    }
}
