//! The directions between the rooms of `blixard-node`.

use super::Finding;
use super::paths::NamedPath;
use super::tree::{TextFile, Tree};
use anyhow::Result;

const SOURCES: &str = "crates/blixard-node/src/";
/// Each room with the rooms that it may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("transport", &[]),
    ("raft", &["transport", "simulation"]),
    ("images", &["transport", "kept"]),
    ("documents", &["transport", "images"]),
    ("transfers", &["transport", "images", "kept"]),
    ("shares", &["transport", "images", "kept"]),
    ("lazy", &["images"]),
    ("agent", &["raft", "images", "transfers", "lazy"]),
    ("leader", &["raft"]),
    ("catalogs", &["raft", "images", "documents", "transfers", "agent", "transport", "kept"]),
    ("api", &["raft", "images", "documents", "transfers", "shares", "agent", "catalogs", "transport"]),
    ("http", &["api", "raft", "transport"]),
    // Plain values, the reading of a clock, and numbers that rise: they know nobody.
    ("config", &[]),
    ("clock", &["simulation"]),
    // Time and tasks, which are the simulator's in its own build.
    ("runtime", &["simulation"]),
    ("simulation", &["raft", "leader"]),
    ("metrics", &[]),
    ("trace", &[]),
    ("damage", &[]),
    ("backoff", &[]),
    // Small files of a node's own.
    ("kept", &["transport"]),
    // A user's own keys and tickets, for clients as much as for nodes.
    ("user", &["transport"]),
    // The decoders of outside bytes, for tests.
    ("decoders", &["api", "catalogs", "documents", "lazy", "raft", "shares", "transport", "config"]),
];
/// Used by every room.
const FOR_ALL: &[&str] = &["backoff", "config", "clock", "metrics", "runtime", "damage", "trace"];
/// Knows everybody, and is used by nobody but the crate's root.
const COMPOSITION_ROOT: &str = "node";

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_below(SOURCES) {
        let module = module_of(&file.path);
        let Some(room) = module.first() else { continue };
        if room == COMPOSITION_ROOT {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(known, _)| known == room) else {
            let message = format!("{room} is not in tidy's table of rooms: say there which rooms it may use");
            findings.push(Finding { file: file.path.clone(), line: 0, rule: "rooms", message });
            continue;
        };
        findings.extend(file.paths.iter().filter_map(|path| check_path(file, &module, room, allowed, path)));
    }
    Ok(findings)
}

fn check_path(file: &TextFile, module: &[String], room: &str, allowed: &[&str], path: &NamedPath) -> Option<Finding> {
    let target = target(module, path)?;
    let message = match target.as_str() {
        target if target == room || FOR_ALL.contains(&target) || allowed.contains(&target) => return None,
        "*" | "" => format!("`{}` may reach any room: name the room", path.shown()),
        COMPOSITION_ROOT => format!("`{}`: nobody uses the composition root", path.shown()),
        target if ROOMS.iter().any(|(known, _)| *known == target) => {
            let may = if allowed.is_empty() { "no other room".to_owned() } else { allowed.join(", ") };
            format!("`{}`: {room}/ must not use {target}/; it may use {may}", path.shown())
        }
        _ => format!("`{}` hides which room it comes from: write the path through its room", path.shown()),
    };
    Some(Finding { file: file.path.clone(), line: path.line, rule: "rooms", message })
}

/// The module that a file is, as the parts of its path below the crate's root; empty for the root itself.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches(SOURCES).trim_end_matches(".rs");
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    let is_named_by_folder = parts.last().is_some_and(|part| part == "mod");
    let is_root = parts.len() == 1 && (parts[0] == "lib" || parts[0] == "main");
    if is_named_by_folder || is_root {
        parts.pop();
    }
    parts
}

/// The first part, below the crate's root, of what a path names; none when it does not begin with `crate` or `super`.
fn target(module: &[String], path: &NamedPath) -> Option<String> {
    let mut place: Vec<&str> = module.iter().chain(&path.inline_modules).map(String::as_str).collect();
    let mut rest = path.parts.as_slice();
    match rest.first()?.as_str() {
        // Alone it is a visibility, as in `pub(crate)`.
        "crate" | "super" if rest.len() == 1 => return None,
        "crate" => {
            place.clear();
            rest = &rest[1..];
        }
        "super" | "self" => {
            if rest[0] == "self" {
                rest = &rest[1..];
            }
            while rest.first().is_some_and(|part| part == "super") {
                place.pop();
                rest = &rest[1..];
            }
        }
        _ => return None,
    }
    let whole = place.into_iter().chain(rest.iter().map(String::as_str));
    Some(whole.map(str::to_owned).next().unwrap_or_default())
}
