//! Faults of the servers and of the network: rates that are drawn for every command, and events that a simulation calls for.

use std::time::Duration;

use super::SimulatedRedis;
use super::keyspace::Keyspace;
use super::servers::{ReplicaLink, ServerId, ServerLife, ServerRole, Servers, ShardIndex, Subject, key_slot, nanos};

/// Rates and sizes of the faults that are drawn at random. The default has none and takes no time.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultRates {
    /// Longest way of a command to its server, and of an answer back.
    pub latency_max: Duration,
    /// Longest time between two commands of a pipeline, in which those of others are executed.
    pub gap_max: Duration,
    /// Pipelines that take longer, up to `slow_max`.
    pub slow_requests_per_million: u32,
    pub slow_max: Duration,
    /// Commands before which the connection breaks.
    pub lost_requests_per_million: u32,
    /// Commands after which the connection breaks.
    pub lost_answers_per_million: u32,
    /// Connections whose outstanding commands are executed up to `late_max` after their end.
    pub late_requests_per_million: u32,
    pub late_max: Duration,
    /// Connections that are refused.
    pub refused_connections_per_million: u32,
    /// Longest time until a replica has a write.
    pub replication_lag_max: Duration,
    /// Longest time until the disk of a server has a write.
    pub sync_lag_max: Duration,
    /// Longest time until a server of the cluster, or a sentinel, hears that a slot has moved or a shard has another master.
    pub gossip_max: Duration,
    /// Longest time for which a server that has been started again loads its data.
    pub loading_max: Duration,
}

impl FaultRates {
    /// Rates at which most calls succeed and every fault occurs.
    pub const fn usual() -> Self {
        Self {
            latency_max: Duration::from_millis(2),
            gap_max: Duration::from_micros(50),
            slow_requests_per_million: 10_000,
            slow_max: Duration::from_millis(800),
            lost_requests_per_million: 3_000,
            lost_answers_per_million: 3_000,
            late_requests_per_million: 500_000,
            late_max: Duration::from_secs(2),
            refused_connections_per_million: 20_000,
            replication_lag_max: Duration::from_millis(20),
            sync_lag_max: Duration::from_secs(1),
            gossip_max: Duration::from_millis(500),
            loading_max: Duration::from_millis(500),
        }
    }
}

/// Condition in which a server answers commands with errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerCondition {
    Loading,
    Busy,
    ReadOnly,
    ClusterDown,
    /// Server without free memory (maxmemory).
    Full,
    /// Server that has fewer replicas than it needs for a write.
    NoReplicas,
    DiskError,
}

const CONDITIONS: [ServerCondition; 7] = [
    ServerCondition::Loading,
    ServerCondition::Busy,
    ServerCondition::ReadOnly,
    ServerCondition::ClusterDown,
    ServerCondition::Full,
    ServerCondition::NoReplicas,
    ServerCondition::DiskError,
];

/// Fate of the master that a failover replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormerMaster {
    /// Master that has ended, until it is started again.
    Crashed,
    /// Master that does not know of the failover and goes on serving for this time; then its writes are lost.
    Isolated(Duration),
    /// Master that hands over everything and becomes the replica: nothing is lost.
    Demoted,
}

/// Whether servers may have lost what they had acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreLoss {
    None,
    Possible,
}

/// Data with which a master starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Data that had reached its disk.
    Synced,
    Nothing,
}

/// Faults that a simulation calls for. Shards are numbered from 0; a server that ends, stalls or answers with errors is the
/// master of its shard.
impl SimulatedRedis {
    /// Replaces the rates of the faults that are drawn.
    pub fn set_rates(&self, rates: FaultRates) {
        self.at_present(|servers, _| servers.rates = rates);
    }

    /// Breaks all connections to a server.
    pub fn break_connections(&self, shard: ShardIndex) {
        self.at_present(|servers, now_ns| servers.close_all(servers.master(shard), now_ns));
    }

    /// Stops a server for a time, after which it executes what it has received.
    pub fn stall(&self, shard: ShardIndex, duration: Duration) {
        self.at_present(|servers, now_ns| {
            let master = servers.master(shard);
            let until_ns = &mut servers.servers[master].stalled_until_ns;
            *until_ns = (*until_ns).max(now_ns + nanos(duration));
        });
    }

