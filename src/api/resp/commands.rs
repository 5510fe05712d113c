//! All commands: arguments, and their description in `COMMAND`.

use super::frame::CommandArgs;
use super::reply_buffer::ReplyBuffer;
use crate::metrics::RespCommand;

/// Description of one command.
pub(super) struct CommandSpec {
    pub(super) command: RespCommand,
    /// Number of arguments including the name; negative: at least so many.
    arity: i8,
    /// Syntax of the arguments after the name.
    syntax: &'static str,
    summary: &'static str,
    group: &'static str,
    flags: &'static [&'static str],
}

const CLAIM: &str = "ns/pool [KEY key] [TENANT tenant] [AFFINITY word] [WAIT ms] [TTL ms] [RESERVE ms] \
                     [ACK memory|durable] [CPU milli] [MEM bytes] [SLOTS n] [GPU model n milli]";
const CLAIMS: &str = "n ns/pool [KEYS key...] [TENANT tenant] [AFFINITY word] [WAIT ms] [TTL ms] [RESERVE ms] \
                      [ACK memory|durable] [CPU milli] [MEM bytes] [SLOTS n] [GPU model n milli]";
const REGISTER: &str = "ns/pool id [CPU milli] [MEM bytes] [SLOTS n] [GPU model n] [NODE node] [LABEL name value...] \
                        [INCARNATION n] [EXPIRES unix_ms]";

const WRITE: &[&str] = &["write", "fast"];
const READ: &[&str] = &["readonly"];
const FAST: &[&str] = &["fast", "loading", "stale"];

/// Every command, the most frequent first.
pub(super) const ALL: &[CommandSpec] = &[
    spec(
        RespCommand::Claim,
        -2,
        CLAIM,
        "Claims a worker for a key, or returns the claim that the key has.",
        "hotpool",
        WRITE,
    ),
    spec(
        RespCommand::Release,
        -4,
        "ns key fence|* [TENANT tenant] [BEGIN|FINISH]",
        "Releases a claim: 1, or 0 if it was released already.",
        "hotpool",
        WRITE,
    ),
    spec(RespCommand::Claims, -3, CLAIMS, "Claims a worker for each of n keys.", "hotpool", WRITE),
    spec(
        RespCommand::Confirm,
        -4,
        "ns key fence [TENANT tenant]",
        "Activates a claim whose holder has started.",
        "hotpool",
        WRITE,
    ),
    spec(
        RespCommand::Renew,
        -4,
        "ns key fence [TTL ms] [TENANT tenant]",
        "Renews a claim and returns when it expires.",
        "hotpool",
        WRITE,
    ),
    spec(
        RespCommand::Register,
        -3,
        REGISTER,
        "Registers a worker: 1, or 0 if it was registered already.",
        "hotpool",
        WRITE,
    ),
    spec(
        RespCommand::Heartbeat,
        -3,
        "ns/pool id [INCARNATION n] [SEQ n] [CLAIMS n [tenant/]key fence...]",
        "Reports that a worker is alive and what it runs. Returns its claims, and those to stop.",
        "hotpool",
        WRITE,
    ),
    spec(RespCommand::Explain, -2, CLAIM, "Explains what a claim would get, without making it.", "hotpool", READ),
    spec(RespCommand::Pools, -1, "[LIMIT n] [AFTER ns/pool]", "Lists the pools with their counts.", "hotpool", READ),
    spec(
        RespCommand::Hello,
        -1,
        "[protover [AUTH username password] [SETNAME name]]",
        "Switches to RESP 2 or 3.",
        "connection",
        FAST,
    ),
    spec(RespCommand::Auth, -2, "[username] password", "Fails: clients are not authenticated.", "connection", FAST),
    spec(RespCommand::Ping, -1, "[message]", "Replies with PONG, or the message.", "connection", FAST),
    spec(RespCommand::Echo, 2, "message", "Replies with the message.", "connection", FAST),
    spec(RespCommand::Info, -1, "[section...]", "Describes the service and its readiness.", "server", FAST),
    spec(RespCommand::Command, -1, "[COUNT|LIST|INFO|DOCS] [name...]", "Describes the commands.", "server", FAST),
    spec(RespCommand::Config, -2, "GET name...", "Returns settings that clients query.", "server", FAST),
    spec(
        RespCommand::Client,
        -2,
        "ID|GETNAME|SETNAME|SETINFO|LIST|INFO [value...]",
        "Returns or sets the connection's id and name.",
        "connection",
        FAST,
    ),
    spec(RespCommand::Select, 2, "0", "Selects the only database.", "connection", FAST),
    spec(RespCommand::Quit, 1, "", "Closes the connection.", "connection", FAST),
    spec(RespCommand::Reset, 1, "", "Resets the connection's state.", "connection", FAST),
    spec(RespCommand::Multi, 1, "", "Starts a transaction: queues the following commands.", "transactions", FAST),
    spec(RespCommand::Exec, 1, "", "Executes the commands queued since MULTI.", "transactions", FAST),
    spec(RespCommand::Discard, 1, "", "Discards the commands queued since MULTI.", "transactions", FAST),
    spec(RespCommand::Watch, -2, "key...", "Fails: keys cannot be watched.", "transactions", FAST),
    spec(RespCommand::Unwatch, 1, "", "Succeeds: no key is watched.", "transactions", FAST),
];

