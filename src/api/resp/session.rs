//! What clients say to each other before the first claim: protocol, names, settings. Answered on the spot.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use super::answer::Answers;
use super::commands::{self, WrongCommand};
use super::frame::Args;
use super::read::shown;
use super::run::End;
use super::transaction::Transaction;
use crate::limits;
use crate::metrics::{RespCommand, RespEnd, RespOutcome};

/// Settings that clients ask for, with what is true here: nothing is saved the way Redis does.
const SETTINGS: [(&str, &str); 3] = [("appendonly", "no"), ("databases", "1"), ("save", "")];

/// One connection's own.
pub(super) struct Session {
    id: u64,
    peer: SocketAddr,
    name: Box<str>,
    /// Commands that were queued since `MULTI`.
    pub(super) transaction: Option<Box<Transaction>>,
    /// A `WATCH` was refused: the transaction that it was meant for must not be carried out.
    unwatched: bool,
    /// Why it ends when what came before is answered: `QUIT` was said, or what would leave the client guessing.
    pub(super) over: Option<End>,
}

impl Session {
    pub(super) fn new(peer: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, peer, name: Box::default(), transaction: None, unwatched: false, over: None }
    }

    /// Answers a command that is about the connection or the service.
    pub(super) fn answer(
        &mut self,
        command: RespCommand,
        args: &Args<'_>,
        shared: &Shared,
        answers: &mut Answers,
    ) -> RespOutcome {
        match self.say(command, args, shared, answers) {
            Ok(()) => RespOutcome::Ok,
            Err(Wrong { word, text }) => {
                answers.error(word, &text);
                RespOutcome::Error
            }
        }
    }

    fn say(
        &mut self,
        command: RespCommand,
        args: &Args<'_>,
        shared: &Shared,
        answers: &mut Answers,
    ) -> Result<(), Wrong> {
        match (command, args.get(1)) {
            (RespCommand::Ping, None) => answers.simple("PONG"),
            (RespCommand::Ping, Some(_)) if args.len() > 2 => return Err(Wrong::arguments("ping")),
            (RespCommand::Ping | RespCommand::Echo, message) => answers.text(message.unwrap_or_default()),
            (RespCommand::Hello, _) => self.hello(args, answers)?,
            (RespCommand::Auth, _) => return Err(Wrong::nobody_is_asked()),
            (RespCommand::Info, _) => answers.text(info(shared)),
            (RespCommand::Command, _) => {
                commands::command(args, answers).map_err(|wrong| match wrong {
                    WrongCommand::Subcommand => Wrong::subcommand(args, "COUNT, LIST, INFO, DOCS"),
                    WrongCommand::Names(names) => Wrong::err(format!("{names} commands are named: name each once")),
                })?;
            }
            (RespCommand::Config, _) => settings(args, shared, answers)?,
            (RespCommand::Client, _) => self.client(args, answers)?,
            (RespCommand::Select, Some(b"0")) => answers.ok(),
            (RespCommand::Select, _) => return Err(Wrong::err("DB index is out of range: there is database 0")),
            (RespCommand::Quit, _) => {
                self.over = Some(End::Gone);
                answers.ok();
            }
            (RespCommand::Reset, _) => {
                answers.resp3 = false;
                self.name = Box::default();
                (self.transaction, self.unwatched) = (None, false);
                answers.simple("RESET");
            }
            (RespCommand::Multi, _) if self.transaction.is_some() => {
                return Err(Wrong::err("MULTI calls can not be nested"));
            }
            (RespCommand::Multi, _) => {
                let refused = std::mem::take(&mut self.unwatched);
                let begun = if refused { Transaction::refused() } else { Transaction::default() };
                self.transaction = Some(Box::new(begun));
                answers.ok();
            }
            (RespCommand::Discard, _) => {
                self.transaction.take().ok_or_else(|| Wrong::err("DISCARD without MULTI"))?;
                answers.ok();
            }
            (RespCommand::Watch, _) if self.transaction.is_some() => {
                return Err(Wrong::err("WATCH inside MULTI is not allowed"));
            }
            (RespCommand::Watch, _) => {
                self.unwatched = true;
                return Err(Wrong::err(
                    "WATCH is not supported: there are no values to watch; the next EXEC is refused",
                ));
            }
            (RespCommand::Unwatch, _) => {
                self.unwatched = false;
                answers.ok();
            }
            _ => unreachable!("the others go to the scheduler"),
        }
        Ok(())
    }

    /// Takes the commands that `EXEC` is to carry out. None: an error was answered.
    pub(super) fn exec(&mut self, answers: &mut Answers) -> Option<Transaction> {
        let Some(transaction) = self.transaction.take() else {
            answers.error("ERR", "EXEC without MULTI");
            return None;
        };
        let queued = transaction.exec();
        if queued.is_none() {
            answers.error("EXECABORT", "Transaction discarded because of previous errors.");
        }
        queued
    }

    fn hello(&mut self, args: &Args<'_>, answers: &mut Answers) -> Result<(), Wrong> {
        let resp3 = match args.get(1) {
            None => answers.resp3,
            Some(b"2") => false,
            Some(b"3") => true,
            Some(_) => return Err(Wrong { word: "NOPROTO", text: "unsupported protocol version: 2 or 3".into() }),
        };
        let mut name = None;
        let mut at = 2;
        while let Some(option) = args.get(at) {
            if option.eq_ignore_ascii_case(b"SETNAME") {
                name = Some(client_name(args.get(at + 1))?);
                at += 2;
            } else if option.eq_ignore_ascii_case(b"AUTH") {
                return Err(Wrong::nobody_is_asked());
            } else {
                return Err(Wrong::err(format!("syntax error in HELLO option '{}'", shown(option))));
            }
        }
        self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
        answers.resp3 = resp3;
        answers.map(7);
        let mut pair = |name: &str, value: &str| {
            answers.text(name);
            answers.text(value);
        };
        pair("server", "hotpool");
        pair("version", env!("CARGO_PKG_VERSION"));
        pair("mode", "standalone");
        pair("role", "master");
        answers.text("proto");
        answers.integer(if resp3 { 3 } else { 2 });
        answers.text("id");
        answers.integer(self.id);
        answers.text("modules");
        answers.array(0);
        Ok(())
    }

    fn client(&mut self, args: &Args<'_>, answers: &mut Answers) -> Result<(), Wrong> {
        let verb = args.get(1).unwrap_or_default().to_ascii_uppercase();
        match (verb.as_slice(), args.len()) {
            (b"ID", 2) => answers.integer(self.id),
            (b"GETNAME", 2) if self.name.is_empty() => answers.null(),
            (b"GETNAME", 2) => answers.text(self.name.as_bytes()),
            (b"SETNAME", 3) => {
                self.name = client_name(args.get(2))?;
                answers.ok();
            }
            // What library it is: nothing depends on it.
            (b"SETINFO", 4) => answers.ok(),
            (b"REPLY", 3) if args.get(2).is_some_and(|word| word.eq_ignore_ascii_case(b"ON")) => answers.ok(),
            (b"REPLY", 3) => {
                // A client that reads no answers would take those of now for those of later.
                self.over = Some(End::By(RespEnd::Protocol));
                return Err(Wrong::err("CLIENT REPLY is always ON: every command is answered; the connection ends"));
            }
            (b"LIST" | b"INFO", _) => {
                let Self { id, peer, name, .. } = self;
                let resp = if answers.resp3 { 3 } else { 2 };
                answers.text(format!("id={id} addr={peer} name={name} db=0 resp={resp}\n"));
            }
            (b"ID" | b"GETNAME" | b"SETNAME" | b"SETINFO", _) => return Err(Wrong::arguments("client")),
            _ => return Err(Wrong::subcommand(args, "ID, GETNAME, SETNAME, SETINFO, LIST, INFO")),
        }
        Ok(())
    }
}

