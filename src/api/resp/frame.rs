//! Frame parser: splits the bytes of a connection into the arguments of one command, without a copy.
//!
//! A command is an array of bulk strings (`*2\r\n$4\r\nPING\r\n$2\r\nhi\r\n`), or a line of words for people at a
//! terminal (`PING hi\r\n`). <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//!
//! The parsed part of an incomplete frame is kept, so a frame that arrives byte by byte costs no more than one that
//! arrives at once. Every length is checked when it is read, before anything is allocated for it.

use crate::limits;

/// Limit on arguments of one command: those of a heartbeat that reports [`limits::REPORTED_CLAIMS_MAX`] claims, and
/// some more.
pub const ARGS_MAX: usize = 32_768;
/// Longest argument, in bytes. No name, amount or selector is longer.
pub const BULK_BYTES_MAX: usize = 64 << 10;
/// Longest inline command, in bytes.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Number of spans whose memory is kept between two commands; a larger buffer is freed.
const SPANS_RETAINED: usize = 64;

const _: () = assert!(2 * limits::REPORTED_CLAIMS_MAX + 64 <= ARGS_MAX && limits::BATCH_ITEMS_MAX + 64 <= ARGS_MAX);

/// Input is not a command. Nothing after it can be parsed, so the connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Number of arguments is invalid, or above [`ARGS_MAX`].
    #[error("invalid multibulk length: must be 0 to {ARGS_MAX}")]
    Count,
    /// Length of an argument is invalid, or above [`BULK_BYTES_MAX`].
    #[error("invalid bulk length: must be 0 to {BULK_BYTES_MAX}")]
    Length,
    /// Argument is not a bulk string.
    #[error("expected '$', got {}", display_byte(*.0))]
    ExpectedBulkString(u8),
    /// Argument is not followed by CRLF at its announced end.
    #[error("expected CRLF after a bulk string of {0} bytes")]
    MissingTerminator(u32),
    /// First byte starts neither an array nor a line of words.
    #[error("expected '*' or a command name, got {}", display_byte(*.0))]
    UnexpectedByte(u8),
    /// Inline command exceeds [`INLINE_BYTES_MAX`].
    #[error("too big inline request: at most {INLINE_BYTES_MAX} bytes")]
    InlineTooLong,
    /// All arguments together exceed the limit in bytes.
    #[error("the command is larger than {0} bytes")]
    TooLarge(usize),
    /// Request of a browser, perhaps on behalf of a page that must not reach this service.
    #[error("this port does not speak HTTP")]
    Http,
}

/// Formats a byte for an error message.
fn display_byte(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// Span of an argument in its frame: first byte, length.
type ArgSpan = (u32, u32);

/// Parser of one command after the other.
#[derive(Debug)]
pub struct FrameParser {
    /// Arguments that were parsed.
    spans: Vec<ArgSpan>,
    /// Number of arguments still to come; 0: the frame has not begun, or is complete.
    remaining: u32,
    /// Position of the next byte to parse, relative to the frame.
    at: usize,
    command_bytes_max: usize,
}

impl FrameParser {
    /// Creates a parser for commands of at most `command_bytes_max` bytes.
    #[must_use]
    pub const fn new(command_bytes_max: usize) -> Self {
        Self { spans: Vec::new(), remaining: 0, at: 0, command_bytes_max }
    }

    /// Returns the length of the command at the start of `input`, in bytes; [`FrameParser::args`] then has its
    /// arguments. Returns `None` if the command is incomplete; the next input must start with the same bytes. After a
    /// command the next input starts behind it, or with the same bytes to parse it again.
    ///
    /// # Errors
    /// The input is not a command.
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

    /// Returns the arguments of the command that [`FrameParser::next`] has just found at the start of `input`.
    #[must_use]
    pub fn args<'a>(&'a self, input: &'a [u8]) -> CommandArgs<'a> {
        CommandArgs { input, spans: &self.spans }
    }

    fn begin(&mut self, at: usize) {
        self.spans.clear();
        self.spans.shrink_to(SPANS_RETAINED);
        self.at = at;
    }

    /// Resets the parser and returns the error; the same input fails again.
    #[cold]
    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.remaining = 0;
        self.at = 0;
        error
    }

    /// Parses a line of words. Quotes have no meaning, because no name contains a space.
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

/// HTTP methods that are no Redis commands, which people try here too.
const METHODS: [&[u8]; 8] = [b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"CONNECT", b"TRACE"];

/// Whether a line is one that a page in a browser can send. Nothing before such a line can be executed, and nothing
/// after it is.
fn is_http(line: CommandArgs<'_>) -> bool {
    let Some(first) = line.get(0) else { return false };
    let last = line.get(line.len() - 1).unwrap_or_default();
    METHODS.iter().any(|method| first.eq_ignore_ascii_case(method))
        || first.eq_ignore_ascii_case(b"Host:")
        || last.get(..5).is_some_and(|version| version.eq_ignore_ascii_case(b"HTTP/"))
}

/// Limit on the bytes of a header's number with its terminator.
const NUMBER_BYTES_MAX: usize = 12;

/// Parses the number at `at`, at most `max`, and returns where the next line starts. `None`: the line is incomplete.
#[inline]
fn number(input: &[u8], at: usize, max: usize, wrong: ProtocolError) -> Result<Option<(u32, usize)>, ProtocolError> {
    let mut value = 0_u32;
    for (i, &byte) in input[at..].iter().take(NUMBER_BYTES_MAX).enumerate() {
        match byte {
            // Nine digits always fit into 32 bits.
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

/// Arguments of one command, its name first.
#[derive(Debug, Clone, Copy)]
pub struct CommandArgs<'a> {
    input: &'a [u8],
    spans: &'a [ArgSpan],
}

impl<'a> CommandArgs<'a> {
    /// Returns the argument with this index; 0 is the command's name.
    #[must_use]
    #[inline]
    pub fn get(&self, number: usize) -> Option<&'a [u8]> {
        let &(from, length) = self.spans.get(number)?;
        Some(&self.input[from as usize..(from + length) as usize])
    }

    /// Number of arguments; 0 for an empty line.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no arguments.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Iterates over all arguments.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let Self { input, spans: places } = *self;
        places.iter().map(move |&(from, length)| &input[from as usize..(from + length) as usize])
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
