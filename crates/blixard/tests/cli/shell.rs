//! Completion in shells, and manual pages.

use std::process::Command;

use crate::bench::{Bench, Ran};
use crate::program::session::Session;

#[test]
fn bash_completes_commands_and_flags() {
    let bench = Bench::new();
    let script = bench.write("blixard.bash", bench.run(&["completions", "bash"]).ends_with(0).stdout);
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-i"]).env("INPUTRC", "/dev/null").env("PS1", "> ").env("TERM", "dumb");
    bash.env("HOME", bench.path("")).current_dir(bench.path(""));
    let mut session = Session::start_command(bash);
    session.press(format!("source {script} && echo is-\"\"there\n").as_bytes());
    session.sees("is-there");
    for (typed, completed) in [
        ("blixard clus\tstat\t--sta\t", "blixard cluster status --stale"),
        ("blixard vm create --anti\t", "blixard vm create --anti-affinity"),
        ("blixard vm list --output ya\t", "blixard vm list --output yaml"),
    ] {
        session.press(typed.as_bytes());
        session.sees(completed);
        // The line is dropped, not run.
        session.press(b"\x15");
    }
    session.press(b"exit\n");
    session.ends_with(0);
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = Bench::new().run(&["completions", shell]).ends_with(0).stdout;
        for word in ["anti-affinity", "export", "revoke"] {
            assert!(script.contains(word), "the script for {shell} has no {word}");
        }
    }
    assert!(Bench::new().run(&["completions", "cmd"]).ends_with(2).stderr.contains("zsh"));
}

#[test]
fn every_command_has_a_manual_page() {
    let bench = Bench::new();
    bench.run(&["man", "pages"]).ends_with(0);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(bench.path("pages")).unwrap() {
        let path = entry.unwrap().path();
        names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        // All warnings, and no output: whatever is said is a fault of the page.
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path);
        let said = groff.output().expect("groff is there: `cargo xtask setup` installs it");
        assert!(said.status.success() && said.stderr.is_empty(), "{}: {:?}", path.display(), Ran::of(said));
    }
    names.sort();
    for name in ["blixard", "blixard-node", "blixard-vm", "blixard-vm-create", "blixard-cluster-token-create"] {
        assert!(names.iter().any(|known| known == name), "no page {name} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("guard") || name.contains("help")), "{names:?}");
    let page = std::fs::read_to_string(bench.path("pages/blixard.1")).unwrap();
    assert!(page.contains("Exit codes:") && page.contains(".TH blixard 1"), "{page}");
}
