//! What must hold of every state, whatever commands led to it.
//!
//! Tests check all of it after every command. Capacity is missing on purpose: a node may come back with less memory than
//! its vms were promised, and the state says so rather than lie. That nothing is *placed* beyond capacity is asserted where
//! it is placed.

use std::collections::{BTreeMap, BTreeSet};

use crate::boot;
use crate::limits::{
    self, ANSWERED_MAX, CLIENTS_MAX, EVENTS_MAX, IMAGES_MAX, NODES_MAX, REMOVED_MAX, TOKENS_MAX, VMS_MAX,
};
use crate::{AUDIT_MAX, ClientRole, Image, NodeId, Power, State, Vm};

type Check = Result<(), String>;

fn ensure(holds: bool, broken: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(broken()) }
}

impl State {
    /// Checks every invariant of the state.
    ///
    /// # Errors
    /// The first invariant that does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.cluster.is_none() {
            let empty = Self { answered: self.answered.clone(), ..Self::default() };
            return ensure(*self == empty, || "there is state, but no cluster".into());
        }
        self.check_sizes()?;
        let mut numbers = (1..=self.audit.count).rev().zip(self.audit.entries.iter().rev());
        let is_whole = self.audit.count >= self.audit.entries.len() as u64;
        ensure(is_whole && numbers.all(|(number, entry)| entry.number == number), || {
            "the audit trail has a gap".into()
        })?;
        let numbers = self.history.events.iter().rev().map(|event| event.number);
        ensure(numbers.eq((1..=self.history.count).rev().take(self.history.events.len())), || {
            "an event is missing, or comes twice".into()
        })?;
        let lost = self.history.lost.iter().find(|node| !self.nodes.contains_key(node));
        ensure(lost.is_none(), || format!("node {lost:?} is noted as lost and is no member"))?;
        self.check_nodes()?;
        let has_admin = self.clients.values().any(|client| client.role == ClientRole::Admin);
        ensure(has_admin, || "nobody may say who may use the cluster".into())?;
        ensure(self.clients.iter().all(|(key, client)| *key == client.key), || "a client has two keys".into())?;
        ensure(self.tokens.iter().all(|(id, token)| *id == token.id), || "a token has two ids".into())?;
        let names: BTreeSet<_> = self.images.values().map(|image| &image.name).collect();
        ensure(names.len() == self.images.len(), || "two images have one name".into())?;
        self.images.iter().try_for_each(|(id, image)| {
            ensure(*id == image.id, || format!("image {id} has two ids"))?;
            self.check_image(image)
        })?;
        self.boots.iter().try_for_each(|(id, record)| {
            let image =
                self.images.get(id).ok_or_else(|| format!("a boot of image {id} is recorded, which is gone"))?;
            boot::check(record, image).map_err(|broken| format!("the boot of image {}: {broken}", image.name))
        })?;
        let names: BTreeSet<_> = self.vms.values().map(|vm| &vm.name).collect();
        ensure(names.len() == self.vms.len(), || "two vms have one name".into())?;
        self.vms.iter().try_for_each(|(id, vm)| {
            ensure(*id == vm.id, || format!("vm {id} has two ids"))?;
            self.check_vm(vm)
        })?;
        self.check_neighbours()
    }

    fn check_sizes(&self) -> Check {
        for (what, count, max) in [
            ("nodes", self.nodes.len(), NODES_MAX),
            ("removed nodes", self.removed.len(), REMOVED_MAX),
            ("tokens", self.tokens.len(), TOKENS_MAX),
            ("clients", self.clients.len(), CLIENTS_MAX),
            ("images", self.images.len(), IMAGES_MAX),
            ("vms", self.vms.len(), VMS_MAX),
            ("answers", self.answered.len(), ANSWERED_MAX),
            ("entries of the audit trail", self.audit.entries.len(), AUDIT_MAX),
            ("events", self.history.events.len(), EVENTS_MAX),
        ] {
            ensure(count <= max, || format!("{count} {what} are more than {max}"))?;
        }
        let requests: BTreeSet<_> = self.answered.iter().map(|(request, _)| request.id).collect();
        ensure(requests.len() == self.answered.len(), || "one request id has two answers".into())?;
        limits::settings(&self.settings).map_err(|broken| broken.to_string())
    }

    fn check_nodes(&self) -> Check {
        ensure(!self.nodes.is_empty(), || "the cluster has no node".into())?;
        let keys: BTreeSet<_> = self.nodes.values().map(|node| node.endpoint).collect();
        ensure(keys.len() == self.nodes.len(), || "two nodes have one key".into())?;
        for (id, node) in &self.nodes {
            ensure(*id == node.id, || format!("node {id} has two ids"))?;
            ensure(!self.removed.contains(&node.endpoint), || format!("node {id} is both a member and removed"))?;
            limits::node(node).map_err(|broken| format!("node {id}: {broken}"))?;
        }
        Ok(())
    }

    fn check_image(&self, image: &Image) -> Check {
        let name = &image.name;
        limits::image(image).map_err(|broken| format!("image {name}: {broken}"))?;
        ensure(image.holders.is_disjoint(&image.wanted), || format!("image {name} is wanted where it is held"))?;
        for node in image.holders.union(&image.wanted) {
            ensure(self.nodes.contains_key(node), || format!("image {name} is on node {node}, which is no member"))?;
        }
        Ok(())
    }

    fn check_vm(&self, vm: &Vm) -> Check {
        let name = &vm.name;
        let image = self.images.get(&vm.spec.image).ok_or_else(|| format!("vm {name} has no image"))?;
        limits::spec(&vm.spec, image).map_err(|broken| format!("vm {name}: {broken}"))?;
        ensure(vm.desired.power == Power::Off || vm.desired.run > 0, || {
            format!("vm {name} is on, but was never started")
        })?;
        let Some(placement) = vm.placement else {
            ensure(vm.observed.is_none(), || format!("vm {name} is seen, but is nowhere"))?;
            return ensure(!vm.desired.deleting, || format!("vm {name} is being deleted, but is nowhere"));
        };
        ensure(placement.epoch == vm.epoch && vm.epoch > 0, || format!("vm {name} has two epochs"))?;
        ensure(self.nodes.contains_key(&placement.node), || format!("vm {name} is on a node that is no member"))?;
        ensure(vm.spec.node.is_none_or(|pinned| pinned == placement.node), || {
            format!("vm {name} is not where it is pinned")
        })?;
        if let Some(observed) = &vm.observed {
            ensure(observed.epoch == vm.epoch, || format!("the report on vm {name} is stale"))?;
            ensure(observed.run <= vm.desired.run, || format!("vm {name} runs a run that nobody asked for"))?;
        }
        ensure(!vm.desired.deleting || vm.desired.power == Power::Off, || format!("vm {name} is on and being deleted"))
    }

    /// Vms on one node share neither an anti-affinity group nor a published port.
    fn check_neighbours(&self) -> Check {
        let mut placed: BTreeMap<NodeId, Vec<&Vm>> = BTreeMap::new();
        for vm in self.vms.values() {
            if let Some(placement) = vm.placement {
                placed.entry(placement.node).or_default().push(vm);
            }
        }
        for (node, vms) in placed {
            let mut groups = BTreeSet::new();
            let mut ports = Vec::new();
            for vm in vms {
                let group = vm.spec.anti_affinity.as_ref();
                ensure(group.is_none_or(|group| groups.insert(group)), || {
                    format!("two vms of a group are on node {node}")
                })?;
                for port in &vm.spec.publish {
                    ensure(!ports.iter().any(|taken| port.collides_with(taken)), || {
                        format!("{port} of node {node} is published twice")
                    })?;
                    ports.push(*port);
                }
            }
        }
        Ok(())
    }
}
