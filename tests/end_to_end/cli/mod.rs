//! The client commands: the binary against a running service, its exit codes and what it writes.

mod commands;
mod effects;
mod failures;
mod pools;
mod requests;
mod selectors;
mod waiting;

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::server::Server;

/// How a command ended and what it wrote.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The binary, with nothing of this process's environment that it would take for its own.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool"));
    command.args(arguments).env_remove("HOTPOOL_ADDR");
    command
}

/// Runs the binary to its end.
pub fn run(command: &mut Command, stdin: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no stdin may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let ended = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
}

impl Server {
    /// Runs one client command, apart by white space, against this service.
    pub fn cli(&self, line: &str) -> Ran {
        self.cli_with(line, "")
    }

    pub fn cli_with(&self, line: &str, stdin: &str) -> Ran {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        run(command(&arguments).env("HOTPOOL_ADDR", self.address.to_string()), stdin)
    }
}

impl Ran {
    /// What it wrote to stdout, if it ended well and complained of nothing.
    #[track_caller]
    pub fn good(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }

    /// The same, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.good().lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// Checks that it ended with this code, wrote nothing to stdout, and complained in these words.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        for words in words {
            assert!(self.err.contains(words), "{words:?} is not in {self:?}");
        }
    }

    /// The cells of the row that begins with `first`.
    #[track_caller]
    pub fn row(&self, first: &str) -> Vec<&str> {
        let rows = self.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.into_iter()
            .find(|row| row.first() == Some(&first))
            .unwrap_or_else(|| panic!("no row {first:?} in {self:?}"))
    }
}
