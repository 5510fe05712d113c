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
    spec(RespCommand::Claim, -2, CLAIM, "Takes a worker for a key, or finds the one that it has.", "hotpool", WRITE),
    spec(
        RespCommand::Release,
        -4,
        "ns key fence|* [TENANT tenant] [BEGIN|FINISH]",
        "Gives a worker back: 1, or 0 if it was given back already.",
        "hotpool",
        WRITE,
    ),
    spec(RespCommand::Claims, -3, CLAIMS, "Takes a worker for each of n keys.", "hotpool", WRITE),
    spec(
        RespCommand::Confirm,
        -4,
        "ns key fence [TENANT tenant]",
        "The holder has started: the claim is active.",
        "hotpool",
        WRITE,
    ),
    spec(
        RespCommand::Renew,
        -4,
        "ns key fence [TTL ms] [TENANT tenant]",
        "The holder still needs it. Says when the claim ends.",
        "hotpool",
        WRITE,
    ),
    spec(RespCommand::Register, -3, REGISTER, "A worker is there: 1, or 0 if it was known.", "hotpool", WRITE),
    spec(
        RespCommand::Heartbeat,
        -3,
        "ns/pool id [INCARNATION n] [SEQ n] [CLAIMS n [tenant/]key fence...]",
        "A worker is still there, and says what it runs. Says what it should run, and what not.",
        "hotpool",
        WRITE,
    ),
    spec(RespCommand::Explain, -2, CLAIM, "What a claim would get, and why. Takes nothing.", "hotpool", READ),
    spec(RespCommand::Pools, -1, "[LIMIT n] [AFTER ns/pool]", "The pools, with their figures.", "hotpool", READ),
    spec(
        RespCommand::Hello,
        -1,
        "[protover [AUTH username password] [SETNAME name]]",
        "Speaks RESP 2 or 3 from now on.",
        "connection",
        FAST,
    ),
    spec(RespCommand::Auth, -2, "[username] password", "Is refused: nobody is asked.", "connection", FAST),
    spec(RespCommand::Ping, -1, "[message]", "Answers.", "connection", FAST),
    spec(RespCommand::Echo, 2, "message", "Answers with the same.", "connection", FAST),
    spec(RespCommand::Info, -1, "[section...]", "What the service is, and whether it is ready.", "server", FAST),
    spec(RespCommand::Command, -1, "[COUNT|LIST|INFO|DOCS] [name...]", "The commands that there are.", "server", FAST),
    spec(RespCommand::Config, -2, "GET name...", "Settings that clients ask for.", "server", FAST),
    spec(
        RespCommand::Client,
        -2,
        "ID|GETNAME|SETNAME|SETINFO|LIST|INFO [value...]",
        "Number and name of the connection.",
        "connection",
        FAST,
    ),
    spec(RespCommand::Select, 2, "0", "There is one database.", "connection", FAST),
    spec(RespCommand::Quit, 1, "", "Ends the connection.", "connection", FAST),
    spec(RespCommand::Reset, 1, "", "As if connected anew.", "connection", FAST),
    spec(RespCommand::Multi, 1, "", "Queues the commands that follow.", "transactions", FAST),
    spec(RespCommand::Exec, 1, "", "Carries out the commands queued since MULTI.", "transactions", FAST),
    spec(RespCommand::Discard, 1, "", "Forgets the commands queued since MULTI.", "transactions", FAST),
    spec(RespCommand::Watch, -2, "key...", "Is refused: no keys are watched.", "transactions", FAST),
    spec(RespCommand::Unwatch, 1, "", "Answers: nothing is watched.", "transactions", FAST),
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
    fn info(&self, answers: &mut ReplyBuffer) {
        answers.array(10);
        answers.bulk_string(self.name());
        answers.json(&self.arity.into());
        answers.array(self.flags.len());
        self.flags.iter().for_each(|flag| answers.bulk_string(flag));
        (0..3).for_each(|_| answers.integer(0));
        (0..4).for_each(|_| answers.array(0));
    }

    /// Writes the entry of `COMMAND DOCS`.
    fn docs(&self, answers: &mut ReplyBuffer) {
        let words = syntax_parts(self.syntax);
        answers.bulk_string(self.name());
        answers.map(if words.is_empty() { 3 } else { 4 });
        for (name, value) in [("summary", self.summary), ("since", "0.1.0"), ("group", self.group)] {
            answers.bulk_string(name);
            answers.bulk_string(value);
        }
        if words.is_empty() {
            return;
        }
        answers.bulk_string("arguments");
        answers.array(words.len());
        for word in &words {
            let SyntaxPart { name, token, optional, multiple } = word;
            let flags: Vec<&str> =
                [(*optional, "optional"), (*multiple, "multiple")].into_iter().filter(|f| f.0).map(|f| f.1).collect();
            answers.map(2 + usize::from(token.is_some()) + usize::from(!flags.is_empty()));
            let mut pair = |name: &str, value: &str| {
                answers.bulk_string(name);
                answers.bulk_string(value);
            };
            pair("name", name);
            pair("type", "string");
            if let Some(token) = token {
                pair("token", token);
            }
            if !flags.is_empty() {
                answers.bulk_string("flags");
                answers.array(flags.len());
                flags.iter().for_each(|flag| answers.simple_string(flag));
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
    /// Subcommand is unknown.
    Subcommand,
    /// Number of repeated or known names, which would make the reply arbitrarily long.
    Names(usize),
}

/// Replies to `COMMAND` and its subcommands.
pub(super) fn write_command_reply(args: &CommandArgs<'_>, answers: &mut ReplyBuffer) -> Result<(), CommandQueryError> {
    let Some(verb) = args.get(1) else {
        answers.array(ALL.len());
        ALL.iter().for_each(|spec| spec.info(answers));
        return Ok(());
    };
    let named = || args.iter().skip(2);
    let all_or_named = || if args.len() > 2 { named().map(find).collect() } else { ALL.iter().map(Some).collect() };
    match verb.to_ascii_uppercase().as_slice() {
        b"COUNT" => answers.integer(ALL.len() as u64),
        b"LIST" => {
            answers.array(ALL.len());
            ALL.iter().for_each(|spec| answers.bulk_string(spec.name()));
        }
        b"INFO" => {
            let specs: Vec<Option<&CommandSpec>> = all_or_named();
            let known = specs.iter().flatten().count();
            if known > ALL.len() {
                return Err(CommandQueryError::Names(known));
            }
            answers.array(specs.len());
            for spec in specs {
                match spec {
                    Some(spec) => spec.info(answers),
                    None => answers.null(),
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
            answers.map(known.len());
            known.iter().for_each(|spec| spec.docs(answers));
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
