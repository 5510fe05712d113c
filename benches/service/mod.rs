//! Service process under benchmark.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Running service, killed when dropped.
pub struct Server {
    pub child: Child,
    /// Address of the HTTP listener, as `HOST:PORT`.
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
    /// Starts the service on a free port with an empty directory and the given options. RESP is off unless the options
    /// name its port.
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory of our own");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(options);
        if !options.contains(&"--resp-listen") {
            command.args(["--resp-listen", "off"]);
        }
        if !options.contains(&"memory:") {
            command.arg("--data-dir").arg(dir.path());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the service starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("a ready line");
        let (_, after_scheme) = ready.split_once("http://").expect("an address in the ready line");
        let address = after_scheme.split_whitespace().next().expect("an address").to_owned();
        Self { child, address, _dir: dir }
    }
}