/// An error that is not of the outcome table: of the protocol, not of a claim.
struct Wrong {
    word: &'static str,
    text: String,
}

impl Wrong {
    fn err(text: impl Into<String>) -> Self {
        Self { word: "ERR", text: text.into() }
    }

    fn arguments(command: &str) -> Self {
        Self::err(format!("wrong number of arguments for '{command}' command"))
    }

    fn subcommand(args: &Args<'_>, known: &str) -> Self {
        Self::err(format!("unknown subcommand '{}'; known: {known}", shown(args.get(1).unwrap_or_default())))
    }

    /// Who set a password for this service believes that it is asked for.
    fn nobody_is_asked() -> Self {
        Self::err("AUTH called without any password configured: this version asks nobody who they are")
    }
}

fn client_name(name: Option<&[u8]>) -> Result<Box<str>, Wrong> {
    let name = name.unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(text) if name.len() <= limits::NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic) => Ok(text.into()),
        _ => Err(Wrong::err("client names are at most 255 bytes without spaces, newlines or special characters")),
    }
}

fn settings(args: &Args<'_>, shared: &Shared, answers: &mut Answers) -> Result<(), Wrong> {
    if !args.get(1).unwrap_or_default().eq_ignore_ascii_case(b"GET") {
        return Err(Wrong::subcommand(args, "GET"));
    }
    let asked = |name: &str| {
        args.iter().skip(2).any(|pattern| pattern == b"*" || pattern.eq_ignore_ascii_case(name.as_bytes()))
    };
    // In seconds, as in Redis; 0: for ever.
    let idle_ms = shared.limits.idle.map_or(0, |idle| idle.as_millis());
    let timeout = idle_ms.div_ceil(1_000).to_string();
    let found = || SETTINGS.into_iter().chain([("timeout", timeout.as_str())]).filter(|(name, _)| asked(name));
    answers.map(found().count());
    for (name, value) in found() {
        answers.text(name);
        answers.text(value);
    }
    Ok(())
}

/// Whatever section is asked for: there is one page.
fn info(shared: &Shared) -> String {
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
