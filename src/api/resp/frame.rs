//! The frame parser: bytes of a connection to the words of one command, without a copy.
//!
//! A command is an array of bulk strings (`*2\r\n$4\r\nPING\r\n$2\r\nhi\r\n`), or a line of words for people at a
//! terminal (`PING hi\r\n`). <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//!
//! What has been understood of a frame that is not there as a whole yet is kept, so a frame that comes byte by byte costs
//! no more than one that comes at once. Every length is checked when it is read, before anything is kept for it.

use crate::limits;

/// Most words of one command: those of a heartbeat that names [`limits::REPORTED_CLAIMS_MAX`] claims, and some.
pub const ARGS_MAX: usize = 32_768;
/// Longest word, in bytes. No name, amount or selector is longer.
pub const BULK_BYTES_MAX: usize = 64 << 10;
/// Longest inline command, in bytes.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Words whose places are kept between two commands; what needs more gives the memory back.
const SPANS_RETAINED: usize = 64;

const _: () = assert!(2 * limits::REPORTED_CLAIMS_MAX + 64 <= ARGS_MAX && limits::BATCH_ITEMS_MAX + 64 <= ARGS_MAX);

/// What came is not a command. Nothing behind it can be understood, so the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of words is none, or above [`ARGS_MAX`].
    #[error("invalid multibulk length: must be 0..={ARGS_MAX}")]
    Count,
    /// The length of a word is none, or above [`BULK_BYTES_MAX`].
    #[error("invalid bulk length: must be 0..={BULK_BYTES_MAX}")]
    Length,
    /// A word must be a bulk string.
    #[error("expected '$', got {}", display_byte(*.0))]
    ExpectedBulkString(u8),
    /// A word does not end where it said.
    #[error("expected CRLF behind a bulk string of {0} bytes")]
    MissingTerminator(u32),
    /// Neither an array nor a line of words.
    #[error("expected '*' or a command's name, got {}", display_byte(*.0))]
    UnexpectedByte(u8),
    /// A line without an end.
    #[error("too big inline request: at most {INLINE_BYTES_MAX} bytes")]
    InlineTooLong,
    /// All words together are too long.
    #[error("the command is larger than {0} bytes")]
    TooLarge(usize),
    /// A browser, perhaps on behalf of a page that should not reach this service.
    #[error("this port does not speak HTTP")]
    Http,
}

/// A byte as an error can say it.
fn display_byte(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// The place of a word in its frame: first byte, length.
type ArgSpan = (u32, u32);

/// Reads one command after the other.
#[derive(Debug)]
pub struct FrameParser {
    /// Words that were understood.
    spans: Vec<ArgSpan>,
    /// Words that are still to come; 0: the frame has not begun, or is complete.
    remaining: u32,
    /// Where to go on, from the frame's first byte.
    at: usize,
    command_bytes_max: usize,
}

impl FrameParser {
    /// For commands of at most `command_bytes_max` bytes.
    #[must_use]
    pub const fn new(command_bytes_max: usize) -> Self {
        Self { spans: Vec::new(), remaining: 0, at: 0, command_bytes_max }
    }

    /// The number of bytes of the command that `input` begins with; its words are then in [`FrameParser::args`]. None: not all
    /// of it is there yet; the next call's input begins with the same bytes. After a command the next call's input begins
    /// with the one behind it, or with the same if it should be read again.
    ///
    /// # Errors
    /// It is no command.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.remaining == 0 {
            match input.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some((count, at)) = number(input, 1, ARGS_MAX, ProtocolError::Count)? else { return Ok(None) };
                    self.begin(at);
                    self.remaining = count;
                }
                Some(_) => return self.inline(input),
            }
        }
        while self.remaining > 0 {
            match input.get(self.at) {
                None => return Ok(None),
                Some(b'$') => {}
                Some(&other) => return Err(self.fail(ProtocolError::ExpectedBulkString(other))),
            }
            let read = number(input, self.at + 1, BULK_BYTES_MAX, ProtocolError::Length);
            let Some((length, from)) = read.map_err(|error| self.fail(error))? else { return Ok(None) };
            let end = from + length as usize;
            if end + 2 > self.command_bytes_max {
                return Err(self.fail(ProtocolError::TooLarge(self.command_bytes_max)));
            }
            match input.get(end..end + 2) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(_) => return Err(self.fail(ProtocolError::MissingTerminator(length))),
            }
            self.spans.push((from as u32, length));
            self.remaining -= 1;
            self.at = end + 2;
        }
        Ok(Some(std::mem::take(&mut self.at)))
    }

    /// The words of the command that [`FrameParser::next`] has just found at the beginning of `input`.
    #[must_use]
    pub fn args<'a>(&'a self, input: &'a [u8]) -> CommandArgs<'a> {
        CommandArgs { input, spans: &self.spans }
    }

    fn begin(&mut self, at: usize) {
        self.spans.clear();
        self.spans.shrink_to(SPANS_RETAINED);
        self.at = at;
    }

    /// The connection ends; until then the same input is the same error.
    #[cold]
    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.remaining = 0;
        self.at = 0;
        error
    }

    /// A line of words. Quotes mean nothing: no name holds a space.
    #[cold]
    fn inline(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let first = input[0];
        if !first.is_ascii_alphabetic() && !b" \t\r\n".contains(&first) {
            return Err(ProtocolError::UnexpectedByte(first));
        }
        let searched = self.at;
        let Some(length) = input[searched..].iter().position(|&byte| byte == b'\n').map(|at| searched + at) else {
            if input.len() > INLINE_BYTES_MAX {
                return Err(self.fail(ProtocolError::InlineTooLong));
            }
            self.at = input.len();
            return Ok(None);
        };
        if length > INLINE_BYTES_MAX {
            return Err(self.fail(ProtocolError::InlineTooLong));
        }
        self.begin(0);
        let mut from = 0;
        for word in input[..length].split(u8::is_ascii_whitespace) {
            if !word.is_empty() {
                self.spans.push((from as u32, word.len() as u32));
            }
            from += word.len() + 1;
        }
        if is_http(self.args(input)) {
            return Err(ProtocolError::Http);
        }
        Ok(Some(length + 1))
    }
}