const fn spec(
    command: RespCommand,
    arity: i8,
    syntax: &'static str,
    summary: &'static str,
    group: &'static str,
    flags: &'static [&'static str],
) -> CommandSpec {
    CommandSpec { command, arity, syntax, summary, group, flags }
}

/// Finds a command by its name.
#[inline]
pub(super) fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    ALL.iter().find(|spec| name.eq_ignore_ascii_case(spec.name().as_bytes()))
}

impl CommandSpec {
    const fn name(&self) -> &'static str {
        self.command.as_str()
    }

    /// Whether the command accepts so many arguments.
    pub(super) const fn accepts_arity(&self, words: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= least } else { words == least }
    }

    /// Error text for a wrong number of arguments.
    #[cold]
    pub(super) fn usage(&self) -> String {
        let Self { syntax, .. } = self;
        let name = self.name();
        format!("wrong number of arguments for '{name}' command: {} {syntax}", name.to_uppercase())
    }

    /// Writes the entry of `COMMAND INFO`: name, arity, flags, no keys, and empty values for features that Hotpool does
    /// not have.
    fn info(&self, replies: &mut ReplyBuffer) {
        replies.array(10);
        replies.bulk_string(self.name());
        replies.json(&self.arity.into());
        replies.array(self.flags.len());
        self.flags.iter().for_each(|flag| replies.bulk_string(flag));
        (0..3).for_each(|_| replies.integer(0));
        (0..4).for_each(|_| replies.array(0));
    }

    /// Writes the entry of `COMMAND DOCS`.
    fn docs(&self, replies: &mut ReplyBuffer) {
        let words = syntax_parts(self.syntax);
        replies.bulk_string(self.name());
        replies.map(if words.is_empty() { 3 } else { 4 });
        for (name, value) in [("summary", self.summary), ("since", "0.1.0"), ("group", self.group)] {
            replies.bulk_string(name);
            replies.bulk_string(value);
        }
        if words.is_empty() {
            return;
        }
        replies.bulk_string("arguments");
        replies.array(words.len());
        for word in &words {
            let SyntaxPart { name, token, optional, multiple } = word;
            let flags: Vec<&str> =
                [(*optional, "optional"), (*multiple, "multiple")].into_iter().filter(|f| f.0).map(|f| f.1).collect();
            replies.map(2 + usize::from(token.is_some()) + usize::from(!flags.is_empty()));
            let mut pair = |name: &str, value: &str| {
                replies.bulk_string(name);
                replies.bulk_string(value);
            };
            pair("name", name);
            pair("type", "string");
            if let Some(token) = token {
                pair("token", token);
            }
            if !flags.is_empty() {
                replies.bulk_string("flags");
                replies.array(flags.len());
                flags.iter().for_each(|flag| replies.simple_string(flag));
            }
        }
    }
}

/// Part of a command's syntax.
struct SyntaxPart {
    name: String,
    token: Option<&'static str>,
    optional: bool,
    multiple: bool,
}

