//! Session of a connection: protocol version, names and settings, which clients set up before their first claim.
//! Answered without the scheduler.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RespContext;
use super::command_batch::ConnectionEnd;
use super::commands::{self, CommandQueryError};
use super::frame::CommandArgs;
use super::parse_args::escape_for_message;
use super::reply_buffer::{ReplyBuffer, RespVersion};
use super::transaction::RespTransaction;
use crate::limits;
use crate::metrics::{RespCloseReason, RespCommand, RespOutcome};

/// Settings that clients query, with values that are true here: nothing is persisted the way Redis does it.
const SETTINGS: [(&str, &str); 3] = [("appendonly", "no"), ("databases", "1"), ("save", "")];

/// State of one connection's session.
pub(super) struct RespSession {
    id: u64,
    peer: SocketAddr,
    name: Box<str>,
    /// Commands that were queued since `MULTI`.
    pub(super) transaction: Option<Box<RespTransaction>>,
    /// Set when a `WATCH` was rejected: the transaction it was meant for must not be executed.
    watch_rejected: bool,
    /// Reason to end the connection once earlier commands are answered: `QUIT`, or a state that would mislead the
    /// client.
    pub(super) end: Option<ConnectionEnd>,
}

impl RespSession {
    pub(super) fn new(peer: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, peer, name: Box::default(), transaction: None, watch_rejected: false, end: None }
    }

    /// Answers a command about the connection or the service.
    pub(super) fn answer(
        &mut self,
        command: RespCommand,
        args: &CommandArgs<'_>,
        shared: &RespContext,
        replies: &mut ReplyBuffer,
    ) -> RespOutcome {
        match self.execute(command, args, shared, replies) {
            Ok(()) => RespOutcome::Ok,
            Err(SessionError { prefix, text }) => {
                replies.error(prefix, &text);
                RespOutcome::Error
            }
        }
    }

    fn execute(
        &mut self,
        command: RespCommand,
        args: &CommandArgs<'_>,
        shared: &RespContext,
        replies: &mut ReplyBuffer,
    ) -> Result<(), SessionError> {
        match (command, args.get(1)) {
            (RespCommand::Ping, None) => replies.simple_string("PONG"),
            (RespCommand::Ping, Some(_)) if args.len() > 2 => return Err(SessionError::wrong_arity("ping")),
            (RespCommand::Ping | RespCommand::Echo, message) => replies.bulk_string(message.unwrap_or_default()),
            (RespCommand::Hello, _) => self.hello(args, replies)?,
            (RespCommand::Auth, _) => return Err(SessionError::auth_unsupported()),
            (RespCommand::Info, _) => replies.bulk_string(info(shared)),
            (RespCommand::Command, _) => {
                commands::write_command_reply(args, replies).map_err(|error| match error {
                    CommandQueryError::Subcommand => SessionError::unknown_subcommand(args, "COUNT, LIST, INFO, DOCS"),
                    CommandQueryError::Names(names) => {
                        SessionError::new(format!("{names} names given: name each command once"))
                    }
                })?;
            }
            (RespCommand::Config, _) => settings(args, shared, replies)?,
            (RespCommand::Client, _) => self.client(args, replies)?,
            (RespCommand::Select, Some(b"0")) => replies.ok(),
            (RespCommand::Select, _) => {
                return Err(SessionError::new("DB index is out of range: only database 0 exists"));
            }
            (RespCommand::Quit, _) => {
                self.end = Some(ConnectionEnd::ClientGone);
                replies.ok();
            }
            (RespCommand::Reset, _) => {
                replies.version = RespVersion::Resp2;
                self.name = Box::default();
                (self.transaction, self.watch_rejected) = (None, false);
                replies.simple_string("RESET");
            }
            (RespCommand::Multi, _) if self.transaction.is_some() => {
                return Err(SessionError::new("MULTI calls can not be nested"));
            }
            (RespCommand::Multi, _) => {
                let transaction = match std::mem::take(&mut self.watch_rejected) {
                    true => RespTransaction::aborted(),
                    false => RespTransaction::default(),
                };
                self.transaction = Some(Box::new(transaction));
                replies.ok();
            }
            (RespCommand::Discard, _) => {
                self.transaction.take().ok_or_else(|| SessionError::new("DISCARD without MULTI"))?;
                replies.ok();
            }
            (RespCommand::Watch, _) if self.transaction.is_some() => {
                return Err(SessionError::new("WATCH inside MULTI is not allowed"));
            }
            (RespCommand::Watch, _) => {
                self.watch_rejected = true;
                return Err(SessionError::new(
                    "WATCH is not supported: there are no values to watch; the next EXEC will be discarded",
                ));
            }
            (RespCommand::Unwatch, _) => {
                self.watch_rejected = false;
                replies.ok();
            }
            _ => unreachable!("other commands go to the scheduler"),
        }
        Ok(())
    }

    /// Takes the commands that `EXEC` executes. `None`: an error was answered.
    pub(super) fn exec(&mut self, replies: &mut ReplyBuffer) -> Option<RespTransaction> {
        let Some(transaction) = self.transaction.take() else {
            replies.error("ERR", "EXEC without MULTI");
            return None;
        };
        let queued = transaction.exec();
        if queued.is_none() {
            replies.error("EXECABORT", "Transaction discarded because of previous errors.");
        }
        queued
    }

    fn hello(&mut self, args: &CommandArgs<'_>, replies: &mut ReplyBuffer) -> Result<(), SessionError> {
        let version = match args.get(1) {
            None => replies.version,
            Some(b"2") => RespVersion::Resp2,
            Some(b"3") => RespVersion::Resp3,
            Some(_) => {
                return Err(SessionError {
                    prefix: "NOPROTO",
                    text: "unsupported protocol version: use 2 or 3".into(),
                });
            }
        };
        let mut name = None;
        let mut at = 2;
        while let Some(option) = args.get(at) {
            if option.eq_ignore_ascii_case(b"SETNAME") {
                name = Some(client_name(args.get(at + 1))?);
                at += 2;
            } else if option.eq_ignore_ascii_case(b"AUTH") {
                return Err(SessionError::auth_unsupported());
            } else {
                return Err(SessionError::new(format!(
                    "syntax error in HELLO option '{}'",
                    escape_for_message(option)
                )));
            }
        }
        self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
        replies.version = version;
        replies.map(7);
        let mut pair = |name: &str, value: &str| {
            replies.bulk_string(name);
            replies.bulk_string(value);
        };
        pair("server", "hotpool");
        pair("version", env!("CARGO_PKG_VERSION"));
        pair("mode", "standalone");
        pair("role", "master");
        replies.bulk_string("proto");
        replies.integer(if replies.is_resp3() { 3 } else { 2 });
        replies.bulk_string("id");
        replies.integer(self.id);
        replies.bulk_string("modules");
        replies.array(0);
        Ok(())
    }

    fn client(&mut self, args: &CommandArgs<'_>, replies: &mut ReplyBuffer) -> Result<(), SessionError> {
        let verb = args.get(1).unwrap_or_default().to_ascii_uppercase();
        match (verb.as_slice(), args.len()) {
            (b"ID", 2) => replies.integer(self.id),
            (b"GETNAME", 2) if self.name.is_empty() => replies.null(),
            (b"GETNAME", 2) => replies.bulk_string(self.name.as_bytes()),
            (b"SETNAME", 3) => {
                self.name = client_name(args.get(2))?;
                replies.ok();
            }
            // The client library's name and version have no effect.
            (b"SETINFO", 4) => replies.ok(),
            (b"REPLY", 3) if args.get(2).is_some_and(|word| word.eq_ignore_ascii_case(b"ON")) => replies.ok(),
            (b"REPLY", 3) => {
                // A client that reads no replies would confuse the current ones with later ones.
                self.end = Some(ConnectionEnd::Closed(RespCloseReason::Protocol));
                return Err(SessionError::new(
                    "CLIENT REPLY is always ON: every command is answered; the connection ends",
                ));
            }
            (b"LIST" | b"INFO", _) => {
                let Self { id, peer, name, .. } = self;
                let resp = if replies.is_resp3() { 3 } else { 2 };
                replies.bulk_string(format!("id={id} addr={peer} name={name} db=0 resp={resp}\n"));
            }
            (b"ID" | b"GETNAME" | b"SETNAME" | b"SETINFO", _) => return Err(SessionError::wrong_arity("client")),
            _ => return Err(SessionError::unknown_subcommand(args, "ID, GETNAME, SETNAME, SETINFO, LIST, INFO")),
        }
        Ok(())
    }
}

