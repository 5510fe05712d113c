//! Commands that the store sends, as a server executes them.

use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::faults::ServerCondition;
use super::functions;
use super::keyspace::{HashFields, WrongType};
use super::scan;
use super::servers::{
    ConnectionId, Peer, QueuedCommand, ReplicaLink, SENTINEL_MASTER, ServerId, ServerRole, Servers, key_slot,
};

/// Answer of a server, or the text of its error.
pub type Reply = Result<Value, String>;

/// Effect of trying to execute a command.
pub enum Execution {
    Done(Reply),
    /// Command that blocks its connection until this time.
    Later(u64),
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const READ_ONLY: &str = "READONLY You can't write against a read only replica.";
const FULL: &str = "OOM command not allowed when used memory > 'maxmemory'.";
const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";

/// Turns a reply into what the library of the client makes of it.
pub fn parsed(reply: Reply) -> RedisResult<Value> {
    let error = match reply {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match redis::parse_redis_value(format!("-{error}\r\n").as_bytes())? {
        Value::ServerError(error) => Err(error.into()),
        other => Err(RedisError::from((ErrorKind::Parse, "not an error", format!("{other:?}")))),
    }
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn text(arg: &[u8]) -> &str {
    std::str::from_utf8(arg).expect("a word of a command")
}

impl Servers {
    /// Executes a command of a connection.
    ///
    /// # Panics
    /// The command is none that the store sends.
    pub fn execute(&mut self, id: ConnectionId, command: &mut QueuedCommand, now_ns: u64) -> Execution {
        let connection = self.connections.get_mut(&id).expect("it sent the command");
        let is_asking = std::mem::take(&mut connection.asking);
        let args = std::mem::take(&mut command.args);
        let name = text(&args[0]).to_ascii_uppercase();
        let Peer::Server(server) = connection.peer else { return Execution::Done(self.ask_sentinel(&name, &args)) };
        let reply = match (name.as_str(), args.get(1).map(|arg| text(arg).to_ascii_uppercase()).as_deref()) {
            ("INFO", Some("SERVER")) => Ok(self.info_server()),
            ("INFO", Some("REPLICATION")) => Ok(self.info_replication(server)),
            ("ASKING", _) if self.is_cluster() => {
                self.connections.get_mut(&id).expect("it sent the command").asking = true;
                Ok(Value::Okay)
            }
            ("CLUSTER", Some("SLOTS")) if self.is_cluster() => Ok(self.cluster_slots(server)),
            ("ASKING" | "CLUSTER", _) => Err(NO_CLUSTER.to_owned()),
            ("WAIT", _) => {
                let execution = self.wait_for_replica(id, server, &args, command, now_ns);
                command.args = args;
                return execution;
            }
            ("FCALL", _) => self.call_function(id, server, &args, is_asking, now_ns),
            ("FUNCTION", Some("LOAD")) => self.load_functions(id, server, &args[2], now_ns),
            ("HGETALL", _) => self.read(server, &args[1], is_asking, now_ns).map(|fields| {
                let words = fields.into_iter().flat_map(|(field, value)| [field, value]);
                Value::Array(words.map(Value::BulkString).collect())
            }),
            ("HSCAN", _) => self.scan(server, &args, is_asking, now_ns),
            _ => panic!("the simulated Redis does not know the command {name} {:?}", args.get(1).map(|arg| text(arg))),
        };
        Execution::Done(reply)
    }

    fn ask_sentinel(&self, name: &str, args: &[Vec<u8>]) -> Reply {
        match name {
            "INFO" => Ok(bulk("# Server\r\nredis_version:7.0.15\r\nredis_mode:sentinel\r\n")),
            "SENTINEL" if args[2] == SENTINEL_MASTER.as_bytes() => {
                let address = &self.servers[self.sentinel_view].address;
                Ok(Value::Array(vec![bulk(&address.host), bulk(&address.port.to_string())]))
            }
            "SENTINEL" => Ok(Value::Nil),
            _ => panic!("the simulated sentinel does not know the command {name}"),
        }
    }

    fn info_server(&self) -> Value {
        let mode = if self.is_cluster() { "cluster" } else { "standalone" };
        bulk(&format!("# Server\r\nredis_version:7.0.15\r\nredis_mode:{mode}\r\n"))
    }

    fn info_replication(&self, server: ServerId) -> Value {
        let server = &self.servers[server];
        bulk(&match server.role {
            ServerRole::Master => {
                let replicas = u8::from(server.replica != ReplicaLink::Absent);
                format!("# Replication\r\nrole:master\r\nconnected_slaves:{replicas}\r\n")
            }
            ServerRole::Replica => "# Replication\r\nrole:slave\r\nconnected_slaves:0\r\n".to_owned(),
        })
    }

    /// Ranges of slots with their masters and replicas, as the server knows them.
    fn cluster_slots(&self, server: ServerId) -> Value {
        let view = &self.servers[server].view;
        let node = |id: ServerId| {
            let address = &self.servers[id].address;
            Value::Array(vec![bulk(&address.host), Value::Int(address.port.into()), bulk(&format!("id-{id}"))])
        };
        let mut ranges = Vec::new();
        let mut from = 0;
        while from < view.shards.len() {
            let shard = view.shards[from];
            let length = view.shards[from..].iter().take_while(|other| **other == shard).count();
            let last = from + length - 1;
            let slot = |slot: usize| Value::Int(i64::try_from(slot).expect("a slot"));
            let master = view.masters[shard];
            let others = (0..self.servers.len()).filter(|id| self.servers[*id].shard == shard && *id != master);
            let nodes = std::iter::once(master).chain(others).map(node);
            ranges.push(Value::Array([slot(from), slot(last)].into_iter().chain(nodes).collect()));
            from = last + 1;
        }
        Value::Array(ranges)
    }

    /// Condition of a server at present, if it is one that ends this command.
    fn refusal(&self, server: ServerId, now_ns: u64) -> Option<ServerCondition> {
        self.servers[server].condition.filter(|(_, until_ns)| now_ns < *until_ns).map(|(condition, _)| condition)
    }

    /// Sends a command on keys to another server if it belongs there.
    fn route(&self, server: ServerId, keys: &[Vec<u8>], is_asking: bool, now_ns: u64) -> Result<(), String> {
        if self.is_cluster() {
            self.route_in_cluster(server, keys, is_asking, now_ns)?;
        }
        match self.refusal(server, now_ns) {
            Some(ServerCondition::Loading) => Err("LOADING Redis is loading the dataset in memory".to_owned()),
            Some(ServerCondition::Busy) => {
                Err("BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE."
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    fn route_in_cluster(&self, server: ServerId, keys: &[Vec<u8>], is_asking: bool, now_ns: u64) -> Result<(), String> {
        let Some(first) = keys.first() else { return Ok(()) };
        let slot = key_slot(first);
        assert!(keys.iter().all(|key| key_slot(key) == slot), "the keys of a call have one slot");
        if self.refusal(server, now_ns) == Some(ServerCondition::ClusterDown) {
            return Err("CLUSTERDOWN The cluster is down".to_owned());
        }
        let own = &self.servers[server];
        let shard = own.view.shards[usize::from(slot)];
        let redirect = |word: &str, to: ServerId| Err(format!("{word} {slot} {}", self.servers[to].address));
        let present = keys.iter().filter(|key| own.keyspace.keys().contains_key(*key)).count();
        let has_missing = present < keys.len();
        let try_again = || Err("TRYAGAIN Multiple keys request during rehashing of slot".to_owned());
        let destination = self.moves.get(&slot).copied();
        let is_owner = own.role == ServerRole::Master && own.view.masters[shard] == server;
        match destination {
            Some(to) if is_owner && shard != to && has_missing => {
                if present > 0 {
                    return try_again();
                }
                redirect("ASK", own.view.masters[to])
            }
            Some(to) if is_asking && own.role == ServerRole::Master && own.view.masters[to] == server => {
                let has_several = keys.iter().any(|key| key != first);
                if has_several && has_missing { try_again() } else { Ok(()) }
            }
            _ if is_owner => Ok(()),
            _ => redirect("MOVED", own.view.masters[shard]),
        }
    }

    /// Refuses a write if the server takes none.
    fn may_write(&self, server: ServerId, allows_oom: AllowsOom, now_ns: u64) -> Result<(), String> {
        match self.refusal(server, now_ns) {
            _ if self.servers[server].role == ServerRole::Replica => Err(READ_ONLY.to_owned()),
            Some(ServerCondition::ReadOnly) => Err(READ_ONLY.to_owned()),
            Some(ServerCondition::Full) if allows_oom == AllowsOom::No => Err(FULL.to_owned()),
            Some(ServerCondition::NoReplicas) => Err("NOREPLICAS Not enough good replicas to write.".to_owned()),
            Some(ServerCondition::DiskError) => {
                Err("MISCONF Errors writing to the AOF file: No space left on device".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn call_function(
        &mut self,
        id: ConnectionId,
        server: ServerId,
        args: &[Vec<u8>],
        is_asking: bool,
        now_ns: u64,
    ) -> Reply {
        let count: usize = text(&args[2]).parse().expect("a number of keys");
        let (keys, args) = (&args[3..3 + count], (text(&args[1]), &args[3 + count..]));
        let (name, args) = args;
        self.route(server, keys, is_asking, now_ns)?;
        let libraries = self.servers[server].keyspace.libraries();
        let function = libraries.iter().find_map(|library| name.strip_prefix(library.as_str())?.strip_prefix('_'));
        let Some(function) = function else { return Err("ERR Function not found".to_owned()) };
        let allows_oom = if functions::allows_oom(function) { AllowsOom::Yes } else { AllowsOom::No };
        self.may_write(server, allows_oom, now_ns)?;
        let (reply, written) = self.write(server, now_ns, |keyspace| functions::call(function, keyspace, keys, args));
        self.note_write(id, written);
        reply
    }

    fn load_functions(&mut self, id: ConnectionId, server: ServerId, code: &[u8], now_ns: u64) -> Reply {
        self.route(server, &[], false, now_ns)?;
        self.may_write(server, AllowsOom::No, now_ns)?;
        let first_line = text(code).lines().next().unwrap_or_default();
        let name = first_line.strip_prefix("#!lua name=").expect("the name of a library");
        if self.servers[server].keyspace.libraries().contains(name) {
            return Err(format!("ERR Library '{name}' already exists"));
        }
        let ((), written) = self.write(server, now_ns, |keyspace| keyspace.add_library(name));
        self.note_write(id, written);
        Ok(bulk(name))
    }

    fn note_write(&mut self, id: ConnectionId, written: Option<u64>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.last_write = written.or(connection.last_write);
        }
    }

    fn read(&self, server: ServerId, key: &Vec<u8>, is_asking: bool, now_ns: u64) -> Result<HashFields, String> {
        self.route(server, std::slice::from_ref(key), is_asking, now_ns)?;
        match self.servers[server].keyspace.hash(key) {
            Ok(fields) => Ok(fields.cloned().unwrap_or_default()),
            Err(WrongType) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn scan(&self, server: ServerId, args: &[Vec<u8>], is_asking: bool, now_ns: u64) -> Reply {
        let [_, key, cursor, option, count] = args else { panic!("HSCAN with other arguments: {args:?}") };
        assert_eq!(option, b"COUNT", "the only option that the store uses");
        let count: usize = text(count).parse().expect("a number of fields");
        let Ok(cursor) = text(cursor).parse() else { return Err("ERR invalid cursor".to_owned()) };
        self.route(server, std::slice::from_ref(key), is_asking, now_ns)?;
        let Ok(fields) = self.servers[server].keyspace.hash(key) else { return Err(WRONG_TYPE.to_owned()) };
        let none = HashFields::new();
        let page = scan::page(fields.unwrap_or(&none), self.servers[server].scan_seed, cursor, count);
        let words = page.pairs.into_iter().flat_map(|(field, value)| [field, value]).map(Value::BulkString);
        Ok(Value::Array(vec![bulk(&page.cursor.to_string()), Value::Array(words.collect())]))
    }

    fn wait_for_replica(
        &self,
        id: ConnectionId,
        server: ServerId,
        args: &[Vec<u8>],
        command: &mut QueuedCommand,
        now_ns: u64,
    ) -> Execution {
        if self.servers[server].role == ServerRole::Replica {
            return Execution::Done(Err(match command.wait_deadline_ns {
                Some(_) => {
                    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
                }
                None => "ERR WAIT cannot be used with replica instances.",
            }
            .to_owned()));
        }
        let limit_ms: u64 = text(&args[2]).parse().expect("a number of milliseconds");
        let deadline_ns = *command.wait_deadline_ns.get_or_insert(now_ns + limit_ms * 1_000_000);
        let server = &self.servers[server];
        let last_write = self.connections.get(&id).and_then(|connection| connection.last_write);
        let arrival_ns = match (server.replica, last_write) {
            (ReplicaLink::Absent, _) => None,
            (_, None) => Some(0),
            (_, Some(write)) => server.history.replicated_ns(write),
        };
        match arrival_ns {
            Some(at_ns) if at_ns <= now_ns => Execution::Done(Ok(Value::Int(1))),
            _ if now_ns >= deadline_ns => Execution::Done(Ok(Value::Int(0))),
            Some(at_ns) => Execution::Later(at_ns.min(deadline_ns)),
            None => Execution::Later(deadline_ns),
        }
    }
}

/// Whether a write is made on a server without free memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AllowsOom {
    Yes,
    No,
}