    /// Puts a server into a condition for a time.
    pub fn impose(&self, shard: ShardIndex, condition: ServerCondition, duration: Duration) {
        self.at_present(|servers, now_ns| {
            let master = servers.master(shard);
            servers.servers[master].condition = Some((condition, now_ns + nanos(duration)));
        });
    }

    /// Ends a server, as a crash does.
    pub fn crash(&self, shard: ShardIndex) {
        self.at_present(|servers, now_ns| servers.crash(servers.master(shard), now_ns));
    }

    /// Starts the servers of a shard that have ended. One that was replaced becomes a replica.
    pub fn restart(&self, shard: ShardIndex, recovery: Recovery) {
        self.at_present(|servers, now_ns| servers.restart(shard, recovery, now_ns));
    }

    /// Makes the replica of a shard its master, with the writes that it has. Returns the number of writes that are lost; none:
    /// there is no replica that could take over.
    pub fn fail_over(&self, shard: ShardIndex, former: FormerMaster) -> Option<usize> {
        self.at_present(|servers, now_ns| servers.fail_over(shard, former, now_ns))
    }

    /// Keeps all further writes from the replica of a shard.
    pub fn stop_replication(&self, shard: ShardIndex) {
        self.at_present(|servers, now_ns| {
            let master = servers.master(shard);
            let master = &mut servers.servers[master];
            if master.replica == ReplicaLink::Connected {
                master.replica = ReplicaLink::Stopped;
                master.history.stop_replication(now_ns);
            }
        });
    }

    /// Lets the replica of a shard catch up.
    pub fn resume_replication(&self, shard: ShardIndex) {
        self.at_present(|servers, now_ns| servers.resume_replication(shard, now_ns));
    }

    /// Begins to move a slot to another shard. Returns whether it can be moved there.
    pub fn begin_slot_move(&self, slot: u16, to: ShardIndex) -> bool {
        self.at_present(|servers, _| {
            let can = servers.is_cluster()
                && servers.truth.shards[usize::from(slot)] != to
                && !servers.moves.contains_key(&slot);
            if can {
                servers.moves.insert(slot, to);
            }
            can
        })
    }

    /// Moves up to `count` keys of a slot whose move has begun. Returns how many there were.
    pub fn move_keys(&self, slot: u16, count: usize) -> usize {
        self.at_present(|servers, now_ns| servers.move_keys(slot, count, now_ns))
    }

    /// Moves the other keys of a slot, and then the slot. Other servers of the cluster hear of it after a while.
    pub fn end_slot_move(&self, slot: u16) {
        self.at_present(|servers, now_ns| servers.end_slot_move(slot, now_ns));
    }

    /// Ends all moves of slots that have begun.
    pub fn end_slot_moves(&self) {
        self.at_present(|servers, now_ns| servers.end_slot_moves(now_ns));
    }

    /// Removes all keys from all servers. The functions stay.
    pub fn flush_all(&self) {
        self.at_present(|servers, now_ns| {
            for shard in 0..servers.truth.masters.len() {
                let ((), _) = servers.write(servers.master(shard), now_ns, |keyspace| keyspace.remove_all_keys());
            }
        });
    }

    /// Removes the functions of a server.
    pub fn lose_functions(&self, shard: ShardIndex) {
        self.at_present(|servers, now_ns| {
            let ((), _) = servers.write(servers.master(shard), now_ns, |keyspace| keyspace.remove_libraries());
        });
    }

    /// Ends all faults: nothing is lost or late any more, every server runs and knows the others, and no slot moves. A process
    /// that was cut off stays so.
    pub fn heal(&self) {
        self.at_present(|servers, now_ns| servers.heal(now_ns));
    }

