//! The service process: configuration, start and stop, signals, logs.
#![allow(clippy::disallowed_methods, reason = "what waits for sockets uses the timers and tasks of the runtime")]

pub mod config;
pub mod service;
pub mod shutdown;
pub mod signals;
pub mod telemetry;
