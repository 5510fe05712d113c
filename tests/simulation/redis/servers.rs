//! Servers, the slots that each believes to have, the connections, and what happens at which time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hotpool::environment::Environment;
use hotpool::model::hash_slot::{SLOTS, slot_of};
use hotpool::persist::store::redis::ServerAddress;
use tokio::sync::Notify;

use super::commands::{Execution, Reply};
use super::faults::{FaultRates, ServerCondition};
use super::keyspace::{History, Keyspace, Recorded, Transaction};
use super::{SimulatedRedisSettings, SimulatedTopology};

/// Port of every server.
pub const PORT: u16 = 6379;
/// Port of the sentinel.
pub const SENTINEL_PORT: u16 = 26_379;
/// Name of the master that the sentinel watches.
pub const SENTINEL_MASTER: &str = "main";

pub type ServerId = usize;
pub type ShardIndex = usize;
pub type ConnectionId = u64;
pub type TransportId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    Master,
    Replica,
}

/// Stream of writes from a master to its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaLink {
    Connected,
    /// Replica that is connected and receives nothing.
    Stopped,
    Absent,
}

/// Cluster as one server believes it to be.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// Shard of each slot.
    pub shards: Vec<ShardIndex>,
    /// Master of each shard.
    pub masters: Vec<ServerId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerLife {
    Running,
    /// Ended at this time.
    Crashed(u64),
}

pub struct Server {
    pub address: ServerAddress,
    pub shard: ShardIndex,
    pub role: ServerRole,
    pub life: ServerLife,
    pub keyspace: Keyspace,
    pub history: History,
    pub replica: ReplicaLink,
    pub scan_seed: u64,
    pub stalled_until_ns: u64,
    pub condition: Option<(ServerCondition, u64)>,
    /// End of the time for which it serves although it has been replaced.
    pub isolated_until_ns: Option<u64>,
    pub view: ClusterView,
}

/// Slot or shard about which servers hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Slot(u16),
    Master(ShardIndex),
}

/// End point of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Server(ServerId),
    Sentinel,
}

/// Fate of a command on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandFate {
    Answered,
    /// Connection that breaks before the command is executed.
    RequestLost,
    /// Connection that breaks when the command has been executed.
    AnswerLost,
}

pub struct QueuedCommand {
    pub number: u64,
    pub due_ns: u64,
    pub args: Vec<Vec<u8>>,
    pub fate: CommandFate,
    /// End of a `WAIT` that has begun.
    pub wait_deadline_ns: Option<u64>,
}

pub struct Connection {
    pub peer: Peer,
    pub transport: TransportId,
    pub queue: VecDeque<QueuedCommand>,
    pub last_number: u64,
    last_due_ns: u64,
    /// Answers that nobody has taken, and when they were given.
    pub answers: BTreeMap<u64, (Reply, u64)>,
    /// Whether somebody waits for answers.
    pub has_client: bool,
    pub asking: bool,
    pub last_write: Option<u64>,
    pub changed: Arc<Notify>,
}

/// Answers to a pipeline, as far as there are any.
pub enum Progress {
    Answered(Vec<Reply>),
    Broken,
    /// Time before which there is nothing new.
    Waiting(u64),
}

/// Commands of one pipeline on their way.
#[derive(Debug, Clone, Copy)]
pub struct SentPipeline {
    pub first: u64,
    pub last: u64,
    pub answer_delay_ns: u64,
}

