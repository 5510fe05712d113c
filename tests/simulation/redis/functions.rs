//! Functions of `library.lua`, in Rust. A number is a double and becomes text as Lua does it, so that what the store may rely
//! on is what Redis does.

use redis::Value;

use super::keyspace::{Transaction, WrongType};

/// Failure of a function, as the text of its error.
pub type FunctionResult = Result<Value, String>;

/// Whether a function runs on a server that is out of memory.
pub fn allows_oom(function: &str) -> bool {
    matches!(function, "drop" | "probe" | "take" | "renew")
}

/// Runs a function of the library.
///
/// # Panics
/// The library has no such function.
pub fn call(function: &str, keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> FunctionResult {
    let run = match function {
        "write_rows" => write_rows,
        "write_chunk" => write_chunk,
        "install" => install,
        "drop" => drop_shard,
        "probe" => probe,
        "take" => take,
        "renew" => renew,
        _ => panic!("the simulated Redis does not know the function {function}"),
    };
    run(keyspace, keys, args).map_err(|error| match error {
        FunctionError::WrongType => {
            format!("WRONGTYPE Operation against a key holding the wrong kind of value script: {function}")
        }
        FunctionError::NotAnInteger => format!("ERR hash value is not an integer script: {function}"),
    })
}

#[derive(Debug)]
enum FunctionError {
    WrongType,
    NotAnInteger,
}

impl From<WrongType> for FunctionError {
    fn from(WrongType: WrongType) -> Self {
        Self::WrongType
    }
}

type Outcome = Result<Value, FunctionError>;

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn answer(word: &str) -> Outcome {
    Ok(text(word))
}

/// Number of an argument that the store writes as one.
fn number(text: &[u8]) -> f64 {
    let text = std::str::from_utf8(text).expect("a number");
    text.parse().unwrap_or_else(|_| panic!("the store sent {text:?} for a number"))
}

/// Text of a number, with 14 significant digits as Lua writes it.
fn lua_text(number: f64) -> Vec<u8> {
    if number < 1e14 {
        return format!("{number}").into_bytes();
    }
    let (digits, exponent) =
        format!("{number:.13e}").split_once('e').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("an exponent");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}e+{exponent}").into_bytes()
}

/// Header of a side, as far as it can be read.
struct Header {
    epoch: f64,
    owner: Vec<u8>,
    /// State, number and generation; none: the header is of another version.
    body: Option<HeaderBody>,
    text: Vec<u8>,
}

struct HeaderBody {
    state: Vec<u8>,
    number: f64,
    digits: Vec<u8>,
    generation: Vec<u8>,
}

impl Header {
    fn parse(read: Vec<u8>) -> Option<Self> {
        let space = read.iter().position(|byte| *byte == b' ')?;
        let (epoch, rest) = (&read[..space], &read[space + 1..]);
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let (owner, rest) = (&rest[..space], &rest[space + 1..]);
        if epoch.is_empty() || !epoch.iter().all(u8::is_ascii_digit) || owner.is_empty() || rest.is_empty() {
            return None;
        }
        Some(Self { epoch: number(epoch), owner: owner.to_vec(), body: HeaderBody::parse(rest), text: read.clone() })
    }

    fn is_live(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.state == b"live")
    }
}

impl HeaderBody {
    fn parse(rest: &[u8]) -> Option<Self> {
        let words: Vec<&[u8]> = rest.split(|byte| *byte == b' ').collect();
        let [b"1", state, count, generation] = words.as_slice() else { return None };
        let is_number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        let is_word = !state.is_empty() && state.iter().all(u8::is_ascii_alphabetic);
        (is_word && is_number(count) && is_number(generation)).then(|| Self {
            state: state.to_vec(),
            number: number(count),
            digits: count.to_vec(),
            generation: generation.to_vec(),
        })
    }
}

