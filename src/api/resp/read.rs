//! From the words of a command to checked values. Where HTTP has the same request, it is filled in and checked there, so
//! that both edges refuse the same and name the same field.

use std::borrow::Cow;

use super::frame::Args;
use crate::api::error_table::Failure;
use crate::api::http::json::{ClaimBody, TENANT_DEFAULT, Text, fence, fresh_key};
use crate::limits;
use crate::model::{
    Ack, Beat, Capacity, ClaimId, ClaimRequest, Fence, GpuAsk, GpuCapacity, Millis, PoolName, Registration, Resources,
    RunningClaim, WorkerId, WorkerSpec, affinity_hash,
};

/// Longest word that an error says back, in bytes.
const ECHO_BYTES_MAX: usize = 64;

/// A word of the caller's, as an error can say it.
pub(super) fn shown(word: &[u8]) -> Cow<'_, str> {
    let shown = String::from_utf8_lossy(&word[..word.len().min(ECHO_BYTES_MAX)]);
    if word.len() > ECHO_BYTES_MAX { format!("{shown}...").into() } else { shown }
}

/// The words behind a command's name, one after the other.
pub(super) struct Words<'a> {
    args: Args<'a>,
    at: usize,
}

impl<'a> Words<'a> {
    pub(super) const fn new(args: Args<'a>) -> Self {
        Self { args, at: 1 }
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let word = self.args.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn required(&mut self, field: &'static str) -> Result<&'a [u8], Failure> {
        self.next().ok_or_else(|| Failure::invalid(field, "is required"))
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, Failure> {
        let word = self.required(field)?;
        std::str::from_utf8(word).map_err(|_| Failure::invalid(field, "must be UTF-8"))
    }

    /// A number. That it is at most `max` is for whoever takes it to see, as over HTTP.
    fn number(&mut self, field: &'static str, max: u64) -> Result<u64, Failure> {
        let word = self.required(field)?;
        let add = |sum: u64, digit: &u8| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        };
        let number = if word.is_empty() { None } else { word.iter().try_fold(0, add) };
        number
            .ok_or_else(|| Failure::invalid(field, format!("must be a whole number, 0..={max}, got {:?}", shown(word))))
    }

    /// How many of something follow, or there may be.
    fn count(&mut self, field: &'static str, max: usize) -> Result<usize, Failure> {
        let count = self.number(field, max as u64)?;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(Failure::invalid(field, format!("must be a whole number, 0..={max}, got {count}"))),
        }
    }

    /// A number that is kept in 32 bits; a larger one is too large for whoever takes it.
    fn small(&mut self, field: &'static str, max: u32) -> Result<u32, Failure> {
        Ok(u32::try_from(self.number(field, max.into())?).unwrap_or(u32::MAX))
    }

    /// `ns/pool`, its parts still to be checked.
    fn place(&mut self) -> Result<(&'a str, &'a str), Failure> {
        self.text("pool")?.split_once('/').ok_or_else(|| Failure::invalid("pool", "must be namespace/pool"))
    }

    fn pool(&mut self) -> Result<PoolName, Failure> {
        let (namespace, pool) = self.place()?;
        Ok(PoolName::new(namespace, pool)?)
    }

    /// The next option, if there is one.
    fn option<O: Copy>(&mut self, known: &[(&'static str, O)]) -> Result<Option<O>, Failure> {
        let Some(word) = self.next() else { return Ok(None) };
        match known.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())) {
            Some(&(_, option)) => Ok(Some(option)),
            None => Err(unknown(word, known)),
        }
    }
}

#[cold]
fn unknown<O>(word: &[u8], known: &[(&'static str, O)]) -> Failure {
    let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    Failure::invalid(shown(word).into_owned(), format!("unknown option; known: {}", known.join(", ")))
}

/// Fills a field that may be given once.
fn set<T>(slot: &mut Option<T>, field: &'static str, value: T) -> Result<(), Failure> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Failure::invalid(field, "is given twice")),
    }
}

const fn text(word: &str) -> Text<'_> {
    Text(Cow::Borrowed(word))
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Key,
    Keys,
    Tenant,
    Affinity,
    Wait,
    Ttl,
    Reserve,
    Ack,
    Cpu,
    Mem,
    Slots,
    Gpu,
}

const CLAIM: [(&str, Of); 11] = [
    ("KEY", Of::Key),
    ("TENANT", Of::Tenant),
    ("AFFINITY", Of::Affinity),
    ("WAIT", Of::Wait),
    ("TTL", Of::Ttl),
    ("RESERVE", Of::Reserve),
    ("ACK", Of::Ack),
    ("CPU", Of::Cpu),
    ("MEM", Of::Mem),
    ("SLOTS", Of::Slots),
    ("GPU", Of::Gpu),
];

/// The same for many.
const CLAIMS: [(&str, Of); 11] = {
    let mut options = CLAIM;
    options[0] = ("KEYS", Of::Keys);
    options
};

/// `CLAIM ns/pool ...`, also behind `EXPLAIN`.
pub(super) fn claim(args: Args<'_>) -> Result<ClaimRequest, Failure> {
    if let Some(plain) = plain(args) {
        return plain;
    }
    claim_body(&mut Words::new(args), &CLAIM, &mut Vec::new(), 0)?.request()
}

/// `CLAIM ns/pool` and `CLAIM ns/pool KEY k`, which most are, without the way past all that a claim may ask for.
fn plain(args: Args<'_>) -> Option<Result<ClaimRequest, Failure>> {
    let text = |word| std::str::from_utf8(word).ok();
    let mut made = [0; _];
    let key = match args.len() {
        2 => fresh_key(&mut made),
        4 if args.get(2)?.eq_ignore_ascii_case(b"KEY") => text(args.get(3)?)?,
        _ => return None,
    };
    let (namespace, pool) = text(args.get(1)?)?.split_once('/')?;
    let request =
        || Ok(ClaimRequest::new(ClaimId::new(namespace, TENANT_DEFAULT, key)?, PoolName::new(namespace, pool)?));
    Some(request())
}

/// `CLAIMS n ns/pool ...`: each claim, or what is wrong with its key.
pub(super) fn claims(args: Args<'_>) -> Result<Vec<Result<ClaimRequest, Failure>>, Failure> {
    let mut words = Words::new(args);
    let n = words.count("n", limits::BATCH_ITEMS_MAX)?;
    let mut keys = Vec::new();
    let body = claim_body(&mut words, &CLAIMS, &mut keys, n)?;
    let has_affinity = body.affinity.is_some();
    let pattern = body.request()?;
    let mut made = [0; _];
    let one = |number: usize| {
        let key = match keys.get(number) {
            Some(key) => *key,
            None => fresh_key(&mut made),
        };
        let id = ClaimId::new(pattern.id.namespace(), pattern.id.tenant(), key)?;
        let affinity = if has_affinity { pattern.affinity } else { affinity_hash(key) };
        Ok(ClaimRequest { id, affinity, ..pattern.clone() })
    };
    Ok((0..n).map(one).collect())
}

fn claim_body<'a>(
    words: &mut Words<'a>,
    known: &[(&'static str, Of)],
    keys: &mut Vec<&'a str>,
    n: usize,
) -> Result<ClaimBody<'a>, Failure> {
    let (namespace, pool) = words.place()?;
    let mut body = ClaimBody { namespace: text(namespace), pool: Some(text(pool)), ..ClaimBody::default() };
    let mut amounts = Amounts::default();
    while let Some(option) = words.option(known)? {
        match option {
            Of::Key => set(&mut body.key, "key", text(words.text("key")?))?,
            Of::Keys if keys.is_empty() => {
                for _ in 0..n {
                    keys.push(words.text("keys")?);
                }
            }
            Of::Keys => return Err(Failure::invalid("keys", "is given twice")),
            Of::Tenant => set(&mut body.tenant, "tenant", text(words.text("tenant")?))?,
            Of::Affinity => set(&mut body.affinity, "affinity", text(words.text("affinity")?))?,
            Of::Wait => set(&mut body.wait_ms, "wait_ms", words.number("wait_ms", limits::WAIT_MS_MAX)?)?,
            Of::Ttl => set(&mut body.ttl_ms, "ttl_ms", words.number("ttl_ms", limits::TTL_MS_MAX)?)?,
            Of::Reserve => {
                set(&mut body.reserve_ms, "reserve_ms", words.number("reserve_ms", limits::RESERVE_MS_MAX)?)?
            }
            Of::Ack => set(&mut body.ack, "ack", ack(words)?)?,
            Of::Gpu => set(&mut body.resources.get_or_insert_default().gpu, "resources.gpu", cards(words)?)?,
            amount => amounts.read(amount, words, "resources")?,
        }
    }
    if amounts != Amounts::default() {
        let gpu = body.resources.and_then(|resources| resources.gpu);
        let [cpu_milli, memory_bytes, slots] = amounts.values();
        body.resources = Some(Resources { cpu_milli, memory_bytes, slots, gpu });
    }
    Ok(body)
}

fn ack(words: &mut Words<'_>) -> Result<Ack, Failure> {
    let word = words.required("ack")?;
    if word.eq_ignore_ascii_case(b"memory") {
        Ok(Ack::Memory)
    } else if word.eq_ignore_ascii_case(b"durable") {
        Ok(Ack::Durable)
    } else {
        Err(Failure::invalid("ack", format!("unknown value {:?}; known: memory or durable", shown(word))))
    }
}

/// `model n milli`: of any model with `*`; of several, the most wanted first, with commas between them.
fn cards(words: &mut Words<'_>) -> Result<GpuAsk, Failure> {
    let models = match words.text("resources.gpu.models")? {
        "*" => Vec::new(),
        models => models.split(',').map(Into::into).collect(),
    };
    let count = words.small("resources.gpu.count", limits::GPUS_MAX)?;
    let milli = words.small("resources.gpu.milli", limits::CARD_MILLI)?;
    Ok(GpuAsk { models, count, milli })
}

/// Cores, memory and places.
#[derive(Default, PartialEq)]
struct Amounts {
    cpu_milli: Option<u64>,
    memory_bytes: Option<u64>,
    slots: Option<u64>,
}

impl Amounts {
    fn read(&mut self, of: Of, words: &mut Words<'_>, within: &'static str) -> Result<(), Failure> {
        let (field, slot) = match of {
            Of::Cpu => ("cpu_milli", &mut self.cpu_milli),
            Of::Mem => ("memory_bytes", &mut self.memory_bytes),
            _ => ("slots", &mut self.slots),
        };
        let amount = words.number(field, limits::AMOUNT_MAX).and_then(|amount| set(slot, field, amount));
        amount.map_err(|failure| failure.inside(within))
    }

