//! Encoder of replies: RESP2, or RESP3 for connections that sent `HELLO 3`.

use itoa::Buffer;
use serde_json::Value;

use crate::api::error_table::ApiError;
use crate::model::ClaimView;

/// Capacity that is kept between two replies, in bytes; a larger buffer is freed.
const RETAINED_BYTES: usize = 4 << 10;

/// Version of the protocol on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RespVersion {
    /// Version of every new connection.
    Resp2,
    /// Version after `HELLO 3`, with maps, booleans and null.
    Resp3,
}

/// Buffer of encoded replies.
#[derive(Debug)]
pub(super) struct ReplyBuffer {
    bytes: Vec<u8>,
    /// Protocol version, chosen by `HELLO`.
    pub(super) version: RespVersion,
}

impl ReplyBuffer {
    /// Creates an empty buffer.
    pub(super) const fn new(version: RespVersion) -> Self {
        Self { bytes: Vec::new(), version }
    }

    /// Bytes that are not written yet.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Empties the buffer after everything was written.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(RETAINED_BYTES);
    }

    fn push_header(&mut self, kind: u8, number: impl itoa::Integer) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends a simple string of the protocol.
    pub(super) fn simple_string(&mut self, word: &'static str) {
        self.bytes.push(b'+');
        self.bytes.extend_from_slice(word.as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    pub(super) fn is_resp3(&self) -> bool {
        self.version == RespVersion::Resp3
    }

    pub(super) fn ok(&mut self) {
        self.simple_string("OK");
    }

    /// Appends `-PREFIX text`, on one line whatever the text contains.
    pub(super) fn error(&mut self, prefix: &str, text: &str) {
        self.bytes.push(b'-');
        self.bytes.extend_from_slice(prefix.as_bytes());
        self.bytes.push(b' ');
        self.bytes.extend(text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
        self.bytes.extend_from_slice(b"\r\n");
    }

    pub(super) fn failure(&mut self, failure: &ApiError) {
        self.error(failure.resp_prefix(), &failure.resp_message());
    }

    pub(super) fn integer(&mut self, number: u64) {
        self.push_header(b':', number);
    }

    pub(super) fn bulk_string(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        self.push_header(b'$', text.len());
        self.bytes.extend_from_slice(text);
        self.bytes.extend_from_slice(b"\r\n");
    }

    pub(super) fn null(&mut self) {
        self.bytes.extend_from_slice(if self.is_resp3() { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Starts an array of so many values.
    pub(super) fn array(&mut self, values: usize) {
        self.push_header(b'*', values);
    }

    /// Starts a map of so many name and value pairs; in RESP2 a flat array.
    pub(super) fn map(&mut self, pairs: usize) {
        if self.is_resp3() { self.push_header(b'%', pairs) } else { self.array(2 * pairs) }
    }

    /// Appends `key, fence, worker, node`: in RESP2 an array of exactly four, for callers that rely on its length. In
    /// RESP3 a map, with the known times of the claim.
    pub(super) fn claim(&mut self, claim: &ClaimView) {
        let spec = &claim.worker.spec;
        let resp3 = self.is_resp3();
        let times = [
            (&b"$13\r\ncreated_at_ms\r\n"[..], claim.times.created_at_ms()),
            (&b"$15\r\nactivated_at_ms\r\n"[..], claim.times.activated_at_ms()),
        ];
        let times = times.into_iter().filter_map(|(name, at_ms)| Some((name, at_ms.filter(|_| resp3)?)));
        self.push_header(if resp3 { b'%' } else { b'*' }, 4 + times.clone().count());
        let name = |to: &mut Self, name: &'static [u8]| {
            if resp3 {
                to.bytes.extend_from_slice(name)
            }
        };
        name(self, b"$3\r\nkey\r\n");
        self.bulk_string(claim.id.key());
        name(self, b"$5\r\nfence\r\n");
        self.integer(claim.fence);
        name(self, b"$6\r\nworker\r\n");
        self.bulk_string(spec.id.as_str());
        name(self, b"$4\r\nnode\r\n");
        match &spec.node {
            Some(node) => self.bulk_string(&**node),
            None => self.null(),
        }
        for (name, at_ms) in times {
            self.bytes.extend_from_slice(name);
            self.integer(at_ms);
        }
    }

    /// Appends a JSON value of the HTTP API: objects become maps, and RESP2 has 1 and 0 for true and false.
    pub(super) fn json(&mut self, value: &Value) {
        match value {
            Value::Null => self.null(),
            Value::Bool(yes) if self.is_resp3() => {
                self.bytes.extend_from_slice(if *yes { b"#t\r\n" } else { b"#f\r\n" })
            }
            Value::Bool(yes) => self.integer(u64::from(*yes)),
            Value::Number(number) => match number.as_u64() {
                Some(number) => self.integer(number),
                None => self.bulk_string(number.to_string()),
            },
            Value::String(text) => self.bulk_string(text),
            Value::Array(values) => {
                self.array(values.len());
                values.iter().for_each(|value| self.json(value));
            }
            Value::Object(pairs) => {
                self.map(pairs.len());
                for (name, value) in pairs {
                    self.bulk_string(name);
                    self.json(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(version: RespVersion, write: impl FnOnce(&mut ReplyBuffer)) -> String {
        let mut replies = ReplyBuffer::new(version);
        write(&mut replies);
        String::from_utf8(replies.bytes).unwrap()
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(
            encode(RespVersion::Resp2, |replies| replies.error("ERR", "a\r\n+OK\r\n\u{1}b")),
            "-ERR a  +OK   b\r\n"
        );
    }

    #[test]
    fn json_is_encoded_in_both_versions() {
        let value = serde_json::json!({"a": [1, -2, 1.5, true, null], "b": {"c": "d"}});
        let write = |replies: &mut ReplyBuffer| replies.json(&value);
        let numbers = ":1\r\n$2\r\n-2\r\n$3\r\n1.5\r\n";
        assert_eq!(
            encode(RespVersion::Resp3, write),
            format!("%2\r\n$1\r\na\r\n*5\r\n{numbers}#t\r\n_\r\n$1\r\nb\r\n%1\r\n$1\r\nc\r\n$1\r\nd\r\n")
        );
        assert_eq!(
            encode(RespVersion::Resp2, write),
            format!("*4\r\n$1\r\na\r\n*5\r\n{numbers}:1\r\n$-1\r\n$1\r\nb\r\n*2\r\n$1\r\nc\r\n$1\r\nd\r\n")
        );
    }
}
