//! Malicious site: its pages, and a port that serves the site first and the service afterwards, as after a DNS change
//! of its name.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Attempts of a page. Each reports what it read; a request whose response is hidden from the page reads nothing.
const TRIES: &str = r#"
async function attempt(work) {
  try {
    const read = await Promise.race([work(), new Promise(done => setTimeout(done, 20000, 'no end'))]);
    return read ? 'read: ' + read : 'nothing read';
  } catch (error) {
    return 'nothing read';
  }
}
async function read(answer) {
  if (answer.type == 'opaque') return '';
  const text = await answer.text();
  // The rejection itself may be read by a page of the same origin.
  return answer.status == 421 ? '' : answer.status + ' ' + text;
}
function claim(key) { return JSON.stringify({namespace: 'ns', pool: 'warm', key, reserve_ms: 0}); }
function send(path, init) { return fetch(BASE + path, init).then(read); }
function listen(path) {
  return new Promise(done => {
    const events = new EventSource(BASE + path);
    events.onopen = () => done('a stream');
    events.onerror = () => done('');
  });
}
function form(path) {
  return new Promise(done => {
    const frame = document.createElement('iframe');
    frame.name = 'frame';
    document.body.append(frame);
    const form = document.createElement('form');
    Object.assign(form, {method: 'POST', enctype: 'text/plain', action: BASE + path, target: 'frame'});
    const field = document.createElement('input');
    field.name = '{"namespace":"ns","pool":"warm","key":"form","reserve_ms":0,"labels":{"a":"';
    field.value = '"}}';
    form.append(field);
    document.body.append(form);
    frame.onload = () => { try { done(frame.contentDocument?.body.innerText.includes('fence') ? 'a claim' : ''); } catch (_) { done(''); } };
    form.submit();
  });
}
window.tries = (async () => {
  const all = {};
  const tries = {
    claim: () => send('/v1/claims', {method: 'POST', mode: MODE, body: claim('fetched')}),
    drain: () => send('/v1/pools/ns/warm/workers/w1:drain', {method: 'POST', mode: MODE}),
    list: () => send('/v1/claims', {}),
    put: () => send('/v1/pools/ns/other', {method: 'PUT', body: '{}'}),
    events: () => listen('/v1/pools/ns/warm/events'),
    form: () => form('/v1/claims'),
    resp: () => fetch(RESP, {method: 'POST', mode: 'no-cors', body: 'CLAIM ns/warm KEY resp RESERVE 0\r\n'}).then(read),
    remove: () => send('/v1/pools/ns/warm?force=true', {method: 'DELETE'}),
  };
  for (const [name, work] of Object.entries(tries)) all[name] = await attempt(work);
  return all;
})();
"#;

pub struct Attacker {
    address: SocketAddr,
}

impl Attacker {
    /// Serves until the test ends. `/` has a page that attacks the service's own address; `/rebound` one that attacks
    /// its own origin, where everything except pages is forwarded to the service.
    pub fn start(service: SocketAddr, resp: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || serve(stream, service, resp));
            }
        });
        Self { address }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

fn page(path: &str, service: SocketAddr, resp: SocketAddr) -> Option<String> {
    let tries =
        |base: &str, mode: &str| format!("const BASE = '{base}', MODE = '{mode}', RESP = 'http://{resp}/';\n{TRIES}");
    let script = match path {
        "/" => tries(&format!("http://{service}"), "no-cors"),
        "/rebound" => tries("", "cors"),
        "/form" => {
            let name = r#"{"namespace":"ns","pool":"warm","key":"top","reserve_ms":0,"labels":{"a":""#;
            format!(
                "const form = document.createElement('form');\
                 Object.assign(form, {{method: 'POST', enctype: 'text/plain', action: 'http://{service}/v1/claims'}});\
                 const field = document.createElement('input');\
                 field.name = '{name}'; field.value = '\"}}}}';\
                 form.append(field); document.body.append(form); form.submit();"
            )
        }
        "/link" => format!("location = 'http://{service}/docs';"),
        _ => return None,
    };
    Some(format!("<!doctype html><title>A site</title><body><script>{script}</script></body>"))
}

/// Serves one connection: a page, or a byte-by-byte proxy to the service.
fn serve(mut stream: TcpStream, service: SocketAddr, resp: SocketAddr) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.extend(byte),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&head);
    let path = text.split(' ').nth(1).unwrap_or_default();
    if let Some(page) = page(path, service, resp) {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            page.len()
        );
        let _ = stream.write_all((head + &page).as_bytes());
        return;
    }
    let Ok(mut there) = TcpStream::connect(service) else { return };
    let (Ok(mut back), Ok(mut from)) = (stream.try_clone(), there.try_clone()) else { return };
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    if there.write_all(&head).is_ok() {
        let _ = std::io::copy(&mut stream, &mut there);
    }
    let _ = there.shutdown(Shutdown::Write);
}
