//! Words of the command line: what they may be, and what is said when they are not.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead as _;
use std::str::FromStr;

use hyper::Uri;
use serde::Serialize;
use serde_json::Value;

use super::client::CommandFailure;
use crate::limits::AMOUNT_MAX;
use crate::model::label_selector::LabelSelector;
use crate::model::{PoolName, check_label_key, check_name};
use crate::server::config;

/// `http://HOST:PORT`, without anything behind it.
#[derive(Debug, Clone)]
pub struct ServiceUrl(String);

impl Default for ServiceUrl {
    fn default() -> Self {
        Self(format!("http://{}", config::ServerConfig::default().listen))
    }
}

impl FromStr for ServiceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err("the service speaks no TLS; say http://HOST:PORT".to_owned()),
            Some((scheme, _)) => return Err(format!("{scheme}: is not known; say http://HOST:PORT")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let wrong = || "must be http://HOST:PORT or HOST:PORT".to_owned();
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong());
        }
        match uri.port_u16() {
            Some(port) => Ok(Self(format!("http://{host}:{port}"))),
            // A port that is no number, or an address that only looks like one: `::1`.
            None if rest != host => Err(wrong()),
            None => Ok(Self(format!("http://{host}:{}", config::ServerConfig::default().listen.port()))),
        }
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `NS/POOL`.
pub(super) fn parse_pool(text: &str) -> Result<PoolName, String> {
    PoolName::parse(text).map_err(|refusal| match text.contains('/') {
        true => refusal.to_string(),
        false => "must be NAMESPACE/POOL, as in demo/warm".to_owned(),
    })
}

/// Reads one name: a worker, a tenant, a node.
pub(super) fn parse_name(text: &str) -> Result<String, String> {
    check_name("name", text).map(|()| text.to_owned()).map_err(|refusal| refusal.to_string())
}

/// `NS/KEY`.
#[derive(Debug, Clone)]
pub struct ClaimName {
    /// Namespace.
    pub namespace: String,
    /// Key.
    pub key: String,
}

impl FromStr for ClaimName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, key) = text.split_once('/').ok_or("must be NAMESPACE/KEY, as in demo/job-1")?;
        Ok(Self { namespace: parse_name(namespace)?, key: parse_name(key)? })
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

/// Reads `KEY=VALUE`.
pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, as in zone=a")?;
    check_label_key("key", key).map_err(|refusal| format!("key {key:?}: {refusal}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a selector, as the service would.
pub(super) fn parse_selector(text: &str) -> Result<LabelSelector, String> {
    LabelSelector::parse(text).map_err(|error| error.to_string())
}

/// Labels as the API has them; the last value of a key counts.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct LabelArgs {
    /// A label, KEY=VALUE; may be said many times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
}

impl Serialize for LabelArgs {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.labels.iter().cloned().collect::<BTreeMap<_, _>>().serialize(serializer)
    }
}

/// What a worker has.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct CapacityArgs {
    #[command(flatten)]
    #[serde(flatten)]
    amounts: AmountArgs,
    /// Cards of one model, as in a100=2
    #[arg(long, value_name = "MODEL=COUNT", help_heading = "Resources")]
    gpu: Option<GpuCapacityArg>,
}

/// What a claim needs.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(super) struct ClaimResourceArgs {
    #[command(flatten)]
    #[serde(flatten)]
    amounts: AmountArgs,
    /// Cards of one of these models, the most wanted first, or of any: a100:2, a100,h100:1, :1; and of one card a part, in
    /// thousandths: a100:1:500
    #[arg(long, value_name = "[MODEL,..]:COUNT[:MILLI]", help_heading = "Resources")]
    gpu: Option<GpuRequestArg>,
}

/// Amounts that can be summed.
#[derive(Debug, Clone, clap::Args, Serialize)]
struct AmountArgs {
    /// Thousandths of a core
    #[arg(long, value_name = "N", value_parser = parse_amount, help_heading = "Resources")]
    cpu_milli: Option<u64>,
    /// Bytes of memory; Ki, Mi, Gi and Ti may follow the number
    #[arg(long, value_name = "N[Gi]", value_parser = parse_amount, help_heading = "Resources")]
    memory_bytes: Option<u64>,
    /// Places, in a unit of your own
    #[arg(long, value_name = "N", value_parser = parse_amount, help_heading = "Resources")]
    slots: Option<u64>,
}

/// Cards of one model.
#[derive(Debug, Clone, Serialize)]
struct GpuCapacityArg {
    model: String,
    count: u32,
}

impl FromStr for GpuCapacityArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "must be MODEL=COUNT, as in a100=2";
        let (model, count) = text.split_once('=').ok_or(wrong)?;
        Ok(Self { model: parse_name(model)?, count: count.parse().map_err(|_| wrong)? })
    }
}

