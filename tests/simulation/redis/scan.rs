//! Pages of a hash as `HSCAN` returns them.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::keyspace::HashFields;

/// Fields up to which Redis keeps a hash as a list, which it returns as one page.
const LIST_FIELDS_MAX: usize = 512;
/// Longest field or value in such a list, in bytes.
const LIST_BYTES_MAX: usize = 64;

/// Page of a scan: its fields and values, and the cursor of the next page, 0 after the last.
pub struct Page {
    pub cursor: u64,
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Page of about `count` fields from `cursor` on. A cursor is a position in the order of this server's hashes, so that fields
/// which exist all the time are met by a scan of one server, whatever is added or removed meanwhile, while the cursor of
/// another server leads anywhere.
pub fn page(fields: &HashFields, seed: u64, cursor: u64, count: usize) -> Page {
    let is_short = |text: &Vec<u8>| text.len() <= LIST_BYTES_MAX;
    if fields.len() <= LIST_FIELDS_MAX && fields.iter().all(|(field, value)| is_short(field) && is_short(value)) {
        return Page { cursor: 0, pairs: fields.iter().map(|(field, value)| (field.clone(), value.clone())).collect() };
    }
    let position = |field: &[u8]| xxh3_64_with_seed(field, seed).max(1);
    let mut rest: Vec<_> = fields.iter().map(|pair| (position(pair.0), pair)).filter(|(at, _)| *at >= cursor).collect();
    rest.sort_unstable();
    let next = rest.get(count.max(1)).map_or(0, |(at, _)| *at);
    let page = rest.into_iter().take_while(|(at, _)| next == 0 || *at < next);
    Page { cursor: next, pairs: page.map(|(_, (field, value))| (field.clone(), value.clone())).collect() }
}