/// Splits a syntax into its parts: brackets mark an optional part, and a word in capitals inside is a literal.
fn syntax_parts(syntax: &'static str) -> Vec<SyntaxPart> {
    let mut parts: Vec<(&str, bool)> = Vec::new();
    let mut rest = syntax;
    while let Some(at) = rest.find(|c: char| c != ' ') {
        rest = &rest[at..];
        // Nested brackets belong to the part around them.
        let mut depth = 0_usize;
        let end = rest.find(|c: char| {
            depth = (depth + usize::from(c == '[')).saturating_sub(usize::from(c == ']'));
            depth == 0 && c == ' '
        });
        let part = &rest[..end.unwrap_or(rest.len())];
        rest = &rest[part.len()..];
        match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
            Some(part) => parts.push((part, true)),
            None => parts.push((part, false)),
        }
    }
    let word = |(part, optional): (&'static str, bool)| {
        let is_token = |first: &str| optional && first.bytes().all(|byte| byte.is_ascii_uppercase());
        let (token, name) = match part.split_once(' ') {
            Some((first, rest)) if is_token(first) => (Some(first), rest),
            _ => (None, part),
        };
        let (name, multiple) = name.strip_suffix("...").map_or((name, false), |name| (name, true));
        SyntaxPart { name: name.to_owned(), token, optional, multiple }
    };
    parts.into_iter().map(word).collect()
}

/// Reason why a `COMMAND` is rejected.
pub(super) enum CommandQueryError {
    /// Subcommand of `COMMAND` is unknown.
    Subcommand,
    /// Number of repeated or known names, which would make the reply arbitrarily long.
    Names(usize),
}

/// Replies to `COMMAND` and its subcommands.
pub(super) fn write_command_reply(args: &CommandArgs<'_>, replies: &mut ReplyBuffer) -> Result<(), CommandQueryError> {
    let Some(verb) = args.get(1) else {
        replies.array(ALL.len());
        ALL.iter().for_each(|spec| spec.info(replies));
        return Ok(());
    };
    let named = || args.iter().skip(2);
    let all_or_named = || if args.len() > 2 { named().map(find).collect() } else { ALL.iter().map(Some).collect() };
    match verb.to_ascii_uppercase().as_slice() {
        b"COUNT" => replies.integer(ALL.len() as u64),
        b"LIST" => {
            replies.array(ALL.len());
            ALL.iter().for_each(|spec| replies.bulk_string(spec.name()));
        }
        b"INFO" => {
            let specs: Vec<Option<&CommandSpec>> = all_or_named();
            let known = specs.iter().flatten().count();
            if known > ALL.len() {
                return Err(CommandQueryError::Names(known));
            }
            replies.array(specs.len());
            for spec in specs {
                match spec {
                    Some(spec) => spec.info(replies),
                    None => replies.null(),
                }
            }
        }
        b"DOCS" => {
            let specs: Vec<Option<&CommandSpec>> = all_or_named();
            // Each key occurs once in a map.
            let mut known: Vec<&CommandSpec> = Vec::with_capacity(ALL.len());
            for spec in specs.into_iter().flatten() {
                if !known.iter().any(|other| std::ptr::eq(*other, spec)) {
                    known.push(spec);
                }
            }
            replies.map(known.len());
            known.iter().for_each(|spec| spec.docs(replies));
        }
        _ => return Err(CommandQueryError::Subcommand),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_there_once_and_found_in_any_case() {
        for command in RespCommand::ALL {
            let specs = ALL.iter().filter(|spec| spec.command == *command).count();
            assert_eq!(specs, usize::from(*command != RespCommand::Unknown), "{}", command.as_str());
        }
        assert!(find(b"cLaIm").is_some_and(|spec| spec.command == RespCommand::Claim));
        assert!(find(b"unknown").is_none() && find(b"CLAI").is_none() && find(b"").is_none());
    }

    #[test]
    fn a_syntax_is_taken_apart() {
        let said: Vec<String> =
            syntax_parts("ns/pool id [GPU model n] [CLAIMS n [tenant/]key fence...] [BEGIN|FINISH]")
                .into_iter()
                .map(|SyntaxPart { name, token, optional, multiple }| {
                    format!("{} {name} {optional} {multiple}", token.unwrap_or("-"))
                })
                .collect();
        assert_eq!(
            said,
            [
                "- ns/pool false false",
                "- id false false",
                "GPU model n true false",
                "CLAIMS n [tenant/]key fence true true",
                "- BEGIN|FINISH true false"
            ]
        );
    }
}