    /// Calls for one event that is drawn at random, and says which.
    pub fn disturb(&self) -> (String, StoreLoss) {
        let draw = |below: usize| self.at_present(|servers, _| (servers.random() % below as u64) as usize);
        let duration = Duration::from_millis(1 + draw(3_000) as u64);
        let shard = draw(self.shard_count());
        let slots = self.slots_in_use();
        match draw(15) {
            0 => self.break_connections(shard),
            1 | 2 => self.stall(shard, duration),
            3 | 4 => {
                let condition = CONDITIONS[draw(CONDITIONS.len())];
                self.impose(shard, condition, duration);
                return (format!("{condition:?} on shard {shard} for {duration:?}"), StoreLoss::None);
            }
            5 => {
                self.crash(shard);
                return (format!("crash of shard {shard}"), StoreLoss::Possible);
            }
            6 => {
                let recovery = if draw(4) == 0 { Recovery::Nothing } else { Recovery::Synced };
                self.crash(shard);
                self.restart(shard, recovery);
                return (format!("restart of shard {shard} with {recovery:?}"), StoreLoss::Possible);
            }
            7 => {
                let former = [FormerMaster::Crashed, FormerMaster::Isolated(duration), FormerMaster::Demoted][draw(3)];
                let loss = if former == FormerMaster::Demoted { StoreLoss::None } else { StoreLoss::Possible };
                let lost = self.fail_over(shard, former);
                return (format!("failover of shard {shard} ({former:?}): {lost:?} writes lost"), loss);
            }
            8 => self.stop_replication(shard),
            9 => self.resume_replication(shard),
            10 if !slots.is_empty() => {
                let slot = slots[draw(slots.len())];
                let has_begun = self.begin_slot_move(slot, shard);
                return (format!("move of slot {slot} to shard {shard}: {has_begun}"), StoreLoss::None);
            }
            11 if !slots.is_empty() => {
                let slot = slots[draw(slots.len())];
                return (format!("{} keys of slot {slot} moved", self.move_keys(slot, 1)), StoreLoss::None);
            }
            12 => {
                self.end_slot_moves();
                return ("slots moved".to_owned(), StoreLoss::None);
            }
            13 => self.lose_functions(shard),
            _ => {
                for shard in 0..self.shard_count() {
                    self.restart(shard, Recovery::Synced);
                }
                return ("servers started".to_owned(), StoreLoss::None);
            }
        }
        (format!("a fault of shard {shard} for {duration:?}"), StoreLoss::None)
    }
}

impl Servers {
    fn crash(&mut self, id: ServerId, now_ns: u64) {
        if self.servers[id].life != ServerLife::Running {
            return;
        }
        self.close_all(id, now_ns);
        self.connections.retain(|_, connection| connection.peer != super::servers::Peer::Server(id));
        let server = &mut self.servers[id];
        server.life = ServerLife::Crashed(now_ns);
        server.history.stop_replication(now_ns);
        server.stalled_until_ns = 0;
        server.condition = None;
    }

    fn restart(&mut self, shard: ShardIndex, recovery: Recovery, now_ns: u64) {
        for id in 0..self.servers.len() {
            let ServerLife::Crashed(ended_ns) = self.servers[id].life else { continue };
            if self.servers[id].shard != shard {
                continue;
            }
            let loaded_ns = now_ns + self.random_ns(self.rates.loading_max);
            let scan_seed = self.random();
            let has_replica = self.replica(shard).is_some_and(|replica| {
                let replica = &self.servers[replica];
                replica.life == ServerLife::Running && replica.role == ServerRole::Replica
            });
            let server = &mut self.servers[id];
            server.life = ServerLife::Running;
            server.scan_seed = scan_seed;
            server.condition = Some((ServerCondition::Loading, loaded_ns));
            if self.truth.masters[shard] != id {
                self.rejoin(id);
                continue;
            }
            match recovery {
                Recovery::Synced => {
                    server.history.revert_unsynced(&mut server.keyspace, ended_ns);
                }
                Recovery::Nothing => server.keyspace = Keyspace::default(),
            }
            // The replica copies what is left.
            server.history.clear();
            server.replica = if has_replica { ReplicaLink::Connected } else { ReplicaLink::Absent };
        }
    }

