//! The RESP edge.

mod agree;
mod bad_frames;
mod clients;
mod commands;
mod crowds;
mod pipelines;
mod wire;