pub struct Servers {
    pub topology: SimulatedTopology,
    pub settings: SimulatedRedisSettings,
    pub servers: Vec<Server>,
    pub connections: BTreeMap<ConnectionId, Connection>,
    /// Slots and masters as they are.
    pub truth: ClusterView,
    /// Shards to which slots are being moved.
    pub moves: BTreeMap<u16, ShardIndex>,
    pub rates: FaultRates,
    /// Servers that a transport does not reach.
    pub unreachable: BTreeSet<(TransportId, ServerId)>,
    pub transports: Vec<TransportState>,
    /// Master that the sentinel names.
    pub sentinel_view: ServerId,
    news: BTreeSet<(u64, Option<ServerId>, Subject)>,
    environment: Environment,
    next_connection: ConnectionId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportState {
    Open,
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NextEvent {
    News,
    Rejoin(ServerId),
    Command(ConnectionId),
}

impl Servers {
    pub fn new(settings: SimulatedRedisSettings, environment: Environment) -> Self {
        let masters = settings.topology.masters();
        let slots = usize::from(SLOTS);
        let shard_of =
            |slot| (0..masters).rfind(|shard| shard * slots / masters <= slot).expect("the first begins at 0");
        let shards = (0..slots).map(shard_of);
        let truth = ClusterView { shards: shards.collect(), masters: (0..masters).collect() };
        let count = if settings.has_replicas { 2 * masters } else { masters };
        let servers = (0..count).map(|id| {
            let shard = id % masters;
            let (role, name) = if id < masters {
                (ServerRole::Master, format!("redis-{shard}"))
            } else {
                (ServerRole::Replica, format!("redis-{shard}-replica"))
            };
            let has_replica = settings.has_replicas && role == ServerRole::Master;
            Server {
                address: ServerAddress { host: name, port: PORT },
                shard,
                role,
                life: ServerLife::Running,
                keyspace: Keyspace::default(),
                history: History::default(),
                replica: if has_replica { ReplicaLink::Connected } else { ReplicaLink::Absent },
                scan_seed: environment.random_u64(),
                stalled_until_ns: 0,
                condition: None,
                isolated_until_ns: None,
                view: truth.clone(),
            }
        });
        let servers: Vec<Server> = servers.collect();
        let sentinel_view = truth.masters[0];
        Self {
            topology: settings.topology,
            rates: settings.rates,
            settings,
            servers,
            connections: BTreeMap::new(),
            truth,
            moves: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            transports: Vec::new(),
            sentinel_view,
            news: BTreeSet::new(),
            environment,
            next_connection: 0,
        }
    }

    pub fn random(&self) -> u64 {
        self.environment.random_u64()
    }

    /// Whether something happens that happens `per_million` times in a million.
    pub fn happens(&self, per_million: u32) -> bool {
        per_million > 0 && self.random() % 1_000_000 < u64::from(per_million)
    }

    /// Random duration below `max`, in nanoseconds.
    pub fn random_ns(&self, max: Duration) -> u64 {
        let max = nanos(max);
        if max == 0 { 0 } else { self.random() % max }
    }

    pub fn master(&self, shard: ShardIndex) -> ServerId {
        self.truth.masters[shard]
    }

    /// Server of the shard that is not its master.
    pub fn replica(&self, shard: ShardIndex) -> Option<ServerId> {
        let master = self.master(shard);
        (0..self.servers.len()).find(|id| self.servers[*id].shard == shard && *id != master)
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.topology, SimulatedTopology::Cluster { .. })
    }

    /// Server at an address; none: the address is unknown.
    pub fn peer_at(&self, host: &str, port: u16) -> Option<Peer> {
        if self.topology == SimulatedTopology::Sentinel && (host, port) == ("sentinel", SENTINEL_PORT) {
            return Some(Peer::Sentinel);
        }
        if self.topology == SimulatedTopology::Standalone && (host, port) == ("redis-0", PORT) {
            // A name that leads to whichever server is the master.
            return Some(Peer::Server(self.master(0)));
        }
        let at = self.servers.iter().position(|server| server.address.host == host && server.address.port == port);
        at.map(Peer::Server)
    }

    pub fn connect(&mut self, transport: TransportId, peer: Peer) -> (ConnectionId, Arc<Notify>) {
        self.next_connection += 1;
        let changed = Arc::new(Notify::new());
        let connection = Connection {
            peer,
            transport,
            queue: VecDeque::new(),
            last_number: 0,
            last_due_ns: 0,
            answers: BTreeMap::new(),
            has_client: true,
            asking: false,
            last_write: None,
            changed: Arc::clone(&changed),
        };
        self.connections.insert(self.next_connection, connection);
        (self.next_connection, changed)
    }

    /// Puts the commands of a pipeline on their way; none: the connection is broken.
    pub fn send(&mut self, id: ConnectionId, commands: Vec<Vec<Vec<u8>>>, now_ns: u64) -> Option<SentPipeline> {
        let rates = self.rates;
        let mut due_ns = now_ns + self.random_ns(rates.latency_max);
        if self.happens(rates.slow_requests_per_million) {
            due_ns += self.random_ns(rates.slow_max);
        }
        let fates: Vec<CommandFate> = commands.iter().map(|_| self.draw_fate()).collect();
        let gaps: Vec<u64> = commands.iter().map(|_| self.random_ns(rates.gap_max)).collect();
        let answer_delay_ns = self.random_ns(rates.latency_max);
        let connection = self.connections.get_mut(&id).filter(|connection| connection.has_client)?;
        due_ns = due_ns.max(connection.last_due_ns);
        let first = connection.last_number + 1;
        for ((args, fate), gap_ns) in commands.into_iter().zip(fates).zip(gaps) {
            due_ns += gap_ns;
            connection.last_number += 1;
            let number = connection.last_number;
            connection.queue.push_back(QueuedCommand { number, due_ns, args, fate, wait_deadline_ns: None });
        }
        connection.last_due_ns = due_ns;
        Some(SentPipeline { first, last: connection.last_number, answer_delay_ns })
    }

    fn draw_fate(&self) -> CommandFate {
        if self.happens(self.rates.lost_requests_per_million) {
            CommandFate::RequestLost
        } else if self.happens(self.rates.lost_answers_per_million) {
            CommandFate::AnswerLost
        } else {
            CommandFate::Answered
        }
    }

    /// Takes the answers of a pipeline if all are there and have arrived.
    pub fn progress(&mut self, id: ConnectionId, sent: SentPipeline, now_ns: u64) -> Progress {
        let is_reached = self.is_reached(id);
        let stalled_until_ns = self.stalled_until_ns(id);
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.has_client) else {
            return Progress::Broken;
        };
        if !is_reached {
            return Progress::Waiting(u64::MAX);
        }
        let Some((_, answered_ns)) = connection.answers.get(&sent.last) else {
            let before = connection.queue.iter().take_while(|command| command.number <= sent.last);
            return Progress::Waiting(before.map(|command| command.due_ns).fold(stalled_until_ns, u64::max));
        };
        let arrival_ns = answered_ns + sent.answer_delay_ns;
        if arrival_ns > now_ns {
            return Progress::Waiting(arrival_ns);
        }
        let answers =
            (sent.first..=sent.last).map(|number| connection.answers.remove(&number).expect("answered in order").0);
        Progress::Answered(answers.collect())
    }

