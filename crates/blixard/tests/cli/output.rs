//! The formats of answers, colours, and where errors go.

use yaml_rust2::{Yaml, YamlLoader};

use crate::bench::{Bench, Ran};
use crate::program::session::Session;

/// A result as YAML, read by a parser that is not ours.
fn yaml(ran: &Ran) -> Yaml {
    let mut documents = YamlLoader::load_from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(documents.len(), 1, "{ran:?}");
    documents.remove(0)
}

#[test]
fn one_answer_in_all_its_formats() {
    let bench = Bench::new();
    let _node = bench.node();
    let run = |line: &str| bench.run(&line.split_whitespace().collect::<Vec<_>>()).ends_with(0);
    let disk = bench.disk("d.raw", 0);
    assert_eq!(run(&format!("image import --name tiny {disk} -o name")).stdout, "tiny\n");
    for name in ["web", "db"] {
        let created = run(&format!("vm create {name} --image tiny --memory 64M -o name"));
        assert_eq!(created.stdout, format!("{name}\n"));
    }

    let json = run("vm list -o json").json();
    let yaml_list = yaml(&run("vm list -o yaml"));
    for (at, vm) in json.as_array().unwrap().iter().enumerate() {
        let same = &yaml_list[at];
        assert_eq!(same["name"].as_str(), vm["name"].as_str());
        assert_eq!(same["id"].as_str(), vm["id"].as_str(), "an id of digits only stays a text");
        assert_eq!(same["memory_mib"].as_i64(), Some(64));
        assert_eq!(same["desired"]["power"].as_str(), Some("on"));
        assert!(same["reason"].is_null());
    }
    assert_eq!(run("vm list -o name").stdout, "db\nweb\n");
    assert_eq!(run("image list -o name").stdout, "tiny\n");
    assert_eq!(run("image show tiny -o name").stdout, "tiny\n");
    assert_eq!(run("cluster status -o name").stdout, "1\n");
    assert_eq!(run("vm explain web -o name").stdout, "1\n");
    assert_eq!(run("vm stop web --force -o name").stdout, "web\n");
    assert_eq!(run("vm delete web -o name").stdout, "web\n");
    let settings = run("config show -o name --id 1").stdout;
    assert!(settings.lines().any(|line| line == "raft.heartbeat_ms"), "{settings}");

    let token = run("cluster token create -o name").stdout;
    let listed = run("cluster token list -o name").stdout;
    assert!(listed.lines().any(|line| line == token.trim_end()), "{token} is not among {listed}");
    assert_eq!(run(&format!("cluster token revoke {token} -o name")).stdout, token);
    let status = yaml(&run("cluster status -o yaml"));
    assert!(!status["nodes"][0]["capacity"]["vcpus"].is_badvalue(), "{status:?}");
}

#[test]
fn an_error_is_text_on_standard_error_whatever_the_format() {
    let bench = Bench::new();
    let _node = bench.node();
    for format in ["table", "json", "yaml", "name"] {
        let ran = bench.run(&["vm", "status", "nobody", "-o", format]).ends_with(5);
        assert!(ran.stdout.is_empty() && ran.stderr.starts_with("error: there is no vm named nobody"), "{ran:?}");
    }
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let bench = Bench::new();
    let _node = bench.node();
    let piped = bench.run(&["cluster", "status"]).ends_with(0).stdout;
    assert!(!piped.contains('\x1b') && piped.contains("ready"), "{piped:?}");
    let on_terminal = |variables: &[(&str, &str)]| {
        let mut command = bench.command(&["cluster", "status"]);
        command.env("TERM", "xterm").envs(variables.iter().copied());
        let mut session = Session::start_command(command);
        session.finds("the node's row", |seen| {
            let row = seen.lines().find(|line| line.contains("127.0.0.1:"))?;
            row.contains("ready").then(|| row.to_owned())
        })
    };
    assert!(on_terminal(&[]).contains("\x1b[32mready\x1b[0m"));
    for variables in [&[("NO_COLOR", "1")], &[("TERM", "dumb")]] {
        // As on a build server, which must make no difference.
        let row = on_terminal(&[variables[0], ("CI", "true")]);
        assert!(!row.contains('\x1b'), "{variables:?}: {row:?}");
    }
}

#[test]
fn errors_stand_out_on_terminals_that_want_it() {
    let bench = Bench::new();
    let said = |variables: &[(&str, &str)]| {
        let mut command = bench.command(&["cluster", "status", "--addr", "missing-registry.json"]);
        command.env("TERM", "xterm").envs(variables.iter().copied());
        Session::start_command(command).finds("the advice", |seen| seen.contains("next:").then(|| seen.to_owned()))
    };
    assert!(said(&[]).contains("\x1b[1m\x1b[31merror:\x1b[0m "));
    assert!(said(&[("NO_COLOR", "1")]).starts_with("error: "));
}
