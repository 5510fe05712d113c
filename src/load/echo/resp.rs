//! Bare RESP server. It answers the commands that have arrived together with one write.

use std::io::Write as _;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{EchoState, next_connection};

/// Space for what a client sends at once, in bytes; it grows for a longer command.
const READ_BYTES: usize = 64 << 10;
/// Longest command, in bytes.
const COMMAND_BYTES_MAX: usize = 16 << 20;

type CommandWords<'a> = SmallVec<[&'a [u8]; 16]>;

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, state: Arc<EchoState>) {
    loop {
        let stream = next_connection(&listener).await;
        let state = Arc::clone(&state);
        // The peer may break the connection.
        tokio::spawn(async move { drop(serve_connection(stream, &state).await) });
    }
}

async fn serve_connection(mut stream: TcpStream, state: &Arc<EchoState>) -> std::io::Result<()> {
    let (mut input, mut output) = (BytesMut::with_capacity(READ_BYTES), Vec::new());
    loop {
        input.reserve(READ_BYTES);
        if stream.read_buf(&mut input).await? == 0 || input.len() > COMMAND_BYTES_MAX {
            return Ok(());
        }
        let (mut read, mut records) = (0, 0);
        while let Some((words, length)) = read_command(&input[read..]) {
            records += answer(state, &words, &mut output)?;
            read += length;
        }
        input.advance(read);
        state.append(records).await;
        stream.write_all(&output).await?;
        output.clear();
    }
}

/// Appends the answer to a command, and returns how many claims and releases it has.
fn answer(state: &EchoState, words: &[&[u8]], output: &mut Vec<u8>) -> std::io::Result<usize> {
    match words {
        [b"CLAIM", _, _, key, ..] => {
            grant(state, key, output)?;
            Ok(1)
        }
        [b"CLAIMS", count, _, _, keys @ ..] => {
            let count = number(count).min(keys.len());
            write!(output, "*{count}\r\n")?;
            keys[..count].iter().try_for_each(|key| grant(state, key, output))?;
            Ok(count)
        }
        [b"RELEASE", _, _, fence] => {
            state.release(number(fence) as u64);
            output.extend_from_slice(b":1\r\n");
            Ok(1)
        }
        [b"PING"] => {
            output.extend_from_slice(b"+PONG\r\n");
            Ok(0)
        }
        _ => {
            output.extend_from_slice(b"-ERR unknown command\r\n");
            Ok(0)
        }
    }
}

/// Appends a grant as the service writes it: key, fence, worker, no node.
fn grant(state: &EchoState, key: &[u8], output: &mut Vec<u8>) -> std::io::Result<()> {
    write!(output, "*4\r\n${}\r\n", key.len())?;
    output.extend_from_slice(key);
    state.grant(|fence, worker| write!(output, "\r\n:{fence}\r\n${}\r\n{worker}\r\n$-1\r\n", worker.len()))
}

/// Reads one command and its length in bytes; none while it is not complete.
fn read_command(input: &[u8]) -> Option<(CommandWords<'_>, usize)> {
    let mut length = 0;
    let mut words = CommandWords::new();
    for _ in 0..read_header(input, &mut length)? {
        let bytes = read_header(input, &mut length)?;
        words.push(input.get(length..length.checked_add(bytes)?)?);
        length += bytes + b"\r\n".len();
    }
    (length <= input.len()).then_some((words, length))
}

/// Number behind the marker of an array or a string, and the end of its row.
fn read_header(input: &[u8], length: &mut usize) -> Option<usize> {
    let header = input.get(*length..)?;
    let end = header.iter().position(|&byte| byte == b'\n')?;
    *length += end + 1;
    Some(number(header.get(1..end.saturating_sub(1))?))
}

/// Number in digits; 0 for anything else.
fn number(digits: &[u8]) -> usize {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_once_they_are_complete() {
        let input = b"*3\r\n$5\r\nCLAIM\r\n$1\r\np\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n";
        let (words, length) = read_command(input).unwrap();
        assert_eq!(&words[..], [&b"CLAIM"[..], b"p", b""]);
        let (words, rest) = read_command(&input[length..]).unwrap();
        assert_eq!((&words[..], length + rest), (&[&b"PING"[..]][..], input.len()));
        for end in 0..length {
            assert!(read_command(&input[..end]).is_none(), "{end}");
        }
    }
}