    fn is_reached(&self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get(&id) else { return false };
        match connection.peer {
            Peer::Server(server) => !self.unreachable.contains(&(connection.transport, server)),
            Peer::Sentinel => true,
        }
    }

    fn stalled_until_ns(&self, id: ConnectionId) -> u64 {
        match self.connections.get(&id).map(|connection| connection.peer) {
            Some(Peer::Server(server)) => self.servers[server].stalled_until_ns,
            _ => 0,
        }
    }

    /// Lets everything happen that is due, in order.
    pub fn advance(&mut self, now_ns: u64) {
        while let Some((at_ns, event)) = self.next_event().filter(|(at_ns, _)| *at_ns <= now_ns) {
            match event {
                NextEvent::News => {
                    let (_, server, subject) = self.news.pop_first().expect("it is next");
                    self.hear(server, subject);
                }
                NextEvent::Rejoin(server) => self.rejoin(server),
                NextEvent::Command(connection) => self.execute_next(connection, at_ns),
            }
        }
        for server in &mut self.servers {
            server.history.prune(now_ns);
        }
    }

    fn next_event(&self) -> Option<(u64, NextEvent)> {
        let news = self.news.first().map(|(at_ns, ..)| (*at_ns, NextEvent::News));
        let ends = self.servers.iter().enumerate();
        let ends = ends.filter_map(|(id, server)| Some((server.isolated_until_ns?, NextEvent::Rejoin(id))));
        let commands =
            self.connections.iter().filter(|(id, _)| self.is_reached(**id)).filter_map(|(id, connection)| {
                let due_ns = connection.queue.front()?.due_ns;
                Some((due_ns.max(self.stalled_until_ns(*id)), NextEvent::Command(*id)))
            });
        news.into_iter().chain(ends).chain(commands).min()
    }

    fn execute_next(&mut self, id: ConnectionId, now_ns: u64) {
        let connection = self.connections.get_mut(&id).expect("it has a command");
        let mut command = connection.queue.pop_front().expect("it has a command");
        if command.fate == CommandFate::RequestLost && connection.has_client {
            connection.queue.clear();
            self.close(id, now_ns);
            return;
        }
        match self.execute(id, &mut command, now_ns) {
            Execution::Later(at_ns) => {
                let connection = self.connections.get_mut(&id).expect("nothing closed it");
                command.due_ns = at_ns;
                connection.queue.push_front(command);
                return;
            }
            Execution::Done(reply) => {
                let connection = self.connections.get_mut(&id).expect("nothing closed it");
                if connection.has_client {
                    connection.answers.insert(command.number, (reply, now_ns));
                }
            }
        }
        if command.fate == CommandFate::AnswerLost {
            self.close(id, now_ns);
        }
        self.remove_if_finished(id);
    }

