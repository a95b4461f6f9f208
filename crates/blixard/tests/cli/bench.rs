//! A node with the fake driver, and what it is given.

use std::path::PathBuf;
use std::process::Child;
use std::time::Instant;

pub(crate) use crate::program::{Bench, PATIENCE, Ran, as_text, command, eventually, free_address, terminate};

impl Bench {
    /// Starts a node with the fake driver, and returns when it answers.
    pub(crate) fn node(&self) -> Node {
        self.node_in("data")
    }

    /// The same, with a data directory of this name: each is a cluster of its own.
    pub(crate) fn node_in(&self, data_dir: &str) -> Node {
        let address = free_address();
        let log_name = format!("{data_dir}.log");
        let log = std::fs::File::create(self.path(&log_name)).unwrap();
        let arguments = ["node", "--id", "1", "--bind", &address, "--data-dir", data_dir, "--hypervisor", "fake"];
        let child = self.command(&arguments).args(["--label", "zone=here"]).stderr(log).spawn().unwrap();
        let node = Node { child, address, registry: self.path(data_dir).join("node-1-registry.json") };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.run(&["cluster", "status", "--addr", &node.address]);
            if asked.code == 0 {
                return node;
            }
            let log = || std::fs::read_to_string(self.path(&log_name)).unwrap();
            assert!(Instant::now() < deadline, "the node does not answer: {asked:?}\n{}", log());
        }
    }

    /// A raw disk with a boot sector and some content.
    pub(crate) fn disk(&self, name: &str, seed: u8) -> String {
        let mut disk: Vec<u8> = (0..3_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect();
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        self.write(name, disk)
    }
}

/// A running node; it is killed when the test is over.
pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) registry: PathBuf,
}

impl Node {
    pub(crate) fn registry(&self) -> &str {
        as_text(&self.registry)
    }

    /// Asks the node to stop, and gives its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        terminate(&self.child);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended in the course of the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