/// Methods of HTTP that are no commands of Redis, which people try here too.
const METHODS: [&[u8]; 8] = [b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"CONNECT", b"TRACE"];

/// Whether a line is one that a page in a browser can make it send. Nothing that may be carried out comes before such a
/// line, and nothing behind it is.
fn is_http(line: CommandArgs<'_>) -> bool {
    let Some(first) = line.get(0) else { return false };
    let last = line.get(line.len() - 1).unwrap_or_default();
    METHODS.iter().any(|method| first.eq_ignore_ascii_case(method))
        || first.eq_ignore_ascii_case(b"Host:")
        || last.get(..5).is_some_and(|version| version.eq_ignore_ascii_case(b"HTTP/"))
}

/// Most bytes of a header's number with its end.
const NUMBER_BYTES_MAX: usize = 12;

/// The number from `at` on, at most `max`, and where the line behind it begins. None: the line is not all there.
#[inline]
fn number(input: &[u8], at: usize, max: usize, wrong: ProtocolError) -> Result<Option<(u32, usize)>, ProtocolError> {
    let mut value = 0_u32;
    for (i, &byte) in input[at..].iter().take(NUMBER_BYTES_MAX).enumerate() {
        match byte {
            // As many digits as 32 bits hold for certain.
            b'0'..=b'9' if i < 9 => value = value * 10 + u32::from(byte - b'0'),
            b'\r' if i > 0 => {
                return match input.get(at + i + 1) {
                    None => Ok(None),
                    Some(b'\n') if value as usize <= max => Ok(Some((value, at + i + 2))),
                    Some(_) => Err(wrong),
                };
            }
            _ => return Err(wrong),
        }
    }
    Ok(None)
}

/// The words of a command.
#[derive(Debug, Clone, Copy)]
pub struct CommandArgs<'a> {
    input: &'a [u8],
    spans: &'a [ArgSpan],
}

impl<'a> CommandArgs<'a> {
    /// The word with this number; 0 is the command's name.
    #[must_use]
    #[inline]
    pub fn get(&self, number: usize) -> Option<&'a [u8]> {
        let &(from, length) = self.spans.get(number)?;
        Some(&self.input[from as usize..(from + length) as usize])
    }

    /// How many there are; none in an empty line.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let Self { input, spans: places } = *self;
        places.iter().map(move |&(from, length)| &input[from as usize..(from + length) as usize])
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
