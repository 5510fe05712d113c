use proptest::prelude::*;

use super::*;

const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Parses every command in the input, and returns how the input ended. `cuts`: increasing lengths of the input that
/// arrived so far.
fn read(input: &[u8], cuts: &[usize]) -> (Vec<Vec<Vec<u8>>>, Result<(), ProtocolError>) {
    let mut parser = FrameParser::new(COMMAND_BYTES_MAX);
    let (mut commands, mut from) = (Vec::new(), 0);
    for &cut in cuts.iter().chain([&input.len()]) {
        loop {
            match parser.next(&input[from..cut]) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    commands.push(parser.args(&input[from..]).iter().map(<[u8]>::to_vec).collect());
                    from += length;
                }
                Err(error) => {
                    assert_eq!(parser.next(&input[from..cut]), Err(error.clone()), "the same again");
                    return (commands, Err(error));
                }
            }
        }
    }
    (commands, Ok(()))
}

/// Parses the input with a library; `None` where it finds no array of bulk strings.
fn library(mut input: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
    type OwnedFrame = redis_protocol::resp2::types::OwnedFrame;
    let mut commands = Vec::new();
    while !input.is_empty() {
        let (frame, length) = redis_protocol::resp2::decode::decode(input).ok()??;
        let OwnedFrame::Array(words) = frame else { return None };
        let word = |word| match word {
            OwnedFrame::BulkString(word) => Some(word),
            _ => None,
        };
        commands.push(words.into_iter().map(word).collect::<Option<_>>()?);
        input = &input[length..];
    }
    Some(commands)
}

fn encoded(commands: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for words in commands {
        bytes.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        }
    }
    bytes
}

fn commands() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let word = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..20),
        1 => prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'$'), Just(b'*')], 0..20),
        1 => prop::collection::vec(any::<u8>(), 200..3_000),
    ];
    let short = prop::collection::vec(word, 0..12);
    let long = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 90..400);
    prop::collection::vec(prop_oneof![9 => short, 1 => long], 0..12)
}