    fn values(&self) -> [u64; 3] {
        [self.cpu_milli, self.memory_bytes, self.slots].map(Option::unwrap_or_default)
    }
}

/// Whose claim, under which fence.
pub(super) struct Holder {
    pub(super) id: ClaimId,
    /// None: whoever has it.
    pub(super) fence: Option<Fence>,
}

/// A step of a release.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Begin,
    Finish,
}

#[derive(Clone, Copy)]
enum Held {
    Tenant,
    Ttl,
    Step(Phase),
}

/// `ns key fence` and those of `known` that follow.
fn holder(args: Args<'_>, known: &[(&'static str, Held)]) -> Result<(Holder, Option<Millis>, Option<Phase>), Failure> {
    let mut words = Words::new(args);
    let (namespace, key) = (words.text("namespace")?, words.text("key")?);
    // Without an option that says so, a release of whoever holds it cannot be asked for by mistake.
    let any = args.get(3) == Some(b"*") && known.iter().any(|(_, option)| matches!(option, Held::Step(_)));
    let fence = if any {
        words.next();
        None
    } else {
        Some(fence(words.number("fence", limits::FENCE_MAX)?)?)
    };
    let (mut tenant, mut ttl_ms, mut step) = (None, None, None);
    while let Some(option) = words.option(known)? {
        match option {
            Held::Tenant => set(&mut tenant, "tenant", words.text("tenant")?)?,
            Held::Ttl => set(&mut ttl_ms, "ttl_ms", words.number("ttl_ms", limits::TTL_MS_MAX)?)?,
            Held::Step(phase) => set(&mut step, "phase", phase)?,
        }
    }
    let id = ClaimId::new(namespace, tenant.unwrap_or(TENANT_DEFAULT), key)?;
    Ok((Holder { id, fence }, ttl_ms, step))
}

