//! Processor time that a load costs: of this process with its generators, and of the servers if they run on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

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
    pids: BTreeSet<u32>,
}

impl MeasuredServers {
    /// Finds the processes of this machine that listen at these addresses, each `HOST:PORT`.
    #[must_use]
    pub fn listening_at(addresses: &[String]) -> Self {
        let is_local = |host: &str| matches!(host.trim_matches(['[', ']']), "127.0.0.1" | "::1" | "localhost");
        let local = addresses.iter().filter_map(|address| address.rsplit_once(':')).filter(|(host, _)| is_local(host));
        let ports: BTreeSet<u16> = local.filter_map(|(_, port)| port.parse().ok()).collect();
        let inodes: BTreeSet<String> =
            ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(|table| listening_inodes(table, &ports)).collect();
        let pids = processes().filter(|pid| *pid != std::process::id() && holds_socket(*pid, &inodes)).collect();
        Self { pids }
    }

    /// Processor time so far.
    #[must_use]
    pub fn times(&self) -> ProcessorTimes {
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let stats: BTreeMap<u32, ProcessStat> =
            processes().filter_map(|pid| Some((pid, ProcessStat::read(pid)?))).collect();
        let own = stats.get(&std::process::id()).map_or(0, |stat| stat.own_ticks + stat.children_ticks);
        let mut server_ticks = 0;
        for (pid, stat) in &stats {
            if self.pids.contains(pid) {
                // Children that have ended count with their parent.
                server_ticks += stat.own_ticks + stat.children_ticks;
            } else if self.has_ancestor(stat, &stats) {
                server_ticks += stat.own_ticks;
            }
        }
        let server_s = (!self.pids.is_empty()).then(|| server_ticks as f64 / ticks_per_s);
        ProcessorTimes { client_s: own as f64 / ticks_per_s, server_s }
    }

    fn has_ancestor(&self, stat: &ProcessStat, stats: &BTreeMap<u32, ProcessStat>) -> bool {
        let mut parent = stat.parent;
        while let Some(stat) = stats.get(&parent) {
            if self.pids.contains(&parent) {
                return true;
            }
            parent = stat.parent;
        }
        false
    }
}

/// Fields of a process in `/proc/PID/stat`.
#[derive(Debug, PartialEq)]
struct ProcessStat {
    parent: u32,
    own_ticks: u64,
    children_ticks: u64,
}

impl ProcessStat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses the fields after the name, which may contain anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            own_ticks: number(11)? + number(12)?,
            children_ticks: number(13)? + number(14)?,
        })
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Inodes of the sockets that listen at one of the ports.
fn listening_inodes(table: &str, ports: &BTreeSet<u16>) -> Vec<String> {
    const LISTENING: &str = "0A";
    let text = fs::read_to_string(table).unwrap_or_default();
    let inode = |row: &str| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let is_meant = *fields.get(3)? == LISTENING && ports.contains(&port);
        is_meant.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    };
    text.lines().skip(1).filter_map(inode).collect()
}

fn holds_socket(pid: u32, sockets: &BTreeSet<String>) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_whatever_the_name_is() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        assert_eq!(ProcessStat::parse(text), Some(ProcessStat { parent: 3, own_ticks: 30, children_ticks: 70 }));
        assert_eq!(ProcessStat::parse("7 (a"), None);
    }

    #[test]
    fn a_server_of_this_machine_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = [listener.local_addr().unwrap().port()].into();
        let inodes: BTreeSet<String> = listening_inodes("/proc/net/tcp", &ports).into_iter().collect();
        assert_eq!(inodes.len(), 1);
        assert!(holds_socket(std::process::id(), &inodes));
        let servers = MeasuredServers::listening_at(&[listener.local_addr().unwrap().to_string()]);
        assert_eq!(servers.times().server_s, None, "this process is the client");
        assert_eq!(MeasuredServers::listening_at(&["example.org:80".to_owned()]).times().server_s, None);
    }
}
