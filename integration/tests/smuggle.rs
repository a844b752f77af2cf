//! The smuggling kit: hundreds of hostile messages with verdicts of its own.
//!
//! The kit is not part of this repository. `SLUICE_SHARED` names the directory that holds it as `kits/smuggle`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use integration::{Finished, Proxy, free_port};
use serde_json::Value;

/// No case may FAIL. Those that are LENIENT are printed, for someone to argue.
#[test]
fn no_case_of_the_smuggling_kit_fails() {
    let Some(shared) = std::env::var_os("SLUICE_SHARED") else {
        eprintln!("SLUICE_SHARED is not set: the smuggling kit was not run");
        return;
    };
    let kit = Path::new(&shared).join("kits/smuggle");
    for cases in ["cases.json", "public-cases.json"] {
        let results = run(&kit, cases);
        let of = |verdict: &str| -> Vec<String> {
            let chosen = results.iter().filter(|result| result["verdict"] == verdict);
            chosen.map(|result| format!("{}: {}", result["id"], result["problems"])).collect()
        };
        println!("{cases}: {} cases, LENIENT:\n{}", results.len(), of("LENIENT").join("\n"));
        assert!(!results.is_empty());
        assert!(of("FAIL").is_empty(), "{cases}: FAIL:\n{}", of("FAIL").join("\n"));
    }
}

/// Runs the kit's `cases` against a proxy of their own.
fn run(kit: &Path, cases: &str) -> Vec<Value> {
    let backend = free_port();
    let proxy = Proxy::start(&format!(
        "upstreams: {{kit: {{servers: [{{address: '127.0.0.1:{backend}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: kit}}]"
    ));
    let report = proxy.file("report.json");
    let mut command = Command::new("python3");
    command.arg(kit.join("run.py")).arg("--quiet").arg("--cases").arg(kit.join(cases)).arg("--json").arg(&report);
    command.args(["--proxy", &proxy.address().to_string(), "--backend-port", &backend.to_string()]);
    let finished = Finished::of(&mut command);
    let text = std::fs::read_to_string(report).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
    let report: Value = serde_json::from_str(&text).expect("the report");
    report["results"].as_array().expect("results").clone()
}