/// Header of a side; none if the key is missing, of another type, or without a header that can be read.
fn header(keyspace: &Transaction<'_>, key: &[u8]) -> Option<Header> {
    keyspace.get(key, b"#").ok().flatten().and_then(Header::parse)
}

fn fenced(found: Option<&Header>, epoch: f64, owner: &[u8]) -> bool {
    found.is_some_and(|found| found.epoch > epoch || (found.epoch == epoch && found.owner != owner))
}

/// Whether one side is older than the other, which is live.
fn older(found: &Header, live: Option<&Header>) -> bool {
    let number_of = |header: &Header| header.body.as_ref().map_or(0.0, |body| body.number);
    live.filter(|live| live.is_live()).is_some_and(|live| {
        found.epoch < live.epoch || (found.epoch == live.epoch && number_of(found) < number_of(live))
    })
}

/// State of a side that its header will show.
struct SideState<'a> {
    epoch: &'a [u8],
    owner: &'a [u8],
    state: &'a str,
    number: &'a [u8],
    generation: &'a [u8],
}

fn write(keyspace: &mut Transaction<'_>, key: &[u8], side: &SideState<'_>, runs: &[Vec<u8>]) -> Result<(), WrongType> {
    let mut rest = runs;
    while let [kind, count, after @ ..] = rest {
        let (run, next) = after.split_at(number(count) as usize);
        if kind == b"P" {
            for pair in run.chunks(2) {
                keyspace.set(key, &pair[0], &pair[1])?;
            }
        } else {
            for field in run {
                keyspace.delete_field(key, field)?;
            }
        }
        rest = next;
    }
    let state = side.state.as_bytes();
    let header = [side.epoch, side.owner, b"1", state, side.number, side.generation].join(&b' ');
    keyspace.set(key, b"#", &header)
}

fn write_rows(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (key, epoch, owner) = (&keys[0], number(&args[0]), &args[1]);
    let found = header(keyspace, key);
    if fenced(found.as_ref(), epoch, owner) {
        return answer("fenced");
    }
    let Some(found) = found.filter(|found| found.epoch >= epoch && found.is_live()) else { return answer("gap") };
    let body = found.body.expect("live");
    let (from, to) = (number(&args[2]), number(&args[3]));
    if body.number < from {
        return answer("gap");
    }
    if to <= body.number {
        return answer("duplicate");
    }
    let side = SideState { epoch: &args[0], owner, state: "live", number: &args[3], generation: &body.generation };
    write(keyspace, key, &side, &args[4..])?;
    answer("ok")
}

/// Headers of the live side and of the other one; none if a later owner has written either.
fn unfenced_headers(
    keyspace: &mut Transaction<'_>,
    keys: &[Vec<u8>],
    epoch: f64,
    owner: &[u8],
) -> Option<[Option<Header>; 2]> {
    let headers = [header(keyspace, &keys[0]), header(keyspace, &keys[1])];
    (!headers.iter().any(|found| fenced(found.as_ref(), epoch, owner))).then_some(headers)
}

fn write_chunk(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (key, epoch, owner, generation) = (&keys[1], number(&args[0]), &args[1], &args[2]);
    let Some([live, found]) = unfenced_headers(keyspace, keys, epoch, owner) else { return answer("fenced") };
    let is_of_generation = |found: &Header| found.body.as_ref().is_some_and(|body| body.generation == *generation);
    let is_stale = |found: &Header| older(found, live.as_ref());
    if found.as_ref().is_some_and(|found| found.is_live() && !is_of_generation(found) && !is_stale(found)) {
        return answer("gap");
    }
    let (chunk, mut stored) = (number(&args[3]), 0.0);
    if let Some(found) = found.filter(|found| found.epoch == epoch && is_of_generation(found)) {
        let body = found.body.expect("of a generation");
        if body.state != b"new" || chunk < body.number {
            return answer("duplicate");
        }
        stored = body.number;
    }
    if chunk != stored {
        return answer("gap");
    }
    if chunk == 0.0 {
        keyspace.replace(key, None);
    }
    let next = lua_text(chunk + 1.0);
    let side = SideState { epoch: &args[0], owner, state: "new", number: &next, generation };
    write(keyspace, key, &side, &args[4..])?;
    answer("ok")
}

