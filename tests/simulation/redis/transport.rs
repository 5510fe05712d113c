//! Way of one simulated process to the servers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Either, FutureExt as _, select};
use hotpool::environment::Environment;
use hotpool::persist::store::redis::{RedisTransport, ServerConnection};
use redis::{Arg, ConnectionAddr, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value};
use tokio::sync::Notify;

use super::SimulatedRedis;
use super::commands::parsed;
use super::servers::{
    ConnectionId, Peer, Progress, SentPipeline, ServerLife, Servers, ShardIndex, TransportId, TransportState,
};

/// Shortest time after which a connection is refused, so that no caller tries again in no time.
const REFUSAL: Duration = Duration::from_micros(100);

/// Connections of one process.
pub struct SimulatedTransport {
    redis: SimulatedRedis,
    environment: Environment,
    id: TransportId,
}

/// Result of an attempt to connect.
enum Attempt {
    Accepted(Peer, Duration),
    Refused(Duration),
    Silent,
}

impl SimulatedTransport {
    pub(super) fn new(redis: SimulatedRedis, environment: Environment) -> Self {
        let id = redis.at_present(|servers, _| {
            servers.transports.push(TransportState::Open);
            servers.transports.len() - 1
        });
        Self { redis, environment, id }
    }

    /// Ends the process: nothing that it sends from now on arrives. What is on its way may still be executed.
    pub fn cut(&self) {
        self.redis.at_present(|servers, now_ns| {
            servers.transports[self.id] = TransportState::Cut;
            let own = servers.connections.iter().filter(|(_, connection)| connection.transport == self.id);
            let ids: Vec<ConnectionId> = own.map(|(id, _)| *id).collect();
            for id in ids {
                servers.close(id, now_ns);
            }
        });
    }

    /// Lets nothing pass between the process and the present master of a shard. Connections stay open.
    pub fn block(&self, shard: ShardIndex) {
        self.redis.at_present(|servers, _| servers.unreachable.insert((self.id, servers.master(shard))));
    }

    /// Lets the process reach all servers again. What was held up arrives.
    pub fn unblock_all(&self) {
        self.redis.at_present(|servers, _| {
            servers.unreachable.retain(|(transport, _)| *transport != self.id);
            for connection in servers.connections.values() {
                connection.changed.notify_waiters();
            }
        });
    }

    fn attempt(&self, servers: &Servers, host: &str, port: u16) -> Attempt {
        if servers.transports[self.id] == TransportState::Cut {
            return Attempt::Silent;
        }
        let delay = Duration::from_nanos(servers.random_ns(2 * servers.rates.latency_max));
        let peer = servers.peer_at(host, port).unwrap_or_else(|| panic!("no simulated server is at {host}:{port}"));
        if let Peer::Server(server) = peer {
            if servers.unreachable.contains(&(self.id, server)) {
                return Attempt::Silent;
            }
            if matches!(servers.servers[server].life, ServerLife::Crashed(_)) {
                return Attempt::Refused(delay.max(REFUSAL));
            }
        }
        if servers.happens(servers.rates.refused_connections_per_million) {
            return Attempt::Refused(delay.max(REFUSAL));
        }
        Attempt::Accepted(peer, delay)
    }

    async fn sleep(&self, duration: Duration) {
        if !duration.is_zero() {
            self.environment.sleep(duration).await;
        }
    }
}

fn failure(kind: io::ErrorKind) -> RedisError {
    io::Error::from(kind).into()
}

impl RedisTransport for SimulatedTransport {
    fn connect<'a>(
        &'a self,
        address: &'a ConnectionAddr,
        _login: &'a RedisConnectionInfo,
        limit: Duration,
    ) -> BoxFuture<'a, RedisResult<Arc<dyn ServerConnection>>> {
        let ConnectionAddr::Tcp(host, port) = address else { panic!("a simulated server has no address {address}") };
        async move {
            self.environment.scheduling_point().await;
            let attempt = self.redis.at_present(|servers, _| self.attempt(servers, host, *port));
            let peer = match attempt {
                Attempt::Silent => {
                    self.sleep(limit).await;
                    return Err(failure(io::ErrorKind::TimedOut));
                }
                Attempt::Refused(delay) => {
                    self.sleep(delay).await;
                    return Err(failure(io::ErrorKind::ConnectionRefused));
                }
                Attempt::Accepted(peer, delay) => {
                    self.sleep(delay).await;
                    peer
                }
            };
            let connected = self.redis.at_present(|servers, _| match (servers.transports[self.id], peer) {
                (TransportState::Cut, _) => None,
                (TransportState::Open, Peer::Server(server)) if servers.servers[server].life != ServerLife::Running => {
                    None
                }
                (TransportState::Open, peer) => Some(servers.connect(self.id, peer)),
            });
            let (id, changed) = connected.ok_or_else(|| failure(io::ErrorKind::ConnectionReset))?;
            let (redis, environment) = (self.redis.clone(), self.environment.clone());
            Ok(Arc::new(SimulatedConnection { redis, environment, id, changed, limit }) as Arc<dyn ServerConnection>)
        }
        .boxed()
    }
}

/// Connection of a process to a server.
struct SimulatedConnection {
    redis: SimulatedRedis,
    environment: Environment,
    id: ConnectionId,
    changed: Arc<Notify>,
    limit: Duration,
}

impl SimulatedConnection {
    async fn answers(&self, sent: SentPipeline, begin_ns: u64) -> RedisResult<Vec<RedisResult<Value>>> {
        let deadline_ns = begin_ns + super::servers::nanos(self.limit);
        loop {
            let changed = self.changed.notified();
            futures::pin_mut!(changed);
            changed.as_mut().enable();
            let (progress, now_ns) =
                self.redis.at_present(|servers, now_ns| (servers.progress(self.id, sent, now_ns), now_ns));
            let until_ns = match progress {
                Progress::Answered(replies) => return Ok(replies.into_iter().map(parsed).collect()),
                Progress::Broken => return Err(failure(io::ErrorKind::ConnectionReset)),
                Progress::Waiting(_) if now_ns >= deadline_ns => return Err(failure(io::ErrorKind::TimedOut)),
                Progress::Waiting(until_ns) => until_ns.min(deadline_ns),
            };
            let pause = Duration::from_nanos(until_ns.saturating_sub(now_ns).max(1));
            match select(self.environment.sleep(pause), changed).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
    }
}

impl ServerConnection for SimulatedConnection {
    fn send<'a>(&'a self, pipeline: &'a Pipeline) -> BoxFuture<'a, RedisResult<Vec<RedisResult<Value>>>> {
        let argument = |arg: Arg<&[u8]>| match arg {
            Arg::Simple(arg) => arg.to_vec(),
            _ => panic!("a command with a cursor of the library"),
        };
        let commands = pipeline.cmd_iter().map(|cmd| cmd.args_iter().map(argument).collect()).collect();
        async move {
            self.environment.scheduling_point().await;
            let (sent, begin_ns) =
                self.redis.at_present(|servers, now_ns| (servers.send(self.id, commands, now_ns), now_ns));
            match sent {
                Some(sent) => self.answers(sent, begin_ns).await,
                None => Err(failure(io::ErrorKind::BrokenPipe)),
            }
        }
        .boxed()
    }
}

impl Drop for SimulatedConnection {
    fn drop(&mut self) {
        self.redis.at_present(|servers, now_ns| servers.close(self.id, now_ns));
    }
}
