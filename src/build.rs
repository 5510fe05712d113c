//! Generates Rust code from the gRPC interface without `protoc`: messages, clients, servers, and the descriptors for reflection.
//! Copies the files of the API viewer from a vendored crate, so that the viewer needs no other network.

use std::error::Error;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

/// Root of the imports, also for clients that copy the file.
const ROOT: &str = "src/api/grpc";
const PROTO: &str = "src/api/grpc/hotpool/v1/hotpool.proto";
/// Files that Swagger UI needs in our page.
const VIEWER: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    println!("cargo:rerun-if-changed=src/build.rs");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    generate_interface(&out)?;
    copy_viewer(&out)
}

fn generate_interface(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut descriptors = protox::compile([PROTO], [ROOT])?;
    tonic_prost_build::configure()
        .codec_path("crate::api::grpc::codec::ProtoCodec")
        // The model has ordered labels.
        .btree_map(".")
        .compile_fds(descriptors.clone())?;
    // Reflection needs names and types only; comments would be most of its size.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join("hotpool.v1.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

/// Writes the files of the viewer compressed, as they are served: half a megabyte instead of two.
fn copy_viewer(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for name in VIEWER {
        let suffix = format!("/dist/{name}");
        let inside = archive.file_names().flatten().find(|file| file.ends_with(&suffix)).map(String::from);
        let mut file = archive.by_name(&inside.ok_or_else(|| format!("the archive of the viewer has no {name}"))?)?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        std::io::copy(&mut file, &mut packed)?;
        packed.flush()?;
        std::fs::write(out.join(format!("{name}.gz")), packed.finish()?)?;
    }
    Ok(())
}
