//! Help, and what is said of a wrong command line.

use crate::bench::{Bench, Ran, command};

/// What could be the id of a client.
const KEY: &str = "1f0c9d2e4b8a37d5a8e0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f506";

fn help(path: &[&str]) -> String {
    let output = command(path).arg("--help").output().unwrap();
    let ran = Ran::of(output).ends_with(0);
    assert!(ran.stderr.is_empty(), "{ran:?}");
    ran.stdout
}

/// The verbs that a group's help lists.
fn verbs(help: &str) -> Vec<String> {
    let commands = help.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let verbs = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    verbs.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).filter(|verb| verb != "help").collect()
}

#[test]
fn every_verb_shows_examples() {
    let mut seen = Vec::new();
    let mut groups = vec![Vec::new()];
    while let Some(group) = groups.pop() {
        let text = help(&group.iter().map(String::as_str).collect::<Vec<_>>());
        let inner = verbs(&text);
        if inner.is_empty() || group.is_empty() {
            let examples = text.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{group:?} has no examples"));
            assert!(examples.contains(&format!("blixard {}", group.join(" "))), "{group:?}: {examples}");
        }
        if inner.is_empty() {
            seen.push(group.join(" "));
        }
        groups.extend(inner.into_iter().map(|verb| [group.clone(), vec![verb]].concat()));
    }
    seen.sort();
    let expected = "api openapi|api proxy|catalog follow|catalog list|catalog publish|catalog pull|catalog unfollow|catalog \
                    withdraw|client id|cluster clients|cluster grant|cluster leave|cluster log|cluster \
                    remove|cluster revoke|cluster set|cluster status|cluster token create|cluster token \
                    list|cluster token revoke|completions|config show|context add|context list|context \
                    remove|context show|context use|doc create|doc delete|doc export|doc get|doc join|doc leave|doc list|doc ls|doc \
                    set|doc share|doc watch|events|fetch|image cache|image delete|image explain|image export|image fetch|image \
                    gc|image import|image list|image pin|image show|image unpin|image verify|node|peer \
                    list|share|transfer cancel|transfer limit|transfer list|transfer pause|transfer \
                    resume|transfer stats|transfer watch|vm console|vm create|vm delete|vm explain|vm list|vm \
                    logs|vm restart|vm start|vm status|vm stop";
    assert_eq!(seen.join("|"), expected);
}

#[test]
fn the_examples_are_commands_that_exist() {
    for group in [
        "",
        "cluster status",
        "cluster set",
        "cluster leave",
        "cluster remove",
        "cluster token create",
        "cluster grant",
        "cluster revoke",
        "cluster clients",
        "cluster log",
        "client id",
        "vm create",
        "vm start",
        "vm stop",
        "vm restart",
        "vm delete",
        "vm logs",
        "doc create",
        "doc list",
        "doc ls",
        "doc get",
        "doc set",
        "doc delete",
        "doc watch",
        "doc export",
        "doc share",
        "doc join",
        "doc leave",
        "catalog publish",
        "catalog withdraw",
        "catalog follow",
        "catalog list",
        "catalog pull",
        "catalog unfollow",
        "image import",
        "image export",
        "config show",
        "context add",
        "context use",
    ] {
        let path: Vec<&str> = group.split_whitespace().collect();
        let text = help(&path);
        for line in text.split("Examples:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty()) {
            // What follows two spaces explains; what goes through a shell is the shell's.
            let example = line.trim().split("  ").next().unwrap();
            if example.contains(['|', '$', '\'', '"', '>', '=']) {
                continue;
            }
            let words: Vec<&str> = example.split_whitespace().skip(1).collect();
            // With an address that cannot be one, a well-formed command gets as far as looking for its node or files.
            let mut words_of_ours = words.clone();
            let asks_no_node = matches!(words.first(), Some(&("client" | "completions" | "config" | "context")));
            if !asks_no_node && !words.contains(&"--addr") {
                words_of_ours.extend(["--addr", "nowhere"]);
            }
            let bench = Bench::new();
            let ran = bench.run(&words_of_ours);
            assert!(!ran.stderr.contains("Usage:"), "{example}: {ran:?}");
        }
    }
}

#[test]
fn the_exit_codes_are_documented() {
    let text = help(&[]);
    let codes = text.split("Exit codes:\n").nth(1).unwrap();
    let listed: Vec<u8> = codes.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert_eq!(listed, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 130]);
    assert!(!text.contains("guard"), "guards are none of a user's business");
}

