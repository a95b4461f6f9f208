//! One room per effect: which code may name the endpoint, consensus, the blob store, other programs and the terminal; and chance,
//! which nothing may have that the simulator runs.

use super::Finding;
use super::paths::NamedPath;
use super::tree::{TextFile, Tree};
use anyhow::Result;
use std::collections::BTreeMap;

const HYPERVISOR: &str = "crates/blixard-hypervisor/src/";
/// What the simulator runs, where one seed is to have one history.
const SIMULATED: &[&str] =
    &["crates/blixard-node/src/raft/", "crates/blixard-node/src/leader/", "crates/blixard-node/src/simulation/"];
const PRINTS: &[&str] = &["print", "println", "eprint", "eprintln", "dbg"];

/// An effect and the folders that may have it.
struct Effect {
    rule: &'static str,
    is_named_by: fn(&NamedPath) -> bool,
    places: &'static [&'static str],
    advice: &'static str,
}

const EFFECTS: &[Effect] = &[
    Effect {
        rule: "endpoint",
        is_named_by: names_endpoint,
        places: &["crates/blixard-node/src/transport/", "crates/blixard-node/src/transport.rs"],
        advice: "only transport/ names iroh's endpoint: there is one per node",
    },
    Effect {
        rule: "consensus",
        is_named_by: |path| is_crate(path, &["openraft", "openraft_rt", "openraft_rt_tokio", "openraft_rt_sim"]),
        places: &[
            "crates/blixard-node/src/raft/",
            "crates/blixard-node/src/raft.rs",
            // It stands under openraft: the virtual clock and the tasks on which that runs.
            "crates/blixard-node/src/simulation/",
        ],
        advice: "only raft/ and the simulator below it name openraft: use the room's handle",
    },
    Effect {
        rule: "blobs",
        is_named_by: |path| is_crate(path, &["iroh_blobs", "bao_tree"]),
        places: &[
            "crates/blixard-node/src/images/",
            "crates/blixard-node/src/images.rs",
            "crates/blixard-node/src/documents/",
            "crates/blixard-node/src/documents.rs",
        ],
        advice: "only images/ and documents/ name iroh_blobs: use the verbs of images/",
    },
    Effect {
        rule: "terminal",
        is_named_by: prints,
        places: &["crates/blixard/src/cli/", "crates/blixard/src/cli.rs"],
        advice: "only cli/ prints: log it, or return it to the caller",
    },
    Effect {
        rule: "streams",
        is_named_by: |path| path.contains(&["io", "stdout"]) || path.contains(&["io", "stderr"]),
        // The guard and the KVM probe are processes of their own, which report to their parent through a pipe.
        places: &["crates/blixard/src/cli/", "crates/blixard/src/cli.rs", HYPERVISOR],
        advice: "only cli/ writes to the terminal: log it, or return it to the caller",
    },
    Effect {
        rule: "processes",
        is_named_by: spawns,
        places: &[HYPERVISOR],
        advice: "only the hypervisor crate starts other programs",
    },
];

pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in tree.rust_below("crates/").filter(|file| is_shipped(&file.path)) {
        for effect in EFFECTS.iter().filter(|effect| !effect.places.iter().any(|place| file.path.starts_with(place))) {
            for path in shipped_paths(file).filter(|path| (effect.is_named_by)(path)) {
                let message = format!("`{}`: {}", path.shown(), effect.advice);
                findings.push(Finding { file: file.path.clone(), line: path.line, rule: effect.rule, message });
            }
        }
    }
    findings.extend(one_spawning_file(tree));
    findings.extend(selects_by_chance(tree));
    Ok(findings)
}

/// In a crate's `src`, not in its tests, benches and examples, which are free to play a foreign program.
fn is_shipped(path: &str) -> bool {
    path.split('/').nth(2) == Some("src")
}

fn shipped_paths(file: &TextFile) -> impl Iterator<Item = &NamedPath> {
    file.paths.iter().filter(|path| !file.in_test(path))
}

/// Within the hypervisor crate, one file starts programs: there every one gets its own session, its sandbox and its log.
fn one_spawning_file(tree: &Tree) -> Vec<Finding> {
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for file in tree.rust_below(HYPERVISOR) {
        if let Some(path) = shipped_paths(file).find(|path| spawns(path)) {
            files.insert(&file.path, path.line);
        }
    }
    if files.len() <= 1 {
        return Vec::new();
    }
    let all = files.keys().copied().collect::<Vec<_>>().join(", ");
    let message = format!("more than one file starts programs ({all}): keep it in one");
    let finding = |(file, line): (&&str, &usize)| Finding {
        file: (*file).to_owned(),
        line: *line,
        rule: "processes",
        message: message.clone(),
    };
    files.iter().map(finding).collect()
}

/// tokio's `select!` looks at its branches in an order of chance, unless it is told not to.
fn selects_by_chance(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in SIMULATED.iter().flat_map(|room| tree.rust_below(room)).filter(|file| !file.is_test) {
        for window in file.tokens.windows(4).filter(|window| !window[0].is_test) {
            let is_select = window[0].is_word("select") && window[1].is_mark('!') && window[2].is_mark('{');
            if is_select && !window[3].is_word("biased") {
                let message = "`select!` chooses by chance, and one seed of the simulator would have two histories: begin it \
                               with `biased;`";
                let (file, line) = (file.path.clone(), window[0].line);
                findings.push(Finding { file, line, rule: "chance", message: message.to_owned() });
            }
        }
    }
    findings
}

fn is_crate(path: &NamedPath, names: &[&str]) -> bool {
    path.parts.first().is_some_and(|first| names.contains(&first.as_str()))
}

/// `iroh::Endpoint`, its other path `iroh::endpoint::Endpoint`, its builder, and globs that would bring them in unseen.
fn names_endpoint(path: &NamedPath) -> bool {
    let is_glob = path.parts.last().is_some_and(|part| part == "*");
    let is_module = path.parts.get(1).is_some_and(|part| part == "endpoint");
    let is_builder = is_module && path.parts.get(2).is_some_and(|part| part == "Builder");
    is_crate(path, &["iroh"]) && (path.contains(&["Endpoint"]) || is_builder || (is_glob && path.parts.len() <= 3))
}

fn prints(path: &NamedPath) -> bool {
    path.is_macro && path.parts.last().is_some_and(|name| PRINTS.contains(&name.as_str()))
}

/// std's and tokio's command, however much of the path is written, and nix's fork and exec.
fn spawns(path: &NamedPath) -> bool {
    let is_exec = path.parts.last().is_some_and(|name| name == "fork" || name.starts_with("exec"));
    path.contains(&["process", "Command"]) || (path.contains(&["unistd"]) && is_exec)
}