/// `RELEASE ns key fence|* [TENANT t] [BEGIN|FINISH]`.
pub(super) fn release(args: Args<'_>) -> Result<(Holder, Phase), Failure> {
    let known = [("TENANT", Held::Tenant), ("BEGIN", Held::Step(Phase::Begin)), ("FINISH", Held::Step(Phase::Finish))];
    let (holder, _, step) = holder(args, &known)?;
    Ok((holder, step.unwrap_or(Phase::Finish)))
}

/// `CONFIRM ns key fence [TENANT t]`.
pub(super) fn confirm(args: Args<'_>) -> Result<Holder, Failure> {
    Ok(holder(args, &[("TENANT", Held::Tenant)])?.0)
}

/// `RENEW ns key fence [TTL ms] [TENANT t]`.
pub(super) fn renew(args: Args<'_>) -> Result<(Holder, Option<Millis>), Failure> {
    let (holder, ttl_ms, _) = holder(args, &[("TTL", Held::Ttl), ("TENANT", Held::Tenant)])?;
    Ok((holder, ttl_ms))
}

#[derive(Clone, Copy)]
enum Has {
    Amount(Of),
    Gpu,
    Node,
    Label,
    Incarnation,
    Expires,
}

/// `REGISTER ns/pool id ...`.
pub(super) fn register(args: Args<'_>) -> Result<(PoolName, Registration), Failure> {
    const KNOWN: [(&str, Has); 8] = [
        ("CPU", Has::Amount(Of::Cpu)),
        ("MEM", Has::Amount(Of::Mem)),
        ("SLOTS", Has::Amount(Of::Slots)),
        ("GPU", Has::Gpu),
        ("NODE", Has::Node),
        ("LABEL", Has::Label),
        ("INCARNATION", Has::Incarnation),
        ("EXPIRES", Has::Expires),
    ];
    let mut words = Words::new(args);
    let pool = words.pool()?;
    let mut spec = WorkerSpec::bare(WorkerId::new(words.text("id")?)?);
    let (mut amounts, mut incarnation) = (Amounts::default(), None);
    while let Some(option) = words.option(&KNOWN)? {
        match option {
            Has::Amount(of) => amounts.read(of, &mut words, "capacity")?,
            Has::Gpu => {
                let model = words.text("capacity.gpu.model")?.into();
                let count = words.small("capacity.gpu.count", limits::GPUS_MAX)?;
                set(&mut spec.capacity.gpu, "capacity.gpu", GpuCapacity { model, count })?;
            }
            Has::Node => set(&mut spec.node, "node", words.text("node")?.into())?,
            Has::Label => {
                let (name, value) = (words.text("labels")?.to_owned(), words.text("labels")?.to_owned());
                if spec.labels.insert(name, value).is_some() {
                    return Err(Failure::invalid("labels", "one is given twice"));
                }
            }
            Has::Incarnation => {
                set(&mut incarnation, "incarnation", words.number("incarnation", limits::AMOUNT_MAX)?)?;
            }
            Has::Expires => {
                let at = words.number("expires_at_ms", limits::AMOUNT_MAX)?;
                set(&mut spec.expires_at_ms, "expires_at_ms", at)?;
            }
        }
    }
    let [cpu_milli, memory_bytes, slots] = amounts.values();
    spec.capacity = Capacity { cpu_milli, memory_bytes, slots, gpu: spec.capacity.gpu };
    spec.incarnation = incarnation.unwrap_or_default();
    spec.check()?;
    Ok((pool, spec.into()))
}

