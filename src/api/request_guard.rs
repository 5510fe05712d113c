//! Decides from the head of a request whether it may be executed at all: HTTP, server-sent events and gRPC alike. The
//! service does not authenticate, so it trusts everything that reaches the port, except what a browser sends on behalf
//! of a page.
//!
//! **Host.** A page whose name its owner points at this machine ("DNS rebinding") has the same origin as the service to
//! its browser, and could read and change everything. Such a request always carries that name, so the service accepts
//! only `localhost`, IP addresses, and names from the configuration.
//!
//! **Origin.** A page may send some requests anywhere (a POST of plain text, a form), though it cannot read the
//! responses. Browsers mark them with `Origin` or `Sec-Fetch-Site`. Programs that are no browsers send neither.
//!
//! Probes are accepted under any host, because load balancers send any host or none. Under an unknown host the response
//! is only the status, because a page may read it and reasons contain pool names.

use std::sync::Arc;

use hyper::header::{CONTENT_ENCODING, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::{Method, Request, Uri, Version};

use super::error_table::{ApiError, ErrorStatus};
use super::host::{HostName, HostNames, HostPort};
use crate::metrics::RequestRefusal;
use crate::model::request_error::RequestError;

/// Paths of probes, which are served under any host.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];
/// gRPC method that probes call.
pub(super) const GRPC_PROBE: &str = "/grpc.health.v1.Health/Check";
/// Paths of pages that other sites may link to.
const LINKABLE_PATHS: [&str; 2] = ["/", "/docs"];
/// Limit on the echo of a rejected value, in bytes.
const ECHO_BYTES_MAX: usize = 100;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Head of a request, as far as the guard checks it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHead<'a> {
    pub(super) version: Version,
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        Self { version: request.version(), method, uri, headers }
    }
}

/// Reason why a request is rejected before it is routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestRejection {
    /// `Host` is missing, repeated, malformed, or differs from the request target.
    InvalidHost(&'static str),
    /// Host is not one of the service's names.
    ForeignHost(String),
    /// Page that sent the request has another origin.
    ForeignOrigin(String),
    /// Page that sent the request belongs to another site.
    ForeignSite,
    /// Body has a content encoding that the service does not support.
    UnknownEncoding(String),
}

/// Request extension that marks a probe under an unknown host.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnknownHost;

/// Guard of one configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct RequestGuard {
    hosts: Arc<[HostName]>,
}

impl RequestGuard {
    /// Creates a guard that accepts `hosts` in addition to `localhost` and IP addresses.
    pub(super) fn new(hosts: HostNames) -> Self {
        Self { hosts: hosts.0.into() }
    }

    /// Accepts a request, or returns why it is rejected.
    pub(super) fn check(&self, head: &RequestHead<'_>) -> Result<(), RequestRejection> {
        let host = host_header(head)?;
        if is_probe(head) {
            return Ok(());
        }
        let own = self.check_host(head, host)?;
        self.check_origin(head, own)?;
        check_encoding(head.headers)
    }

    /// Whether the request is a probe under an unknown host, which is accepted nevertheless.
    pub(super) fn is_probe_of_unknown_host(&self, head: &RequestHead<'_>) -> bool {
        is_probe(head) && host_header(head).and_then(|host| self.check_host(head, host)).is_err()
    }

    /// Returns the host and port of the request, or why they are rejected.
    fn check_host<'a>(
        &self,
        head: &RequestHead<'a>,
        header: Option<&'a HeaderValue>,
    ) -> Result<HostPort<'a>, RequestRejection> {
        let malformed = RequestRejection::InvalidHost("must be a host name or an IP address, with an optional port");
        let parse = |text: Option<&'a str>| text.and_then(HostPort::parse).ok_or_else(|| malformed.clone());
        let header = header.map(|value| parse(value.to_str().ok())).transpose()?;
        let target = head.uri.authority().map(|authority| parse(Some(authority.as_str()))).transpose()?;
        let own = match (target, header) {
            (Some(target), Some(header)) if target != header => {
                return Err(RequestRejection::InvalidHost("must be the host and port of the request's target"));
            }
            (Some(own), _) | (None, Some(own)) => own,
            (None, None) => return Err(RequestRejection::ForeignHost(String::new())),
        };
        if own.host.is_local_or_address() || own.host.matches_any(&self.hosts) {
            return Ok(own);
        }
        let host = head.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = host.or_else(|| head.headers.get(HOST).map(HeaderValue::as_bytes));
        Err(RequestRejection::ForeignHost(escape_for_message(host.unwrap_or_default())))
    }

    /// Checks what a browser says about the page that sends the request.
    fn check_origin(&self, head: &RequestHead<'_>, own: HostPort<'_>) -> Result<(), RequestRejection> {
        let foreign = head.headers.get_all(ORIGIN).iter().find(|origin| !self.is_same_origin(origin, own));
        if let Some(origin) = foreign {
            return Err(RequestRejection::ForeignOrigin(escape_for_message(origin.as_bytes())));
        }
        let mut sites = head.headers.get_all(&SEC_FETCH_SITE).iter();
        let is_own = sites.all(|site| ["same-origin", "none"].iter().any(|own| site == own));
        if is_own || is_navigation(head) { Ok(()) } else { Err(RequestRejection::ForeignSite) }
    }

    /// Whether an origin is the service's own.
    fn is_same_origin(&self, origin: &HeaderValue, own: HostPort<'_>) -> bool {
        let Some((scheme, rest)) = origin.to_str().ok().and_then(|text| text.split_once("://")) else { return false };
        let usual_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let Some(HostPort { host, port }) = HostPort::parse(rest) else { return false };
        let same_port = port.unwrap_or(usual_port) == own.port.unwrap_or(usual_port);
        (host == own.host && same_port) || host.matches_any(&self.hosts)
    }
}