fn cuts(input: &[u8], at: Vec<prop::sample::Index>) -> Vec<usize> {
    let mut cuts: Vec<usize> = at.into_iter().map(|at| at.index(input.len() + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_a_library_reads_is_read_the_same_however_it_comes(
        commands in commands(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let input = encoded(&commands);
        prop_assert_eq!(library(&input), Some(commands.clone()));
        prop_assert_eq!(read(&input, &cuts(&input, at)), (commands, Ok(())));
    }

    /// Changes one byte: an accepted command means the same to the library, and the cuts make no difference.
    #[test]
    fn what_is_damaged_is_refused_or_read_as_a_library_does(
        commands in commands(),
        position in any::<prop::sample::Index>(),
        byte in prop_oneof![any::<u8>(), prop::sample::select(b"*$:+-_#%,\r\n0123456789".to_vec())],
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut input = encoded(&commands);
        prop_assume!(!input.is_empty());
        let position = position.index(input.len());
        input[position] = byte;
        let whole = read(&input, &[]);
        prop_assert_eq!(&read(&input, &cuts(&input, at)), &whole);
        if let (taken, Ok(())) = whole && encoded(&taken).len() == input.len() {
            prop_assert_eq!(library(&input), Some(taken));
        }
    }

    #[test]
    fn nothing_panics_or_asks_for_more_than_it_has_seen(input in prop::collection::vec(any::<u8>(), 0..300)) {
        let (commands, _) = read(&input, &[]);
        let each: Vec<usize> = (0..input.len()).collect();
        prop_assert_eq!(read(&input, &each).0, commands.clone());
        prop_assert!(commands.iter().flatten().map(Vec::len).sum::<usize>() <= input.len());
    }
}

/// Parses the first command of `input`.
fn first(input: &[u8]) -> Result<Option<usize>, ProtocolError> {
    FrameParser::new(COMMAND_BYTES_MAX).next(input)
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_kept() {
    for (input, error) in [
        (&b"*9223372036854775808\r\n"[..], ProtocolError::Count),
        (b"*32769\r\n", ProtocolError::Count),
        (b"*-1\r\n", ProtocolError::Count),
        (b"*\r\n", ProtocolError::Count),
        (b"* 1\r\n", ProtocolError::Count),
        (b"*1\n", ProtocolError::Count),
        (b"*1\r$", ProtocolError::Count),
        (b"*1\r\n$9223372036854775808\r\n", ProtocolError::Length),
        (b"*1\r\n$65537\r\n", ProtocolError::Length),
        (b"*1\r\n$-1\r\n", ProtocolError::Length),
        (b"*1\r\n$+1\r\n", ProtocolError::Length),
        (b"*1\r\n$3\r\nPINGS\r\n", ProtocolError::MissingTerminator(3)),
        (b"*1\r\n$5\r\nPING\r\n\r\n", ProtocolError::MissingTerminator(5)),
    ] {
        assert_eq!(first(input), Err(error), "{:?}", String::from_utf8_lossy(input));
    }
    assert_eq!(first(b"*32768\r\n"), Ok(None));
    let mut parser = FrameParser::new(COMMAND_BYTES_MAX);
    assert_eq!(parser.next(b"*32768\r\n$65536\r\n"), Ok(None));
    assert_eq!(parser.spans.capacity(), 0);
}

#[test]
fn other_types_where_a_string_belongs_are_refused() {
    for kind in b"+-:_,#!=(%~>*|" {
        assert_eq!(
            first(&[b"*1\r\n", &[*kind][..], b"4\r\nPING\r\n"].concat()),
            Err(ProtocolError::ExpectedBulkString(*kind))
        );
        if *kind != b'*' {
            assert_eq!(first(&[&[*kind][..], b"4\r\nPING\r\n"].concat()), Err(ProtocolError::UnexpectedByte(*kind)));
        }
    }
    assert_eq!(first(b"\x16\x03\x01"), Err(ProtocolError::UnexpectedByte(0x16)));
    assert_eq!(ProtocolError::ExpectedBulkString(0).to_string(), "expected '$', got 0x00");
}

#[test]
fn lines_are_split_at_blanks() {
    let (commands, end) = read(b"PING\r\n\r\n \t\r\n  CLAIM\tns/p  KEY a \nx", &[3, 7, 30]);
    let said: Vec<Vec<&[u8]>> = commands.iter().map(|words| words.iter().map(Vec::as_slice).collect()).collect();
    let empty = Vec::<&[u8]>::new();
    assert_eq!(said, [vec![&b"PING"[..]], empty.clone(), empty, vec![b"CLAIM", b"ns/p", b"KEY", b"a"]]);
    assert_eq!(end, Ok(()));
    assert_eq!(first(&vec![b'a'; INLINE_BYTES_MAX]), Ok(None));
    assert_eq!(first(&vec![b'a'; INLINE_BYTES_MAX + 1]), Err(ProtocolError::InlineTooLong));
}

#[test]
fn what_a_browser_sends_ends_the_connection() {
    assert_eq!(first(b"POST / HTTP/1.1\r\n"), Err(ProtocolError::Http));
    assert_eq!(first(b"host: a\r\n"), Err(ProtocolError::Http));
}

#[test]
fn a_command_has_a_largest_size() {
    let words = vec![vec![b'a'; 60_000]; 20];
    let input = encoded(&[words]);
    assert_eq!(first(&input), Err(ProtocolError::TooLarge(COMMAND_BYTES_MAX)));
    // A frame is rejected when the length that exceeds the limit is read, not when its data arrives.
    let header = input.len() - 2 - 60_000 - 2 * 60_009 - 2;
    assert!(first(&input[..header]).is_err() || header < COMMAND_BYTES_MAX - 70_000);
}

/// The work for a frame that arrives byte by byte grows with its length, not with its square: parsed parts are not
/// parsed again.
#[test]
fn a_large_frame_byte_by_byte_is_read_once() {
    let input = encoded(&[vec![b"k".to_vec(); ARGS_MAX]]);
    let mut parser = FrameParser::new(COMMAND_BYTES_MAX);
    let mut before = 0;
    for end in 1..input.len() {
        assert_eq!(parser.next(&input[..end]), Ok(None));
        assert!(parser.at >= before && end - parser.at <= 16, "{end}");
        before = parser.at;
    }
    assert_eq!(parser.next(&input), Ok(Some(input.len())));
    assert_eq!(parser.args(&input).len(), ARGS_MAX);
    // The parser's memory is freed.
    assert_eq!(parser.next(b"*1\r\n$4\r\nPING\r\n"), Ok(Some(14)));
    assert!(parser.spans.capacity() <= SPANS_RETAINED);
}
