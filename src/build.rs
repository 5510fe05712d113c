//! Takes the files of the API viewer from the crate that carries them, so that it works without any other network.
//! The gRPC interface is not generated here: `src/api/grpc/generated` holds it, and `tests/generated` keeps it true.

#[cfg(not(feature = "server"))]
fn main() {}

#[cfg(feature = "server")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/build.rs");
    viewer::pack(std::path::Path::new(&std::env::var("OUT_DIR")?))
}

#[cfg(feature = "server")]
mod viewer {
    use std::error::Error;
    use std::io::{Cursor, Write as _};
    use std::path::Path;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
    use zip::ZipArchive;

    /// Files that Swagger UI needs in our page.
    const FILES: [&str; 2] = ["swagger-ui-bundle.js", "swagger-ui.css"];

    /// Writes the files into `out`, compressed as they are served: half a megabyte instead of two.
    pub fn pack(out: &Path) -> Result<(), Box<dyn Error>> {
        let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
        for name in FILES {
            let suffix = format!("/dist/{name}");
            let path = archive.file_names().flatten().find(|path| path.ends_with(&suffix)).map(String::from);
            let mut file = archive.by_name(&path.ok_or_else(|| format!("the archive of the viewer has no {name}"))?)?;
            let mut packed = GzEncoder::new(Vec::new(), Compression::best());
            std::io::copy(&mut file, &mut packed)?;
            packed.flush()?;
            std::fs::write(out.join(format!("{name}.gz")), packed.finish()?)?;
        }
        Ok(())
    }
}
