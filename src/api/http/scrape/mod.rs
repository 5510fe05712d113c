//! Metrics endpoint, compressed for clients that accept gzip.

mod cache;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;

use self::cache::ContentCoding;
pub(super) use self::cache::ScrapeCache;
use super::{ApiError, SharedState};
use crate::model::request_error::UnavailableReason;

/// Serves every metric in the text format of Prometheus.
pub(super) async fn metrics(State(api): State<SharedState>, headers: HeaderMap) -> Response {
    let coding = match accepts_gzip(headers.get_all(header::ACCEPT_ENCODING).iter()) {
        true => ContentCoding::Gzip,
        false => ContentCoding::Identity,
    };
    // Reading and rendering thousands of pools takes milliseconds, which must not delay claims.
    let rendering = Arc::clone(&api);
    let rendered = api.scrape_cache.get_or_render(coding, move || {
        let pools = rendering.scheduler.observe();
        match coding {
            ContentCoding::Gzip => {
                // Names and labels repeat so much that a higher level costs time and saves little.
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                rendering.exporter.write(&pools, &mut encoder).and_then(|()| encoder.finish())
            }
            ContentCoding::Identity => {
                let mut text = Vec::new();
                rendering.exporter.write(&pools, &mut text).map(|()| text)
            }
        }
    });
    let Ok(body) = rendered.await else { return ApiError::from(UnavailableReason::Stopping).into_response() };
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if coding == ContentCoding::Gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether the client accepts gzip and does not prefer plain text (RFC 9110, 12.5.3). Malformed values are skipped,
/// because every client can read plain text.
fn accepts_gzip<'a>(values: impl Iterator<Item = &'a HeaderValue>) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    for item in values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let Some(weight_milli) = weight_milli(parts) else { continue };
        let known = match coding.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => &mut gzip,
            "identity" => &mut identity,
            "*" => &mut any,
            _ => continue,
        };
        *known = Some(weight_milli);
    }
    // A coding that is not listed has the weight of `*`; plain text without either is allowed, but gzip is preferred.
    gzip.or(any).is_some_and(|gzip| gzip > 0 && gzip >= identity.unwrap_or(0))
}

/// Weight after `q=`: 0 to 1, at most three digits; 1 if it is omitted.
fn weight_milli<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u32> {
    let named = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let Some(text) = named else { return Some(1_000) };
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || decimals.len() > 3 || !decimals.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let milli = format!("{whole}{decimals:0<3}").parse().ok()?;
    (milli <= 1_000).then_some(milli)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h04_gzip_is_for_those_who_accept_it() {
        let table: &[(&[&str], bool)] = &[
            (&[], false),
            (&[""], false),
            (&["gzip"], true),
            (&["GZip"], true),
            (&["x-gzip"], true),
            (&["deflate, br"], false),
            (&["deflate, gzip;q=0.5"], true),
            (&["deflate", "gzip"], true),
            (&["gzip;q=0"], false),
            (&["gzip; q=0.000"], false),
            (&["gzip;q=0.001"], true),
            (&["gzip ; Q=1.000"], true),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["*, gzip;q=0"], false),
            (&["*;q=0, gzip"], true),
            (&["identity"], false),
            (&["identity;q=1, gzip;q=0.5"], false),
            (&["identity;q=0.5, gzip;q=0.5"], true),
            (&["identity;q=0, gzip;q=0.1"], true),
            (&["identity;q=0"], false),
            (&["gzip;q=2"], false),
            (&["gzip;q=1.001"], false),
            (&["gzip;q=0.1234"], false),
            (&["gzip;q=-1"], false),
            (&["gzip;q="], false),
            (&["gzip;q=x"], false),
            (&["gzipped"], false),
            (&["gzip;level=9"], true),
        ];
        for (values, accepted) in table {
            let values: Vec<HeaderValue> = values.iter().map(|value| HeaderValue::from_str(value).unwrap()).collect();
            assert_eq!(accepts_gzip(values.iter()), *accepted, "{values:?}");
        }
    }
}
