//! Resident memory of this process, for benchmarks of memory use.

/// Resident bytes of memory at present.
pub fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    kib.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}
