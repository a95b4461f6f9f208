//! What the documents say of the program, held against the program: its command lines, settings, variables and exit codes.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use blixard_core::ClusterId;
use blixard_node::transport::Ticket;

/// Variables that are no settings of a node, and so not shown by `blixard config show`.
const OTHER_VARIABLES: &[&str] = &[
    "BLIXARD_CONFIG_DIR",
    "BLIXARD_CONTEXT",
    "BLIXARD_LOG",
    "BLIXARD_LOG_FORMAT",
    "BLIXARD_NODE_ADDR",
    "BLIXARD_STATE_DIR",
];
/// Verbs that are over at once and need nobody for it.
const ASK_NO_NODE: &[&str] = &["api", "completions", "context", "fetch"];
/// Read by the tests of the project, not by the program.
const TEST_VARIABLES: &[&str] =
    &["BLIXARD_BLESS", "BLIXARD_SEED", "BLIXARD_E2E_SEED", "BLIXARD_E2E_ROUNDS", "BLIXARD_SIM_TRACE"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every document of the repository, by its path.
fn documents() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["", "docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.insert(path.display().to_string(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(found.len() > 5, "the documents are not where they were: {found:?}");
    found
}

fn run(arguments: &[String], variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BLIXARD_")) {
        command.env_remove(name);
    }
    command
        .env("BLIXARD_STATE_DIR", dir.path().join("state"))
        .env("BLIXARD_CONFIG_DIR", dir.path().join("config"))
        .envs(variables.iter().copied());
    command.args(arguments).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A command line of the program as it stands in a document.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    line: usize,
    /// Without the program's name; a ticket stands where a shell would put the output of another command.
    words: Vec<String>,
    /// In a block of its own, so a reader types it as it is.
    is_whole: bool,
}

/// The command lines of the program in a document: in fenced blocks, and in backticks.
fn shown(document: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    let mut before = String::new();
    for (line, content) in (1..).zip(document.lines()) {
        if content.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced {
            let joined = before.clone() + content;
            if let Some(begun) = joined.strip_suffix('\\') {
                before = begun.to_owned();
                continue;
            }
            before.clear();
            let commands = commands(&joined);
            found.extend(commands.into_iter().map(|words| Shown { line, words, is_whole: true }));
        } else {
            let spans = content.split('`').skip(1).step_by(2).flat_map(commands);
            found.extend(spans.map(|words| Shown { line, words, is_whole: false }));
        }
    }
    found
}

/// The commands of the program within a line of shell, as their words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut outer = String::new();
    let mut rest = line;
    while let Some((head, tail)) = rest.split_once("$(") {
        let (inner, after) = tail.split_once(')').unwrap_or_else(|| panic!("{line}: the bracket is not closed"));
        found.extend(commands(inner));
        outer = outer + head + "TICKET";
        rest = after;
    }
    outer += rest;
    let mut words = Vec::new();
    for word in shell_words(&outer) {
        if matches!(word.as_str(), "|" | "&&" | ";" | ">" | "&" | "#") {
            found.extend(ours(&words));
            words.clear();
            if word == "#" {
                return found;
            }
        } else {
            words.push(word);
        }
    }
    found.extend(ours(&words));
    found
}

/// What comes after the program's name, if it is the program that is run.
fn ours(words: &[String]) -> Option<Vec<String>> {
    let is_assignment = |word: &String| word.split_once('=').is_some_and(|(name, _)| name.starts_with("BLIXARD_"));
    let mut words = words.iter().skip_while(|word| is_assignment(word));
    (words.next()? == "blixard").then(|| words.cloned().collect())
}

/// Splits as a shell would, for the little quoting that documents need.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            Some(_) | None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Why a command line is none of the program's, if it is not.
fn refusal(shown: &Shown) -> Option<String> {
    let ticket = Ticket { cluster: ClusterId([1; 32]), peers: Vec::new(), secret: None }.to_string();
    let filled = |word: &String| match word.as_str() {
        "TICKET" => ticket.clone(),
        "CLIENT" => "0".repeat(64),
        _ => word.clone(),
    };
    let mut arguments: Vec<String> = shown.words.iter().map(filled).collect();
    arguments.push("--help".to_owned());
    // Help comes only when every word before it was understood.
    let asked = run(&arguments, &[]);
    let help = text(&asked.stdout);
    if !asked.status.success() {
        return Some(text(&asked.stderr));
    }
    let verb = shown.words.iter().find(|word| !word.starts_with('-'));
    if help.contains("Commands:\n") {
        return shown.is_whole.then(|| "it names a group, and no verb of it".to_owned());
    }
    // A command that lacks something says so before it looks for a node at an address that cannot be one.
    if shown.is_whole && verb.is_some_and(|verb| !matches!(verb.as_str(), "node" | "config" | "client")) {
        arguments.pop();
        if let Some(at) = arguments.iter().position(|word| word == "--addr" || word == "--context") {
            arguments.drain(at..=at + 1);
        }
        if !verb.is_some_and(|verb| ASK_NO_NODE.contains(&verb.as_str())) {
            arguments.extend(["--addr".to_owned(), "nowhere".to_owned()]);
        }
        let said = text(&run(&arguments, &[]).stderr);
        return said.contains("Usage:").then_some(said);
    }
    None
}

