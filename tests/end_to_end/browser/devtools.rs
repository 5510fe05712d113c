//! Headless Chromium, driven over the pipe of its DevTools protocol.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Running, until};

/// Colours that the reader of a page prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorScheme {
    Light,
    Dark,
}

pub struct Browser {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    events: Vec<Value>,
    _child: Running,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser with a blank page. `rules` map host names to addresses.
    pub fn start(rules: &str) -> Self {
        let profile = TempDir::new().unwrap();
        let mut command = Command::new("sh");
        // The protocol uses the third and the fourth file descriptor.
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "chromium"]);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--disable-dev-shm-usage", "--disable-features=HttpsUpgrades", "--remote-debugging-pipe"]);
        command.arg(format!("--host-resolver-rules={rules}"));
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg("about:blank").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running(command.spawn().unwrap());
        let (to, from) = (child.0.stdin.take().unwrap(), BufReader::new(child.0.stdout.take().unwrap()));
        let mut browser =
            Self { to, from, session: None, last_id: 0, events: Vec::new(), _child: child, _profile: profile };
        let page = browser.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].take();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": page, "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Returns the result of a command that must succeed.
    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    /// Returns the result of a command, or the browser's error.
    fn try_call(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let sent = self.to.write_all(format!("{message}\0").as_bytes());
        sent.expect("chromium runs (tests/run.sh installs it, or install Debian's package chromium)");
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "chromium has ended (tests/run.sh installs it)");
            let mut response: Value = serde_json::from_slice(&bytes).unwrap();
            if response["id"] == self.last_id {
                return if response["error"].is_null() {
                    Ok(response["result"].take())
                } else {
                    Err(response["error"].take())
                };
            }
            self.events.push(response);
        }
    }

    /// Records the requests of all pages from now on.
    pub fn watch_requests(&mut self) {
        self.call("Network.enable", &json!({}));
    }

    /// Returns the addresses that pages have requested.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        requests.map(|event| event["params"]["request"]["url"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Gives pages a width, and the reader's preference of colours.
    pub fn emulate(&mut self, width_px: u32, scheme: ColorScheme) {
        let metrics = json!({"width": width_px, "height": 1_000, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let value = if scheme == ColorScheme::Dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": value}]);
        self.call("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    /// Opens a page, and waits until its scripts have started.
    pub fn open(&mut self, url: &str) {
        let gone = self.call("Page.navigate", &json!({"url": url}));
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
        self.wait_for("document.readyState != 'loading'");
    }

    /// Evaluates an expression, and awaits it if it is a promise.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut response = self.call("Runtime.evaluate", &params);
        assert!(response["exceptionDetails"].is_null(), "{expression}: {response}");
        response["result"]["value"].take()
    }

    /// Waits until an expression is true, and returns its value. A page that is loading may not know it yet, and a page
    /// that is being replaced answers no command.
    pub fn wait_for(&mut self, expression: &str) -> Value {
        let params = json!({"expression": format!("(() => {{ const it = {expression}; return it instanceof Element || it; }})()"), "returnByValue": true});
        let mut value = Value::Null;
        until(expression, || {
            let Ok(mut response) = self.try_call("Runtime.evaluate", &params) else { return false };
            value = response["result"]["value"].take();
            response["exceptionDetails"].is_null() && !matches!(value, Value::Null | Value::Bool(false)) && value != ""
        });
        value
    }

    /// Returns the console's messages, except for statuses of responses.
    pub fn complaints(&mut self) -> Vec<String> {
        self.evaluate("0");
        let of_page = |event: &&Value| match event["method"].as_str() {
            Some("Log.entryAdded") => event["params"]["entry"]["source"] != "network",
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => {
                ["error", "warning"].contains(&event["params"]["type"].as_str().unwrap())
            }
            _ => false,
        };
        self.events.iter().filter(of_page).map(Value::to_string).collect()
    }
}
