//! What documents name in backticks as a path of this repository is there.

use super::Finding;
use super::tree::Tree;
use anyhow::Result;

/// Names that end like this are files of the repository even without a folder before them; a bare `.toml` may be the
/// user's.
const BARE_ENDINGS: &[&str] = &[".rs", ".md"];
/// Made by the build, so not in the tree.
const BUILT: &[&str] = &["target/"];
/// Endings of the files that a path with folders may end with.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".sh", ".yml"];

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, name) in named_paths(&file.text) {
            if looks_like_ours(tree, name) && !exists(tree, name) {
                let message = format!("`{name}` is not in the repository");
                findings.push(Finding { file: file.path.clone(), line, rule: "documents", message });
            }
        }
    }
    Ok(findings)
}

/// What stands between backticks and consists only of characters of a path, outside fenced blocks.
fn named_paths(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if !is_fenced {
            // Every second part lies between two backticks.
            found.extend(line.split('`').skip(1).step_by(2).map(|part| (number, part)));
        }
    }
    let is_path =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    found.retain(|(_, name)| is_path(name));
    found
}

fn looks_like_ours(tree: &Tree, name: &str) -> bool {
    let is_outside = name.starts_with(['/', '~']) || name.starts_with("./") || name.starts_with("../");
    if is_outside || BUILT.iter().any(|built| name.starts_with(built)) {
        return false;
    }
    let Some((first, _)) = name.split_once('/') else {
        return BARE_ENDINGS.iter().any(|ending| name.ends_with(ending) && name.len() > ending.len());
    };
    tree.entries.contains(first) || name.ends_with('/') || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// At the root, or in any folder: documents name rooms and files from where the reader is.
fn exists(tree: &Tree, name: &str) -> bool {
    let name = name.trim_end_matches('/');
    let end = format!("/{name}");
    tree.entries.contains(name) || tree.entries.iter().any(|entry| entry.ends_with(&end))
}
