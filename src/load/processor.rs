//! Processor time that a load costs: of this process with its generators, and of the servers if they run on this machine.

use std::collections::{BTreeMap, BTreeSet};

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, Stat, all_processes};

/// Processor time in seconds, of user and system together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessorTimes {
    /// Time of this process and of its children that have ended.
    pub client_s: f64,
    /// Time of the servers and their children; none if they run elsewhere, in this process, or as another user.
    pub server_s: Option<f64>,
}

/// Servers whose processor time is measured.
#[derive(Debug, Clone, Default)]
pub struct MeasuredServers {
    pids: BTreeSet<i32>,
}

impl MeasuredServers {
    /// Finds the processes of this machine that listen at these addresses, each `HOST:PORT`.
    #[must_use]
    pub fn listening_at(addresses: &[String]) -> Self {
        let is_local = |host: &str| matches!(host.trim_matches(['[', ']']), "127.0.0.1" | "::1" | "localhost");
        let local = addresses.iter().filter_map(|address| address.rsplit_once(':')).filter(|(host, _)| is_local(host));
        let sockets = listening_sockets(&local.filter_map(|(_, port)| port.parse().ok()).collect());
        let others = processes().filter(|process| !is_own(process.pid));
        Self { pids: others.filter(|process| holds_socket(process, &sockets)).map(|process| process.pid).collect() }
    }

    /// Processor time so far.
    #[must_use]
    pub fn times(&self) -> ProcessorTimes {
        let stats: BTreeMap<i32, Stat> =
            processes().filter_map(|process| Some((process.pid, process.stat().ok()?))).collect();
        let (mut client_ticks, mut server_ticks) = (0, 0);
        for (&pid, stat) in &stats {
            let own_ticks = stat.utime + stat.stime;
            // Children that have ended count with their parent.
            let with_ended = own_ticks + stat.cutime.unsigned_abs() + stat.cstime.unsigned_abs();
            if is_own(pid) {
                client_ticks += with_ended;
            } else if self.pids.contains(&pid) {
                server_ticks += with_ended;
            } else if self.is_descendant(stat, &stats) {
                server_ticks += own_ticks;
            }
        }
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let server_s = (!self.pids.is_empty()).then(|| seconds(server_ticks));
        ProcessorTimes { client_s: seconds(client_ticks), server_s }
    }

    fn is_descendant(&self, stat: &Stat, stats: &BTreeMap<i32, Stat>) -> bool {
        let mut ancestor = Some(stat);
        while let Some(stat) = ancestor {
            if self.pids.contains(&stat.ppid) {
                return true;
            }
            ancestor = stats.get(&stat.ppid);
        }
        false
    }
}

fn is_own(pid: i32) -> bool {
    u32::try_from(pid) == Ok(std::process::id())
}

fn processes() -> impl Iterator<Item = Process> {
    // A process may end while it is looked at.
    all_processes().into_iter().flatten().flatten()
}

/// Inodes of the sockets that listen at one of the ports.
fn listening_sockets(ports: &BTreeSet<u16>) -> BTreeSet<u64> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let listening = tables.filter(|socket| socket.state == TcpState::Listen);
    listening.filter(|socket| ports.contains(&socket.local_address.port())).map(|socket| socket.inode).collect()
}

fn holds_socket(process: &Process, sockets: &BTreeSet<u64>) -> bool {
    let descriptors = process.fd().into_iter().flatten().flatten();
    descriptors.into_iter().any(|fd| matches!(fd.target, FDTarget::Socket(inode) if sockets.contains(&inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_this_machine_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = listening_sockets(&[address.port()].into());
        assert_eq!(sockets.len(), 1);
        assert!(holds_socket(&Process::myself().unwrap(), &sockets));
        let servers = MeasuredServers::listening_at(&[address.to_string()]);
        assert_eq!(servers.times().server_s, None, "this process is the client");
        assert_eq!(MeasuredServers::listening_at(&["example.org:80".to_owned()]).times().server_s, None);
    }
}
