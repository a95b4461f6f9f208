//! The console in a terminal, in a pipe, and on every way out.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::bench::{Bench, Node, PATIENCE, Ran, eventually, terminate};

fn with_vm(bench: &Bench) -> Node {
    let node = bench.node();
    bench.run(&["image", "import", "--name", "tiny", &bench.disk("d.raw", 0)]).ends_with(0);
    bench.run(&["vm", "create", "web", "--image", "tiny"]).ends_with(0);
    node
}

/// A command in a terminal of its own.
struct Session {
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    fn start(bench: &Bench, arguments: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = bench.command(arguments).stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let mut reader = File::from(pty.master.try_clone().unwrap());
        let (send, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                if send.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard: File::from(pty.master), terminal: pty.slave, output, seen: String::new() }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    #[track_caller]
    fn sees(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.output.recv_timeout(PATIENCE) {
                Ok(chunk) => self.seen.push_str(&String::from_utf8_lossy(&chunk)),
                Err(error) => panic!("{text:?} is not there ({error}): {:?}", self.seen),
            }
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.terminal.as_fd()).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn becomes_raw(&self) {
        eventually("a raw terminal", || self.is_raw().then_some(()));
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) {
        let status = eventually("the end of the console", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(code), "{:?}", self.seen);
        assert!(!self.is_raw(), "the terminal was left raw");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_console_takes_keys_and_leaves_the_terminal_as_it_was() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("Ctrl-]");
    session.sees("ready");
    session.becomes_raw();
    session.press(b"knock knock\r");
    session.sees("knock knock");
    session.press(b"\x03");
    session.press(b"still here\r");
    session.sees("still here");
    session.press(b"\x1d");
    session.ends_with(0);
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("ready");
    session.becomes_raw();
    terminate(&session.child);
    session.ends_with(130);
}

#[test]
fn the_end_of_the_node_ends_the_console() {
    let bench = Bench::new();
    let mut node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("ready");
    session.becomes_raw();
    node.stop();
    session.ends_with(3);
}

#[test]
fn a_pipe_is_typed_and_the_answer_is_printed() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut child = bench
        .command(&["vm", "console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe\n").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap()).ends_with(0);
    assert!(ran.stdout.contains("from a pipe"), "{ran:?}");
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_followed_log_goes_on() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "logs", "-f", "--tail", "1", "web"]);
    session.sees("ready");
    bench.run(&["vm", "restart", "web", "--force"]).ends_with(0);
    session.sees("run 2");
    assert!(!session.is_raw());
}
