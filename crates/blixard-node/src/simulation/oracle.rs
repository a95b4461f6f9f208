//! The judge of a run. It knows what was asked and answered, and what each node applied, and shares no code with what it judges.
//!
//! - Every node applies the same entry at the same index, and is in the same state after it.
//! - A write that was acknowledged is there for ever after, on every node; one that failed never is. Each register has one
//!   writer that counts up, so it is enough to compare numbers.
//! - A current read sees at least what was acknowledged, or seen by another read, before it began.
//! - One node leads in a term. A node that was removed leads in none, and nothing asked of it is done.
//! - What is placed on a node is within what it promised when its last vm was placed. An epoch only rises.
//! - One guest of a vm runs at a time.
//! - A node that gives up its copy of an image leaves as many as there should be, and removes it only after it was struck.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{EndpointId, ImageId, NodeId, Resources, State, VmId};

use super::life::virtual_ns;

/// What is known of a register.
#[derive(Debug, Clone, Default)]
struct Register {
    /// The highest number that was acknowledged or read.
    floor: u64,
    /// The highest number that was asked for.
    ceiling: u64,
    /// Numbers whose writing failed for certain.
    failed: BTreeSet<u64>,
}

/// What happened, for the last line of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome nobody knows.
    pub unknown: u64,
    /// Writes that failed for certain.
    pub failed: u64,
    /// Current reads that were answered.
    pub reads: u64,
    /// Entries of the log.
    pub entries: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Power losses that took something that was not flushed.
    pub torn: u64,
    /// Directions of the network that were cut.
    pub cuts: u64,
    /// Processes that were paused.
    pub pauses: u64,
    /// Nodes let in.
    pub joins: u64,
    /// Nodes removed.
    pub removals: u64,
    /// Guests started.
    pub launches: u64,
    /// Copies of images given up.
    pub releases: u64,
}

#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) tally: Tally,
    pub(crate) violations: Vec<String>,
    registers: BTreeMap<EndpointId, Register>,
    /// What the first node to apply an index found there, and the state after it.
    applied: BTreeMap<u64, ([u8; 32], [u8; 32])>,
    leaders: BTreeMap<u64, NodeId>,
    removed: BTreeSet<EndpointId>,
    epochs: BTreeMap<VmId, u64>,
    placed: BTreeMap<NodeId, (usize, Resources)>,
    /// Where each vm of the newest state belongs, but for those that are on their way out.
    belongs: BTreeMap<VmId, NodeId>,
    /// Where the guests of each vm run, by host.
    guests: BTreeMap<VmId, BTreeSet<u64>>,
    /// Who holds each image in the newest state.
    holders: BTreeMap<ImageId, BTreeSet<NodeId>>,
    /// Hosts whose guests the cluster has given up.
    given_up: BTreeSet<u64>,
    history: u64,
}

