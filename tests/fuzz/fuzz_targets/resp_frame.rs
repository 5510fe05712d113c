//! Feeds any bytes, cut anywhere, to the frame parser: it must not panic, parse the same however the bytes are cut,
//! consume no more than the input, and agree with a library about accepted frames.
#![no_main]

// The parser alone, by its file: building the whole package would take minutes, with nothing of it fuzzed.
#[path = "../../../src/api/resp/frame.rs"]
#[allow(dead_code)]
mod frame;
#[path = "../../../src/limits.rs"]
#[allow(dead_code)]
mod limits;

use frame::{Parser, ProtocolError};
use libfuzzer_sys::fuzz_target;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

const COMMAND_BYTES_MAX: usize = 1 << 20;

type Commands = Vec<Vec<Vec<u8>>>;

/// Parses every command, and returns where each begins and how the input ended. `cuts`: lengths of the pieces in which
/// the input arrives.
fn read(input: &[u8], cuts: &[u8]) -> (Commands, Vec<usize>, Result<(), ProtocolError>) {
    let mut parser = Parser::new(COMMAND_BYTES_MAX);
    let (mut commands, mut starts) = (Vec::new(), Vec::new());
    let (mut from, mut have) = (0, 0);
    let mut cuts = cuts.iter();
    loop {
        have = cuts.next().map_or(input.len(), |&cut| (have + usize::from(cut)).min(input.len()));
        loop {
            match parser.next(&input[from..have]) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    assert!(length > 0 && from + length <= have);
                    commands.push(parser.args(&input[from..have]).iter().map(<[u8]>::to_vec).collect());
                    starts.push(from);
                    from += length;
                }
                Err(error) => {
                    let _ = error.to_string();
                    return (commands, starts, Err(error));
                }
            }
        }
        if have == input.len() {
            return (commands, starts, Ok(()));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    // The first byte is the number of lengths that follow.
    let Some((&pieces, rest)) = data.split_first() else { return };
    let (cuts, input) = rest.split_at(usize::from(pieces).min(rest.len()));
    let whole = read(input, &[]);
    assert_eq!(read(input, cuts), whole);
    let (commands, starts, _) = whole;
    for (parts, from) in commands.iter().zip(starts) {
        if input[from] != b'*' {
            continue;
        }
        let (frame, _) = decode(&input[from..]).expect("no error to the library").expect("the frame is complete");
        let OwnedFrame::Array(frames) = frame else { panic!("{frame:?} is no array") };
        let theirs = frames.into_iter().map(|frame| match frame {
            OwnedFrame::BulkString(word) => word,
            other => panic!("{other:?} is no word"),
        });
        assert_eq!(theirs.collect::<Vec<_>>(), *parts);
    }
});