    fn fail_over(&mut self, shard: ShardIndex, former: FormerMaster, now_ns: u64) -> Option<usize> {
        let (old, new) = (self.master(shard), self.replica(shard)?);
        let candidate = &self.servers[new];
        if candidate.life != ServerLife::Running || candidate.role != ServerRole::Replica {
            return None;
        }
        let is_running = self.servers[old].life == ServerLife::Running;
        if former == FormerMaster::Demoted && (!is_running || self.servers[old].replica != ReplicaLink::Connected) {
            return None;
        }
        let mut keyspace = self.servers[old].keyspace.clone();
        let lost = match former {
            FormerMaster::Demoted => 0,
            FormerMaster::Crashed | FormerMaster::Isolated(_) => {
                self.servers[old].history.revert_unreplicated(&mut keyspace, now_ns)
            }
        };
        let scan_seed = self.random();
        self.truth.masters[shard] = new;
        let server = &mut self.servers[new];
        server.role = ServerRole::Master;
        server.keyspace = keyspace;
        server.history.clear();
        server.scan_seed = scan_seed;
        server.replica = ReplicaLink::Absent;
        match former {
            FormerMaster::Demoted => self.rejoin(old),
            FormerMaster::Isolated(duration) if is_running => {
                let link = if self.random() & 1 == 0 { ReplicaLink::Absent } else { ReplicaLink::Stopped };
                let server = &mut self.servers[old];
                server.isolated_until_ns = Some(now_ns + nanos(duration));
                server.replica = link;
                server.history.stop_replication(now_ns);
            }
            FormerMaster::Crashed | FormerMaster::Isolated(_) => self.crash(old, now_ns),
        }
        let knowing = if former == FormerMaster::Demoted { vec![old, new] } else { vec![new] };
        self.announce(Subject::Master(shard), &knowing, now_ns);
        Some(lost)
    }

    fn resume_replication(&mut self, shard: ShardIndex, now_ns: u64) {
        let lag_ns = self.random_ns(self.rates.replication_lag_max);
        let master = self.master(shard);
        let master = &mut self.servers[master];
        if master.replica == ReplicaLink::Stopped && master.life == ServerLife::Running {
            master.replica = ReplicaLink::Connected;
            master.history.replicate_all(now_ns + lag_ns);
        }
    }

    fn move_keys(&mut self, slot: u16, count: usize, now_ns: u64) -> usize {
        let Some(to) = self.moves.get(&slot).copied() else { return 0 };
        let (source, target) = (self.master(self.truth.shards[usize::from(slot)]), self.master(to));
        if [source, target].iter().any(|id| self.servers[*id].life != ServerLife::Running) {
            return 0;
        }
        let keys = self.servers[source].keyspace.keys();
        let moved: Vec<_> = keys.iter().filter(|(key, _)| key_slot(key) == slot).take(count).collect();
        let moved: Vec<_> = moved.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        for (key, value) in &moved {
            let _ = self.write(target, now_ns, |keyspace| keyspace.replace(key, Some(value.clone())));
            let _ = self.write(source, now_ns, |keyspace| keyspace.replace(key, None));
        }
        moved.len()
    }

    fn end_slot_move(&mut self, slot: u16, now_ns: u64) {
        self.move_keys(slot, usize::MAX, now_ns);
        let from = self.truth.shards[usize::from(slot)];
        let Some(to) = self.moves.get(&slot).copied() else { return };
        let nodes = [self.master(from), self.master(to)];
        if nodes.iter().any(|id| self.servers[*id].life != ServerLife::Running) {
            return;
        }
        self.moves.remove(&slot);
        self.truth.shards[usize::from(slot)] = to;
        self.announce(Subject::Slot(slot), &nodes, now_ns);
    }

    fn end_slot_moves(&mut self, now_ns: u64) {
        let slots: Vec<u16> = self.moves.keys().copied().collect();
        for slot in slots {
            self.end_slot_move(slot, now_ns);
        }
    }

    fn heal(&mut self, now_ns: u64) {
        self.rates = FaultRates { latency_max: self.rates.latency_max, ..FaultRates::default() };
        self.unreachable.clear();
        for connection in self.connections.values_mut() {
            for command in &mut connection.queue {
                command.fate = super::servers::CommandFate::Answered;
                if command.wait_deadline_ns.is_none() {
                    command.due_ns = command.due_ns.min(now_ns);
                }
            }
        }
        for server in &mut self.servers {
            server.stalled_until_ns = 0;
            server.condition = None;
        }
        for shard in 0..self.truth.masters.len() {
            self.restart(shard, Recovery::Synced, now_ns);
        }
        for id in 0..self.servers.len() {
            if self.servers[id].isolated_until_ns.is_some() {
                self.rejoin(id);
            }
        }
        for shard in 0..self.truth.masters.len() {
            self.resume_replication(shard, now_ns);
        }
        self.end_slot_moves(now_ns);
        for server in &mut self.servers {
            server.condition = None;
            server.view = self.truth.clone();
        }
        self.sentinel_view = self.truth.masters[0];
        self.advance(now_ns);
        for connection in self.connections.values() {
            connection.changed.notify_waiters();
        }
    }
}
