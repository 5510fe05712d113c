//! Where in the configuration file a key stands, so that a problem can say so.

use toml::de::{DeTable, DeValue};

/// A configuration file that was read.
pub(super) struct ConfigSourceMap<'a> {
    text: &'a str,
    root: toml::Spanned<DeTable<'a>>,
}

impl<'a> ConfigSourceMap<'a> {
    /// Parses the file.
    ///
    /// # Errors
    /// The number of the line that is not TOML, and why.
    pub(super) fn parse(text: &'a str) -> Result<Self, (usize, String)> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { text, root }),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                Err((line(text, at), error.message().to_owned()))
            }
        }
    }

    /// The line on which the value of a key stands, as in `pools[1].shards`. Of what a declared pool lacks, that of the pool.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        let mut table = self.root.get_ref();
        let mut nearest = None;
        let mut steps = key.split('.').peekable();
        while let Some(step) = steps.next() {
            let (name, index) = match step.split_once('[') {
                Some((name, rest)) => (name, Some(rest.trim_end_matches(']').parse::<usize>().ok()?)),
                None => (step, None),
            };
            let Some((found, value)) = table.iter().find(|(known, _)| known.get_ref() == name) else { return nearest };
            let mut at = found.span().start;
            let mut value = value.get_ref();
            if let Some(index) = index {
                let DeValue::Array(items) = value else { return nearest };
                let Some(item) = items.get(index) else { return nearest };
                (at, value) = (item.span().start, item.get_ref());
                nearest = Some(line(self.text, at));
            }
            match value {
                _ if steps.peek().is_none() => return Some(line(self.text, at)),
                DeValue::Table(inner) => table = inner,
                _ => return nearest,
            }
        }
        nearest
    }
}

/// The number of the line of a byte, from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
