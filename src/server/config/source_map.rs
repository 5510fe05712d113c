//! Line numbers of keys in the configuration file, for problems.

use toml::de::{DeTable, DeValue};

/// Parsed configuration file with the positions of its keys.
pub(super) struct ConfigSourceMap<'a> {
    text: &'a str,
    root: toml::Spanned<DeTable<'a>>,
}

impl<'a> ConfigSourceMap<'a> {
    /// Parses the file.
    ///
    /// # Errors
    /// Number of the line that is not TOML, and the reason.
    pub(super) fn parse(text: &'a str) -> Result<Self, (usize, String)> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { text, root }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                Err((line(text, at), error.message().to_owned()))
            }
        }
    }

    /// Line of a key such as `pools[1].shards`; for a key that a declared pool lacks, the line of the pool.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        let mut table = self.root.get_ref();
        let mut nearest = None;
        let mut segments = key.split('.').peekable();
        while let Some(segment) = segments.next() {
            let (name, index) = match segment.split_once('[') {
                Some((name, index)) => (name, Some(index.trim_end_matches(']').parse::<usize>().ok()?)),
                None => (segment, None),
            };
            let Some((found, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else { return nearest };
            let mut at = found.span().start;
            let mut value = value.get_ref();
            if let Some(index) = index {
                let DeValue::Array(items) = value else { return nearest };
                let Some(item) = items.get(index) else { return nearest };
                (at, value) = (item.span().start, item.get_ref());
                nearest = Some(line(self.text, at));
            }
            match value {
                _ if segments.peek().is_none() => return Some(line(self.text, at)),
                DeValue::Table(inner) => table = inner,
                _ => return nearest,
            }
        }
        nearest
    }
}

/// Line number of a byte, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
