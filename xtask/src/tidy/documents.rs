//! What documents name is there: paths and tests in backticks, targets of links, and tasks of `cargo xtask`. That the
//! command lines of `blixard` are real is held by a test of its own, which asks the binary.

use super::Finding;
use super::lexer::Token;
use super::tree::{TextFile, Tree};
use anyhow::Result;

/// Names that end like this are files of the repository even without a folder before them; a bare `.toml` may be the
/// user's.
const BARE_ENDINGS: &[&str] = &[".rs", ".md"];
/// Made by the build, so not in the tree.
const BUILT: &[&str] = &["target/"];
/// Endings of the files that a path with folders may end with.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".sh", ".yml"];
/// Where the tasks of `cargo xtask` are listed, as variants of an enum of this name.
const TASKS: (&str, &str) = ("xtask/src/main.rs", "Task");
/// A map that takes longer to read than an hour is not read.
const MAP: (&str, usize) = ("ARCHITECTURE.md", 300);

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let tasks = tasks(tree);
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.ends_with(".md")) {
        let mut find = |line: usize, message: String| {
            findings.push(Finding { file: file.path.clone(), line, rule: "documents", message });
        };
        for (line, name) in named_in_backticks(&file.text) {
            if let Some((path, test)) = name.split_once("::") {
                if path.ends_with(".rs") && !has_function(tree, path, test) {
                    find(line, format!("there is no test `{test}` in `{path}`"));
                }
            } else if looks_like_ours(tree, name) && !exists(tree, name) {
                find(line, format!("`{name}` is not in the repository"));
            }
        }
        for (line, target) in links(&file.text) {
            if !tree.entries.contains(&resolved(&file.path, target)) {
                find(line, format!("the link to {target} leads nowhere"));
            }
        }
        for (line, task) in named_tasks(&file.text) {
            if !tasks.iter().any(|known| known == task) {
                find(line, format!("there is no `cargo xtask {task}`; there are: {}", tasks.join(", ")));
            }
        }
        let (map, lines_max) = MAP;
        let lines = file.text.lines().count();
        if file.path == map && lines > lines_max {
            find(0, format!("{lines} lines: it is a map, keep it within {lines_max}"));
        }
    }
    Ok(findings)
}

/// What stands between backticks and consists only of characters of a path, outside fenced blocks.
fn named_in_backticks(text: &str) -> Vec<(usize, &str)> {
    let is_path =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:".contains(c));
    let mut found = prose(text);
    found.retain(|(_, name)| is_path(name));
    found
}

/// What stands between two backticks of one line, outside fenced blocks.
fn prose(text: &str) -> Vec<(usize, &str)> {
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
    found
}

fn looks_like_ours(tree: &Tree, name: &str) -> bool {
    let is_outside = name.starts_with(['/', '~']) || name.starts_with("./") || name.starts_with("../");
    if is_outside || name.contains(':') || BUILT.iter().any(|built| name.starts_with(built)) {
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
    tree.entries.contains(name) || tree.entries.iter().any(|entry| is_end_of(name, entry))
}

fn is_end_of(name: &str, entry: &str) -> bool {
    entry.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

fn has_function(tree: &Tree, path: &str, name: &str) -> bool {
    let declares = |file: &&TextFile| {
        file.tokens.windows(2).any(|window| window[0].is_word("fn") && window[1].word() == Some(name))
    };
    tree.files.iter().filter(|file| is_end_of(path, &file.path)).any(|file| declares(&file))
}

/// Targets of links, without those that lead out of the repository or to a heading of the same page.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let targets = targets.map(|(target, _)| target.split('#').next().unwrap_or_default());
        found.extend(targets.filter(|target| !target.is_empty() && !target.contains(':')).map(|to| (number, to)));
    }
    found
}

/// A link's target as a path below the root.
fn resolved(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The tasks that documents tell the reader to run, fenced or not.
fn named_tasks(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for rest in line.split("cargo xtask ").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
            if end > 0 {
                found.push((number, &rest[..end]));
            }
        }
    }
    found
}

/// The tasks that exist, as they are typed.
fn tasks(tree: &Tree) -> Vec<String> {
    let (path, name) = TASKS;
    let Some(file) = tree.files.iter().find(|file| file.path == path) else { return Vec::new() };
    let is_start = |window: &[Token]| window[0].is_word("enum") && window[1].is_word(name) && window[2].is_mark('{');
    let Some(start) = file.tokens.windows(3).position(is_start) else { return Vec::new() };
    let mut depth = 0_usize;
    let mut tasks = Vec::new();
    let mut is_next = true;
    for token in &file.tokens[start + 2..] {
        if ['{', '(', '['].iter().any(|open| token.is_mark(*open)) {
            depth += 1;
        } else if ['}', ')', ']'].iter().any(|close| token.is_mark(*close)) {
            depth -= 1;
            if depth == 0 {
                break;
            }
        } else if depth == 1 && token.is_mark(',') {
            is_next = true;
        } else if let Some(word) = token.word().filter(|_| depth == 1 && is_next) {
            tasks.push(typed(word));
            is_next = false;
        }
    }
    tasks
}

/// A variant's name as clap has it typed: `BootCheck` is `boot-check`.
fn typed(variant: &str) -> String {
    let mut typed = String::new();
    for c in variant.chars() {
        if c.is_ascii_uppercase() && !typed.is_empty() {
            typed.push('-');
        }
        typed.push(c.to_ascii_lowercase());
    }
    typed
}
