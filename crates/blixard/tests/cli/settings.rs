//! `blixard config show`: which value holds, and where it comes from.

use crate::bench::{Bench, Ran};

/// A setting's value and origin.
fn setting(ran: &Ran, key: &str) -> (serde_json::Value, String) {
    let settings = ran.json();
    let found = settings.as_array().unwrap().iter().find(|setting| setting["key"] == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {ran:?}"));
    (found["value"].clone(), found["origin"].as_str().unwrap().to_owned())
}

#[test]
fn flags_go_before_environment_before_file_before_default() {
    let bench = Bench::new();
    let file =
        bench.write("blixard.toml", "id = 1\nbind = '127.0.0.1:7009'\npeers = ['a:1']\n[raft]\nheartbeat_ms = 70\n");
    let mut command = bench.command(&["config", "show", "--config", &file, "-o", "json"]);
    command.args(["--id", "3", "--peers", "b:2", "--peers", "c:3,d:4", "--label", "zone=a", "--label", "gpu="]);
    command.env("BLIXARD_ID", "2").env("BLIXARD_RAFT_HEARTBEAT_MS", "80").env("BLIXARD_P2P_ENABLED", "no");
    let ran = Ran::of(command.output().unwrap()).ends_with(0);
    assert_eq!(setting(&ran, "id"), (3.into(), "flag --id".to_owned()));
    assert_eq!(setting(&ran, "peers"), (serde_json::json!(["b:2", "c:3", "d:4"]), "flag --peers".to_owned()));
    assert_eq!(setting(&ran, "labels").0, serde_json::json!({"zone": "a", "gpu": ""}));
    let heartbeat = (80.into(), "environment BLIXARD_RAFT_HEARTBEAT_MS".to_owned());
    assert_eq!(setting(&ran, "raft.heartbeat_ms"), heartbeat);
    assert_eq!(setting(&ran, "p2p_enabled"), (false.into(), "environment BLIXARD_P2P_ENABLED".to_owned()));
    assert_eq!(setting(&ran, "bind"), ("127.0.0.1:7009".into(), format!("file {file}")));
    assert_eq!(setting(&ran, "cluster.voters"), (3.into(), "default".to_owned()));

    let table = bench.run(&["config", "show", "--config", &file]).ends_with(0).stdout;
    let line = table.lines().find(|line| line.starts_with("raft.heartbeat_ms")).unwrap();
    assert_eq!(line.split_whitespace().take(3).collect::<Vec<_>>(), ["raft.heartbeat_ms", "70", "file"]);
}

#[test]
fn what_cannot_work_is_named_with_its_place() {
    let bench = Bench::new();
    let show = |file: &str| bench.run(&["config", "show", "--config", file]).ends_with(2).stderr;
    assert!(show(&bench.write("a.toml", "id = 1\nvoters_typo = 1\n")).contains("voters_typo"));
    assert!(show(&bench.write("b.toml", "id = ")).contains("b.toml"));
    assert!(show(&bench.write("c.toml", "id = 1\nbind = 'here'\n")).contains("c.toml"));
    assert!(show(&bench.write("d.toml", "[raft]\nelection_min_ms = 1\n")).contains("election_min_ms"));
    let mut command = bench.command(&["config", "show"]);
    let ran = Ran::of(command.env("BLIXARD_ID", "first").output().unwrap()).ends_with(2);
    assert!(ran.stderr.contains("BLIXARD_ID"), "{ran:?}");
}

#[test]
fn a_node_number_is_not_needed_to_look() {
    let ran = Bench::new().run(&["config", "show"]).ends_with(0);
    assert!(ran.stderr.contains("id is not set") && ran.stdout.contains("data_dir"), "{ran:?}");
}