#[test]
fn every_command_line_is_one_of_the_program() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for (path, document) in documents() {
        for shown in shown(&document) {
            if let Some(why) = refusal(&shown) {
                wrong.push(format!("{path}:{}: blixard {}\n{why}", shown.line, shown.words.join(" ")));
            }
            seen.insert(
                shown.words.iter().take_while(|word| !word.starts_with('-')).take(2).cloned().collect::<Vec<_>>(),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for verbs in ["node", "config show", "cluster status", "image import", "vm create", "vm console"] {
        let is_seen = seen.iter().any(|seen| seen.join(" ").starts_with(verbs));
        assert!(is_seen, "no document shows `blixard {verbs}`, or this test does not see it: {seen:?}");
    }
}

#[test]
fn wrong_command_lines_are_found() {
    let text = "Run `blixard vm list`.\n```\nblixard image list -o json   # all\nBLIXARD_ID=1 blixard node --join $(blixard \
                cluster token list --all)\necho x | blixard vm create web \\\n  --imagee tiny\nblixard vm create web\n\
                blixard cluster\n```\nNot `blixard vm fly`, `blixard/api/1`, `blixard vm list --fast`.\n";
    let all = shown(text);
    assert_eq!(all.len(), 9, "{all:?}");
    assert_eq!(all[3].words, ["node", "--join", "TICKET"]);
    let wrong: Vec<String> =
        all.iter().filter(|shown| refusal(shown).is_some()).map(|shown| shown.words.join(" ")).collect();
    let expected = [
        "cluster token list --all",
        "vm create web --imagee tiny",
        "vm create web",
        "cluster",
        "vm fly",
        "vm list --fast",
    ];
    assert_eq!(wrong, expected);
}

/// The rows of a document's tables that begin with a name in backticks: the name, and the second cell.
fn rows(document: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?.to_owned();
        Some((name, cells.next()?.trim_matches('`').to_owned()))
    };
    document.lines().filter_map(row).collect()
}

#[test]
fn the_table_of_settings_is_that_of_the_program() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let rows = rows(&readme);
    // Settings without a default are shown once they are set.
    let unset =
        [("id", "1"), ("join", "x"), ("capacity.vcpus", "2"), ("capacity.memory_mib", "2"), ("capacity.disk_mib", "2")];
    let names: Vec<String> =
        unset.iter().map(|(key, _)| format!("BLIXARD_{}", key.to_uppercase().replace('.', "_"))).collect();
    let variables: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(unset.iter().map(|(_, value)| *value)).collect();
    let output = run(&words("config show -o json"), &variables);
    let settings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    for setting in &settings {
        let key = setting["key"].as_str().unwrap();
        let default = if setting["origin"] == "default" { setting["value"].to_string() } else { "none".to_owned() };
        assert_eq!(rows.get(key), Some(&default), "the row of {key} in README.md");
    }
    assert!(settings.len() > 20, "{settings:?}");
}

#[test]
fn every_variable_is_read() {
    let is_of_a_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut names = BTreeSet::new();
    for document in documents().values() {
        let found = document.match_indices("BLIXARD_").map(|(at, _)| &document[at..]);
        names.extend(found.map(|rest| rest.split(|c| !is_of_a_name(c)).next().unwrap_or_default().to_owned()));
    }
    // The prefix alone, where it is explained.
    names.remove("BLIXARD_");
    assert!(names.contains("BLIXARD_RAFT_HEARTBEAT_MS") && names.len() > 4, "{names:?}");
    for name in names.iter().filter(|name| !TEST_VARIABLES.contains(&name.as_str())) {
        let output = run(&words("config show"), &[(name, "1")]);
        let said = text(&output.stdout) + &text(&output.stderr);
        let is_setting = said.contains(&format!("environment {name}")) || said.contains(&format!("variable {name}"));
        assert!(is_setting || OTHER_VARIABLES.contains(&name.as_str()), "nobody reads {name}");
    }
}

#[test]
fn the_table_of_exit_codes_is_that_of_the_program() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let help = text(&run(&words("--help"), &[]).stdout);
    let codes: Vec<&str> = help.split("Exit codes:\n").nth(1).unwrap().lines().map(str::trim).collect();
    assert!(codes.len() > 10, "{codes:?}");
    for line in codes {
        let (code, meaning) = line.split_once("  ").unwrap();
        let row = format!("| {code} | {meaning} |");
        assert!(readme.lines().any(|line| line == row), "README.md has no row {row}");
    }
}

#[test]
fn the_openapi_document_is_that_of_the_program() {
    let printed = text(&run(&words("api openapi"), &[]).stdout);
    let kept = std::fs::read_to_string(root().join("docs/openapi.json")).unwrap();
    // Not by `assert_eq`: thousands of lines say nothing.
    assert!(printed == kept, "write it anew: `blixard api openapi > docs/openapi.json`");
    let document: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        described.extend(methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let served: BTreeSet<String> =
        blixard_node::api::rules().iter().map(|rule| format!("{} {}", rule.method, rule.path)).collect();
    assert_eq!(described, served);
}
