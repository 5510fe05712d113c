//! Converts the arguments of a command to checked values. Where HTTP has the same request, its form is filled in and
//! checked, so that both edges reject the same values and name the same field.

use std::borrow::Cow;

use super::frame::CommandArgs;
use crate::api::error_table::ApiError;
use crate::api::request::{ClaimBody, DEFAULT_TENANT, check_fence, generate_key, page_limit_error};
use crate::limits;
use crate::model::{
    AckLevel, ClaimId, ClaimRequest, Fence, GpuCapacity, GpuRequest, HeartbeatRequest, Millis, PoolName,
    RegistrationRequest, ResourceRequirements, RunningClaim, WorkerCapacity, WorkerId, WorkerSpec, affinity_hash,
};

/// Limit on the echo of an argument, in bytes.
const ECHO_BYTES_MAX: usize = 64;

/// Makes an argument printable for an error message.
pub(super) fn escape_for_message(arg: &[u8]) -> Cow<'_, str> {
    let shown = String::from_utf8_lossy(&arg[..arg.len().min(ECHO_BYTES_MAX)]);
    if arg.len() > ECHO_BYTES_MAX { format!("{shown}...").into() } else { shown }
}

/// Cursor over the arguments after a command's name.
pub(super) struct ArgCursor<'a> {
    args: CommandArgs<'a>,
    at: usize,
}

impl<'a> ArgCursor<'a> {
    pub(super) const fn new(args: CommandArgs<'a>) -> Self {
        Self { args, at: 1 }
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let arg = self.args.get(self.at)?;
        self.at += 1;
        Some(arg)
    }

