//! The packages that the workspace is built from, against `deny.toml`, so that a machine with nothing but cargo holds
//! them too. Only what tidy needs of that file is read; `cargo deny check` reads all of it.

use super::Finding;
use crate::process;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const RULES: &str = "deny.toml";
/// Linux is the only platform of the project; what other platforms would pull in is not built, nor downloaded.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

#[derive(Deserialize)]
struct Rules {
    licenses: LicenceRules,
    bans: BanRules,
}

#[derive(Deserialize)]
struct LicenceRules {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct BanRules {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ban {
    #[serde(rename = "crate")]
    package: String,
    /// The package is welcome, two versions of it are not.
    #[serde(default)]
    deny_multiple_versions: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<ResolvedPackage>,
}

/// A package that is built; `packages` also lists those that only other platforms need.
#[derive(Deserialize)]
struct ResolvedPackage {
    id: String,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
}

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let text = fs::read_to_string(root.join(RULES)).with_context(|| format!("read {RULES}"))?;
    let rules: Rules = toml::from_str(&text).with_context(|| format!("read the rules in {RULES}"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", PLATFORM]);
    let text = process::text(command.current_dir(root)).context("ask cargo for the packages")?;
    let mut metadata: Metadata = serde_json::from_str(&text).context("read what cargo says about the packages")?;
    let built: Vec<String> = metadata.resolve.nodes.into_iter().map(|node| node.id).collect();
    metadata.packages.retain(|package| built.contains(&package.id));
    Ok(judge(&rules, &metadata.packages))
}

fn judge(rules: &Rules, packages: &[Package]) -> Vec<Finding> {
    let finding = |message| Finding { file: "Cargo.lock".to_owned(), line: 0, rule: "packages", message };
    let mut findings = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Package { name, version, license, .. } in packages {
        versions.entry(name).or_default().push(version);
        match license {
            Some(license) if is_allowed(license, &rules.licenses.allow) => {}
            Some(license) => findings
                .push(finding(format!("{name} {version} has the licence {license}, which {RULES} does not allow"))),
            None => findings.push(finding(format!("{name} {version} names no licence"))),
        }
    }
    for ban in &rules.bans.deny {
        let Some(versions) = versions.get(ban.package.as_str()) else { continue };
        if !ban.deny_multiple_versions {
            findings.push(finding(format!("{} is banned by {RULES}", ban.package)));
        } else if versions.len() > 1 {
            let versions = versions.join(", ");
            findings.push(finding(format!("{} is there in versions {versions}: one is allowed", ban.package)));
        }
    }
    findings
}

/// Whether a licence expression can be met with the allowed licences: `AND` needs all, `OR` needs one, `WITH` belongs
/// to the licence before it. The old form `MIT/Apache-2.0` means `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any_of(&words, &mut at, allowed);
    result && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut result = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all_of(words, at, allowed);
    }
    result
}

fn all_of(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut result = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at, allowed);
    }
    result
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let result = any_of(words, at, allowed);
        let is_closed = words.get(*at) == Some(&")");
        *at += 1;
        return result && is_closed;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        licence = format!("{word} WITH {exception}");
        *at += 2;
    }
    allowed.contains(&licence)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for expression in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(expression, &allowed), "{expression}");
        }
        for expression in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT", "", "MIT WITH other", "(GPL-3.0 OR MIT) AND AGPL-3.0"]
        {
            assert!(!is_allowed(expression, &allowed), "{expression}");
        }
    }

    #[test]
    fn packages_are_judged_by_licence_and_number() {
        let rules: Rules = toml::from_str(
            "licenses.allow = ['MIT']\nbans.deny = [{ crate = 'bad' }, { crate = 'redb', deny-multiple-versions = true }]",
        )
        .unwrap();
        let package = |name: &str, version: &str, license: Option<&str>| Package {
            id: format!("{name} {version}"),
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.map(str::to_owned),
        };
        let good = [package("redb", "4.0.0", Some("MIT")), package("other", "1.0.0", Some("MIT"))];
        assert_eq!(judge(&rules, &good), []);
        let bad = [
            package("redb", "4.0.0", Some("MIT")),
            package("redb", "3.0.0", Some("MIT")),
            package("bad", "1.0.0", Some("MIT")),
            package("copyleft", "1.0.0", Some("GPL-3.0")),
            package("silent", "1.0.0", None),
        ];
        let findings: Vec<String> = judge(&rules, &bad).iter().map(ToString::to_string).collect();
        for name in ["redb", "bad", "copyleft", "silent"] {
            assert_eq!(
                findings.iter().filter(|finding| finding.contains(&format!(" {name} "))).count(),
                1,
                "{name}: {findings:?}"
            );
        }
    }
}
