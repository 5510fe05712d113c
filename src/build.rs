//! Makes Rust of the gRPC interface, without `protoc`: messages, clients and servers, and the descriptors for reflection.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

/// Imports are resolved from here, by clients that take the file as well.
const ROOT: &str = "src/api/grpc";
const PROTO: &str = "src/api/grpc/hotpool/v1/hotpool.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let mut descriptors = protox::compile([PROTO], [ROOT])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .codec_path("crate::api::grpc::codec::ProtoCodec")
        // As the model has its labels.
        .btree_map(".")
        .compile_fds(descriptors.clone())?;
    // Reflection tells names and types; comments would be most of it.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join("hotpool.v1.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
