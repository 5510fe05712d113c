//! Makes Rust of the gRPC interface, without `protoc`: messages, clients and servers, and the descriptors for reflection.
//! Takes the files of the API viewer from the crate that carries them, so that it works without any other network.

#[cfg(not(feature = "server"))]
fn main() {}

#[cfg(feature = "server")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    edges::main()
}

/// What the edges need.
#[cfg(feature = "server")]
mod edges {
    use std::error::Error;
    use std::io::{Cursor, Write as _};
    use std::path::{Path, PathBuf};

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use prost::Message as _;
    use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
    use zip::ZipArchive;

    /// Imports are resolved from here, by clients that take the file as well.
    const ROOT: &str = "src/api/grpc";
    const PROTO: &str = "src/api/grpc/hotpool/v1/hotpool.proto";
    /// All that Swagger UI needs in a page of our own.
    const VIEWER: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

    pub fn main() -> Result<(), Box<dyn Error>> {
        println!("cargo:rerun-if-changed={PROTO}");
        println!("cargo:rerun-if-changed=src/build.rs");
        let out = PathBuf::from(std::env::var("OUT_DIR")?);
        interface(&out)?;
        viewer(&out)
    }

    fn interface(out: &Path) -> Result<(), Box<dyn Error>> {
        let mut descriptors = protox::compile([PROTO], [ROOT])?;
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

    /// Compressed, as they are sent: half a megabyte in place of two.
    fn viewer(out: &Path) -> Result<(), Box<dyn Error>> {
        let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
        for name in VIEWER {
            let wanted = format!("/dist/{name}");
            let inside = archive.file_names().flatten().find(|file| file.ends_with(&wanted)).map(String::from);
            let mut file = archive.by_name(&inside.ok_or_else(|| format!("no {name} in the archive"))?)?;
            let mut packed = GzEncoder::new(Vec::new(), Compression::best());
            std::io::copy(&mut file, &mut packed)?;
            packed.flush()?;
            std::fs::write(out.join(format!("{name}.gz")), packed.finish()?)?;
        }
        Ok(())
    }
}