/// Whole cards, or a part of one.
#[derive(Debug, Clone, Serialize)]
struct GpuRequestArg {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<String>,
    count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    milli: Option<u32>,
}

impl FromStr for GpuRequestArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = "must be [MODEL,..]:COUNT[:MILLI], as in a100:2, a100,h100:1 or a100:1:500";
        let (names, rest) = text.split_once([':', '=']).ok_or(wrong)?;
        let (count, milli) = rest.split_once(':').map_or((rest, None), |(count, milli)| (count, Some(milli)));
        let number = |text: &str| text.parse().map_err(|_| wrong.to_owned());
        let names = names.split(',').filter(|_| !names.is_empty());
        let mut models = names.map(parse_name).collect::<Result<Vec<_>, _>>()?;
        let model = if models.len() == 1 { models.pop() } else { None };
        Ok(Self { model, models, count: number(count)?, milli: milli.map(number).transpose()? })
    }
}

/// Reads a number, which may end in a binary unit.
pub(super) fn parse_amount(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        unit => return Err(format!("{unit:?} is no unit; known: Ki, Mi, Gi, Ti")),
    };
    let number: u64 = digits.parse().map_err(|_| "must be a whole number".to_owned())?;
    let product = number.checked_mul(1 << shift).filter(|product| *product <= AMOUNT_MAX);
    product.ok_or_else(|| format!("must be at most {AMOUNT_MAX}"))
}

/// A JSON object of what was said: what was not is left to the service, where the defaults stand.
pub(super) fn to_sparse_json(fields: &impl Serialize) -> Value {
    let mut fields = serde_json::to_value(fields).expect("arguments are plain data");
    if let Value::Object(fields) = &mut fields {
        fields.retain(|_, value| match value {
            Value::Null => false,
            Value::Object(inner) => {
                inner.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
                !inner.is_empty()
            }
            Value::Array(list) => !list.is_empty(),
            _ => true,
        });
    }
    fields
}

/// Puts what `-` stands for in its place: names on stdin, apart by white space.
///
/// # Errors
/// One is no name, or stdin cannot be read.
pub(super) fn expand_stdin(ids: &[String]) -> Result<Vec<String>, CommandFailure> {
    let mut all = Vec::with_capacity(ids.len());
    for id in ids {
        if id != "-" {
            all.push(id.clone());
            continue;
        }
        for line in std::io::stdin().lock().lines() {
            for id in line.map_err(CommandFailure::from_local)?.split_whitespace() {
                all.push(parse_name(id).map_err(|message| CommandFailure::usage(id, message))?);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let good = [
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070"),
            ("http://127.0.0.1:7070/", "http://127.0.0.1:7070"),
            ("127.0.0.1:80", "http://127.0.0.1:80"),
            ("localhost", "http://localhost:7070"),
            ("[::1]:7171", "http://[::1]:7171"),
            ("[::1]", "http://[::1]:7070"),
        ];
        for (text, address) in good {
            assert_eq!(text.parse::<ServiceUrl>().unwrap().to_string(), address);
        }
        for bad in ["", "http://", "https://h:1", "ftp://h", "h:x", "h:99999", "h/v1", "u@h:1", "a b", "::1", "h:1?x"] {
            assert!(bad.parse::<ServiceUrl>().is_err(), "{bad}");
        }
        assert_eq!(ServiceUrl::default().to_string(), "http://127.0.0.1:7070");
    }

    #[test]
    fn amounts() {
        assert_eq!(parse_amount("0"), Ok(0));
        assert_eq!(parse_amount("4Gi"), Ok(4 << 30));
        for (text, json) in [
            ("a100:2", serde_json::json!({"model": "a100", "count": 2})),
            ("a100=1", serde_json::json!({"model": "a100", "count": 1})),
            ("a100,h100:1:500", serde_json::json!({"models": ["a100", "h100"], "count": 1, "milli": 500})),
            (":4", serde_json::json!({"count": 4})),
        ] {
            assert_eq!(serde_json::to_value(text.parse::<GpuRequestArg>().unwrap()).unwrap(), json);
        }
        for bad in ["", "a100", "a100:", "a100:x", "a100:1:", "a100:1:2:3", "a100,:1", "a b:1", "a100:-1"] {
            assert!(bad.parse::<GpuRequestArg>().is_err(), "{bad}");
        }
        for bad in ["", "-1", "1.5", "4G", "Gi", "99999999999Ti", "9007199254740992", "٣"] {
            assert!(parse_amount(bad).is_err(), "{bad}");
        }
    }
}
