//! Every rule of tidy finds a violation that is planted for it, lets its nearest neighbour pass, and finds nothing in
//! the real tree.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use xtask::tidy::{self, Finding};
use xtask::workspace_root;

/// A tree that breaks no rule; tests add to it or overwrite parts of it.
const CLEAN: &[(&str, &str)] = &[
    ("README.md", "Read `crates/blixard/src/cli/mod.rs` and `raft/`.\n"),
    ("crates/blixard-core/Cargo.toml", "[package]\nname = 'blixard-core'\n[dependencies]\nserde = '1'\n"),
    ("crates/blixard-core/src/lib.rs", "//! Decides.\nuse std::collections::BTreeMap;\n"),
    (
        "crates/blixard-hypervisor/Cargo.toml",
        "[package]\nname = 'blixard-hypervisor'\n[dependencies]\nblixard-core.workspace = true\n[dev-dependencies]\ntokio = '1'\n",
    ),
    ("crates/blixard-hypervisor/src/lib.rs", "//! Runs.\nmod process;\n"),
    ("crates/blixard-hypervisor/src/process.rs", "use std::process::Command;\n"),
    (
        "crates/blixard-node/Cargo.toml",
        "[package]\nname = 'blixard-node'\n[dependencies]\nblixard-core.workspace = true\niroh = '1'\nopenraft = '0'\n",
    ),
    ("crates/blixard-node/src/lib.rs", "//! Waits.\npub mod node;\npub use crate::node::Node;\n"),
    ("crates/blixard-node/src/node.rs", "use crate::{raft::Raft, transport::Transport};\n"),
    ("crates/blixard-node/src/config.rs", "pub struct Limits;\n"),
    ("crates/blixard-node/src/transport/mod.rs", "//! Carries.\nuse iroh::Endpoint;\nuse crate::config::Limits;\n"),
    (
        "crates/blixard-node/src/raft/mod.rs",
        "//! Agrees.\nuse openraft::Raft;\nuse super::transport::Transport;\nmod log;\n",
    ),
    ("crates/blixard-node/src/raft/log.rs", "use super::Raft;\npub(crate) struct Log(pub(super) u8);\n"),
    ("crates/blixard/Cargo.toml", "[package]\nname = 'blixard'\n[dependencies]\nblixard-node.workspace = true\n"),
    ("crates/blixard/src/main.rs", "//! Speaks.\nmod cli;\n"),
    ("crates/blixard/src/cli/mod.rs", "//! Prints.\nfn f() { println!(\"x\"); }\n"),
    ("crates/blixard/tests/cluster.rs", "use std::process::Command;\nfn f() { println!(\"x\"); }\n"),
];

