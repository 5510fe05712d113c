//! Client commands: the binary against a running service, its exit codes and its output.

mod commands;
mod effects;
mod failures;
mod pools;
mod queued_claims;
mod requests;
mod selectors;

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::server::Server;

/// Exit code and output of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Creates a command without any environment of this process that it would read.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool"));
    command.args(arguments).env_remove("HOTPOOL_ADDR");
    command
}

/// Runs the binary to its end.
pub fn run(command: &mut Command, stdin: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no stdin may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let ended = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
}

impl Server {
    /// Runs one client command, split at white space, against this service.
    pub fn cli(&self, line: &str) -> Ran {
        self.cli_with(line, "")
    }

    pub fn cli_with(&self, line: &str, stdin: &str) -> Ran {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        run(command(&arguments).env("HOTPOOL_ADDR", self.address.to_string()), stdin)
    }
}

impl Ran {
    /// Returns stdout of a command that succeeded without messages on stderr.
    #[track_caller]
    pub fn stdout(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        &self.out
    }

    /// Returns stdout of a successful command as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.stdout().lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// Checks that the command ended with this code, wrote nothing to stdout, and these words to stderr.
    #[track_caller]
    pub fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        for parts in parts {
            assert!(self.err.contains(parts), "{parts:?} is not in {self:?}");
        }
    }

    /// Returns the cells of the row that begins with `first`.
    #[track_caller]
    pub fn row(&self, first: &str) -> Vec<&str> {
        let rows = self.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.into_iter()
            .find(|row| row.first() == Some(&first))
            .unwrap_or_else(|| panic!("no row {first:?} in {self:?}"))
    }
}