#[test]
fn wrong_values_are_named_with_a_right_one() {
    let bench = Bench::new();
    let node = ["node", "--id", "1"];
    let create = ["vm", "create", "web", "--image", "tiny"];
    let cases: &[(&[&str], &str, &str, &str)] = &[
        (&["node"], "--id", "0", "1 or higher"),
        (&["node"], "--id", "one", "1 or higher"),
        (&node, "--bind", "7001", "0.0.0.0:7001"),
        (&node, "--bind", "127.0.0.1:65000", "HTTP port"),
        (&node, "--peers", "10.0.0.1", "10.0.0.1:7001"),
        (&node, "--join", "hello", "begins with `blixard`"),
        (&node, "--join", "blixardabcdefg", "copy it again"),
        (&node, "--label", "zone", "zone=home"),
        (&node, "--label", "zone=a,b", "comma"),
        (&node, "--relay", "relay.example.org", "https://relay.example.org"),
        (&node, "--hypervisor", "xen", "qemu"),
        (&node, "--log-format", "xml", "json"),
        (&node, "--config", "missing.toml", "missing.toml"),
        (&node, "--addr", "127.0.0.1:1", "asks none"),
        (&["config", "show"], "--id", "0", "1 or higher"),
        (&["cluster", "status"], "-o", "xml", "table, json, yaml, name"),
        (&["cluster", "status"], "--addr", "here", "HOST:PORT"),
        (&["cluster", "set"], "--voters", "many", "invalid"),
        (&["cluster", "set"], "--copies", "0", "0 is not in 1.."),
        (&["cluster", "remove"], "0", "--force", "1 or higher"),
        (&["cluster", "grant", KEY], "--role", "root", "operator"),
        (&["cluster", "grant", "ada"], "--role", "viewer", "64 hexadecimal digits"),
        (&["cluster", "token", "create"], "--ttl", "60", "30s"),
        (&["cluster", "token", "create"], "--ttl", "0s", "over at once"),
        (&["cluster", "token", "create"], "--uses", "-1", "-1"),
        (&["cluster", "token", "revoke"], "xyz", "-ojson", "16 hexadecimal digits"),
        (&["image", "import", "d.raw"], "--name", "Upper", "a-z"),
        (&["image", "import", "d.raw"], "--kernel", "vmlinuz", "cannot be used with"),
        (&["image", "import", "d.raw", "--name", "d"], "--initrd", "i", "DISKFILE"),
        (&["image", "import", "d.raw", "--name", "d"], "--root", "r", "DISKFILE"),
        (&["image", "import", "d.raw", "--name", "d"], "--cmdline", "c", "DISKFILE"),
        (&["image", "import", "--kernel", "-", "--name", "d"], "--initrd", "-", "only one"),
        (&["image", "export", "d", "-o", "x"], "--part", "tail", "kernel"),
        (&create, "--vcpus", "0", "1..=512"),
        (&create, "--memory", "256", "512M"),
        (&create, "--memory", "1GB", "512M"),
        (&create, "--disk", "0G", "at least 1M"),
        (&create, "--node", "a", "1 or higher"),
        (&create, "--require", "zone", "zone=home"),
        (&create, "--strategy", "random", "spread"),
        (&create, "--publish", "80", "HOST_PORT:GUEST_PORT"),
        (&create, "--publish", "0:80", "HOST_PORT:GUEST_PORT"),
        (&create, "--publish", "80:80/sctp", "/tcp|/udp"),
        (&create, "--restart", "sometimes", "on-failure:3"),
        (&create, "--timeout", "5", "5m"),
        (&["vm", "create", "a_b", "--image", "tiny"], "--vcpus", "1", "a vm name"),
        (&["vm", "stop", "web", "--force"], "--timeout", "1s", "cannot be used with"),
        (&["vm", "start", "web", "--no-wait"], "--timeout", "1s", "cannot be used with"),
        (&["vm", "logs", "web"], "--tail", "all", "invalid digit"),
    ];
    for (before, flag, value, told) in cases {
        let arguments = [before, &[*flag, *value][..]].concat();
        let ran = bench.run(&arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && ran.stderr.contains(told), "{arguments:?} does not say {told:?}: {ran:?}");
    }
}

#[test]
fn a_command_that_lacks_something_says_what() {
    let bench = Bench::new();
    for (arguments, told) in [
        (&["cluster", "set"][..], "--voters"),
        (&["cluster", "grant", KEY], "--role"),
        (&["image", "import", "--name", "d"], "DISKFILE"),
        (&["image", "export", "d"], "--output"),
        (&["vm", "create", "web"], "--image"),
        (&["vm", "stop"], "NAME"),
        (&["vm", "dance", "web"], "dance"),
        (&["cluster", "status"], "--addr"),
        (&["node"], "--id"),
    ] {
        let ran = bench.run(arguments).ends_with(2);
        assert!(ran.stderr.contains(told), "{arguments:?} does not say {told:?}: {ran:?}");
    }
}

#[test]
fn files_that_flags_name_are_looked_at_first() {
    let bench = Bench::new();
    let key = bench.write("id", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
    let large = bench.write("large", "x".repeat(70 << 10));
    let create = ["vm", "create", "web", "--image", "tiny", "--addr", "127.0.0.1:1"];
    let run = |arguments: &[&str]| bench.run(&[&create[..], arguments].concat());
    assert!(run(&["--ssh-key", &key]).ends_with(2).stderr.contains("id.pub"));
    assert!(run(&["--user-data", &large]).ends_with(1).stderr.contains("64 KiB"));
    assert!(run(&["--user-data", "missing"]).ends_with(1).stderr.contains("missing"));
    let import =
        |file: &str| bench.run(&["image", "import", "--name", "d", file, "--addr", "127.0.0.1:1"]).ends_with(1);
    assert!(import("missing.raw").stderr.contains("open missing.raw: No such file"));
    assert!(import(".").stderr.contains("directory"));
}

#[test]
fn what_fingers_know_from_elsewhere_is_understood() {
    let ran = |words: &[&str]| Ran::of(command(words).output().unwrap());
    for (short, long) in
        [(["vm", "ls"], ["vm", "list"]), (["vm", "rm"], ["vm", "delete"]), (["image", "rm"], ["image", "delete"])]
    {
        assert_eq!(help(&short), help(&long));
    }
    let status = ran(&["status"]).ends_with(2);
    for verb in ["`blixard cluster status`", "`blixard vm status`"] {
        assert!(status.stderr.contains(&format!("tip: there is {verb}\n")), "{status:?}");
    }
    let import = ran(&["vm", "import"]).ends_with(2);
    assert!(import.stderr.contains("there is `blixard image import`"), "{import:?}");
    // A mere slip of the keys is put right as before.
    let slip = ran(&["vm", "lst"]).ends_with(2);
    assert!(slip.stderr.contains("'list'") && !slip.stderr.contains("there is"), "{slip:?}");
}
