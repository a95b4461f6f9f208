//! What docs/security.md says, held against what a node leaves on the disk, what its door tells, and the limits in the code.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::bench::{Bench, eventually};

fn document() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security.md")).unwrap()
}

/// The rows of the table whose head begins with `head`, as their cells.
fn table(head: &str) -> Vec<Vec<String>> {
    let document = document();
    let begin = document.find(&format!("| {head} |")).unwrap_or_else(|| panic!("there is no table of {head}"));
    let rows = document[begin..].lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn word(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// Files below a folder that other users can get at, with the folder itself open to them.
fn open_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.mode() & 0o077 == 0 {
            continue;
        }
        if meta.is_dir() { found.extend(open_files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn files_are_closed_as_the_document_says() {
    let bench = Bench::new();
    // Made by somebody else, and open to all.
    std::fs::create_dir(bench.path("data")).unwrap();
    std::fs::set_permissions(bench.path("data"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let node = bench.node();
    let disk = bench.disk("hidden.raw", 1);
    bench.run(&["image", "import", "--name", "hidden-image", &disk]).ends_with(0);
    let secret = bench.write("secret.yaml", "#cloud-config\npassword: hunter2\n");
    let create = ["vm", "create", "hidden-vm", "--image", "hidden-image", "--memory", "64M", "--user-data", &secret];
    bench.run(&create).ends_with(0);
    bench.run(&["share", &secret, "--name", "hidden-share"]).ends_with(0);

    for (head, folder) in [("in the data directory", "data"), ("in the state folder", "state")] {
        let rows = table(head);
        assert!(rows.len() > 1, "{rows:?}");
        for row in rows {
            let path = bench.path(folder).join(word(&row[0]));
            let mode = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode();
            assert_eq!(format!("{:o}", mode & 0o777), word(&row[1]), "the mode of {}", path.display());
        }
    }
    let open: Vec<_> = open_files(&bench.path("data")).into_iter().chain(open_files(&bench.path("state"))).collect();
    // What others can read is empty.
    for path in &open {
        assert_eq!(path.metadata().unwrap().len(), 0, "others can read {}", path.display());
    }

    let (host, port) = node.address.rsplit_once(':').unwrap();
    let door = (host, port.parse::<u16>().unwrap() + 1000);
    for path in ["/bootstrap", "/healthz", "/readyz", "/metrics"] {
        let answer = eventually("the door's answer", || {
            let mut stream = std::net::TcpStream::connect(door).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            (!answer.is_empty()).then_some(answer)
        });
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert!(!answer.contains("hidden") && !answer.contains("hunter2"), "{path} tells of what is private: {answer}");
    }
    let log = bench.run(&["cluster", "log", "-n", "1000", "-o", "json"]).ends_with(0).stdout;
    assert!(log.contains("hidden-vm") && !log.contains("hunter2"), "{log}");
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The amounts in a cell, as they would stand in the code.
fn amounts(cell: &str) -> Vec<String> {
    let words: Vec<&str> = cell.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let numbers = words.iter().enumerate().filter(|(_, word)| word.chars().all(|c| c.is_ascii_digit()));
    numbers
        .map(|(at, number)| match words.get(at + 1).copied() {
            Some("KiB") => format!("{number} << 10"),
            Some("MiB") => format!("{number} << 20"),
            Some("s") => format!("Duration::from_secs({number})"),
            Some("ms") => format!("Duration::from_millis({number})"),
            _ => (*number).to_owned(),
        })
        .collect()
}

#[test]
fn the_limits_are_those_of_the_code() {
    let mut code = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../blixard-node/src"), &mut code);
    let constants: Vec<(&str, &str)> = code
        .lines()
        .filter_map(|line| line.split_once("const ")?.1.strip_suffix(';')?.split_once(" = "))
        .filter_map(|(name, value)| Some((name.split_once(':')?.0, value)))
        .collect();
    let rows = table("what");
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        let names: Vec<&str> = row[2].split(", ").map(word).collect();
        let values = amounts(&row[1]);
        assert_eq!(names.len(), values.len(), "{row:?}");
        for (name, value) in names.into_iter().zip(values) {
            assert!(constants.contains(&(name, &value)), "{row:?}: the code has no {name} of {value}");
        }
    }
}
