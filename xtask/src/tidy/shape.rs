//! How files look: their length, their names, the words at their head, and words that must not be left behind.

use super::Finding;
use super::tree::{TextFile, Tree};
use anyhow::Result;

/// Above this, a file says at its head why it is long.
const LINES_MAX: usize = 500;
/// How a file says so, in a `//!` comment.
const LONG_BECAUSE: &str = "Long because";
/// Names that say nothing about what is inside, so that everything ends up there.
const EMPTY_NAMES: &[&str] = &["types", "common", "util", "utils", "helper", "helpers", "misc", "manager"];
/// What is unfinished does not get in. Put together here so that this file does not name them.
const UNFINISHED: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("not implemented", " yet"),
    concat!("not yet", " implemented"),
];

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in &tree.files {
        unfinished(file, &mut findings);
        if file.is_rust() {
            length(file, &mut findings);
            head(file, &mut findings);
            names(file, &mut findings);
        }
    }
    Ok(findings)
}

fn finding(file: &TextFile, line: usize, rule: &'static str, message: String) -> Finding {
    Finding { file: file.path.clone(), line, rule, message }
}

/// The `//!` comment at the head of a file.
fn inner_documentation(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| line.starts_with("//") || line.trim().is_empty())
        .filter_map(|line| line.strip_prefix("//!"))
}

fn length(file: &TextFile, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    if lines > LINES_MAX && !inner_documentation(&file.text).any(|line| line.contains(LONG_BECAUSE)) {
        let message =
            format!("{lines} lines: split it, or say at its head `//! {LONG_BECAUSE} ...` (limit {LINES_MAX})");
        findings.push(finding(file, 0, "length", message));
    }
}

/// The door of a crate or room says what is behind it.
fn head(file: &TextFile, findings: &mut Vec<Finding>) {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let is_door = matches!(name, "lib.rs" | "main.rs" | "mod.rs");
    if is_door && inner_documentation(&file.text).all(|line| line.trim().is_empty()) {
        let message = "begin it with a `//!` comment that says what lies behind this door".to_owned();
        findings.push(finding(file, 0, "head", message));
    }
}

fn names(file: &TextFile, findings: &mut Vec<Finding>) {
    let advice = |name: &str| format!("`{name}` says nothing about what is inside: name it after its duty");
    for window in file.tokens.windows(2).filter(|window| window[0].is_word("mod")) {
        if let Some(name) = window[1].word().filter(|name| EMPTY_NAMES.contains(name)) {
            findings.push(finding(file, window[1].line, "names", advice(name)));
        }
    }
    // A file that is a test or an example of its own is declared by nobody.
    let stem = file.path.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        findings.push(finding(file, 0, "names", advice(stem)));
    }
}

fn unfinished(file: &TextFile, findings: &mut Vec<Finding>) {
    for (line, text) in (1..).zip(file.text.lines()) {
        let text = text.to_lowercase();
        for word in UNFINISHED.iter().filter(|word| text.contains(**word)) {
            findings.push(finding(
                file,
                line,
                "unfinished",
                format!("`{word}`: finish it, or refuse with a clear error"),
            ));
        }
    }
}
