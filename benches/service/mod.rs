//! The service binary, as the benches load it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running service, ended with its scope.
pub struct Server {
    pub child: Child,
    /// `HOST:PORT` of its HTTP edge.
    pub address: String,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// On a port of its own and an empty directory, with these arguments beside.
    pub fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory of our own");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hotpool"))
            .args(["serve", "--resp-listen", "off", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path())
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the service starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a ready line");
        let (_, rest) = ready.split_once("http://").expect("an address in the ready line");
        let address = rest.split_whitespace().next().expect("an address").to_owned();
        Self { child, address, _dir: dir }
    }
}
