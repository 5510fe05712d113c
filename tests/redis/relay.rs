//! Relay in front of a server that runs a competing action when a certain command passes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::servers::{Cluster, Server, until};

/// Callback with the number, from 1, of each requested page before Redis receives the request.
type Hook = Box<dyn FnMut(usize) + Send>;

/// Relay in front of a server for the duration of a test.
pub struct Relay {
    pub port: u16,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Relay {
    /// Starts a relay in front of a single server.
    pub fn before(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
        let (to, seen) = (server.port, Arc::clone(&hook));
        let scans = Arc::new(Mutex::new(0));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", to))) else { continue };
                let (seen, scans) = (Arc::clone(&seen), Arc::clone(&scans));
                let (from_server, to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass(from_server, to_client, |_| {}));
                let inspect = move |bytes: &[u8]| {
                    for _ in 0..bytes.windows(5).filter(|word| *word == b"HSCAN").count() {
                        let mut scans = scans.lock().unwrap_or_else(PoisonError::into_inner);
                        *scans += 1;
                        if let Some(hook) = &mut *seen.lock().unwrap_or_else(PoisonError::into_inner) {
                            hook(*scans);
                        }
                    }
                };
                std::thread::spawn(move || pass(client, server, inspect));
            }
        });
        Self { port, hook }
    }

    /// Starts a relay in front of a cluster node, which announces the address of the relay from now on.
    pub fn before_node(cluster: &Cluster, node: &Server) -> Self {
        let relay = Self::before(node);
        let id: String = node.query(&["CLUSTER", "MYID"]);
        let _: () = node.query(&["CONFIG", "SET", "cluster-announce-port", &relay.port.to_string()]);
        let named = format!("{id} 127.0.0.1:{}@", relay.port);
        until("every node knows the address of the relay", || {
            cluster.all().all(|other| other.query::<String>(&["CLUSTER", "NODES"]).contains(&named))
        });
        relay
    }

    pub fn on_page(&self, hook: impl FnMut(usize) + Send + 'static) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut inspect: impl FnMut(&[u8])) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        inspect(&bytes[..read]);
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