#[derive(Clone, Copy)]
enum Says {
    Incarnation,
    Seq,
    Claims,
}

/// `HEARTBEAT ns/pool id ...`.
pub(super) fn heartbeat(args: Args<'_>) -> Result<(PoolName, WorkerId, Beat), Failure> {
    const KNOWN: [(&str, Says); 3] = [("INCARNATION", Says::Incarnation), ("SEQ", Says::Seq), ("CLAIMS", Says::Claims)];
    let mut words = Words::new(args);
    let (pool, id) = (words.pool()?, WorkerId::new(words.text("id")?)?);
    let (mut incarnation, mut seq, mut claims) = (None, None, None);
    while let Some(option) = words.option(&KNOWN)? {
        match option {
            Says::Incarnation => {
                set(&mut incarnation, "incarnation", words.number("incarnation", limits::AMOUNT_MAX)?)?;
            }
            Says::Seq => set(&mut seq, "seq", words.number("seq", limits::AMOUNT_MAX)?)?,
            Says::Claims => {
                let n = words.count("claims", limits::NAMED_CLAIMS_MAX)?;
                let named = (0..n).map(|number| {
                    running(pool.namespace(), &mut words).map_err(|failure| failure.in_item("claims", number))
                });
                set(&mut claims, "claims", named.collect::<Result<Vec<_>, _>>()?)?;
            }
        }
    }
    Ok((pool, id, Beat { incarnation: incarnation.unwrap_or_default(), seq, claims }))
}

/// `[tenant/]key fence`.
fn running(namespace: &str, words: &mut Words<'_>) -> Result<RunningClaim, Failure> {
    let word = words.text("key")?;
    let (tenant, key) = word.split_once('/').unwrap_or((TENANT_DEFAULT, word));
    let fence = fence(words.number("fence", limits::FENCE_MAX)?)?;
    Ok(RunningClaim { id: ClaimId::new(namespace, tenant, key)?, fence })
}

#[derive(Clone, Copy)]
enum Page {
    Limit,
    After,
}

/// `POOLS [LIMIT n] [AFTER ns/pool]`.
pub(super) fn pools(args: Args<'_>) -> Result<(Option<String>, usize), Failure> {
    let mut words = Words::new(args);
    let (mut after, mut limit) = (None, None);
    while let Some(option) = words.option(&[("LIMIT", Page::Limit), ("AFTER", Page::After)])? {
        match option {
            Page::Limit => set(&mut limit, "limit", words.count("limit", limits::PAGE_ITEMS_MAX)?)?,
            Page::After => set(&mut after, "after", words.pool()?.as_str().to_owned())?,
        }
    }
    match limit {
        Some(0) => Err(Failure::invalid("limit", format!("must be a whole number, 1..={}", limits::PAGE_ITEMS_MAX))),
        limit => Ok((after, limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT))),
    }
}
