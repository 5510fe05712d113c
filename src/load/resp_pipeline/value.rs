//! Wire format: commands as arrays of bulk strings, replies in RESP2. Only the types that Redis and Hotpool use.

use bytes::{Bytes, BytesMut};

use crate::http_calls::target_error;
use crate::stats::TargetError;

/// Deepest nesting of arrays in a reply.
const DEPTH_MAX: usize = 8;
/// Largest length of a bulk string in bytes, or of an array in values.
const LENGTH_MAX: usize = 64 << 20;

/// Reply value of the RESP2 protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RespValue {
    /// Null bulk string or null array.
    Nil,
    /// Signed 64-bit integer reply.
    Int(i64),
    /// Bulk string or simple string.
    Text(Bytes),
    /// Error reply with its message.
    Error(String),
    /// Array of reply values.
    Array(Vec<RespValue>),
}

impl RespValue {
    /// Returns the value unless it is an error or an array that contains one.
    ///
    /// # Errors
    /// Fails with the message of the server.
    pub(crate) fn into_result(self) -> Result<Self, TargetError> {
        match self {
            Self::Error(message) => Err(target_error(message, false)),
            Self::Array(values) => match values.iter().find(|value| matches!(value, Self::Error(_))) {
                Some(error) => error.clone().into_result(),
                None => Ok(Self::Array(values)),
            },
            other => Ok(other),
        }
    }

    /// Text of a string value that is valid UTF-8.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// Values of an array; empty for any other value.
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    /// Value of a non-negative integer.
    pub(crate) fn number(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// Violation of the RESP2 format.
#[derive(Debug, thiserror::Error)]
pub(super) enum RespDecodeError {
    /// Length that is not a number within the limits.
    #[error("invalid length: {0:?}")]
    Length(String),
    /// Line that begins with no known type.
    #[error("not a RESP2 reply: {0:?}")]
    Type(String),
}

/// Appends a command as an array of bulk strings.
pub(crate) fn encode_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    encode_header(out, b'*', words.len());
    for word in words {
        encode_header(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn encode_header(out: &mut Vec<u8>, kind: u8, number: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Decodes and removes all complete values at the front of `input`.
///
/// # Errors
/// Fails if the input is not RESP2.
pub(super) fn decode_values(input: &mut BytesMut, values: &mut Vec<RespValue>) -> Result<(), RespDecodeError> {
    let mut complete = 0;
    while let Some(end) = end_of(input, complete, 0)? {
        complete = end;
    }
    let bytes = input.split_to(complete).freeze();
    let mut at = 0;
    while at < bytes.len() {
        let (value, end) = value_at(&bytes, at).expect("end_of found a complete value");
        values.push(value);
        at = end;
    }
    Ok(())
}

/// Line that begins at `at`, without its terminator, and the offset of the next one.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let length = bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
    Some((&bytes[at..at + length], at + length + 2))
}

/// Parses the number after a line's type byte.
fn number(line: &[u8]) -> Option<i64> {
    std::str::from_utf8(line.get(1..)?).ok()?.parse().ok()
}

/// Parses a length; `None` for null.
fn length(line: &[u8]) -> Result<Option<usize>, RespDecodeError> {
    let invalid = || RespDecodeError::Length(String::from_utf8_lossy(line).into_owned());
    match number(line).ok_or_else(invalid)? {
        -1 => Ok(None),
        n => usize::try_from(n).ok().filter(|n| *n <= LENGTH_MAX).map(Some).ok_or_else(invalid),
    }
}

/// Offset of the end of the value at `at`; `None` if it is incomplete.
fn end_of(bytes: &[u8], at: usize, depth: usize) -> Result<Option<usize>, RespDecodeError> {
    let Some((header, next)) = line(bytes, at) else { return Ok(None) };
    match header.first() {
        Some(b'+' | b'-') => Ok(Some(next)),
        Some(b':') if number(header).is_some() => Ok(Some(next)),
        Some(b'$') => {
            let end = length(header)?.map_or(next, |length| next + length + 2);
            Ok((end <= bytes.len()).then_some(end))
        }
        Some(b'*') if depth < DEPTH_MAX => {
            let mut end = next;
            for _ in 0..length(header)?.unwrap_or(0) {
                match end_of(bytes, end, depth + 1)? {
                    Some(next) => end = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(end))
        }
        _ => Err(RespDecodeError::Type(String::from_utf8_lossy(&header[..header.len().min(64)]).into_owned())),
    }
}

/// Decodes the complete value at `at`, and returns the offset of its end.
fn value_at(bytes: &Bytes, at: usize) -> Option<(RespValue, usize)> {
    let (header, next) = line(bytes, at)?;
    let text = |header: &[u8]| String::from_utf8_lossy(&header[1..]).into_owned();
    Some(match header.first()? {
        b'+' => (RespValue::Text(bytes.slice(at + 1..next - 2)), next),
        b'-' => (RespValue::Error(text(header)), next),
        b':' => (RespValue::Int(number(header)?), next),
        b'$' => match length(header).ok()? {
            Some(length) => (RespValue::Text(bytes.slice(next..next + length)), next + length + 2),
            None => (RespValue::Nil, next),
        },
        _ => match length(header).ok()? {
            Some(length) => {
                let (mut values, mut end) = (Vec::with_capacity(length), next);
                for _ in 0..length {
                    let (value, next) = value_at(bytes, end)?;
                    values.push(value);
                    end = next;
                }
                (RespValue::Array(values), end)
            }
            None => (RespValue::Nil, next),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"+OK\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*3\r\n$1\r\nk\r\n*0\r\n-NOCAPACITY full\r\n*-1\r\n";

    fn wanted() -> Vec<RespValue> {
        let text = |text: &'static [u8]| RespValue::Text(Bytes::from_static(text));
        let inner = vec![text(b"k"), RespValue::Array(vec![]), RespValue::Error("NOCAPACITY full".into())];
        vec![text(b"OK"), RespValue::Int(-7), text(b"a\r\n"), RespValue::Nil, RespValue::Array(inner), RespValue::Nil]
    }

    #[test]
    fn replies_decode_alike_however_they_are_split() {
        for split in 0..=STREAM.len() {
            let mut input = BytesMut::from(&STREAM[..split]);
            let mut values = Vec::new();
            decode_values(&mut input, &mut values).unwrap();
            input.extend_from_slice(&STREAM[split..]);
            decode_values(&mut input, &mut values).unwrap();
            assert_eq!((values, input.len()), (wanted(), 0), "cut at {split}");
        }
    }

    #[test]
    fn invalid_resp_is_rejected() {
        let deep = "*1\r\n".repeat(DEPTH_MAX + 1);
        for bytes in ["HTTP/1.1 400\r\n", ":x\r\n", "$-2\r\n", "$99999999999\r\n", "*x\r\n", "\r\n", &deep] {
            assert!(decode_values(&mut BytesMut::from(bytes), &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_error_within_an_array_is_an_error() {
        assert_eq!(wanted()[4].clone().into_result(), Err(target_error("NOCAPACITY full".into(), false)));
        assert_eq!(RespValue::Int(1).into_result(), Ok(RespValue::Int(1)));
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        encode_command(&mut out, &[b"GET", b"", b"a\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nGET\r\n$0\r\n\r\n$3\r\na\r\n\r\n");
    }
}