fn install(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (key, epoch, owner, generation) = (&keys[1], number(&args[0]), &args[1], &args[2]);
    let Some([live, found]) = unfenced_headers(keyspace, keys, epoch, owner) else { return answer("fenced") };
    let is_live = found.as_ref().is_some_and(|found| found.is_live() && !older(found, live.as_ref()));
    let ours = found.filter(|found| found.epoch == epoch).and_then(|found| found.body);
    let ours = ours.filter(|body| body.generation == *generation);
    if let Some(body) = ours.as_ref().filter(|body| body.state == b"live") {
        return answer(if body.number >= number(&args[4]) { "duplicate" } else { "gap" });
    }
    if is_live {
        return answer("gap");
    }
    let live = live.filter(|live| live.is_live() && live.epoch == epoch).and_then(|live| live.body);
    if live.is_some_and(|live| number(&live.generation) > number(generation)) {
        return answer("gap");
    }
    let stored = ours.map_or(0.0, |body| body.number);
    if stored != number(&args[3]) {
        return answer("gap");
    }
    if stored == 0.0 {
        keyspace.replace(key, None);
    }
    let side = SideState { epoch: &args[0], owner, state: "live", number: &args[4], generation };
    write(keyspace, key, &side, &args[5..])?;
    keyspace.replace(&keys[0], None);
    answer("ok")
}

fn drop_shard(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (epoch, owner) = (number(&args[0]), &args[1]);
    if keys.iter().any(|key| fenced(header(keyspace, key).as_ref(), epoch, owner)) {
        return answer("fenced");
    }
    let removed = keys.iter().filter(|key| keyspace.keyspace().keys().contains_key(*key)).count();
    for key in keys {
        keyspace.replace(key, None);
    }
    answer(if removed == 0 { "duplicate" } else { "ok" })
}

fn probe(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (epoch, owner) = (number(&args[0]), &args[1]);
    let bad = |key: &[u8], why: &str| {
        let mut detail = key.to_vec();
        detail.extend_from_slice(why.as_bytes());
        Ok(Value::Array(vec![text("bad"), Value::BulkString(detail)]))
    };
    let live_at = |keyspace: &Transaction<'_>, side: usize| {
        let fields = keyspace.keyspace().hash(&keys[side])?.expect("just written or read");
        let header = Value::BulkString(fields[&b"#"[..]].clone());
        let side = text(&(side + 1).to_string());
        Ok(Value::Array(vec![side, header, Value::Int(i64::try_from(fields.len()).expect("in memory"))]))
    };
    let mut live: Option<(usize, Header)> = None;
    for (side, key) in keys.iter().enumerate() {
        let found = header(keyspace, key);
        if epoch > 0.0 && fenced(found.as_ref(), epoch, owner) {
            let newer = found.expect("it fences").text;
            return Ok(Value::Array(vec![text("fenced"), Value::BulkString(newer)]));
        }
        let Some(found) = found else { continue };
        let is_new = found.body.as_ref().is_some_and(|body| body.state == b"new");
        if is_new && found.epoch < epoch {
            keyspace.replace(key, None);
        }
        let is_replaced = live
            .as_ref()
            .is_some_and(|(_, live)| live.body.is_some() && found.body.is_some() && older(&found, Some(live)));
        if (found.is_live() || found.body.is_none()) && !is_replaced {
            live = Some((side, found));
        }
    }
    let Some((side, found)) = live else {
        for key in keys {
            match keyspace.keyspace().hash(key) {
                Err(WrongType) => return bad(key, " is a string"),
                Ok(Some(_)) if header(keyspace, key).is_none() => return bad(key, " has no header that can be read"),
                Ok(_) => {}
            }
        }
        if epoch == 0.0 {
            return Ok(Value::Array(vec![text("none"), text("")]));
        }
        let side = SideState { epoch: &args[0], owner, state: "live", number: b"0", generation: b"0" };
        write(keyspace, &keys[0], &side, &[])?;
        return live_at(keyspace, 0);
    };
    let Some(body) = found.body else {
        let found = String::from_utf8_lossy(&found.text).into_owned();
        return bad(&keys[side], &format!(" has a header of another version: {found}"));
    };
    if epoch > found.epoch || (epoch == found.epoch && *owner != found.owner) {
        let state = SideState { epoch: &args[0], owner, state: "live", number: &body.digits, generation: b"0" };
        write(keyspace, &keys[side], &state, &[])?;
    }
    live_at(keyspace, side)
}

