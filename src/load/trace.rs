//! Trace files, plain or gzip: function invocations as CSV `t_us,func,dur_ms,mem_mb`, and language model requests as
//! CSV `TIMESTAMP,ContextTokens,GeneratedTokens`, the format that Azure publishes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// Header line of a trace of function invocations.
const HEADER: &str = "t_us,func,dur_ms,mem_mb";
/// Header line of a trace of language model requests.
const HEADER_LLM: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
/// First two bytes of every gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Largest number of invocations in one trace.
const INVOCATIONS_MAX: usize = 50_000_000;

/// Invocation recorded in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceInvocation {
    /// Arrival time in microseconds from the start of the trace; never decreases.
    pub t_us: u64,
    /// Function that is called, if the trace names one.
    pub function: Option<u32>,
    /// Run time in milliseconds.
    pub dur_ms: u32,
}

/// Reasons why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Trace file that cannot be read.
    #[error("cannot read the trace: {0}")]
    Io(#[from] std::io::Error),
    /// Line that violates the format.
    #[error("line {line} of the trace: {problem}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// Description of the violation.
        problem: &'static str,
    },
}

/// Reads the trace at `path`. The first bytes decide whether it is gzip, not the name.
///
/// # Errors
/// Fails with `Io`, or with `Line` for the first invalid line.
pub fn read(path: &Path) -> Result<Vec<TraceInvocation>, TraceError> {
    parse(open(path)?)
}

/// Microseconds that a language model request takes per token of its prompt and per generated token: a worker that
/// reads 10,000 tokens a second and writes 50. The trace has no durations; these are of the right order of magnitude.
const LLM_TOKEN_US: [u64; 2] = [100, 20_000];

/// Reads the language model requests at `path` as invocations without a function.
///
/// # Errors
/// Fails like [`read`].
pub fn read_llm(path: &Path) -> Result<Vec<TraceInvocation>, TraceError> {
    parse_llm(open(path)?)
}

fn parse_llm(text: impl BufRead) -> Result<Vec<TraceInvocation>, TraceError> {
    let mut trace: Vec<TraceInvocation> = Vec::new();
    // Time of the first request, and the number of midnights since.
    let (mut first_us, mut date, mut days) = (None, String::new(), 0);
    for (line, text) in (1..).zip(text.lines()) {
        let text = text?;
        let text = text.trim_end();
        let error = |problem| TraceError::Line { line, problem };
        if line == 1 {
            if text != HEADER_LLM {
                return Err(error("must be the header TIMESTAMP,ContextTokens,GeneratedTokens"));
            }
            continue;
        }
        if text.is_empty() {
            continue;
        }
        let (day, us_of_day, dur_ms) =
            parse_llm_line(text).ok_or(error("must be YYYY-MM-DD hh:mm:ss.fffffff and two whole numbers"))?;
        if date.is_empty() {
            date = day.to_owned();
        } else if date != day {
            days += 1;
            date = day.to_owned();
        }
        let time_us = days * 86_400_000_000 + us_of_day;
        let t_us = time_us.checked_sub(*first_us.get_or_insert(time_us)).ok_or(error("times must not go back"))?;
        if trace.last().is_some_and(|last| last.t_us > t_us) {
            return Err(error("times must not go back"));
        }
        if trace.len() == INVOCATIONS_MAX {
            return Err(error("too many invocations"));
        }
        trace.push(TraceInvocation { t_us, function: None, dur_ms });
    }
    if trace.is_empty() {
        return Err(TraceError::Line { line: 1, problem: "the trace is empty" });
    }
    Ok(trace)
}

/// Parses the date, the microseconds since midnight, and the duration of the request in milliseconds.
fn parse_llm_line(text: &str) -> Option<(&str, u64, u32)> {
    let mut fields = text.split(',');
    let (day, time) = fields.next()?.split_once(' ')?;
    let (context, generated): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    let digits: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let time_us = (hours * 3_600 + minutes * 60 + seconds) * 1_000_000 + digits.parse::<u64>().ok()?;
    let run_us = context.checked_mul(LLM_TOKEN_US[0])?.checked_add(generated.checked_mul(LLM_TOKEN_US[1])?)?;
    let dur_ms = u32::try_from(run_us / 1_000).ok()?;
    (clock.next().is_none() && fields.next().is_none()).then_some((day, time_us, dur_ms))
}

/// Opens a file that may be compressed with gzip.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    let mut magic = Vec::new();
    File::open(path)?.take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    let file = BufReader::new(File::open(path)?);
    Ok(if magic == GZIP_MAGIC { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) })
}

