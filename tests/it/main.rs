//! The service over real sockets: the binary is started, and asked as a client would ask it.

#![allow(clippy::disallowed_methods, reason = "the ban is for the engine; a test may look at the clock")]

mod bad_input;
mod claims;
mod client;
mod connections;
mod lifecycle;
mod pools;
mod server;
mod workers;
