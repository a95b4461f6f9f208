//! Members: admitted, updated, removed.

use crate::limits::{self, NODES_MAX, REMOVED_MAX, listed, room_for_one};
use crate::{Answer, Node, NodeId, Outcome, Power, Rejection, SecretHash, State, TokenId, UnixMs};

impl State {
    pub(super) fn admit_node(&mut self, node: &Node, shown: Option<&(TokenId, SecretHash)>, at: UnixMs) -> Outcome {
        limits::node(node)?;
        if self.removed.contains(&node.endpoint) {
            return Err(Rejection::NodeRemoved);
        }
        if let Some(known) = self.nodes.get(&node.id) {
            if known.endpoint != node.endpoint {
                return Err(Rejection::NodeIdTaken(node.id));
            }
            // A member that rejoins shows nothing and consumes nothing: its key is its ticket.
            return self.update_node(node);
        }
        if let Some(known) = self.node_of(&node.endpoint) {
            return Err(Rejection::NodeKnownAs(known.id));
        }
        room_for_one(self.nodes.len(), NODES_MAX, "nodes")?;
        let token = self.usable_token(shown, at)?;
        token.uses_left = token.uses_left.map(|uses| uses.saturating_sub(1));
        self.nodes.insert(node.id, Node { joined_at: at, ..node.clone() });
        Ok(Answer::Done)
    }

    /// What a node says of itself replaces what it said before, also when it now offers less than its vms take: the truth
    /// keeps the scheduler from placing more there.
    pub(super) fn update_node(&mut self, node: &Node) -> Outcome {
        limits::node(node)?;
        let known = self.nodes.get_mut(&node.id).ok_or(Rejection::UnknownNode(node.id))?;
        if known.endpoint != node.endpoint {
            return Err(Rejection::NodeIdTaken(node.id));
        }
        *known = Node { joined_at: known.joined_at, ..node.clone() };
        Ok(Answer::Done)
    }

    pub(super) fn remove_node(&mut self, id: NodeId, force: bool) -> Outcome {
        let endpoint = self.nodes.get(&id).ok_or(Rejection::UnknownNode(id))?.endpoint;
        if self.nodes.len() == 1 {
            return Err(Rejection::LastNode(id));
        }
        if !force {
            self.may_lose(id)?;
        }
        self.nodes.remove(&id);
        while self.removed.len() >= REMOVED_MAX {
            self.removed.pop_front();
        }
        self.removed.push_back(endpoint);
        self.lose_vms_of(id);
        self.lose_copies_of(id);
        Ok(Answer::Done)
    }

    /// Whether the node can go without anything going with it.
    fn may_lose(&self, id: NodeId) -> Result<(), Rejection> {
        if self.vms_on(id).next().is_some() {
            let vms = listed(self.vms_on(id).map(|vm| &vm.name));
            return Err(Rejection::NodeHasVms { node: id, vms });
        }
        let last = || self.images.values().filter(|image| image.holders.iter().eq([&id]));
        if last().next().is_some() {
            return Err(Rejection::NodeHasLastCopy { node: id, images: listed(last().map(|image| &image.name)) });
        }
        Ok(())
    }

    /// The vms of a node that is gone have lost their disks: they wait, off, for the scheduler and for a user who decides
    /// whether to start them from the bare image. Those being deleted have nothing left to delete.
    fn lose_vms_of(&mut self, id: NodeId) {
        self.vms.retain(|_, vm| {
            if vm.placement.is_none_or(|placement| placement.node != id) {
                return true;
            }
            vm.placement = None;
            vm.observed = None;
            vm.desired.power = Power::Off;
            !vm.desired.deleting
        });
    }

    /// An image whose only copy went with the node stays in the catalog while vms use it, without a holder, so that users
    /// see what those vms are missing. When none does, it is gone.
    fn lose_copies_of(&mut self, id: NodeId) {
        let mut lost = Vec::new();
        for image in self.images.values_mut() {
            image.wanted.remove(&id);
            if image.holders.remove(&id) && image.holders.is_empty() {
                lost.push(image.id);
            }
        }
        for image in lost {
            if self.vms_using(image).next().is_none() {
                self.images.remove(&image);
                self.boots.remove(&image);
            }
        }
    }
}