/// Parses the text of a trace of function invocations.
///
/// # Errors
/// Fails like [`read`].
pub fn parse(text: impl BufRead) -> Result<Vec<TraceInvocation>, TraceError> {
    let mut trace: Vec<TraceInvocation> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text?;
        let text = text.trim_end();
        let error = |problem| TraceError::Line { line, problem };
        if line == 1 {
            if text != HEADER {
                return Err(error("must be the header t_us,func,dur_ms,mem_mb"));
            }
            continue;
        }
        if text.is_empty() {
            continue;
        }
        let invocation = parse_line(text).ok_or(error("must be four whole numbers"))?;
        if trace.last().is_some_and(|last| last.t_us > invocation.t_us) {
            return Err(error("times must not go back"));
        }
        if trace.len() == INVOCATIONS_MAX {
            return Err(error("too many invocations"));
        }
        trace.push(invocation);
    }
    if trace.is_empty() {
        return Err(TraceError::Line { line: 1, problem: "the trace is empty" });
    }
    Ok(trace)
}

fn parse_line(text: &str) -> Option<TraceInvocation> {
    let mut fields = text.split(',');
    let t_us = fields.next()?.parse().ok()?;
    let function = Some(fields.next()?.parse().ok()?);
    let dur_ms = fields.next()?.parse().ok()?;
    let _mem_mb: u64 = fields.next()?.parse().ok()?;
    fields.next().is_none().then_some(TraceInvocation { t_us, function, dur_ms })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;

    use super::*;

    const TEXT: &str = "t_us,func,dur_ms,mem_mb\n0,3,18,26\n0,4,1,162\n1500,3,400,135\n";
    const PARSED: [TraceInvocation; 3] = [
        TraceInvocation { t_us: 0, function: Some(3), dur_ms: 18 },
        TraceInvocation { t_us: 0, function: Some(4), dur_ms: 1 },
        TraceInvocation { t_us: 1500, function: Some(3), dur_ms: 400 },
    ];

    #[test]
    fn plain_and_gzip_traces_read_alike_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain.csv.gz");
        std::fs::write(&plain, TEXT).unwrap();
        let compressed = dir.path().join("packed.csv");
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(&compressed).unwrap(), flate2::Compression::fast());
        encoder.write_all(TEXT.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(read(&plain).unwrap(), PARSED);
        assert_eq!(read(&compressed).unwrap(), PARSED);
    }

    #[test]
    fn invalid_lines_are_reported_by_number() {
        let cases = [
            ("", "line 1 of the trace: the trace is empty"),
            ("t_us,func,dur_ms,mem_mb\n", "line 1 of the trace: the trace is empty"),
            ("t,func,dur_ms,mem_mb\n0,1,2,3\n", "line 1 of the trace: must be the header t_us,func,dur_ms,mem_mb"),
            ("t_us,func,dur_ms,mem_mb\n0,1,2\n", "line 2 of the trace: must be four whole numbers"),
            ("t_us,func,dur_ms,mem_mb\n0,1,2,3,4\n", "line 2 of the trace: must be four whole numbers"),
            ("t_us,func,dur_ms,mem_mb\n0,1,2,3\n\n-1,1,2,3\n", "line 4 of the trace: must be four whole numbers"),
            ("t_us,func,dur_ms,mem_mb\n5,1,2,3\n4,1,2,3\n", "line 3 of the trace: times must not go back"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), message, "{text:?}");
        }
        assert!(matches!(read(&PathBuf::from("/no/such/trace")), Err(TraceError::Io(_))));
    }

    #[test]
    fn language_model_requests_are_parsed() {
        let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
        let text = format!("{head}2023-11-16 23:59:59.9799600,4800,10\n2023-11-17 00:00:00.5,100,1\n");
        let invocation = |t_us, dur_ms| TraceInvocation { t_us, function: None, dur_ms };
        assert_eq!(parse_llm(text.as_bytes()).unwrap(), [invocation(0, 680), invocation(520_040, 30)]);
        for error in
            ["2023-11-16,1,1\n", "2023-11-16 1:2,1,1\n", "2023-11-16 1:2:3,1\n", "2023-11-16 1:2:3,1,1,1\n", ""]
        {
            assert!(parse_llm(format!("{head}{error}").as_bytes()).is_err(), "{error}");
        }
        let reversed = format!("{head}2023-11-16 1:2:3,1,1\n2023-11-16 1:2:2,1,1\n");
        assert_eq!(
            parse_llm(reversed.as_bytes()).unwrap_err().to_string(),
            "line 3 of the trace: times must not go back"
        );
    }

    #[test]
    fn the_azure_trace_matches_its_readme() {
        let dir = std::env::var_os("HOTPOOL_TRACES").map_or_else(|| PathBuf::from("../shared/traces"), PathBuf::from);
        let path = dir.join("azure/azure500_30min_exp.csv.gz");
        if !path.exists() {
            eprintln!("skipped: {} is absent", path.display());
            return;
        }
        let trace = read(&path).unwrap();
        assert_eq!(trace.len(), 171_558);
        let second_before = |n: usize| trace[..n].partition_point(|other| other.t_us + 1_000_000 <= trace[n].t_us);
        assert_eq!((0..trace.len()).map(|n| n - second_before(n) + 1).max(), Some(386));
    }
}
