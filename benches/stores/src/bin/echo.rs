//! Limit of a durable call over HTTP: a bare hyper server that writes 300 bytes and syncs them before it echoes a request.
//!
//! `cargo run --release --bin echo -- DIR`. One client in a process of its own sends one request after the other, to servers
//! that differ in the runtime and in the thread that waits for the disk. Each runs several times in turn.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Rounds, in each of which all servers run.
const ROUNDS: usize = 3;
/// Time for which each server runs in a round.
const TURN: Duration = Duration::from_secs(2);
/// Size of a record and of a request's body, in bytes.
const RECORD_BYTES: usize = 300;
const BODY_BYTES: usize = 160;
const FILE_BYTES: u64 = 16 << 20;

/// Runtimes, and threads that wait for the disk.
const RUNTIMES: [&str; 2] = ["one-thread", "two-threads"];
const WAITS: [&str; 5] = ["none", "same-thread", "handed-over", "pool", "own-thread"];

struct Log {
    file: std::fs::File,
    at: u64,
}

impl Log {
    fn create(dir: &Path) -> Self {
        let file =
            std::fs::File::options().read(true).write(true).create(true).truncate(true).open(dir.join("echo.log"));
        let file = file.unwrap();
        let block = vec![0; 1 << 20];
        for at in (0..FILE_BYTES).step_by(block.len()) {
            file.write_all_at(&block, at).unwrap();
        }
        file.sync_all().unwrap();
        Self { file, at: 0 }
    }

    fn write(&mut self) {
        self.file.write_all_at(&[7; RECORD_BYTES], self.at).unwrap();
        rustix::fs::fdatasync(&self.file).unwrap();
        self.at = (self.at + RECORD_BYTES as u64) % (FILE_BYTES - RECORD_BYTES as u64);
    }
}

type SharedLog = Arc<Mutex<Log>>;

#[derive(Clone)]
enum DiskWait {
    None,
    SameThread(SharedLog),
    /// The runtime hands the thread's other tasks over first.
    HandedOver(SharedLog),
    Pool(SharedLog),
    OwnThread(mpsc::Sender<oneshot::Sender<()>>),
}

impl DiskWait {
    fn new(name: &str, dir: &Path) -> Self {
        let shared = || Arc::new(Mutex::new(Log::create(dir)));
        match name {
            "none" => Self::None,
            "same-thread" => Self::SameThread(shared()),
            "handed-over" => Self::HandedOver(shared()),
            "pool" => Self::Pool(shared()),
            _ => {
                let (calls, received) = mpsc::channel::<oneshot::Sender<()>>();
                let mut log = Log::create(dir);
                std::thread::spawn(move || {
                    for call in received {
                        log.write();
                        let _ = call.send(());
                    }
                });
                Self::OwnThread(calls)
            }
        }
    }

    async fn write(&self) {
        match self {
            Self::None => {}
            Self::SameThread(log) => log.lock().unwrap().write(),
            Self::HandedOver(log) => tokio::task::block_in_place(|| log.lock().unwrap().write()),
            Self::Pool(log) => {
                let log = Arc::clone(log);
                tokio::task::spawn_blocking(move || log.lock().unwrap().write()).await.unwrap();
            }
            Self::OwnThread(calls) => {
                let (done, written) = oneshot::channel();
                calls.send(done).unwrap();
                written.await.unwrap();
            }
        }
    }
}

async fn answer(request: Request<Incoming>, disk: DiskWait) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.collect().await?.to_bytes();
    disk.write().await;
    Ok(Response::new(Full::new(body)))
}

async fn serve(disk: DiskWait) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let disk = disk.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let disk = disk.clone();
                async move { answer(request, disk).await }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn call_in_turn(address: &str, times: &mut Vec<Duration>) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let begun = Instant::now();
    while begun.elapsed() < TURN {
        let start = Instant::now();
        let body = Full::new(Bytes::from_static(&[b'x'; BODY_BYTES]));
        let request = Request::post("/v1/claims").header("host", "echo").body(body).unwrap();
        sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        times.push(start.elapsed());
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [runtime, wait, dir] = &args[..] {
        let mut builder = match runtime.as_str() {
            "one-thread" => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let disk = DiskWait::new(wait, Path::new(dir));
        builder
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(async { tokio::spawn(serve(disk)).await.unwrap() });
        return;
    }
    let dir = PathBuf::from(args.first().expect("a directory on the disk to be measured"));
    let mut servers: Vec<(&str, &str, Vec<Duration>)> =
        RUNTIMES.iter().flat_map(|runtime| WAITS.map(|wait| (*runtime, wait, Vec::new()))).collect();
    // One thread cannot hand its tasks over.
    servers.retain(|(runtime, wait, _)| (*runtime, *wait) != ("one-thread", "handed-over"));
    for _ in 0..ROUNDS {
        for (runtime, wait, times) in &mut servers {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let mut server =
                command.args([*runtime, *wait]).arg(&dir).stdout(Stdio::piped()).spawn().expect("this program");
            let mut address = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut address)
                .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(call_in_turn(address.trim(), times));
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
    for (runtime, wait, times) in &mut servers {
        let per_s = times.len() as f64 / (TURN.as_secs_f64() * ROUNDS as f64);
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        println!("{runtime:<12} {wait:<12} p50 {:>5.0} us  p99 {:>5.0} us  {per_s:>6.0} calls/s", at(0.5), at(0.99));
    }
    let _ = std::fs::remove_file(dir.join("echo.log"));
}
