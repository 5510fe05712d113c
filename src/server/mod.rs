//! The service process: configuration, start and stop, signals, logs.

pub mod config;
pub mod service;
pub mod shutdown;
pub mod signals;
pub mod telemetry;
