//! What the program is made of: `cargo metadata` with all that `make run` needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::Command;

use serde_json::Value;

/// One of these in each licence expression, or all parts joined by `AND`.
const ALLOWED: [&str; 13] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "CDLA-Permissive-2.0",
    "MIT-0",
];

/// Packages that are built into the program on this platform, with feature `dev`; not those of the tests alone.
struct Built {
    packages: Vec<Value>,
    /// Features by package id.
    features: BTreeMap<String, Vec<String>>,
}

fn built() -> Built {
    let host = Command::new(env!("CARGO")).args(["-vV"]).output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host").to_owned();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--features", "dev", "--filter-platform"])
        .arg(host)
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();

    let mut reached = HashSet::new();
    let mut open = vec![metadata["resolve"]["root"].as_str().unwrap()];
    while let Some(id) = open.pop() {
        if !reached.insert(id) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let is_for_tests =
                dependency["dep_kinds"].as_array().unwrap().iter().all(|kind| kind["kind"].as_str() == Some("dev"));
            if !is_for_tests {
                open.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    let is_reached = |package: &&Value| reached.contains(package["id"].as_str().unwrap());
    let packages: Vec<Value> = metadata["packages"].as_array().unwrap().iter().filter(is_reached).cloned().collect();
    assert!(packages.len() > 100, "the walk over the dependencies finds them");
    let features = reached
        .iter()
        .map(|id| ((*id).to_owned(), serde_json::from_value(nodes[id]["features"].clone()).unwrap()))
        .collect();
    Built { packages, features }
}

impl Built {
    fn versions(&self, name: &str) -> BTreeSet<&str> {
        let named = self.packages.iter().filter(|package| package["name"] == name);
        named.map(|package| package["version"].as_str().unwrap()).collect()
    }
}

#[test]
fn tls_is_rustls_with_ring_and_nothing_else() {
    let built = built();
    for unwanted in ["openssl-sys", "openssl", "native-tls", "aws-lc-rs", "aws-lc-sys", "async-std"] {
        assert_eq!(built.versions(unwanted), BTreeSet::new(), "{unwanted} has come in: see `cargo tree -i {unwanted}`");
    }
    assert_eq!(built.versions("ring").len(), 1);
}

#[test]
fn what_must_be_one_is_one() {
    let built = built();
    // Two of these would be two global states: spans without parents, a TLS provider installed for the other one.
    for single in [
        "tracing",
        "tracing-core",
        "opentelemetry",
        "opentelemetry_sdk",
        "rustls",
        "axum",
        "hyper",
        "reqwest",
        "tokio",
        "sqlx",
        "libsqlite3-sys",
        "secrecy",
    ] {
        assert_eq!(built.versions(single).len(), 1, "{single}: {:?}", built.versions(single));
    }
}

#[test]
fn licences_are_permissive() {
    // `A OR B` needs one, `A AND B` each; `/` is the old way to write `OR`.
    let allowed = |expression: &str| {
        expression
            .replace(['(', ')'], "")
            .replace('/', " OR ")
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|licence| ALLOWED.contains(&licence.trim())))
    };
    let built = built();
    let others: Vec<_> = built
        .packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn backoff_computes_delays_and_nothing_more() {
    let built = built();
    let package = built.packages.iter().find(|package| package["name"] == "backoff").expect("backoff is used");
    let features = &built.features[package["id"].as_str().unwrap()];
    assert_eq!(*features, Vec::<String>::new(), "its async features need crates that are no longer maintained");
}
