//! Images in and out.

use std::fs::File;
use std::process::Stdio;

use crate::bench::{Bench, Ran};

#[test]
fn an_image_goes_in_and_comes_out_unchanged() {
    let bench = Bench::new();
    let _node = bench.node();
    let disk = bench.disk("d.raw", 1);
    let imported = bench.run(&["image", "import", "--name", "one", &disk]).ends_with(0);
    assert!(imported.stdout.starts_with("image one is imported: disk, 3 MiB"), "{imported:?}");
    let piped = bench.disk("p.raw", 2);
    let mut command = bench.command(&["image", "import", "--name", "two", "-", "-o", "json"]);
    let ran = Ran::of(command.stdin(File::open(&piped).unwrap()).output().unwrap()).ends_with(0);
    assert_eq!(ran.json()["name"], "two");
    assert_eq!(ran.stderr, "", "no progress where there is no terminal");

    bench.run(&["image", "export", "one", "-o", "out.raw"]).ends_with(0);
    assert!(std::fs::read(bench.path("out.raw")).unwrap() == std::fs::read(&disk).unwrap());
    assert!(!bench.path("out.raw.part").exists());
    let streamed = bench.command(&["image", "export", "two", "--part", "disk", "-o", "-"]).output().unwrap();
    assert!(streamed.stdout == std::fs::read(&piped).unwrap());

    let list = bench.run(&["image", "list"]).ends_with(0).stdout;
    assert_eq!(list.lines().count(), 3, "{list}");
    let shown = bench.run(&["image", "show", "one"]).ends_with(0).stdout;
    assert!(shown.contains("held by       node 1") && shown.contains("3 MiB, raw"), "{shown}");

    let missing = bench.run(&["image", "export", "one", "--part", "kernel", "-o", "x"]).ends_with(5);
    assert!(missing.stderr.contains("it has disk"), "{missing:?}");
    bench.run(&["image", "import", "--name", "one", &piped]).ends_with(6);
    bench.run(&["image", "delete", "one"]).ends_with(0);
    bench.run(&["image", "show", "one"]).ends_with(5);
}

#[test]
fn the_cache_says_what_is_there_and_whether_it_is_sound() {
    let bench = Bench::new();
    let _node = bench.node();
    bench.run(&["image", "import", "--name", "one", &bench.disk("d.raw", 1)]).ends_with(0);
    bench.run(&["image", "pin", "one"]).ends_with(0);
    let cache = bench.run(&["image", "cache", "-o", "json"]).ends_with(0).json();
    assert_eq!((&cache[0]["images"][0]["image"], &cache[0]["images"][0]["stays"]), (&"one".into(), &"pinned".into()));
    bench.run(&["image", "unpin", "one"]).ends_with(0);
    let kept = bench.run(&["image", "cache", "--node", "1"]).ends_with(0).stdout;
    assert!(kept.contains("stays: 0 other nodes hold it, and 2 copies are to be kept"), "{kept}");
    bench.run(&["image", "cache", "--node", "9"]).ends_with(5);
    let sound = bench.run(&["image", "verify", "one"]).ends_with(0).stdout;
    assert!(sound.contains("sound") && sound.contains("3 MiB"), "{sound}");
    let explained = bench.run(&["image", "explain", "one", "-o", "json"]).ends_with(0).json();
    assert_eq!((&explained[0]["node"], &explained[0]["state"]), (&1.into(), &"held".into()));
    let freed = bench.run(&["image", "gc"]).ends_with(0).stdout;
    assert!(freed.starts_with("node 1 has freed 0"), "{freed}");
    for verb in ["pin", "verify", "explain"] {
        bench.run(&["image", verb, "nothing"]).ends_with(5);
    }
}

#[test]
fn an_import_says_how_much_of_it_is_new() {
    const MIB: usize = 1 << 20;
    let bench = Bench::new();
    let _node = bench.node();
    let mut disk: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24 ^ n >> 12) as u8).collect();
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[MIB..3 * MIB].fill(0);
    let (old, mut new) = (bench.write("old.raw", &disk), disk);
    // Blocks 1 to 8, of which the last two are alike.
    new[4096..9 * 4096].iter_mut().enumerate().for_each(|(at, byte)| *byte ^= 1 + (at / 4096 % 7) as u8);
    new.copy_within(7 * 4096..8 * 4096, 8 * 4096);
    let new = bench.write("new.raw", new);

    let imported = bench.run(&["image", "import", "--name", "old", &old]).ends_with(0).stdout;
    assert!(imported.contains("of its disk, 2 MiB are content"), "{imported}");
    assert!(imported.contains("2 MiB are zeros"), "{imported}");
    let imported = bench.run(&["image", "import", "--name", "new", &new, "--base", "old", "-o", "json"]).ends_with(0);
    let compared = &imported.json()["compared"];
    assert_eq!((imported.json()["name"].as_str(), compared["base"].as_str()), (Some("new"), Some("old")));
    let [zero, known, fresh, repeated] =
        ["zero", "known", "fresh", "repeated"].map(|what| compared[format!("{what}_bytes")].as_u64().unwrap());
    assert_eq!([zero, known, fresh, repeated], [2 << 20, (2 << 20) - (8 << 12), 7 << 12, 1 << 12], "{compared}");

    bench.run(&["image", "import", "--name", "x", &new, "--base", "nothing"]).ends_with(5);
    bench.run(&["image", "show", "x"]).ends_with(5);
}

#[test]
fn what_is_no_image_is_refused() {
    let bench = Bench::new();
    let _node = bench.node();
    let text = bench.write("notes.txt", "nothing that boots\n".repeat(100));
    for arguments in [&["notes.txt"][..], &["--kernel", &text]] {
        let ran = bench.run(&[&["image", "import", "--name", "x"][..], arguments].concat()).ends_with(6);
        assert!(ran.stderr.contains("cannot be used"), "{ran:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_blamed_and_not_the_node() {
    let bench = Bench::new();
    let _node = bench.node();
    bench.write("empty", "");
    // A process's own memory, from its first address: it opens, and the first read fails.
    for (file, told) in [("/proc/self/mem", "Input/output error"), ("empty", "nothing in it"), ("-", "nothing in it")] {
        let ran = bench.run(&["image", "import", "--name", "x", file]).ends_with(1);
        let name = if file == "-" { "standard input" } else { file };
        assert!(ran.stderr.starts_with(&format!("error: read {name}: ")) && ran.stderr.contains(told), "{ran:?}");
    }
}

#[test]
fn a_terminal_is_no_place_for_a_disk() {
    let bench = Bench::new();
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = bench.command(&["image", "import", "--name", "x", "-", "--addr", "127.0.0.1:1"]);
    let ran = Ran::of(command.stdin(Stdio::from(pty.slave)).output().unwrap()).ends_with(2);
    assert!(ran.stderr.contains("pipe the image in"), "{ran:?}");
}
