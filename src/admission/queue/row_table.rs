//! Table of rows that refer to each other by number.

/// Table whose rows keep their numbers while they exist.
#[derive(Debug)]
pub(super) struct RowTable<T> {
    rows: Vec<Option<T>>,
    unused: Vec<u32>,
}

impl<T> Default for RowTable<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), unused: Vec::new() }
    }
}

impl<T> RowTable<T> {
    pub(super) fn insert(&mut self, row: T) -> u32 {
        if let Some(number) = self.unused.pop() {
            self.rows[number as usize] = Some(row);
            return number;
        }
        self.rows.push(Some(row));
        u32::try_from(self.rows.len() - 1).expect("fewer than 2^32 rows")
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.rows[number as usize] = None;
        self.unused.push(number);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().flatten()
    }

    pub(super) fn get(&self, number: u32) -> &T {
        self.rows[number as usize].as_ref().expect("a row that is referred to exists")
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut T {
        self.rows[number as usize].as_mut().expect("a row that is referred to exists")
    }
}
