//! Hands the commit of the sources to the harness, which names it in its reports.

use std::path::Path;
use std::process::Command;

fn main() {
    // Sources from elsewhere than a clone have no commit.
    println!("cargo::rerun-if-changed=build.rs");
    // A linked working tree keeps its log elsewhere.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    for input in ["../../src", "../../Cargo.lock", log.as_deref().unwrap_or_default()] {
        if !input.is_empty() && Path::new(input).exists() {
            println!("cargo::rerun-if-changed={input}");
        }
    }
    if let Some(commit) = git(&["describe", "--always", "--dirty=, changed", "--abbrev=12", "--exclude=*"]) {
        println!("cargo::rustc-env=HOTPOOL_COMMIT={commit}");
    }
}

/// Output of a command of git; none if there is no git or no clone.
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
