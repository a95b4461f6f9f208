//! Sharing files with people who have no node, and fetching what others share.

use std::os::unix::fs::PermissionsExt;

use crate::bench::{Bench, Ran, as_text, eventually};
use crate::program::signal;

/// Long enough on its way to be killed in the middle of it, under the limit below.
const BYTES: usize = 24 << 20;

/// Somebody else, elsewhere: without a node, a key, or anything else of the first.
fn elsewhere(bench: &Bench, arguments: &[&str]) -> std::process::Command {
    std::fs::create_dir_all(bench.path("elsewhere")).unwrap();
    let mut command = crate::program::command(arguments);
    command.env("BLIXARD_STATE_DIR", "/nonexistent").env("BLIXARD_CONFIG_DIR", "/nonexistent");
    command.current_dir(bench.path("elsewhere"));
    command
}

fn fetch(bench: &Bench, arguments: &[&str]) -> Ran {
    Ran::of(elsewhere(bench, &[&["fetch"][..], arguments].concat()).output().unwrap())
}

#[test]
fn a_folder_is_shared_and_fetched_by_somebody_who_has_no_node() {
    let bench = Bench::new();
    let mut node = bench.node();
    std::fs::create_dir_all(bench.path("trip/deep")).unwrap();
    let tool = bench.write("trip/deep/tool", "#!/bin/sh\n");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o750)).unwrap();
    bench.write("trip/notes", "by the sea\n");
    let shared = bench.run(&["share", "trip", "--expires", "7d"]).ends_with(0);
    let ticket = shared.stdout.trim();
    assert!(ticket.starts_with("blixardshare"), "{shared:?}");
    assert!(shared.stderr.contains("shares trip, 21 B in 2 files, for 7d"), "{shared:?}");

    let fetched = fetch(&bench, &[ticket]).ends_with(0);
    assert_eq!(fetched.stdout, format!("{} is fetched: 21 B in 2 files\n", as_text(&bench.path("elsewhere/trip"))));
    let at = |name: &str| bench.path("elsewhere").join(name);
    assert_eq!(std::fs::read_to_string(at("trip/notes")).unwrap(), "by the sea\n");
    assert_eq!(std::fs::metadata(at("trip/deep/tool")).unwrap().permissions().mode() & 0o777, 0o750);
    let again = fetch(&bench, &[ticket]).ends_with(1);
    assert!(again.stderr.contains("exists already") && again.stderr.contains("--force"), "{again:?}");
    fetch(&bench, &[ticket, "--force"]).ends_with(0);
    fetch(&bench, &[ticket, "-o", "other"]).ends_with(0);
    assert!(at("other/deep/tool").exists());

    // A restart of the node changes nothing.
    assert_eq!(node.stop(), Some(0));
    let address = node.address.clone();
    let arguments = ["node", "--id", "1", "--bind", &address, "--data-dir", "data", "--hypervisor", "fake"];
    let log = std::fs::File::create(bench.path("again.log")).unwrap();
    node.child = bench.command(&arguments).stderr(log).spawn().unwrap();
    eventually("the node to be back", || (bench.run(&["cluster", "status"]).code == 0).then_some(()));
    let listed = bench.run(&["share", "--list", "-o", "json"]).ends_with(0).json();
    let share = &listed[0]["shares"][0];
    assert_eq!((&share["name"], &share["state"], &share["files"]), (&"trip".into(), &"ready".into(), &2.into()));
    assert!(!listed.to_string().contains("secret"), "{listed}");
    let table = bench.run(&["share", "--list"]).ends_with(0).stdout;
    assert!(table.contains("trip/") && table.contains("ready"), "{table}");
    fetch(&bench, &[ticket, "-o", "later"]).ends_with(0);

    let id = share["id"].as_str().unwrap();
    assert_eq!(bench.run(&["share", "--stop", id]).ends_with(0).stdout, format!("node 1 shares {id} no longer\n"));
    bench.run(&["share", "--stop", id]).ends_with(5);
    let refused = fetch(&bench, &[ticket, "-o", "never"]).ends_with(4);
    assert!(refused.stderr.contains("refuses the ticket"), "{refused:?}");
    assert!(!at("never").exists());
}

#[test]
fn a_fetch_that_was_killed_goes_on_where_it_was() {
    let bench = Bench::new();
    let _node = bench.node();
    let content: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = bench.write("big", &content);
    let ticket = bench.run(&["share", &file]).ends_with(0).stdout.trim().to_owned();
    bench.run(&["transfer", "limit", "--up", "2MiB/s"]).ends_with(0);
    let here = || {
        let names = std::fs::read_dir(bench.path("elsewhere")).ok()?;
        let parts = names.map(|entry| entry.unwrap()).filter(|entry| as_text(&entry.path()).ends_with(".part"));
        parts.map(|entry| entry.metadata().unwrap().len()).next()
    };
    let mut before = 0;
    for _ in 0..2 {
        let mut fetching = elsewhere(&bench, &["fetch", &ticket]).stderr(std::process::Stdio::null()).spawn().unwrap();
        let enough = before + (2 << 20);
        before = eventually("a part of it", || here().filter(|bytes| *bytes >= enough));
        signal(&fetching, nix::sys::signal::Signal::SIGKILL);
        fetching.wait().unwrap();
        assert!(before < BYTES as u64 && !bench.path("elsewhere/big").exists());
    }
    bench.run(&["transfer", "limit", "--up", "none"]).ends_with(0);
    let fetched = fetch(&bench, &[&ticket]).ends_with(0);
    let kept: u64 = before >> 20;
    assert!(fetched.stdout.contains(&"of which ".to_owned()) && kept >= 4, "{fetched:?}");
    assert!(fetched.stderr.contains("big: "), "it says how far it is where there is no terminal: {fetched:?}");
    assert!(std::fs::read(bench.path("elsewhere/big")).unwrap() == content);
    assert_eq!(here(), None);
}

#[test]
fn what_cannot_be_shared_or_fetched_is_told_before_anything_is_asked() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bench.path("folder/link")).unwrap();
    let share = |path: &str| bench.run(&["share", path, "--addr", "127.0.0.1:1"]);
    assert!(share("folder").ends_with(2).stderr.contains("folder/link is a link to /etc/passwd"));
    assert!(share("nothing").ends_with(1).stderr.contains("nothing"));
    bench.run(&["share"]).ends_with(2);
    bench.run(&["share", "folder", "--list"]).ends_with(2);
    bench.run(&["share", "folder", "--expires", "0s"]).ends_with(2);
    assert!(fetch(&bench, &["hello"]).ends_with(2).stderr.contains("not a ticket"));
    assert!(fetch(&bench, &["blixardshareaaaa"]).ends_with(2).stderr.contains("copy it again"));
    // That of a cluster: it is told where it belongs.
    let _node = bench.node();
    let ticket = bench.run(&["cluster", "token", "create"]).ends_with(0).stdout;
    assert!(fetch(&bench, &[ticket.trim()]).ends_with(2).stderr.contains("--join"));
}