fn set_fields(keyspace: &mut Transaction<'_>, key: &[u8], fields: &[(&str, &Vec<u8>)]) -> Result<(), WrongType> {
    fields.iter().try_for_each(|(field, value)| keyspace.set(key, field.as_bytes(), value))
}

fn count_renewal(keyspace: &mut Transaction<'_>, key: &[u8]) -> Result<(), FunctionError> {
    let before = keyspace.get(key, b"beat")?.unwrap_or_else(|| b"0".to_vec());
    let before: Option<i64> = std::str::from_utf8(&before).ok().and_then(|text| text.parse().ok());
    let next = before.ok_or(FunctionError::NotAnInteger)? + 1;
    Ok(keyspace.set(key, b"beat", next.to_string().as_bytes())?)
}

fn take(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let key = &keys[0];
    let (beat, epoch) = (keyspace.get(key, b"beat")?, keyspace.get(key, b"epoch")?);
    if beat.unwrap_or_default() != args[2] || epoch.unwrap_or_default() != args[3] {
        return Ok(Value::Array(vec![text("changed"), text("")]));
    }
    let fields =
        [("owner", &args[0]), ("epoch", &args[1]), ("node", &args[4]), ("who", &args[5]), ("lease_ms", &args[6])];
    set_fields(keyspace, key, &fields)?;
    count_renewal(keyspace, key)?;
    let ceiling = keyspace.get(key, b"fence_ceiling")?.unwrap_or_else(|| b"0".to_vec());
    Ok(Value::Array(vec![text("ok"), Value::BulkString(ceiling)]))
}

fn renew(keyspace: &mut Transaction<'_>, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Outcome {
    let (key, epoch, may_create) = (&keys[0], number(&args[1]), args[6] == b"1");
    if keyspace.keyspace().hash(key).is_err() {
        if !may_create {
            return answer("missing");
        }
        keyspace.replace(key, None);
    }
    let owner = keyspace.get(key, b"owner")?;
    match keyspace.get(key, b"epoch")? {
        Some(theirs) => {
            let theirs = number(&theirs);
            if theirs > epoch || (theirs == epoch && owner.as_ref() != Some(&args[0])) {
                return answer("fenced");
            }
        }
        None if !may_create => return answer("missing"),
        None => {}
    }
    let zero = || b"0".to_vec();
    let ceiling = keyspace.get(key, b"fence_ceiling")?.unwrap_or_else(zero);
    let floor = keyspace.get(key, b"fence_floor")?.unwrap_or_else(zero);
    let fields =
        [("owner", &args[0]), ("epoch", &args[1]), ("node", &args[2]), ("who", &args[3]), ("lease_ms", &args[4])];
    set_fields(keyspace, key, &fields)?;
    if number(&args[5]) > number(&ceiling) {
        keyspace.set(key, b"fence_ceiling", &args[5])?;
    }
    if number(&args[7]) > number(&floor) {
        keyspace.set(key, b"fence_floor", &args[7])?;
    }
    count_renewal(keyspace, key)?;
    answer("ok")
}
