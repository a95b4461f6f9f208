//! Which events follow from a command, and what notes do.

use crate::limits::{self, ADOPTED_MAX, EVENT_REASON_BYTES_MAX, EVENTS_MAX, NODES_MAX, at_most};
use crate::{
    Actor, Answer, Change, Command, Event, Happening, ImageId, ImageName, NodeId, Note, Observed, Outcome, Phase,
    Power, Rejection, State, VmId, VmName, VmOrder,
};

/// A reason, short enough to be kept.
fn short(reason: &str) -> String {
    let end = (0..=EVENT_REASON_BYTES_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason[..end.unwrap_or(0)].to_owned()
}

impl State {
    /// What will have happened when a command is carried out in this state. Nothing of it has when the command is rejected.
    pub(super) fn foretell(&self, command: &Command) -> Vec<Happening> {
        let one = |what: Happening| vec![what];
        match &command.change {
            Change::InitCluster { node, .. } => one(Happening::Founded { node: node.id }),
            Change::ChangeSettings(settings) if *settings != self.settings => {
                one(Happening::SettingsChanged { settings: *settings })
            }
            Change::CreateToken(token) => one(Happening::TokenMade { token: token.id }),
            Change::RevokeToken(id) if self.tokens.get(id).is_some_and(|token| !token.revoked) => {
                one(Happening::TokenRevoked { token: *id })
            }
            Change::AdmitNode { node, .. } if !self.nodes.contains_key(&node.id) => {
                one(Happening::NodeJoined { node: node.id })
            }
            Change::RemoveNode { node, force } => self.foretell_removal(*node, *force),
            Change::GrantClient(client)
                if self.clients.get(&client.key).is_none_or(|known| known.role != client.role) =>
            {
                one(Happening::ClientGranted { name: client.name.clone(), role: client.role })
            }
            Change::RevokeClient(key) => self
                .clients
                .get(key)
                .map(|client| Happening::ClientRevoked { name: client.name.clone() })
                .into_iter()
                .collect(),
            Change::AddImage(image) => {
                let known = self.images.get(&image.id);
                let is_new = |node: &&NodeId| known.is_none_or(|known| !known.holders.contains(node));
                let happened = |(at, node): (usize, &NodeId)| match (known, at) {
                    (None, 0) => Happening::ImageAdded { image: image.name.clone(), node: *node },
                    _ => Happening::ImageFetched { image: image.name.clone(), node: *node },
                };
                image.holders.iter().filter(is_new).enumerate().map(happened).collect()
            }
            Change::DeleteImage(id) => {
                self.image_name(*id).map(|image| Happening::ImageRemoved { image }).into_iter().collect()
            }
            Change::WantCopy { image, node } => self.foretell_copy(*image, *node, Copy::Wanted),
            Change::ReportCopy { image, node, present: true } => self.foretell_copy(*image, *node, Copy::Fetched),
            Change::ReportCopy { image, node, present: false } => self.foretell_copy(*image, *node, Copy::Dropped),
            Change::ReleaseCopy { image, node } => self.foretell_copy(*image, *node, Copy::Dropped),
            Change::CreateVm { name, .. } => one(Happening::VmCreated { vm: name.clone() }),
            Change::StartVm(id) => self.foretell_order(*id, VmOrder::Start),
            Change::StopVm { id, .. } => self.foretell_order(*id, VmOrder::Stop),
            Change::RestartVm { id, .. } => self.foretell_order(*id, VmOrder::Restart),
            Change::DeleteVm(id) => self.foretell_order(*id, VmOrder::Delete),
            Change::PlaceVm { id, node, .. } => {
                self.vm_name(*id).map(|vm| Happening::VmPlaced { vm, node: *node }).into_iter().collect()
            }
            Change::ReportVm { id, node, observed } => self.foretell_report(*id, *node, observed).into_iter().collect(),
            Change::ForgetVm { id, .. } => {
                self.vm_name(*id).map(|vm| Happening::VmDeleted { vm }).into_iter().collect()
            }
            Change::Note(note) => self.foretell_note(command, note),
            Change::ChangeSettings(_)
            | Change::RevokeToken(_)
            | Change::AdmitNode { .. }
            | Change::UpdateNode(_)
            | Change::GrantClient(_)
            | Change::SetDocumentsSecret(_)
            | Change::RecordDeed { .. }
            | Change::RecordBoot { .. } => Vec::new(),
        }
    }

    /// Keeps what happened when a command was carried out.
    pub(super) fn remember(&mut self, command: &Command, happened: Vec<Happening>) {
        for what in happened {
            self.history.count += 1;
            while self.history.events.len() >= EVENTS_MAX {
                self.history.events.pop_front();
            }
            let event = Event { number: self.history.count, at: command.at, by: command.by, what };
            self.history.events.push_back(event);
        }
        if let Change::RemoveNode { node, .. } = &command.change {
            self.history.lost.remove(node);
        }
    }

    /// Notes what no other command follows from. To note what is noted already changes nothing.
    pub(super) fn note(&mut self, by: Actor, note: &Note) -> Outcome {
        let Actor::Node(me) = by else { return Ok(Answer::Done) };
        let member =
            |node: &NodeId| self.nodes.contains_key(node).then_some(*node).ok_or(Rejection::UnknownNode(*node));
        match note {
            Note::Leads { term } => {
                // A leader that was replaced may say so late.
                if self.history.leader.is_none_or(|(_, known)| known < *term) {
                    self.history.leader = Some((me, *term));
                }
            }
            Note::Voters(voters) => {
                at_most("voters", voters.len(), NODES_MAX)?;
                self.history.voters.clone_from(voters);
            }
            Note::Lost(node) => {
                let node = member(node)?;
                self.history.lost.insert(node);
            }
            Note::Back(node) => {
                self.history.lost.remove(node);
            }
            Note::Started { adopted } => at_most("adopted vms", adopted.len(), ADOPTED_MAX)?,
            Note::ImageFailing { image, reason, .. } => {
                limits::reason(reason)?;
                self.images.get(image).ok_or(Rejection::UnknownImage)?;
            }
        }
        Ok(Answer::Done)
    }

    fn vm_name(&self, id: VmId) -> Option<VmName> {
        self.vms.get(&id).map(|vm| vm.name.clone())
    }

    fn image_name(&self, id: ImageId) -> Option<ImageName> {
        self.images.get(&id).map(|image| image.name.clone())
    }

    fn foretell_removal(&self, node: NodeId, force: bool) -> Vec<Happening> {
        let lost = self.vms_on(node).map(|vm| Happening::VmLost { vm: vm.name.clone(), node });
        // More than are kept would only push each other out.
        [Happening::NodeRemoved { node, force }].into_iter().chain(lost.take(EVENTS_MAX / 2)).collect()
    }

    fn foretell_copy(&self, image: ImageId, node: NodeId, copy: Copy) -> Vec<Happening> {
        let Some(known) = self.images.get(&image) else { return Vec::new() };
        let image = known.name.clone();
        let (is_held, is_wanted) = (known.holders.contains(&node), known.wanted.contains(&node));
        let happened = match copy {
            Copy::Wanted if !is_held && !is_wanted => Happening::ImageWanted { image, node },
            Copy::Fetched if !is_held => Happening::ImageFetched { image, node },
            Copy::Dropped if is_held => Happening::ImageDropped { image, node },
            Copy::Wanted | Copy::Fetched | Copy::Dropped => return Vec::new(),
        };
        vec![happened]
    }

    fn foretell_order(&self, id: VmId, order: VmOrder) -> Vec<Happening> {
        let Some(vm) = self.vms.get(&id) else { return Vec::new() };
        let changes = match order {
            VmOrder::Start => vm.desired.power == Power::Off || vm.is_run_over(),
            VmOrder::Stop => vm.desired.power == Power::On,
            VmOrder::Restart => true,
            VmOrder::Delete => !vm.desired.deleting,
        };
        if !changes {
            return Vec::new();
        }
        let vm_name = || vm.name.clone();
        match (order, vm.placement) {
            // It has no files anywhere, so it is gone at once.
            (VmOrder::Delete, None) => vec![Happening::VmDeleted { vm: vm_name() }],
            _ => vec![Happening::VmOrdered { vm: vm_name(), order }],
        }
    }

    /// A report is an event when the guest's phase has changed, or it is another start of the guest in the same phase.
    fn foretell_report(&self, id: VmId, node: NodeId, observed: &Observed) -> Option<Happening> {
        let known = self.vms.get(&id)?;
        let before = known.observed.as_ref();
        let is_same = before.is_some_and(|before| {
            (before.phase.word(), before.run, before.restarts)
                == (observed.phase.word(), observed.run, observed.restarts)
        });
        let vm = known.name.clone();
        match &observed.phase {
            _ if is_same => None,
            Phase::Running => Some(Happening::VmStarted { vm, node, restarts: observed.restarts }),
            Phase::Stopped { reason } => {
                Some(Happening::VmStopped { vm, node, reason: short(reason.as_deref().unwrap_or_default()) })
            }
            Phase::Failed { reason, retrying } => {
                Some(Happening::VmFailed { vm, node, reason: short(reason), retrying: *retrying })
            }
            Phase::Preparing | Phase::Stopping => None,
        }
    }

    fn foretell_note(&self, command: &Command, note: &Note) -> Vec<Happening> {
        let Actor::Node(me) = command.by else { return Vec::new() };
        let history = &self.history;
        match note {
            Note::Leads { term } => match history.leader {
                Some((_, known)) if known >= *term => Vec::new(),
                // The same node in another term: it was elected again, and nothing has changed for anybody.
                Some((leader, _)) if leader == me => Vec::new(),
                _ => vec![Happening::LeaderChanged { node: me, term: *term }],
            },
            Note::Voters(voters) if history.voters != *voters => {
                vec![Happening::VotersChanged { voters: voters.clone() }]
            }
            Note::Lost(node) if !history.lost.contains(node) => vec![Happening::NodeLost { node: *node }],
            Note::Back(node) if history.lost.contains(node) => vec![Happening::NodeBack { node: *node }],
            Note::Started { adopted } => {
                // Sent again because its answer was lost: it still names the time of the start.
                let told = Happening::NodeStarted { node: me };
                if history.events.iter().any(|event| event.at == command.at && event.what == told) {
                    return Vec::new();
                }
                let names = adopted.iter().filter_map(|id| self.vm_name(*id));
                let adopted = names.map(|vm| Happening::VmAdopted { vm, node: me }).take(EVENTS_MAX / 2);
                [Happening::NodeStarted { node: me }].into_iter().chain(adopted).collect()
            }
            Note::ImageFailing { image, reason, retrying } => {
                let failing =
                    |image| Happening::ImageFailing { image, node: me, reason: short(reason), retrying: *retrying };
                self.image_name(*image).map(failing).into_iter().collect()
            }
            Note::Voters(_) | Note::Lost(_) | Note::Back(_) => Vec::new(),
        }
    }
}

/// What became of a copy of an image.
#[derive(Debug, Clone, Copy)]
enum Copy {
    Wanted,
    Fetched,
    Dropped,
}
