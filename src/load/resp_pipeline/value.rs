//! What goes over the wire: commands as arrays of bulk strings, answers in RESP2. The parts of the protocol that Redis
//! and Hotpool use, and no more.

use bytes::{Bytes, BytesMut};

use crate::http_calls::target_error;
use crate::stats::TargetError;

/// Values within values of an answer.
const DEPTH_MAX: usize = 8;
/// Bytes of one text, and values of one array.
const LENGTH_MAX: usize = 64 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RespValue {
    /// Nothing there.
    Nil,
    /// A whole number.
    Int(i64),
    /// Bytes, or a word of the protocol's own.
    Text(Bytes),
    /// What the server refuses, with its reason.
    Error(String),
    /// Several.
    Array(Vec<RespValue>),
}

impl RespValue {
    /// Anything but a refusal, also within an array.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) fn into_result(self) -> Result<Self, TargetError> {
        match self {
            Self::Error(said) => Err(target_error(said, false)),
            Self::Array(values) => match values.iter().find(|value| matches!(value, Self::Error(_))) {
                Some(refused) => refused.clone().into_result(),
                None => Ok(Self::Array(values)),
            },
            other => Ok(other),
        }
    }

    /// The text, if it is one in UTF-8.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The values of an array; none of anything else.
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    /// The number, if it is one and not negative.
    pub(crate) fn number(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// Appends a command.
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

/// Takes all whole values out of `input`.
///
/// # Errors
/// It is not RESP2; in words.
pub(super) fn decode_values(input: &mut BytesMut, values: &mut Vec<RespValue>) -> Result<(), String> {
    let mut whole = 0;
    while let Some(end) = end_of(input, whole, 0)? {
        whole = end;
    }
    let bytes = input.split_to(whole).freeze();
    let mut at = 0;
    while at < bytes.len() {
        let (value, end) = value_at(&bytes, at).ok_or("an answer that changed while it was read")?;
        values.push(value);
        at = end;
    }
    Ok(())
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let length = bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
    Some((&bytes[at..at + length], at + length + 2))
}

/// The number after a line's first byte.
fn number(line: &[u8]) -> Option<i64> {
    std::str::from_utf8(line.get(1..)?).ok()?.parse().ok()
}

/// A length: none if it says that nothing is there.
fn length(line: &[u8]) -> Result<Option<usize>, String> {
    let wrong = || format!("no length: {:?}", String::from_utf8_lossy(line));
    match number(line).ok_or_else(wrong)? {
        -1 => Ok(None),
        n => usize::try_from(n).ok().filter(|n| *n <= LENGTH_MAX).map(Some).ok_or_else(wrong),
    }
}

/// Where the value at `at` ends; none if its end has not come yet.
fn end_of(bytes: &[u8], at: usize, depth: usize) -> Result<Option<usize>, String> {
    let Some((head, next)) = line(bytes, at) else { return Ok(None) };
    match head.first() {
        Some(b'+' | b'-') => Ok(Some(next)),
        Some(b':') if number(head).is_some() => Ok(Some(next)),
        Some(b'$') => {
            let end = length(head)?.map_or(next, |length| next + length + 2);
            Ok((end <= bytes.len()).then_some(end))
        }
        Some(b'*') if depth < DEPTH_MAX => {
            let mut end = next;
            for _ in 0..length(head)?.unwrap_or(0) {
                match end_of(bytes, end, depth + 1)? {
                    Some(next) => end = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(end))
        }
        _ => Err(format!("not an answer in RESP2: {:?}", String::from_utf8_lossy(&head[..head.len().min(64)]))),
    }
}

/// The value at `at`, known to be whole, and where it ends.
fn value_at(bytes: &Bytes, at: usize) -> Option<(RespValue, usize)> {
    let (head, next) = line(bytes, at)?;
    let rest = |head: &[u8]| String::from_utf8_lossy(&head[1..]).into_owned();
    Some(match head.first()? {
        b'+' => (RespValue::Text(bytes.slice(at + 1..next - 2)), next),
        b'-' => (RespValue::Error(rest(head)), next),
        b':' => (RespValue::Int(number(head)?), next),
        b'$' => match length(head).ok()? {
            Some(length) => (RespValue::Text(bytes.slice(next..next + length)), next + length + 2),
            None => (RespValue::Nil, next),
        },
        _ => match length(head).ok()? {
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
    fn answers_are_the_same_however_they_are_cut() {
        for cut in 0..=STREAM.len() {
            let mut input = BytesMut::from(&STREAM[..cut]);
            let mut values = Vec::new();
            decode_values(&mut input, &mut values).unwrap();
            input.extend_from_slice(&STREAM[cut..]);
            decode_values(&mut input, &mut values).unwrap();
            assert_eq!((values, input.len()), (wanted(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        let deep = "*1\r\n".repeat(DEPTH_MAX + 1);
        for bytes in ["HTTP/1.1 400\r\n", ":x\r\n", "$-2\r\n", "$99999999999\r\n", "*x\r\n", "\r\n", &deep] {
            assert!(decode_values(&mut BytesMut::from(bytes), &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_error_within_an_array_is_one() {
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
