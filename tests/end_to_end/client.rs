//! Small HTTP/1.1 client that can also send what no well-behaved client would.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Timeout of one response: a test that reaches it has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the body, if the status is this one.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// Checks that the body is exactly `{"error":{"code","reason"?,"field"?,"message","request_id"}}` with these
    /// values.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str, reason: Option<&str>, field: Option<&str>) {
        let body = self.expect(status);
        check_error(&body, code, reason, field);
        assert_eq!(body["error"]["request_id"].as_str(), self.header("x-request-id"), "{body}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.header("retry-after"), (status == 503).then_some("1"));
    }
}

#[track_caller]
pub fn check_error(body: &Value, code: &str, reason: Option<&str>, field: Option<&str>) {
    let parts = |name: &str| body["error"][name].as_str();
    assert_eq!((parts("code"), parts("reason"), parts("field")), (Some(code), reason, field), "{body}");
    assert!(parts("message").is_some_and(|message| !message.is_empty() && message.len() < 1_000), "{body}");
    let known = ["code", "reason", "field", "message", "request_id"];
    let keys = body["error"].as_object().unwrap().keys();
    assert!(keys.clone().all(|key| known.contains(&key.as_str())), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
}

/// Connection of one HTTP/1.1 client.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Writes raw bytes to the connection.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Whether the peer has closed the connection and sent nothing.
    pub fn is_closed(&mut self) -> bool {
        match self.0.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads one response from the connection.
    pub fn receive(&mut self) -> std::io::Result<Response> {
        let mut line = String::new();
        let mut next = |reader: &mut BufReader<TcpStream>| -> std::io::Result<String> {
            line.clear();
            match reader.read_line(&mut line)? {
                0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        let status = next(&mut self.0)?.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let mut headers = Vec::new();
        loop {
            let header = next(&mut self.0)?;
            let Some((name, value)) = header.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
        response.body = vec![0; length];
        self.0.read_exact(&mut response.body)?;
        Ok(response)
    }

    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        // The service may reject a body before it has read it.
        let _ = self.send(&[head.as_bytes(), body].concat());
        self.receive().unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, b"")
    }

    /// Fetches a listing, and returns the items of each of its pages.
    pub fn pages(&mut self, path: &str) -> Vec<Vec<Value>> {
        let (mut pages, mut from) = (Vec::new(), path.to_owned());
        loop {
            let mut page = self.get(&from).expect(200);
            pages.push(page["items"].as_array_mut().map(std::mem::take).expect("a page has items"));
            let Some(token) = page["next_page_token"].as_str() else { return pages };
            let joint = if path.contains('?') { '&' } else { '?' };
            from = format!("{path}{joint}page_token={token}");
        }
    }

    /// Reads a series of `/metrics`; 0 while it is absent.
    pub fn metric(&mut self, series: &str) -> u64 {
        let page = self.get("/metrics");
        let number = page.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        number.map_or(0, |number| number.parse::<f64>().unwrap() as u64)
    }

    pub fn delete(&mut self, path: &str) -> Response {
        self.request("DELETE", path, b"")
    }

    pub fn put(&mut self, path: &str, body: &Value) -> Response {
        self.request("PUT", path, body.to_string().as_bytes())
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Response {
        self.request("POST", path, body.to_string().as_bytes())
    }
}