/// Value of the only `Host` header of a request.
fn host_header<'a>(head: &RequestHead<'a>) -> Result<Option<&'a HeaderValue>, RequestRejection> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(RequestRejection::InvalidHost("is given twice"));
    }
    let is_missing = match head.version {
        Version::HTTP_09 | Version::HTTP_10 => false,
        Version::HTTP_11 => host.is_none(),
        _ => host.is_none() && head.uri.authority().is_none(),
    };
    if is_missing { Err(RequestRejection::InvalidHost("is required")) } else { Ok(host) }
}

/// Whether the request is a health check of a load balancer or a supervisor.
pub(super) fn is_probe(head: &RequestHead<'_>) -> bool {
    let path = head.uri.path();
    match *head.method {
        Method::GET | Method::HEAD => PROBES.contains(&path),
        Method::POST => path == GRPC_PROBE && head.version == Version::HTTP_2,
        _ => false,
    }
}

/// Whether the request follows a link to a page: the window shows the page, and the page with the link learns nothing.
fn is_navigation(head: &RequestHead<'_>) -> bool {
    let has = |name: &HeaderName, value: &str| head.headers.get(name).is_some_and(|sent| sent == value);
    head.method == Method::GET
        && LINKABLE_PATHS.contains(&head.uri.path())
        && has(&SEC_FETCH_MODE, "navigate")
        && has(&SEC_FETCH_DEST, "document")
}

fn check_encoding(headers: &HeaderMap) -> Result<(), RequestRejection> {
    let is_identity = |coding: &str| coding.is_empty() || coding.eq_ignore_ascii_case("identity");
    let is_supported = |value: &&HeaderValue| {
        value.to_str().is_ok_and(|codings| codings.split(',').all(|coding| is_identity(coding.trim())))
    };
    match headers.get_all(CONTENT_ENCODING).iter().find(|value| !is_supported(value)) {
        Some(value) => Err(RequestRejection::UnknownEncoding(escape_for_message(value.as_bytes()))),
        None => Ok(()),
    }
}

/// Makes a rejected value safe to echo: bounded, and printable ASCII only.
fn escape_for_message(value: &[u8]) -> String {
    let ellipsis = if value.len() > ECHO_BYTES_MAX { "..." } else { "" };
    format!("{}{ellipsis}", value[..value.len().min(ECHO_BYTES_MAX)].escape_ascii())
}

impl RequestRejection {
    /// Label of this rejection in the metrics.
    pub(super) const fn label(&self) -> RequestRefusal {
        match self {
            Self::InvalidHost(_) => RequestRefusal::InvalidHost,
            Self::ForeignHost(_) => RequestRefusal::Host,
            Self::ForeignOrigin(_) => RequestRefusal::Origin,
            Self::ForeignSite => RequestRefusal::FetchSite,
            Self::UnknownEncoding(_) => RequestRefusal::ContentEncoding,
        }
    }
}

impl From<RequestRejection> for ApiError {
    fn from(rejection: RequestRejection) -> Self {
        let with_field = |status, field: &'static str, message: String| Self {
            field: Some(field.into()),
            ..Self::new(status, message)
        };
        match rejection {
            RequestRejection::InvalidHost(message) => RequestError::invalid("host", message).into(),
            RequestRejection::ForeignHost(host) => {
                let message = format!(
                    "\"{host}\" is not a name of this service: it accepts localhost, IP addresses, and the names in \
                     server.hosts; to accept another name, add it there (hosts = [...] in [server], \
                     HOTPOOL__SERVER__HOSTS, or --hosts)"
                );
                with_field(ErrorStatus::HOST, "host", message)
            }
            RequestRejection::ForeignOrigin(origin) => {
                let message = format!(
                    "pages of \"{origin}\" may not use this service: their origin is neither the host and port of the \
                     request nor a name in server.hosts"
                );
                Self::new(ErrorStatus::ORIGIN, message)
            }
            RequestRejection::ForeignSite => {
                let message =
                    "pages of other sites may not use this service; enter its address, or start at its own page";
                Self::new(ErrorStatus::ORIGIN, message)
            }
            RequestRejection::UnknownEncoding(coding) => {
                let message = format!("content encoding \"{coding}\" is not supported: send the body unencoded");
                with_field(ErrorStatus::CONTENT_ENCODING, "content-encoding", message)
            }
        }
    }
}

#[cfg(test)]
#[path = "request_guard_tests.rs"]
mod tests;