    fn remove_if_finished(&mut self, id: ConnectionId) {
        if self.connections.get(&id).is_some_and(|connection| !connection.has_client && connection.queue.is_empty()) {
            self.connections.remove(&id);
        }
    }

    /// Ends a connection. What is on its way may still be executed, and nobody gets the answers.
    pub fn close(&mut self, id: ConnectionId, now_ns: u64) {
        let is_late = self.happens(self.rates.late_requests_per_million);
        let late_ns = self.random_ns(self.rates.late_max);
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.has_client) else { return };
        connection.has_client = false;
        connection.answers.clear();
        if is_late {
            for command in &mut connection.queue {
                command.due_ns = command.due_ns.max(now_ns) + late_ns;
                command.fate = CommandFate::Answered;
            }
        } else {
            connection.queue.clear();
        }
        connection.changed.notify_waiters();
        self.remove_if_finished(id);
    }

    /// Ends the connections to a server.
    pub fn close_all(&mut self, server: ServerId, now_ns: u64) {
        let to_server = self.connections.iter().filter(|(_, connection)| connection.peer == Peer::Server(server));
        let ids: Vec<ConnectionId> = to_server.map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id, now_ns);
        }
    }

    /// Changes the keys of a server, as one write.
    pub fn write<T>(
        &mut self,
        server: ServerId,
        now_ns: u64,
        change: impl FnOnce(&mut Transaction<'_>) -> T,
    ) -> (T, Option<u64>) {
        let replication_ns = self.random_ns(self.rates.replication_lag_max);
        let sync_ns = self.random_ns(self.rates.sync_lag_max);
        let server = &mut self.servers[server];
        let mut transaction = Transaction::new(&mut server.keyspace);
        let result = change(&mut transaction);
        let recorded = Recorded::from(transaction);
        let replicated_ns = (server.replica == ReplicaLink::Connected).then_some(now_ns + replication_ns);
        (result, server.history.record(recorded, replicated_ns, now_ns + sync_ns))
    }

    /// Lets these servers know now and all others after a while.
    pub fn announce(&mut self, subject: Subject, knowing: &[ServerId], now_ns: u64) {
        for server in 0..self.servers.len() {
            if knowing.contains(&server) {
                self.hear(Some(server), subject);
            } else {
                let at_ns = now_ns + self.random_ns(self.rates.gossip_max);
                self.news.insert((at_ns, Some(server), subject));
            }
        }
        let at_ns = now_ns + self.random_ns(self.rates.gossip_max);
        self.news.insert((at_ns, None, subject));
    }

    fn hear(&mut self, server: Option<ServerId>, subject: Subject) {
        let Some(server) = server else {
            self.sentinel_view = self.truth.masters[0];
            return;
        };
        if self.servers[server].isolated_until_ns.is_some() {
            return;
        }
        match subject {
            Subject::Slot(slot) => {
                self.servers[server].view.shards[usize::from(slot)] = self.truth.shards[usize::from(slot)];
            }
            Subject::Master(shard) => self.servers[server].view.masters[shard] = self.truth.masters[shard],
        }
    }

    /// Makes a server that was replaced the replica of its successor.
    pub fn rejoin(&mut self, id: ServerId) {
        let master = self.master(self.servers[id].shard);
        if master == id {
            self.servers[id].isolated_until_ns = None;
            return;
        }
        let keyspace = self.servers[master].keyspace.clone();
        let server = &mut self.servers[id];
        server.isolated_until_ns = None;
        server.role = ServerRole::Replica;
        server.replica = ReplicaLink::Absent;
        server.keyspace = keyspace;
        server.history.clear();
        server.view = self.truth.clone();
        let master = &mut self.servers[master];
        master.replica = ReplicaLink::Connected;
        // The replica begins with a copy of everything.
        master.history.replicate_all(0);
    }
}

pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Slot of a key: that of its tag, if it has one.
pub fn key_slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    slot_of(tag.unwrap_or(key))
}
