//! Transport: how commands reach a server. The rest of the store is the same over sockets and in a simulation.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, Pipeline,
    RedisConnectionInfo, RedisResult, TlsCertificates, Value,
};

/// Way by which a store reaches its servers.
pub trait RedisTransport: Send + Sync + 'static {
    /// Connects and authenticates. Connecting takes at most `limit`, and so does each pipeline later: a timeout is an error
    /// of the connection.
    fn connect<'a>(
        &'a self,
        address: &'a ConnectionAddr,
        login: &'a RedisConnectionInfo,
        limit: Duration,
    ) -> BoxFuture<'a, RedisResult<Arc<dyn ServerConnection>>>;
}

/// Connection to one server, which executes all commands in the order in which they were sent. Dropping the last handle ends
/// the connection: outstanding commands may still be executed, but their answers are lost.
pub trait ServerConnection: Send + Sync + 'static {
    /// Sends the commands of a pipeline and returns their answers in order. After an error of the connection each of them may
    /// have been executed or not.
    fn send<'a>(&'a self, pipeline: &'a Pipeline) -> BoxFuture<'a, RedisResult<Vec<RedisResult<Value>>>>;
}

/// Sends one command and returns its answer.
pub(super) async fn query(connection: &dyn ServerConnection, command: Cmd) -> RedisResult<Value> {
    let mut pipeline = Pipeline::with_capacity(1);
    pipeline.ignore_errors().add_command(command);
    let unanswered = || Err((ErrorKind::UnexpectedReturnType, "the command got no answer").into());
    connection.send(&pipeline).await?.pop().unwrap_or_else(unanswered)
}

/// Transport over TCP, with or without TLS, and Unix sockets.
pub(super) struct SocketTransport {
    tls: Option<TlsCertificates>,
}

impl SocketTransport {
    pub const fn new(tls: Option<TlsCertificates>) -> Self {
        Self { tls }
    }
}

impl RedisTransport for SocketTransport {
    fn connect<'a>(
        &'a self,
        address: &'a ConnectionAddr,
        login: &'a RedisConnectionInfo,
        limit: Duration,
    ) -> BoxFuture<'a, RedisResult<Arc<dyn ServerConnection>>> {
        async move {
            let settings = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(limit))
                .set_response_timeout(Some(limit))
                // A pipeline is as long as a round of batches: the writer bounds it.
                .set_pipeline_buffer_size(1024);
            let info = address.clone().into_connection_info()?.set_redis_settings(login.clone());
            let client = match &self.tls {
                Some(files) => Client::build_with_tls(info, files.clone())?,
                None => Client::open(info)?,
            };
            let connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
            Ok(Arc::new(SocketConnection(connection)) as Arc<dyn ServerConnection>)
        }
        .boxed()
    }
}

struct SocketConnection(MultiplexedConnection);

impl ServerConnection for SocketConnection {
    fn send<'a>(&'a self, pipeline: &'a Pipeline) -> BoxFuture<'a, RedisResult<Vec<RedisResult<Value>>>> {
        let mut connection = self.0.clone();
        async move { pipeline.query_async(&mut connection).await }.boxed()
    }
}