/// What tidy finds in the clean tree with these files added.
fn findings(planted: &[(&str, &str)]) -> Vec<Finding> {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in CLEAN.iter().chain(planted) {
        let file = root.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    tidy::check(root.path()).unwrap()
}

/// Holds that one file, planted in the clean tree, is found by one rule, exactly at these lines.
#[track_caller]
fn is_found(path: &str, text: &str, rule: &str, lines: &[usize]) {
    let found = findings(&[(path, text)]);
    let at: Vec<usize> = found.iter().filter(|finding| finding.file == path).map(|finding| finding.line).collect();
    assert_eq!(at, lines, "{path}: {text}\nfound {found:#?}");
    assert!(found.iter().all(|finding| finding.rule == rule), "only {rule} is broken, found {found:#?}");
}

#[track_caller]
fn passes(path: &str, text: &str) {
    assert_eq!(findings(&[(path, text)]), [], "{path}: {text}");
}

/// Several lines of code, one per string.
fn lines(lines: &[&str]) -> String {
    lines.join("\n")
}

#[test]
fn the_real_tree_is_clean() {
    let found = tidy::check(&workspace_root()).unwrap();
    assert!(found.is_empty(), "{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_real_packages_are_allowed() {
    let found = tidy::check_packages(&workspace_root()).unwrap();
    assert!(found.is_empty(), "{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_clean_tree_passes() {
    assert_eq!(findings(&[]), []);
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    assert!(tidy::check(Path::new("/no/such/folder")).is_err());
}

#[test]
fn crates_depend_in_one_direction() {
    let manifest = "[package]\nname = 'blixard-core'\n[dependencies]\nblixard-hypervisor.workspace = true\n";
    is_found("crates/blixard-core/Cargo.toml", manifest, "crates", &[0]);
    let for_a_platform = "[package]\nname = 'blixard-core'\n[target.'cfg(unix)'.dependencies]\nblixard-node = '0'\n";
    is_found("crates/blixard-core/Cargo.toml", for_a_platform, "crates", &[0]);
    let renamed = "[package]\nname = 'xtask'\n[dependencies]\nours = { package = 'blixard-core', path = '.' }\n";
    is_found("xtask/Cargo.toml", renamed, "crates", &[0]);
    let for_tests = "[package]\nname = 'blixard-hypervisor'\n[dev-dependencies]\nblixard-node.workspace = true\n";
    is_found("crates/blixard-hypervisor/Cargo.toml", for_tests, "crates", &[0]);
}

#[test]
fn core_and_hypervisor_are_not_built_from_async_stacks() {
    let manifest = "[package]\nname = 'blixard-core'\n[dependencies]\nrand = '1'\ntokio.workspace = true\n";
    is_found("crates/blixard-core/Cargo.toml", manifest, "crates", &[0, 0]);
    let manifest = "[package]\nname = 'blixard-hypervisor'\n[build-dependencies]\niroh-base = '1'\n";
    is_found("crates/blixard-hypervisor/Cargo.toml", manifest, "crates", &[0]);
}

#[test]
fn a_crate_that_the_design_does_not_know_is_found() {
    is_found("crates/blixard-new/Cargo.toml", "[package]\nname = 'blixard-new'\n", "crates", &[0]);
    is_found("crates/other/Cargo.toml", "[package]\nname = 'blixard-core'\n", "crates", &[0]);
}

#[test]
fn rooms_use_only_what_they_may() {
    let text = lines(&[
        "use crate::raft::Raft;",
        "use crate::{config::Limits, api::{Api, Fault}};",
        "use super::raft::Raft;",
        "fn f() -> super::super::transport::T { crate::http::serve::<crate::agent::A>() }",
    ]);
    // The fourth line also climbs to the crate's root and down into its own room, which is no finding.
    is_found("crates/blixard-node/src/transport/router.rs", &text, "rooms", &[1, 2, 2, 4, 4]);
}

#[test]
fn super_is_followed_from_where_it_stands() {
    // In raft/log.rs, super is raft and super::super the root; in an inline module it is one more.
    let text = lines(&[
        "use super::super::agent::Agent;",
        "mod inner {",
        "    use super::super::agent::Own;",
        "    use super::super::super::agent::Agent;",
        "}",
        "use self::super::super::leader::Leader;",
    ]);
    is_found("crates/blixard-node/src/raft/log.rs", &text, "rooms", &[1, 4, 6]);
    // In raft/mod.rs, super is the root.
    is_found("crates/blixard-node/src/raft/mod.rs", "//! Agrees.\nuse super::api::Api;\n", "rooms", &[2]);
    is_found("crates/blixard-node/src/leader.rs", "use super::images::Images;\n", "rooms", &[1]);
}

#[test]
fn rooms_do_not_hide_what_they_use() {
    is_found("crates/blixard-node/src/raft/log.rs", "use crate::*;\nuse crate::Node;\n", "rooms", &[1, 2]);
    is_found("crates/blixard-node/src/raft/log.rs", "use crate::node::Node;\n", "rooms", &[1]);
    is_found("crates/blixard-node/src/shed/mod.rs", "//! A shed.\n", "rooms", &[0]);
    is_found("crates/blixard-node/src/config.rs", "use crate::raft::Raft;\n", "rooms", &[1]);
}

#[test]
fn allowed_rooms_and_mere_words_pass() {
    let text = lines(&[
        "//! Agrees, and says crate::http in a comment.",
        "use crate::transport::{self, Transport};",
        "use crate::config::Limits;",
        "const TEXT: &str = \"crate::api::Api\";",
        "pub(crate) fn f() {}",
        "pub(in crate::raft) fn g() {}",
    ]);
    passes("crates/blixard-node/src/raft/mod.rs", &text);
    passes("crates/blixard-node/src/api/mod.rs", "//! Serves.\nuse crate::agent::Agent;\nuse crate::images::Images;\n");
}

#[test]
fn only_transport_names_the_endpoint() {
    let text = lines(&[
        "use iroh::{EndpointId, endpoint::{Connection, Endpoint}};",
        "use iroh::endpoint::Connection;",
        "fn f(endpoint: &iroh::Endpoint) {}",
        "use iroh::*;",
        "#[cfg(test)]",
        "use iroh::Endpoint;",
    ]);
    is_found("crates/blixard-node/src/images/fetch.rs", &text, "endpoint", &[1, 3, 4]);
    is_found("crates/blixard/src/cli/vm.rs", "use iroh::endpoint::Builder;\n", "endpoint", &[1]);
}

#[test]
fn only_raft_names_openraft_and_only_images_the_blobs() {
    is_found("crates/blixard-node/src/leader/mod.rs", "//! Leads.\nuse openraft::Raft;\n", "consensus", &[2]);
    is_found("crates/blixard-node/src/node.rs", "fn f() { openraft::Config::default() }\n", "consensus", &[1]);
    is_found("crates/blixard-node/src/transfers/mod.rs", "//! Queues.\nuse iroh_blobs::Hash;\n", "blobs", &[2]);
    passes("crates/blixard-node/src/documents/mod.rs", "//! Keeps.\nuse iroh_blobs::Hash;\n");
}

#[test]
fn one_file_starts_programs() {
    is_found("crates/blixard-node/src/agent/mod.rs", "//! Acts.\nuse tokio::process::Command;\n", "processes", &[2]);
    is_found("crates/blixard/src/cli/vm.rs", "fn f() { std::process::Command::new(\"ls\"); }\n", "processes", &[1]);
    passes("crates/blixard/src/cli/vm.rs", "fn f() -> std::process::ExitCode { std::process::exit(1) }\n");
    passes("crates/blixard-hypervisor/src/qemu.rs", "#[cfg(test)]\nmod tests { use std::process::Command; }\n");
    let found = findings(&[(
        "crates/blixard-hypervisor/src/qemu.rs",
        "use std::process;\nfn f() { process::Command::new(\"qemu\"); }",
    )]);
    let files: Vec<&str> = found.iter().map(|finding| finding.file.as_str()).collect();
    assert_eq!(files, ["crates/blixard-hypervisor/src/process.rs", "crates/blixard-hypervisor/src/qemu.rs"]);
}

#[test]
fn only_the_command_line_prints() {
    let text = lines(&[
        "fn f() { println!(\"x\"); std::eprintln!(\"y\"); }",
        "fn g() { let out = String::new(); }",
        "// println!(\"in a comment\")",
        "const TEXT: &str = \"println!()\";",
        "#[cfg(test)]",
        "mod tests { fn t() { println!(\"x\"); } }",
        "#[cfg(not(test))]",
        "fn h() { dbg!(1); }",
    ]);
    is_found("crates/blixard-node/src/agent/loop.rs", &text, "terminal", &[1, 1, 8]);
    is_found("crates/blixard/src/main.rs", "//! Speaks.\nfn main() { eprintln!(\"x\"); }\n", "terminal", &[2]);
}

#[test]
fn standard_streams_are_for_the_command_line_and_for_processes_of_their_own() {
    let text = "fn f() { let out = std::io::stdout(); }\nuse std::io::{self, stderr};\n";
    is_found("crates/blixard-node/src/agent/loop.rs", text, "streams", &[1, 2]);
    passes("crates/blixard/src/cli/vm.rs", text);
    passes("crates/blixard-hypervisor/src/guard.rs", text);
    is_found("crates/blixard-hypervisor/src/guard.rs", "fn f() { println!(\"x\"); }\n", "terminal", &[1]);
}

#[test]
fn a_file_of_tests_is_test_code_as_its_parent_says() {
    let found = findings(&[
        ("crates/blixard-node/src/agent/mod.rs", "//! Acts.\n#[cfg(test)]\nmod checks;\nmod real;\n"),
        ("crates/blixard-node/src/agent/checks.rs", "fn t() { println!(\"x\"); }\n"),
        ("crates/blixard-node/src/agent/real.rs", "fn r() { println!(\"x\"); }\n"),
    ]);
    let files: Vec<&str> = found.iter().map(|finding| finding.file.as_str()).collect();
    assert_eq!(files, ["crates/blixard-node/src/agent/real.rs"]);
}

#[test]
fn core_is_pure() {
    let impure = [
        "use std::collections::HashMap;",
        "use std::collections::{BTreeMap, HashSet};",
        "fn f() { std::time::Instant::now(); }",
        "use std::time::{Duration, SystemTime};",
        "fn f(share: f64) {}",
        "const SHARE: u64 = (10 as u64) * 1.5;",
        "async fn f() {}",
        "use std::fs;",
        "use std::net::TcpStream;",
        "use std::thread::spawn;",
        "fn f() { rand::random() }",
        "fn f() { let x = 1e9; }",
    ];
    for line in impure {
        is_found("crates/blixard-core/src/state.rs", &format!("// One line above.\n{line}\n"), "purity", &[2]);
    }
    let pure = [
        "use std::net::{IpAddr, SocketAddr};",
        "use std::time::Duration;",
        "// HashMap, f64, 1.5, Instant::now()",
        "const HEX: u32 = 0x1e9;",
        "fn f(pair: ((u8, u8), u8)) -> u8 { pair.0.1 }",
        "#[cfg(test)]\nmod tests { use std::collections::HashMap; }",
    ];
    for line in pure {
        passes("crates/blixard-core/src/state.rs", line);
    }
}

#[test]
fn long_files_say_why() {
    let body = "fn f() {}\n".repeat(501);
    is_found("crates/blixard-node/src/agent/long.rs", &body, "length", &[0]);
    passes("crates/blixard-node/src/agent/long.rs", &format!("//! Acts.\n//! Long because it is a table.\n{body}"));
    is_found("crates/blixard-node/src/agent/long.rs", &format!("{body}//! Long because\n"), "length", &[0]);
    passes("crates/blixard-node/src/agent/short.rs", &"fn f() {}\n".repeat(500));
}

#[test]
fn doors_have_words_above_them() {
    is_found("crates/blixard-node/src/agent/mod.rs", "mod observe;\n", "head", &[0]);
    is_found("crates/blixard-node/src/agent/mod.rs", "//!\nmod observe;\n", "head", &[0]);
    is_found("crates/blixard-core/src/lib.rs", "// Not a document.\n", "head", &[0]);
    passes("crates/blixard-node/src/agent/observe.rs", "fn f() {}\n");
}

#[test]
fn what_the_simulator_runs_leaves_nothing_to_chance() {
    let select =
        |first: &str| format!("fn f() {{\n    tokio::select! {{\n        {first}\n        _ = a => {{}}\n    }}\n}}\n");
    is_found("crates/blixard-node/src/raft/log.rs", &select("_ = b => {}"), "chance", &[2]);
    passes("crates/blixard-node/src/raft/log.rs", &select("biased;"));
    passes("crates/blixard-node/src/node.rs", &select("_ = b => {}"));
    let test = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", select("_ = b => {}"));
    passes("crates/blixard-node/src/raft/log.rs", &test);
}

#[test]
fn modules_are_named_after_their_duty() {
    is_found("crates/blixard-core/src/lib.rs", "//! Decides.\npub mod utils;\n", "names", &[2]);
    is_found("crates/blixard/tests/common/mod.rs", "//! Shared.\nmod helpers {}\n", "names", &[2]);
    is_found("crates/blixard-core/src/types.rs", "struct S;\n", "names", &[0]);
    passes("crates/blixard-core/src/lib.rs", "//! Decides.\nmod common_sense;\nuse a::types;\n");
}

#[test]
fn nothing_is_left_unfinished() {
    let word = concat!("todo", "!()");
    is_found("crates/blixard-core/src/state.rs", &format!("fn f() {{ {word} }}\n"), "unfinished", &[1]);
    is_found(
        "docs/guide.md",
        &format!("One.\nThis is Not {} done: not implemented {}.\n", "yet", "yet"),
        "unfinished",
        &[2],
    );
}

#[test]
fn documents_name_files_that_exist() {
    let text = lines(&[
        "See `crates/blixard-core/src/lib.rs`, `cli/mod.rs`, `transport/`, `log.rs` and `README.md`.",
        "Not `crates/blixard-core/src/gone.rs`, `cli/gone.rs`, `garage/` nor `gone.md`.",
        "Yours: `/etc/blixard.toml`, `./data1`, `config.toml`, `target/guest/guest.json`, `a / b`, `blixard/api/1`.",
        "```",
        "`cli/gone.rs`",
        "```",
    ]);
    is_found("ARCHITECTURE.md", &text, "documents", &[2, 2, 2, 2]);
}

#[test]
fn documents_name_tests_that_exist() {
    let text = lines(&[
        "Held by `raft/log.rs::holds` and `crates/blixard-node/src/raft/log.rs::holds`; `Node::start` is no test.",
        "Not by `raft/log.rs::gone`, nor by `log.rs::hold`, nor by `raft/gone.rs::holds`.",
    ]);
    let test = ("crates/blixard-node/src/raft/log.rs", "#[cfg(test)]\nmod tests { fn holds() {} }\n");
    let found = findings(&[test, ("ARCHITECTURE.md", &text)]);
    let at: Vec<(&str, usize)> = found.iter().map(|finding| (finding.file.as_str(), finding.line)).collect();
    assert_eq!(at, [("ARCHITECTURE.md", 2); 3], "{found:#?}");
}

#[test]
fn links_lead_somewhere() {
    let text = lines(&[
        "[a](../README.md), [b](../README.md#a-heading), [c](#here), [d](https://example.org/x), [e](deeper/)",
        "[f](README.md) and [g](../gone.md)",
    ]);
    let found = findings(&[("docs/guide.md", &text), ("docs/deeper/page.md", "[h](../guide.md)\n")]);
    let at: Vec<(&str, usize)> = found.iter().map(|finding| (finding.file.as_str(), finding.line)).collect();
    assert_eq!(at, [("docs/guide.md", 2); 2], "{found:#?}");
}

#[test]
fn documents_name_tasks_that_exist() {
    let program = "//! Tasks.\nenum Task {\n    /// One.\n    #[command(name = \"x\")]\n    Guest { refresh: bool, check: bool },\n    BootCheck,\n}\n";
    let text =
        "`cargo xtask guest --check`, `cargo xtask`\n```\ncargo xtask boot-check  # x\ncargo xtask refresh\n```\n";
    let found = findings(&[("xtask/src/main.rs", program), ("README.md", text)]);
    let at: Vec<(&str, usize)> = found.iter().map(|finding| (finding.file.as_str(), finding.line)).collect();
    assert_eq!(at, [("README.md", 4)], "{found:#?}");
}

#[test]
fn the_map_stays_short() {
    is_found("ARCHITECTURE.md", &"Words.\n".repeat(301), "documents", &[0]);
    passes("ARCHITECTURE.md", &"Words.\n".repeat(300));
}
