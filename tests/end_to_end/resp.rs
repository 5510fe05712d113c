//! RESP edge of the real binary.

mod agree;
mod bad_frames;
mod clients;
mod commands;
mod crowds;
mod half_close;
mod idle;
mod pipelines;
mod transactions;
pub mod wire;
