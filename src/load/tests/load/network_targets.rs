use std::process::Command;

use crate::server::fresh;

#[test]
fn the_harness_loads_a_service_over_http_and_grpc() {
    let (dir, server, _client) = fresh();
    let file = dir.path().join("report.json");
    for kind in ["http", "grpc"] {
        let target = format!("{kind}://{}", server.address);
        for shape in [&["--clients", "2"][..], &["--clients", "1", "--in-flight", "4", "--batch", "10"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool-load"));
            command.args(["bench", "--target", &target, "--duration-s", "0.3", "--workers", "100"]).args(shape);
            let output = command.arg("--report-json").arg(&file).output().unwrap();
            assert!(output.status.success(), "{target} {shape:?}: {}", String::from_utf8_lossy(&output.stderr));
            let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            for field in ["errors", "double_claims", "old_fences", "unknown_workers", "leaked"] {
                assert_eq!(report[field], 0, "{field} in {report:#}");
            }
            assert!(report["claims_ok"].as_u64() > Some(0), "{report:#}");
        }
    }
}
