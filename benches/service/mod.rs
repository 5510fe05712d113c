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
    /// On a port of its own and an empty directory, with these arguments beside. Without RESP, unless they name its port.
    pub fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory of our own");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(more);
        if !more.contains(&"--resp-listen") {
            command.args(["--resp-listen", "off"]);
        }
        if !more.contains(&"memory:") {
            command.arg("--data-dir").arg(dir.path());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the service starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a ready line");
        let (_, rest) = ready.split_once("http://").expect("an address in the ready line");
        let address = rest.split_whitespace().next().expect("an address").to_owned();
        Self { child, address, _dir: dir }
    }
}
