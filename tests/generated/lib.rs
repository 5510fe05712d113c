//! Holds the generated gRPC interface to its proto file: messages, clients and servers, and the descriptors for reflection.
//! A package of its own, so that it also runs while the service does not build with what was generated before.
#![cfg(test)]

use std::path::Path;

use prost::Message as _;

/// Set to 1, it writes what is generated instead of comparing.
const BLESS: &str = "HOTPOOL_BLESS";
/// Folder that imports are resolved from, also by clients that take the file.
const PROTO_ROOT: &str = "src/api/grpc";
const PROTO: &str = "src/api/grpc/hotpool/v1/hotpool.proto";
const GENERATED: &str = "src/api/grpc/generated";

#[test]
fn the_generated_interface_is_what_the_proto_file_says() {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = tempfile::tempdir().unwrap();
    let mut descriptors = protox::compile([root.join(PROTO)], [root.join(PROTO_ROOT)]).unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .codec_path("crate::api::grpc::codec::ProtoCodec")
        // Maps are ordered, as the labels of the model are.
        .btree_map(".")
        .compile_fds(descriptors.clone())
        .unwrap();
    // Reflection lists names and types; comments would be most of its bytes.
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(out.path().join("hotpool.v1.bin"), descriptors.encode_to_vec()).unwrap();
    for name in ["hotpool.v1.rs", "hotpool.v1.bin"] {
        let generated = std::fs::read(out.path().join(name)).unwrap();
        let path = root.join(GENERATED).join(name);
        if std::env::var_os(BLESS).is_some_and(|bless| bless == "1") {
            std::fs::write(&path, &generated).unwrap();
        }
        assert!(
            std::fs::read(&path).unwrap_or_default() == generated,
            "{GENERATED}/{name} is not what {PROTO} says; run: {BLESS}=1 cargo test --package hotpool-generated"
        );
    }
}
