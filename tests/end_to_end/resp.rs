//! RESP edge of the real binary.

mod bad_frames;
mod clients;
mod commands;
mod half_close;
mod http_parity;
mod idle;
mod many_connections;
mod pipelines;
mod transactions;
pub mod wire;