    fn required(&mut self, field: &'static str) -> Result<&'a [u8], ApiError> {
        self.next().ok_or_else(|| ApiError::invalid(field, "is required"))
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, ApiError> {
        let arg = self.required(field)?;
        std::str::from_utf8(arg).map_err(|_| ApiError::invalid(field, "must be UTF-8"))
    }

    /// Parses an integer. `max` is only for the message: the form checks the limit, as over HTTP.
    fn number(&mut self, field: &'static str, max: u64) -> Result<u64, ApiError> {
        let arg = self.required(field)?;
        let add = |sum: u64, digit: &u8| {
            let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
            sum.checked_mul(10)?.checked_add(digit)
        };
        let number = if arg.is_empty() { None } else { arg.iter().try_fold(0, add) };
        number.ok_or_else(|| {
            let got = escape_for_message(arg);
            ApiError::invalid(field, format!("must be a whole number from 0 to {max}, got {got:?}"))
        })
    }

    /// Parses a number of items, at most `max`.
    fn count(&mut self, field: &'static str, max: usize) -> Result<usize, ApiError> {
        let count = self.number(field, max as u64)?;
        match usize::try_from(count) {
            Ok(count) if count <= max => Ok(count),
            _ => Err(ApiError::invalid(field, format!("must be a whole number from 0 to {max}, got {count}"))),
        }
    }

    /// Parses an integer for a 32-bit field; a larger value becomes the maximum, which the form rejects.
    fn number_u32(&mut self, field: &'static str, max: u32) -> Result<u32, ApiError> {
        Ok(u32::try_from(self.number(field, max.into())?).unwrap_or(u32::MAX))
    }

    /// Splits `ns/pool`; the parts are not checked yet.
    fn namespace_and_pool(&mut self) -> Result<(&'a str, &'a str), ApiError> {
        self.text("pool")?.split_once('/').ok_or_else(|| ApiError::invalid("pool", "must be namespace/pool"))
    }

    fn pool(&mut self) -> Result<PoolName, ApiError> {
        let (namespace, pool) = self.namespace_and_pool()?;
        Ok(PoolName::new(namespace, pool)?)
    }

    /// Parses the next option, if there is one.
    fn option<O: Copy>(&mut self, known: &[(&'static str, O)]) -> Result<Option<O>, ApiError> {
        let Some(arg) = self.next() else { return Ok(None) };
        match known.iter().find(|(name, _)| arg.eq_ignore_ascii_case(name.as_bytes())) {
            Some(&(_, option)) => Ok(Some(option)),
            None => Err(unknown_option(arg, known)),
        }
    }
}

#[cold]
fn unknown_option<O>(arg: &[u8], known: &[(&'static str, O)]) -> ApiError {
    let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    ApiError::invalid(escape_for_message(arg).into_owned(), format!("unknown option; known: {}", known.join(", ")))
}

/// Sets a field that may be given once.
fn set_once<T>(target: &mut Option<T>, field: &'static str, value: T) -> Result<(), ApiError> {
    match target.replace(value) {
        None => Ok(()),
        Some(_) => Err(ApiError::invalid(field, "is given twice")),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum ClaimOption {
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

const CLAIM: [(&str, ClaimOption); 11] = [
    ("KEY", ClaimOption::Key),
    ("TENANT", ClaimOption::Tenant),
    ("AFFINITY", ClaimOption::Affinity),
    ("WAIT", ClaimOption::Wait),
    ("TTL", ClaimOption::Ttl),
    ("RESERVE", ClaimOption::Reserve),
    ("ACK", ClaimOption::Ack),
    ("CPU", ClaimOption::Cpu),
    ("MEM", ClaimOption::Mem),
    ("SLOTS", ClaimOption::Slots),
    ("GPU", ClaimOption::Gpu),
];

/// Options of `CLAIMS`, which has `KEYS` instead of `KEY`.
const CLAIMS: [(&str, ClaimOption); 11] = {
    let mut options = CLAIM;
    options[0] = ("KEYS", ClaimOption::Keys);
    options
};

/// Parses `CLAIM ns/pool ...`, also after `EXPLAIN`.
pub(super) fn claim(args: CommandArgs<'_>) -> Result<ClaimRequest, ApiError> {
    if let Some(plain) = parse_plain_claim(args) {
        return plain;
    }
    claim_body(&mut ArgCursor::new(args), &CLAIM, &mut Vec::new(), 0)?.into_request()
}

/// Parses `CLAIM ns/pool` and `CLAIM ns/pool KEY k`, the usual claims, without the cost of the general form.
fn parse_plain_claim(args: CommandArgs<'_>) -> Option<Result<ClaimRequest, ApiError>> {
    let text = |arg| std::str::from_utf8(arg).ok();
    let mut key_buffer = [0; _];
    let key = match args.len() {
        2 => generate_key(&mut key_buffer),
        4 if args.get(2)?.eq_ignore_ascii_case(b"KEY") => text(args.get(3)?)?,
        _ => return None,
    };
    let (namespace, pool) = text(args.get(1)?)?.split_once('/')?;
    let request =
        || Ok(ClaimRequest::new(ClaimId::new(namespace, DEFAULT_TENANT, key)?, PoolName::new(namespace, pool)?));
    Some(request())
}

/// Parses `CLAIMS n ns/pool ...`: each claim, or what is wrong with its key.
pub(super) fn claims(args: CommandArgs<'_>) -> Result<Vec<Result<ClaimRequest, ApiError>>, ApiError> {
    let mut cursor = ArgCursor::new(args);
    let n = cursor.count("n", limits::BATCH_ITEMS_MAX)?;
    let mut keys = Vec::new();
    let body = claim_body(&mut cursor, &CLAIMS, &mut keys, n)?;
    let has_affinity = body.affinity.is_some();
    let template = body.into_request()?;
    let mut key_buffer = [0; _];
    let request = |index: usize| {
        let key = match keys.get(index) {
            Some(key) => *key,
            None => generate_key(&mut key_buffer),
        };
        let id = ClaimId::new(template.id.namespace(), template.id.tenant(), key)?;
        let affinity = if has_affinity { template.affinity } else { affinity_hash(key) };
        Ok(ClaimRequest { id, affinity, ..template.clone() })
    };
    Ok((0..n).map(request).collect())
}

fn claim_body<'a>(
    cursor: &mut ArgCursor<'a>,
    known: &[(&'static str, ClaimOption)],
    keys: &mut Vec<&'a str>,
    n: usize,
) -> Result<ClaimBody<'a>, ApiError> {
    let (namespace, pool) = cursor.namespace_and_pool()?;
    let mut body = ClaimBody { namespace: namespace.into(), pool: Some(pool.into()), ..ClaimBody::default() };
    let mut amounts = ResourceOptions::default();
    while let Some(option) = cursor.option(known)? {
        match option {
            ClaimOption::Key => set_once(&mut body.key, "key", cursor.text("key")?.into())?,
            ClaimOption::Keys if keys.is_empty() => {
                for _ in 0..n {
                    keys.push(cursor.text("keys")?);
                }
            }
            ClaimOption::Keys => return Err(ApiError::invalid("keys", "is given twice")),
            ClaimOption::Tenant => set_once(&mut body.tenant, "tenant", cursor.text("tenant")?.into())?,
            ClaimOption::Affinity => set_once(&mut body.affinity, "affinity", cursor.text("affinity")?.into())?,
            ClaimOption::Wait => {
                set_once(&mut body.wait_ms, "wait_ms", cursor.number("wait_ms", limits::WAIT_MS_MAX)?)?
            }
            ClaimOption::Ttl => set_once(&mut body.ttl_ms, "ttl_ms", cursor.number("ttl_ms", limits::TTL_MS_MAX)?)?,
            ClaimOption::Reserve => {
                set_once(&mut body.reserve_ms, "reserve_ms", cursor.number("reserve_ms", limits::RESERVE_MS_MAX)?)?
            }
            ClaimOption::Ack => set_once(&mut body.ack, "ack", ack(cursor)?)?,
            ClaimOption::Gpu => {
                set_once(&mut body.resources.get_or_insert_default().gpu, "resources.gpu", parse_gpu(cursor)?)?
            }
            amount => amounts.read(amount, cursor, "resources")?,
        }
    }
    if amounts != ResourceOptions::default() {
        let gpu = body.resources.and_then(|resources| resources.gpu);
        let [cpu_milli, memory_bytes, slots] = amounts.values();
        body.resources = Some(ResourceRequirements { cpu_milli, memory_bytes, slots, gpu });
    }
    Ok(body)
}

fn ack(cursor: &mut ArgCursor<'_>) -> Result<AckLevel, ApiError> {
    let arg = cursor.required("ack")?;
    if arg.eq_ignore_ascii_case(b"memory") {
        Ok(AckLevel::Memory)
    } else if arg.eq_ignore_ascii_case(b"durable") {
        Ok(AckLevel::Durable)
    } else {
        Err(ApiError::invalid("ack", format!("unknown value {:?}; known: memory, durable", escape_for_message(arg))))
    }
}

/// Parses `model n milli`: `*` for any model, or several models separated by commas, in order of preference.
fn parse_gpu(cursor: &mut ArgCursor<'_>) -> Result<GpuRequest, ApiError> {
    let models = match cursor.text("resources.gpu.models")? {
        "*" => Vec::new(),
        models => models.split(',').map(Into::into).collect(),
    };
    let count = cursor.number_u32("resources.gpu.count", limits::GPUS_MAX)?;
    let milli = cursor.number_u32("resources.gpu.milli", limits::GPU_MILLI)?;
    Ok(GpuRequest { models, count, milli })
}

/// Amounts of CPU, memory and slots.
#[derive(Default, PartialEq)]
struct ResourceOptions {
    cpu_milli: Option<u64>,
    memory_bytes: Option<u64>,
    slots: Option<u64>,
}

impl ResourceOptions {
    fn read(&mut self, option: ClaimOption, cursor: &mut ArgCursor<'_>, parent: &'static str) -> Result<(), ApiError> {
        let (field, target) = match option {
            ClaimOption::Cpu => ("cpu_milli", &mut self.cpu_milli),
            ClaimOption::Mem => ("memory_bytes", &mut self.memory_bytes),
            _ => ("slots", &mut self.slots),
        };
        let amount = cursor.number(field, limits::AMOUNT_MAX).and_then(|amount| set_once(target, field, amount));
        amount.map_err(|failure| failure.nested_in(parent))
    }

    fn values(&self) -> [u64; 3] {
        [self.cpu_milli, self.memory_bytes, self.slots].map(Option::unwrap_or_default)
    }
}

/// Reference to a claim by identity and fence.
pub(super) struct RespClaimRef {
    pub(super) id: ClaimId,
    /// Fence of the holder; `None` for any holder.
    pub(super) fence: Option<Fence>,
}

/// Phase of a release in two calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ReleaseStep {
    Begin,
    Finish,
}

#[derive(Clone, Copy)]
enum HolderOption {
    Tenant,
    Ttl,
    Step(ReleaseStep),
}

/// Parses `ns key fence` and the options of `known` after it.
fn holder(
    args: CommandArgs<'_>,
    known: &[(&'static str, HolderOption)],
) -> Result<(RespClaimRef, Option<Millis>, Option<ReleaseStep>), ApiError> {
    let mut cursor = ArgCursor::new(args);
    let (namespace, key) = (cursor.text("namespace")?, cursor.text("key")?);
    // Only with an option, so that nobody releases the claim of an arbitrary holder by mistake.
    let any_holder =
        args.get(3) == Some(b"*") && known.iter().any(|(_, option)| matches!(option, HolderOption::Step(_)));
    let fence = if any_holder {
        cursor.next();
        None
    } else {
        Some(check_fence(cursor.number("fence", limits::FENCE_MAX)?)?)
    };
    let (mut tenant, mut ttl_ms, mut step) = (None, None, None);
    while let Some(option) = cursor.option(known)? {
        match option {
            HolderOption::Tenant => set_once(&mut tenant, "tenant", cursor.text("tenant")?)?,
            HolderOption::Ttl => set_once(&mut ttl_ms, "ttl_ms", cursor.number("ttl_ms", limits::TTL_MS_MAX)?)?,
            HolderOption::Step(phase) => set_once(&mut step, "phase", phase)?,
        }
    }
    let id = ClaimId::new(namespace, tenant.unwrap_or(DEFAULT_TENANT), key)?;
    Ok((RespClaimRef { id, fence }, ttl_ms, step))
}

/// Parses `RELEASE ns key fence|* [TENANT t] [BEGIN|FINISH]`.
pub(super) fn release(args: CommandArgs<'_>) -> Result<(RespClaimRef, ReleaseStep), ApiError> {
    let known = [
        ("TENANT", HolderOption::Tenant),
        ("BEGIN", HolderOption::Step(ReleaseStep::Begin)),
        ("FINISH", HolderOption::Step(ReleaseStep::Finish)),
    ];
    let (holder, _, step) = holder(args, &known)?;
    Ok((holder, step.unwrap_or(ReleaseStep::Finish)))
}

/// Parses `CONFIRM ns key fence [TENANT t]`.
pub(super) fn confirm(args: CommandArgs<'_>) -> Result<RespClaimRef, ApiError> {
    Ok(holder(args, &[("TENANT", HolderOption::Tenant)])?.0)
}

/// Parses `RENEW ns key fence [TTL ms] [TENANT t]`.
pub(super) fn renew(args: CommandArgs<'_>) -> Result<(RespClaimRef, Option<Millis>), ApiError> {
    let (holder, ttl_ms, _) = holder(args, &[("TTL", HolderOption::Ttl), ("TENANT", HolderOption::Tenant)])?;
    Ok((holder, ttl_ms))
}

#[derive(Clone, Copy)]
enum RegisterOption {
    Amount(ClaimOption),
    Gpu,
    Node,
    Label,
    Incarnation,
    Expires,
}

/// Parses `REGISTER ns/pool id ...`, a worker's registration.
pub(super) fn register(args: CommandArgs<'_>) -> Result<(PoolName, RegistrationRequest), ApiError> {
    const KNOWN: [(&str, RegisterOption); 8] = [
        ("CPU", RegisterOption::Amount(ClaimOption::Cpu)),
        ("MEM", RegisterOption::Amount(ClaimOption::Mem)),
        ("SLOTS", RegisterOption::Amount(ClaimOption::Slots)),
        ("GPU", RegisterOption::Gpu),
        ("NODE", RegisterOption::Node),
        ("LABEL", RegisterOption::Label),
        ("INCARNATION", RegisterOption::Incarnation),
        ("EXPIRES", RegisterOption::Expires),
    ];
    let mut cursor = ArgCursor::new(args);
    let pool = cursor.pool()?;
    let mut spec = WorkerSpec::with_id(WorkerId::new(cursor.text("id")?)?);
    let (mut amounts, mut incarnation) = (ResourceOptions::default(), None);
    while let Some(option) = cursor.option(&KNOWN)? {
        match option {
            RegisterOption::Amount(option) => amounts.read(option, &mut cursor, "capacity")?,
            RegisterOption::Gpu => {
                let model = cursor.text("capacity.gpu.model")?.into();
                let count = cursor.number_u32("capacity.gpu.count", limits::GPUS_MAX)?;
                set_once(&mut spec.capacity.gpu, "capacity.gpu", GpuCapacity { model, count })?;
            }
            RegisterOption::Node => set_once(&mut spec.node, "node", cursor.text("node")?.into())?,
            RegisterOption::Label => {
                let (name, value) = (cursor.text("labels")?.to_owned(), cursor.text("labels")?.to_owned());
                if spec.labels.insert(name, value).is_some() {
                    return Err(ApiError::invalid("labels", "a label is given twice"));
                }
            }
            RegisterOption::Incarnation => {
                set_once(&mut incarnation, "incarnation", cursor.number("incarnation", limits::AMOUNT_MAX)?)?;
            }
            RegisterOption::Expires => {
                let at_ms = cursor.number("expires_at_ms", limits::AMOUNT_MAX)?;
                set_once(&mut spec.expires_at_ms, "expires_at_ms", at_ms)?;
            }
        }
    }
    let [cpu_milli, memory_bytes, slots] = amounts.values();
    spec.capacity = WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: spec.capacity.gpu };
    spec.incarnation = incarnation.unwrap_or_default();
    spec.check()?;
    Ok((pool, spec.into()))
}

#[derive(Clone, Copy)]
enum HeartbeatOption {
    Incarnation,
    Seq,
    Claims,
}

/// Parses `HEARTBEAT ns/pool id ...`, a worker's heartbeat.
pub(super) fn heartbeat(args: CommandArgs<'_>) -> Result<(PoolName, WorkerId, HeartbeatRequest), ApiError> {
    const KNOWN: [(&str, HeartbeatOption); 3] = [
        ("INCARNATION", HeartbeatOption::Incarnation),
        ("SEQ", HeartbeatOption::Seq),
        ("CLAIMS", HeartbeatOption::Claims),
    ];
    let mut cursor = ArgCursor::new(args);
    let (pool, id) = (cursor.pool()?, WorkerId::new(cursor.text("id")?)?);
    let (mut incarnation, mut seq, mut claims) = (None, None, None);
    while let Some(option) = cursor.option(&KNOWN)? {
        match option {
            HeartbeatOption::Incarnation => {
                set_once(&mut incarnation, "incarnation", cursor.number("incarnation", limits::AMOUNT_MAX)?)?;
            }
            HeartbeatOption::Seq => set_once(&mut seq, "seq", cursor.number("seq", limits::AMOUNT_MAX)?)?,
            HeartbeatOption::Claims => {
                let n = cursor.count("claims", limits::REPORTED_CLAIMS_MAX)?;
                let reported = (0..n).map(|index| {
                    parse_reported_claim(pool.namespace(), &mut cursor)
                        .map_err(|failure| failure.for_item("claims", index))
                });
                set_once(&mut claims, "claims", reported.collect::<Result<Vec<_>, _>>()?)?;
            }
        }
    }
    let request = HeartbeatRequest { incarnation: incarnation.unwrap_or_default(), seq, claims };
    request.check()?;
    Ok((pool, id, request))
}

/// Parses `[tenant/]key fence`, a reported claim.
fn parse_reported_claim(namespace: &str, cursor: &mut ArgCursor<'_>) -> Result<RunningClaim, ApiError> {
    let arg = cursor.text("key")?;
    let (tenant, key) = arg.split_once('/').unwrap_or((DEFAULT_TENANT, arg));
    let fence = check_fence(cursor.number("fence", limits::FENCE_MAX)?)?;
    Ok(RunningClaim { id: ClaimId::new(namespace, tenant, key)?, fence })
}

#[derive(Clone, Copy)]
enum ListOption {
    Limit,
    After,
}

/// Parses `POOLS [LIMIT n] [AFTER ns/pool]`.
pub(super) fn pools(args: CommandArgs<'_>) -> Result<(Option<String>, usize), ApiError> {
    let mut cursor = ArgCursor::new(args);
    let (mut after, mut limit) = (None, None);
    while let Some(option) = cursor.option(&[("LIMIT", ListOption::Limit), ("AFTER", ListOption::After)])? {
        match option {
            ListOption::Limit => {
                let text = cursor.text("limit")?;
                let count = text.parse().ok().filter(|count| (1..=limits::PAGE_ITEMS_MAX).contains(count));
                set_once(&mut limit, "limit", count.ok_or_else(page_limit_error)?)?;
            }
            ListOption::After => set_once(&mut after, "after", cursor.pool()?.as_str().to_owned())?,
        }
    }
    Ok((after, limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT)))
}
