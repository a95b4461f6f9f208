//! Several clusters, each by its name.

use crate::bench::{Bench, Ran, free_address};

#[test]
fn a_context_chooses_the_cluster() {
    let bench = Bench::new();
    let home = bench.node_in("home");
    let run = |line: &str| bench.run(&line.split_whitespace().collect::<Vec<_>>());
    let cluster = |ran: Ran| ran.ends_with(0).json()["cluster_id"].as_str().unwrap().to_owned();
    let at_home = cluster(run("cluster status -o json"));
    let added = run("context add home home/node-1-registry.json --use").ends_with(0);
    assert_eq!(added.stdout, "context home is kept and is the current one\n");
    let file = bench.path("config/contexts.toml");
    let before = std::fs::read(&file).unwrap();

    let lab = bench.node_in("lab");
    assert_eq!(std::fs::read(&file).unwrap(), before, "founding a cluster is no reason to go to another by default");
    let in_lab = cluster(run(&format!("cluster status -o json --addr {}", lab.address)));
    assert_ne!(at_home, in_lab);
    run(&format!("context add lab {} {}", free_address(), lab.address)).ends_with(0);
    assert_eq!(cluster(run("cluster status -o json")), at_home, "the path of its registry file was made to last");
    assert_eq!(cluster(run("cluster status -o json --context lab")), in_lab, "the first of its nodes is down");
    let with = |variables: &[(&str, &str)], line: &str| {
        let mut command = bench.command(&line.split_whitespace().collect::<Vec<_>>());
        Ran::of(command.envs(variables.iter().copied()).output().unwrap())
    };
    let in_the_lab = [("BLIXARD_CONTEXT", "lab")];
    assert_eq!(cluster(with(&in_the_lab, "cluster status -o json")), in_lab);
    assert_eq!(cluster(with(&in_the_lab, "--context home cluster status -o json")), at_home);
    assert_eq!(
        cluster(with(&[in_the_lab[0], ("BLIXARD_NODE_ADDR", &home.address)], "cluster status -o json")),
        at_home
    );
    let shown = with(&in_the_lab, "context show").ends_with(0).stdout;
    assert!(shown.contains("environment BLIXARD_CONTEXT") && shown.contains(&lab.address), "{shown}");

    run("context use lab").ends_with(0);
    assert_eq!(cluster(run("cluster status -o json")), in_lab);
    let listed = run("context list").ends_with(0).stdout;
    let marked: Vec<_> = listed.lines().filter(|line| line.contains("yes")).collect();
    assert!(matches!(marked.as_slice(), [line] if line.starts_with("lab")), "{listed}");
    assert_eq!(run("context list -o name").ends_with(0).stdout, "home\nlab\n");
    run("context remove lab").ends_with(0);
    let none = run("context show -o json").ends_with(0).json();
    assert_eq!((&none["context"], &none["origin"]), (&().into(), &"default".into()));
    let several = run("cluster status").ends_with(2);
    assert!(several.stderr.contains("several clusters"), "{several:?}");
    run("context use home").ends_with(0);
    run("context use --none").ends_with(0);
    run("cluster status").ends_with(2);
}

#[test]
fn what_is_wrong_with_a_context_is_told() {
    let bench = Bench::new();
    let run = |line: &str| bench.run(&line.split_whitespace().collect::<Vec<_>>());
    let missing = run("vm list --context lab").ends_with(5);
    assert!(missing.stderr.contains("no context lab") && missing.stderr.contains("blixard context add"), "{missing:?}");
    run("context add lab nowhere").ends_with(2);
    run("context add lab").ends_with(2);
    run("context add ../lab 10.0.0.1:7001").ends_with(2);
    assert!(!bench.path("config/contexts.toml").exists(), "what was refused is not kept");
    run(&format!("context add lab {} --use", free_address())).ends_with(0);
    let again = run("context add lab 10.0.0.1:7001").ends_with(2);
    assert!(again.stderr.contains("--replace"), "{again:?}");
    let unreachable = run("vm list").ends_with(3);
    assert!(unreachable.stderr.starts_with("error: ask the nodes of context lab: "), "{unreachable:?}");
    for line in ["context use work", "context remove work", "context show --context work"] {
        assert!(run(line).ends_with(5).stderr.contains("lab"), "{line}");
    }
    run("vm list --context lab --addr 10.0.0.1:7001").ends_with(2);
    run("context list --context lab").ends_with(2);
    run("config show --context lab").ends_with(2);

    bench.write("config/contexts.toml", "current = 'lab'\n[contexts.lab]\nnode = ['10.0.0.1:7001']\n");
    for line in ["vm list", "context list", "context use lab", "context add work 10.0.0.1:7001"] {
        let ran = run(line).ends_with(2);
        assert!(ran.stderr.contains("contexts.toml: line ") && ran.stderr.contains("\nnext:  "), "{line}: {ran:?}");
    }
}
