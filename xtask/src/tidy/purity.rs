//! `blixard-core` decides and does nothing else: what would make two replicas disagree, or reach outside, is not named.

use super::Finding;
use super::lexer::{Kind, Token};
use super::paths::NamedPath;
use super::tree::{TextFile, Tree};
use anyhow::Result;

const SOURCES: &str = "crates/blixard-core/src/";

/// Names that must not appear as a part of any path, and why.
const NAMES: &[(&[&str], &str)] = &[
    (&["HashMap", "HashSet"], "their order differs from process to process: use BTreeMap or BTreeSet"),
    (&["Instant", "SystemTime"], "time enters as an argument"),
    (&["f32", "f64"], "floats round differently when code changes: count in integers"),
    (&["async", "await"], "core waits for nothing"),
];
/// Parts of the standard library that reach outside.
const OUTSIDE: &[&str] = &["env", "fs", "io", "net", "os", "process", "thread"];
/// What of them is plain data.
const DATA: &[&str] =
    &["IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr", "SocketAddrV4", "SocketAddrV6", "AddrParseError"];

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_below(SOURCES) {
        let finding = |line: usize, message: String| Finding { file: file.path.clone(), line, rule: "purity", message };
        for path in file.paths.iter().filter(|path| !file.in_test(path)) {
            if let Some(reason) = impurity(path) {
                findings.push(finding(path.line, format!("`{}` has no place in core: {reason}", path.shown())));
            }
        }
        for (number, line) in fractions(file) {
            findings.push(finding(line, format!("{number} is a float, which has no place in core: count in integers")));
        }
    }
    Ok(findings)
}

fn impurity(path: &NamedPath) -> Option<&'static str> {
    for (names, reason) in NAMES {
        if path.parts.iter().any(|part| names.contains(&part.as_str())) {
            return Some(reason);
        }
    }
    let parts: Vec<&str> = path.parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["rand" | "getrandom", _, ..] => Some("randomness enters as an argument"),
        ["std", module, rest @ ..] if OUTSIDE.contains(module) => {
            let is_data = *module == "net" && rest.first().is_some_and(|name| DATA.contains(name));
            (!is_data).then_some("it reaches outside")
        }
        _ => None,
    }
}

/// Numbers with a fraction or an exponent.
fn fractions(file: &TextFile) -> impl Iterator<Item = (&str, usize)> {
    let is_shipped = |token: &&Token| !file.is_test && !token.is_test;
    file.tokens.iter().filter(is_shipped).filter_map(|token| match &token.kind {
        Kind::Number(number) => is_fraction(number).then_some((number.as_str(), token.line)),
        _ => None,
    })
}

fn is_fraction(number: &str) -> bool {
    let is_decimal = !["0x", "0b", "0o"].iter().any(|prefix| number.starts_with(prefix));
    let digits = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    is_decimal && (digits.starts_with(['.', 'e', 'E']) || digits.starts_with("f32") || digits.starts_with("f64"))
}
