//! Documents: in, out, listed, followed and written to a folder.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use crate::bench::{Bench, PATIENCE, Ran, terminate};

#[test]
fn values_go_in_and_come_out_unchanged() {
    let bench = Bench::new();
    let _node = bench.node();
    let file = bench.write("app.conf", "level = 3\n");
    let set = bench.run(&["doc", "set", "config", "web/app.conf", &file]).ends_with(0);
    assert_eq!(set.stdout, "web/app.conf in config has 10 B\n");
    let mut piped = bench.command(&["doc", "set", "config", "motd", "-", "-o", "json"]);
    let ran = Ran::of(piped.stdin(std::fs::File::open(&file).unwrap()).output().unwrap()).ends_with(0);
    assert_eq!((&ran.json()["key"], &ran.json()["node"]), (&"motd".into(), &1.into()));

    assert_eq!(bench.run(&["doc", "get", "config", "motd"]).ends_with(0).stdout, "level = 3\n");
    bench.run(&["doc", "get", "config", "motd", "-o", "out"]).ends_with(0);
    assert_eq!(std::fs::read_to_string(bench.path("out")).unwrap(), "level = 3\n");
    assert_eq!(bench.run(&["doc", "ls", "config", "-o", "name"]).ends_with(0).stdout, "motd\nweb/app.conf\n");
    assert_eq!(bench.run(&["doc", "ls", "config", "--prefix", "web/", "-o", "name"]).stdout, "web/app.conf\n");
    let list = bench.run(&["doc", "ls", "config"]).ends_with(0).stdout;
    assert!(list.contains("node 1") && list.contains("here"), "{list}");

    bench.run(&["doc", "export", "config", "folder"]).ends_with(0);
    for exported in ["folder/motd", "folder/web/app.conf"] {
        assert_eq!(std::fs::read_to_string(bench.path(exported)).unwrap(), "level = 3\n", "{exported}");
    }

    bench.run(&["doc", "delete", "config", "motd"]).ends_with(0);
    bench.run(&["doc", "get", "config", "motd"]).ends_with(5);
    bench.run(&["doc", "delete", "config", "motd"]).ends_with(5);
    let all = bench.run(&["doc", "ls", "config", "--all"]).ends_with(0).stdout;
    assert!(all.contains("deleted"), "{all}");

    bench.run(&["doc", "set", "web", "a", &file]).ends_with(5);
    bench.run(&["doc", "create", "web"]).ends_with(0);
    bench.run(&["doc", "set", "web", "a", &file]).ends_with(0);
    let documents = bench.run(&["doc", "list", "-o", "json"]).ends_with(0).json();
    assert_eq!((&documents[0]["name"], &documents[1]["name"]), (&"config".into(), &"web".into()));
    assert_eq!((&documents[1]["keys"], &documents[1]["bytes"]), (&1.into(), &10.into()));
}

#[test]
fn what_cannot_be_a_value_or_a_key_is_refused_before_anything_is_sent() {
    let bench = Bench::new();
    let (empty, large) = (bench.write("empty", ""), bench.write("large", vec![b'x'; (1 << 20) + 1]));
    let set = |key: &str, file: &str| bench.run(&["doc", "set", "config", key, file, "--addr", "127.0.0.1:1"]);
    let ran = set("a", &empty).ends_with(2);
    assert!(ran.stderr.contains("blixard doc delete"), "{ran:?}");
    let ran = set("a", &large).ends_with(2);
    assert!(ran.stderr.contains("has more than 1 MiB"), "{ran:?}");
    // It claims to be empty, and does not end.
    assert!(set("a", "/dev/zero").ends_with(2).stderr.contains("has more than 1 MiB"));
    for key in ["../a", "/a", "a//b", ""] {
        let ran = set(key, &large).ends_with(2);
        assert!(ran.stderr.contains("is not a key"), "{ran:?}");
    }
}

#[test]
fn a_document_is_followed_until_it_is_interrupted() {
    let bench = Bench::new();
    let _node = bench.node();
    let file = bench.write("value", "1");
    bench.run(&["doc", "set", "config", "a", &file]).ends_with(0);
    let mut watching = bench.command(&["doc", "watch", "config", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "a");
    bench.run(&["doc", "set", "config", "b", &file]).ends_with(0);
    assert_eq!(lines.next().unwrap().unwrap(), "b");
    terminate(&watching);
    watching.wait().unwrap();
}

#[test]
fn a_ticket_lets_another_cluster_follow_a_document() {
    let (theirs, ours) = (Bench::new(), Bench::new());
    let (_their_node, _our_node) = (theirs.node(), ours.node());
    let file = theirs.write("value", "hello\n");
    theirs.run(&["doc", "set", "config", "motd", &file]).ends_with(0);
    let shared = theirs.run(&["doc", "share", "config", "--read", "--expires", "1h"]).ends_with(0);
    let ticket = shared.stdout.trim();
    assert!(ticket.starts_with("blixarddoc") && shared.stderr.contains("blixard doc join"), "{shared:?}");
    assert!(theirs.run(&["fetch", ticket]).ends_with(2).stderr.contains("blixard doc join"));
    let mistyped = ours.run(&["doc", "join", &ticket[..50], "--as", "theirs"]).ends_with(2);
    assert!(mistyped.stderr.contains("copy it again"), "{mistyped:?}");
    ours.run(&["doc", "join", ticket]).ends_with(6);
    ours.run(&["doc", "join", ticket, "--as", "theirs"]).ends_with(0);
    let folder = ours.path("theirs");
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_to_string(folder.join("motd")).ok().as_deref() != Some("hello\n") {
        assert!(Instant::now() < deadline, "{:?}", ours.run(&["doc", "list"]));
        ours.run(&["doc", "export", "theirs", folder.to_str().unwrap()]);
    }
    let listed = ours.run(&["doc", "list"]).ends_with(0).stdout;
    assert!(listed.contains("another, read") && listed.contains("met "), "{listed}");
    let refused = ours.run(&["doc", "set", "theirs", "motd", &file]).ends_with(6);
    assert!(refused.stderr.contains("reading only"), "{refused:?}");

    let id = theirs.run(&["doc", "share", "config", "--list", "-o", "name"]).ends_with(0).stdout;
    theirs.run(&["doc", "share", "config", "--stop", id.trim()]).ends_with(0);
    theirs.run(&["doc", "share", "config", "--stop", id.trim()]).ends_with(5);
    assert!(ours.run(&["doc", "join", ticket, "--as", "more"]).ends_with(6).stderr.contains("is here already"));
    ours.run(&["doc", "leave", "theirs"]).ends_with(0);
    assert!(ours.run(&["doc", "join", ticket, "--as", "more"]).ends_with(6).stderr.contains("refused"));
}