impl Oracle {
    /// Adds an event to the history, whose hash is the same for every run of a seed.
    pub(crate) fn note(&mut self, event: &str) {
        let mut hash = self.history ^ 0xcbf2_9ce4_8422_2325;
        for byte in event.bytes().chain(virtual_ns().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.history = hash;
        if std::env::var_os("BLIXARD_SIM_TRACE").is_some() {
            tracing::info!(target: "history", at_ms = virtual_ns() / 1_000_000, "{event}");
        }
    }

    pub(crate) fn history(&self) -> u64 {
        self.history
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.note(&what);
        let seconds = virtual_ns() / 1_000_000;
        self.violations.push(format!("at {}.{:03} s: {what}", seconds / 1000, seconds % 1000));
    }

    /// A node has applied an entry.
    pub(crate) fn applied(&mut self, node: NodeId, index: u64, entry: [u8; 32], state: &State) {
        let digest = state.digest();
        match self.applied.get(&index) {
            None => {
                self.applied.insert(index, (entry, digest));
                self.tally.entries += 1;
                self.look_at(state);
            }
            Some((known, _)) if *known != entry => {
                self.violation(format!("node {node} has another entry at index {index} than the first to apply it"));
            }
            Some((_, known)) if *known != digest => {
                self.violation(format!("node {node} is in another state at index {index} than the first to apply it"));
            }
            Some(_) => {}
        }
    }

    /// What holds of each state, counted anew.
    fn look_at(&mut self, state: &State) {
        let mut wrong = Vec::new();
        for (id, node) in &state.nodes {
            let mut sum = Resources::default();
            let mut count = 0;
            for vm in state.vms.values().filter(|vm| vm.placement.is_some_and(|placement| placement.node == *id)) {
                sum.vcpus += u64::from(vm.spec.vcpus);
                sum.memory_mib += vm.spec.memory_mib;
                sum.disk_mib += vm.spec.disk_mib;
                count += 1;
            }
            let percent = |amount: u64, percent: u32| amount * u64::from(percent) / 100;
            let offered = &node.capacity;
            let over = sum.vcpus > percent(offered.physical.vcpus, offered.overcommit_vcpus_percent)
                || sum.memory_mib > percent(offered.physical.memory_mib, offered.overcommit_memory_percent)
                || sum.disk_mib > percent(offered.physical.disk_mib, offered.overcommit_disk_percent);
            let before = self.placed.insert(*id, (count, sum));
            // A node that came back smaller keeps what it has.
            let has_grown = before.is_none_or(|(_, before)| before != sum);
            if over && has_grown && before.is_none_or(|(before, _)| count > before) {
                wrong.push(format!("node {id} carries {sum:?}, more than it offers"));
            }
        }
        let is_kept = |vm: &&blixard_core::Vm| !vm.desired.deleting;
        let kept = state.vms.values().filter(is_kept);
        self.belongs = kept.filter_map(|vm| Some((vm.id, vm.placement?.node))).collect();
        for (id, vm) in &state.vms {
            let before = self.epochs.insert(*id, vm.epoch).unwrap_or(0);
            if vm.epoch < before {
                wrong.push(format!("the epoch of vm {} fell from {before} to {}", vm.name, vm.epoch));
            }
        }
        for (id, image) in &state.images {
            let before = self.holders.insert(*id, image.holders.clone()).unwrap_or_default();
            let gives = |node: &&NodeId| {
                let shares = state.nodes.get(node).is_some_and(|node| node.shares_images);
                shares && !state.history.lost.contains(node)
            };
            let (left, copies) = (image.holders.iter().filter(gives).count(), state.settings.copies);
            // Nothing else makes a member lose a copy here: disks of hosts keep their images.
            for node in before.difference(&image.holders).filter(|node| state.nodes.contains_key(node)) {
                self.tally.releases += 1;
                if left < usize::from(copies) {
                    wrong.push(format!("node {node} gave its copy of an image up, and {left} of {copies} are left"));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.violation(what));
    }

    /// A node removed its copy of an image.
    pub(crate) fn copy_removed(&mut self, node: NodeId, image: ImageId) {
        if self.holders.get(&image).is_some_and(|holders| holders.contains(&node)) {
            self.violation(format!("node {node} removed a copy of an image that others count on"));
        }
    }

    /// A node leads in a term.
    pub(crate) fn leads(&mut self, node: NodeId, key: EndpointId, term: u64) {
        let first = *self.leaders.entry(term).or_insert(node);
        if first != node {
            self.violation(format!("nodes {first} and {node} both lead in term {term}"));
        }
        if self.removed.contains(&key) {
            self.violation(format!("node {node} leads in term {term} though it was removed"));
        }
    }

    /// A key is out: its node was removed, and every other node knows it.
    pub(crate) fn is_out(&mut self, key: EndpointId) {
        self.removed.insert(key);
    }

    pub(crate) fn was_out(&self, key: EndpointId) -> bool {
        self.removed.contains(&key)
    }

    pub(crate) fn write_begins(&mut self, register: EndpointId, number: u64) {
        self.registers.entry(register).or_default().ceiling = number;
    }

    pub(crate) fn write_acknowledged(&mut self, register: EndpointId, number: u64) {
        self.tally.acknowledged += 1;
        let register = self.registers.entry(register).or_default();
        register.floor = register.floor.max(number);
    }

    pub(crate) fn write_failed(&mut self, register: EndpointId, number: u64) {
        self.tally.failed += 1;
        self.registers.entry(register).or_default().failed.insert(number);
    }

    pub(crate) fn registers(&self) -> Vec<EndpointId> {
        self.registers.keys().copied().collect()
    }

    /// What a read that begins now has to see.
    pub(crate) fn floor(&self, register: EndpointId) -> u64 {
        self.registers.get(&register).map_or(0, |register| register.floor)
    }

    /// A current read that began at a floor has seen a number.
    pub(crate) fn read(&mut self, node: u64, register: EndpointId, floor: u64, seen: u64) {
        self.tally.reads += 1;
        let Some(known) = self.registers.get_mut(&register) else { return };
        let (ceiling, has_failed) = (known.ceiling, known.failed.contains(&seen));
        known.floor = known.floor.max(seen);
        let name = register.short();
        if seen < floor {
            self.violation(format!(
                "a read of {name} on node {node} saw {seen}, and {floor} was acknowledged before it"
            ));
        }
        if seen > ceiling {
            self.violation(format!("a read of {name} on node {node} saw {seen}, which nobody wrote"));
        }
        if has_failed {
            self.violation(format!("a read of {name} on node {node} saw {seen}, whose writing had failed"));
        }
    }

    /// All is well again: a node's whole state is held against everything that was acknowledged.
    pub(crate) fn settled(&mut self, node: u64, state: &State) {
        for register in self.registers() {
            let seen = number_of(state, register);
            let reads = self.tally.reads;
            self.read(node, register, self.floor(register), seen);
            self.tally.reads = reads;
        }
    }

    /// The cluster was told to remove a host by force, whatever runs there.
    pub(crate) fn gives_up(&mut self, host: u64) {
        self.given_up.insert(host);
        self.guests.values_mut().for_each(|hosts| hosts.retain(|other| *other != host));
    }

    /// A host was set up anew: nothing runs there.
    pub(crate) fn is_set_up(&mut self, host: u64) {
        self.given_up.remove(&host);
    }

    pub(crate) fn guest_starts(&mut self, host: u64, vm: VmId) {
        self.tally.launches += 1;
        if self.given_up.contains(&host) {
            return;
        }
        let running = self.guests.entry(vm).or_default();
        running.insert(host);
        if running.len() > 1 {
            let hosts = running.clone();
            self.violation(format!("vm {} runs on hosts {hosts:?} at once", vm.short()));
        }
    }

    /// A node removed the files of a vm.
    pub(crate) fn files_removed(&mut self, node: NodeId, vm: VmId) {
        if self.belongs.get(&vm) == Some(&node) {
            self.violation(format!("node {node} removed the disk of vm {}, which is wanted there", vm.short()));
        }
    }

    pub(crate) fn guest_ends(&mut self, host: u64, vm: VmId) {
        self.guests.entry(vm).or_default().remove(&host);
    }
}

/// What a register holds in a state: the client's name is the number.
pub(crate) fn number_of(state: &State, register: EndpointId) -> u64 {
    state.clients.get(&register).and_then(|client| client.name.parse().ok()).unwrap_or(0)
}
