//! The walls between crates, read from their manifests.

use super::Finding;
use super::tree::{TextFile, Tree};
use anyhow::{Context, Result};
use toml::{Table, Value};

/// Each crate of ours with those that it may use. A crate that is not listed is not known to the design.
const CRATES: &[(&str, &[&str])] = &[
    ("blixard-core", &[]),
    ("blixard-hypervisor", &["blixard-core"]),
    ("blixard-node", &["blixard-core", "blixard-hypervisor"]),
    ("blixard", &["blixard-core", "blixard-hypervisor", "blixard-node"]),
    // Tests that need the decoders of several crates at once.
    ("fuzz", &["blixard-core", "blixard-hypervisor", "blixard-node"]),
    ("xtask", &[]),
];
/// What a crate must not be built from, by the beginning of the package's name, with the reason. Tests are free.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "blixard-core",
        &[
            "async-",
            "axum",
            "futures",
            "getrandom",
            "hyper",
            "iroh",
            "nix",
            "openraft",
            "rand",
            "redb",
            "tempfile",
            "tokio",
        ],
        "core decides without io, clock, randomness or async",
    ),
    (
        "blixard-hypervisor",
        &["async-", "axum", "futures", "hyper", "iroh", "openraft", "tokio"],
        "the hypervisor crate blocks, and has never heard of a cluster",
    ),
    ("blixard", &["iroh", "openraft", "redb"], "the binary speaks to the node through its api"),
];

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for manifest in tree.files.iter().filter(|file| is_member_manifest(&file.path)) {
        check_manifest(manifest, &mut findings).with_context(|| format!("read {}", manifest.path))?;
    }
    Ok(findings)
}

fn is_member_manifest(path: &str) -> bool {
    let folder = path.strip_suffix("/Cargo.toml").unwrap_or_default();
    ["fuzz", "xtask"].contains(&folder) || folder.strip_prefix("crates/").is_some_and(|name| !name.contains('/'))
}

fn check_manifest(manifest: &TextFile, findings: &mut Vec<Finding>) -> Result<()> {
    let mut find = |message: String| {
        findings.push(Finding { file: manifest.path.clone(), line: 0, rule: "crates", message });
    };
    let table: Table = manifest.text.parse()?;
    let name = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
    let name = name.context("the manifest has no package name")?;
    let folder = manifest.path.trim_end_matches("/Cargo.toml").rsplit('/').next().unwrap_or_default();
    if folder != name {
        find(format!("crate {name} lies in the folder {folder}: give both the same name"));
    }
    let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
        find(format!("crate {name} is not in tidy's table: say there which crates it may use"));
        return Ok(());
    };
    for dependency in dependencies(&table) {
        let is_ours =
            dependency.package.starts_with("blixard") || ["fuzz", "xtask"].contains(&dependency.package.as_str());
        if is_ours && !allowed.contains(&dependency.package.as_str()) {
            find(format!(
                "{name} must not depend on {}: the direction is core <- hypervisor <- node <- blixard",
                dependency.package
            ));
        }
        for (_, forbidden, reason) in FORBIDDEN.iter().filter(|(holder, ..)| *holder == name) {
            if !dependency.is_for_tests && forbidden.iter().any(|prefix| dependency.package.starts_with(prefix)) {
                find(format!("{name} must not depend on {}: {reason}", dependency.package));
            }
        }
    }
    Ok(())
}

struct Dependency {
    package: String,
    is_for_tests: bool,
}

/// All dependencies of a manifest, those for one platform only included.
fn dependencies(manifest: &Table) -> Vec<Dependency> {
    let platforms = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    let tables = std::iter::once(manifest).chain(platforms.filter_map(|(_, table)| table.as_table()));
    let mut found = Vec::new();
    for table in tables {
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (name, value) in table.get(section).and_then(Value::as_table).into_iter().flatten() {
                // `package` is the true name of a dependency that was given another.
                let package = value.get("package").and_then(Value::as_str).unwrap_or(name).to_owned();
                found.push(Dependency { package, is_for_tests: section == "dev-dependencies" });
            }
        }
    }
    found
}
