//! Numbers for things that come and go, under which they are found by one index: a slot, and how often the slot was used.
//! So a table is as large as the most that there were at once, and a number that is over finds nothing.

use crate::limits;

/// Slots at most: pools that are there, and those that are on their way in or out.
const SLOTS_MAX: u32 = 2 * limits::POOLS_MAX as u32;

const _: () = assert!(SLOTS_MAX.is_power_of_two(), "the slot is the low bits of a number");

/// A slot, and the number that it stands for now.
#[derive(Debug, Clone)]
struct NumberSlot<T> {
    number: u32,
    state: SlotState<T>,
}

#[derive(Debug, Clone)]
enum SlotState<T> {
    Free,
    Reserved,
    Taken(T),
}

/// Things by their numbers.
#[derive(Debug, Clone)]
pub(super) struct NumberTable<T>(Vec<NumberSlot<T>>);

impl<T> Default for NumberTable<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> NumberTable<T> {
    /// Value under this number, if the number is not over.
    pub fn get(&self, number: u32) -> Option<&T> {
        match self.0.get((number % SLOTS_MAX) as usize)? {
            NumberSlot { number: known, state: SlotState::Taken(taken) } if *known == number => Some(taken),
            _ => None,
        }
    }

    /// A number that nothing has, and that nothing had among the last 2^19 of its slot.
    ///
    /// # Panics
    /// If there are more than [`SLOTS_MAX`] at once, which the bound on pools excludes.
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

    /// Enters what a number was reserved for.
    pub fn insert(&mut self, number: u32, value: T) {
        let slot = &mut self.0[(number % SLOTS_MAX) as usize];
        assert_eq!(slot.number, number, "a number is reserved before it is used");
        slot.state = SlotState::Taken(value);
    }

    /// Frees a number.
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
    fn a_table_is_as_large_as_the_most_that_there_were_at_once() {
        let mut table = NumberTable::default();
        let stays = table.reserve();
        table.insert(stays, "stays");
        let mut over = Vec::new();
        for _ in 0..10_000 {
            let number = table.reserve();
            assert_eq!(table.get(number), None, "reserved");
            table.insert(number, "comes and goes");
            assert_eq!(table.get(number), Some(&"comes and goes"));
            table.remove(number);
            over.push(number);
        }
        assert_eq!(table.0.len(), 2);
        assert_eq!(table.get(stays), Some(&"stays"));
        assert!(over.iter().all(|&number| table.get(number).is_none()));
        over.sort_unstable();
        over.dedup();
        assert_eq!(over.len(), 10_000, "a number is not used again soon");
        table.remove(over[0]);
        let number = table.reserve();
        table.insert(number, "another");
        table.remove(over[1]);
        assert_eq!(table.get(number), Some(&"another"), "an earlier number of the slot frees nothing");
    }
}