/// Error outside of the error table: about the protocol, not about a claim.
pub(super) struct SessionError {
    pub(super) prefix: &'static str,
    pub(super) text: String,
}

impl SessionError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { prefix: "ERR", text: text.into() }
    }

    fn wrong_arity(command: &str) -> Self {
        Self::new(format!("wrong number of arguments for '{command}' command"))
    }

    fn unknown_subcommand(args: &CommandArgs<'_>, known: &str) -> Self {
        Self::new(format!(
            "unknown subcommand '{}'; known: {known}",
            escape_for_message(args.get(1).unwrap_or_default())
        ))
    }

    /// An operator who set a password for this service believes that it is checked.
    fn auth_unsupported() -> Self {
        Self::new("AUTH called without any password configured: this version does not authenticate clients")
    }
}

fn client_name(name: Option<&[u8]>) -> Result<Box<str>, SessionError> {
    let name = name.unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(text) if name.len() <= limits::NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic) => Ok(text.into()),
        _ => {
            Err(SessionError::new("client names are at most 255 bytes without spaces, newlines or special characters"))
        }
    }
}

fn settings(args: &CommandArgs<'_>, shared: &RespContext, replies: &mut ReplyBuffer) -> Result<(), SessionError> {
    if !args.get(1).unwrap_or_default().eq_ignore_ascii_case(b"GET") {
        return Err(SessionError::unknown_subcommand(args, "GET"));
    }
    let is_requested = |name: &str| {
        args.iter().skip(2).any(|pattern| pattern == b"*" || pattern.eq_ignore_ascii_case(name.as_bytes()))
    };
    // In seconds, as in Redis; 0 means no timeout.
    let idle_ms = shared.limits.idle.map_or(0, |idle| idle.as_millis());
    let timeout = idle_ms.div_ceil(1_000).to_string();
    let settings =
        || SETTINGS.into_iter().chain([("timeout", timeout.as_str())]).filter(|(name, _)| is_requested(name));
    replies.map(settings().count());
    for (name, value) in settings() {
        replies.bulk_string(name);
        replies.bulk_string(value);
    }
    Ok(())
}

/// Text of `INFO`, the same for every section.
fn info(shared: &RespContext) -> String {
    let readiness = shared.scheduler.readiness();
    let ready = u8::from(readiness.ready);
    format!(
        "# Server\r\nhotpool_version:{}\r\nredis_mode:standalone\r\nprocess_id:{}\r\n\
         # Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\n\
         # Persistence\r\nloading:{}\r\n\
         # Hotpool\r\nready:{ready}\r\nreasons:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        shared.limits.budget.used(),
        shared.limits.budget.max(),
        1 - ready,
        readiness.reasons.join("; "),
    )
}
