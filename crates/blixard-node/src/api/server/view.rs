//! How things stand, put together from the replicated state, the leader's view and what a vm's node sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blixard_core::{ConfigSource, HEALTHY_WITHIN_MS, NodeId, NodeVerdict, Phase, State, Verdict, Vm, VmId};

use super::{Server, ask};
use crate::api::views::{ConfigFileView, ConfinementView, LiveView, PrivilegesView, TransferView, VmView};
use crate::raft::GroupView;

/// How long a status waits for the leader before it says how things stand without it.
pub(super) const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// Nodes that are named one by one when none of them can carry a vm. Of more, the sorts of refusals are counted.
const NODES_NAMED_MAX: usize = 4;

/// The group as the leader sees it or, when the leader cannot be asked, as this node does.
pub(super) struct GroupSeen {
    pub(super) group: GroupView,
    /// Whether it is the leader's view.
    pub(super) by_leader: bool,
    /// The nodes that the leader hears from.
    pub(super) reachable: BTreeSet<NodeId>,
}

impl Server {
    pub(super) async fn group_seen(&self) -> GroupSeen {
        let mut group = self.inner.raft.view();
        let mut by_leader = group.is_leader();
        if let Some(leader) = group.leader.filter(|_| !by_leader)
            && let Some(endpoint) = self.inner.raft.read(|state| state.nodes.get(&leader).map(|node| node.endpoint))
            && let Ok(Ok(seen)) = tokio::time::timeout(STATUS_PATIENCE, ask::group(self, endpoint)).await
        {
            by_leader = seen.is_leader();
            group = seen;
        }
        if !by_leader {
            // What this node last heard is no proof: a learner, which never stands for election, would name a dead leader
            // for ever.
            group.leader = None;
        }
        // A leader that has lost its majority does not know it at once, but it sees that nobody answers.
        let members: BTreeSet<NodeId> = self.inner.raft.read(|state| state.nodes.keys().copied().collect());
        let reachable = if by_leader {
            group.heard_from(&members, u64::MAX, HEALTHY_WITHIN_MS)
        } else {
            BTreeSet::from([self.inner.me])
        };
        GroupSeen { group, by_leader, reachable }
    }

    /// A vm as the state has it, for whoever has just changed it: nobody is asked for more, who might be away.
    pub(super) fn written_vm(&self, id: VmId) -> Option<VmView> {
        self.inner.raft.read(|state| state.vms.get(&id).map(|vm| vm_view(vm, None, None)))
    }

    /// A vm with what its node sees of it now.
    pub(super) async fn vm_view(&self, id: VmId) -> Option<VmView> {
        let seen = self.group_seen().await;
        let (mut view, image, files) = self.inner.raft.read(|state| {
            let vm = state.vms.get(&id)?;
            let waits = vm.placement.is_none().then(|| why_unplaced(&state.explain(vm, &seen.reachable), &seen));
            Some((vm_view(vm, Some(&seen), waits), vm.spec.image, vm.spec.config_files.clone()))
        })?;
        view.config_files = self.config_file_views(&files).await;
        let Some(node) = view.node else { return Some(view) };
        if seen.by_leader && !seen.reachable.contains(&node) {
            // Whoever waits for a dead node waits for nothing.
            return Some(view);
        }
        view.live = if node == self.inner.me {
            Some(self.live(id, image).await)
        } else {
            let endpoint = self.inner.raft.read(|state| state.nodes.get(&node).map(|node| node.endpoint));
            match endpoint {
                Some(endpoint) => {
                    let asked = ask::live(self, endpoint, id, image);
                    tokio::time::timeout(STATUS_PATIENCE, asked).await.ok().and_then(Result::ok)
                }
                None => None,
            }
        };
        let is_fetching = view.live.as_ref().is_some_and(|live| live.transfer.is_some());
        if is_fetching && view.phase == "preparing" && view.reason.is_none() {
            view.reason = Some("fetching the image".to_owned());
        }
        if view.live.as_ref().is_some_and(|live| live.lazy) && view.phase == "running" && view.reason.is_none() {
            view.reason = Some("it runs while its image comes".to_owned());
        }
        Some(view)
    }

    /// What this node sees of a vm that is placed on it.
    pub(super) async fn live(&self, id: VmId, image: blixard_core::ImageId) -> LiveView {
        let live = self.inner.agent.live(id, image).await;
        let transfer = live.transfer.map(|status| TransferView {
            bytes_done: status.progress.bytes_done,
            bytes_total: status.progress.bytes_total,
            sources: status.progress.sources,
            failure: status.failure.map(|failure| failure.reason),
        });
        let mut view = LiveView { transfer, ..LiveView::default() };
        let Some(found) = live.found else { return view };
        view.last_exit = found.last_exit.map(|reason| reason.to_string());
        if let blixard_hypervisor::VmState::Running(running) = found.state {
            view.lazy = running.lazy;
            view.pid = Some(running.pid).filter(|pid| *pid != 0);
            view.accelerator = Some(running.accelerator.to_string());
            view.confinement = Some(confinement_view(running.confinement));
        }
        view
    }
}

fn confinement_view(seen: blixard_hypervisor::Confinement) -> ConfinementView {
    let privileges = seen.privileges.map(|seen| PrivilegesView {
        user: seen.user,
        group: seen.group,
        groups: seen.groups,
        capabilities: seen.capabilities,
        no_new_privileges: seen.no_new_privileges,
        system_call_filter: seen.system_call_filter,
    });
    ConfinementView {
        privileges,
        shared_user: seen.shared_user,
        memory_mib: seen.limits.map(|limits| limits.memory_mib),
        processors: seen.limits.map(|limits| limits.processors),
        unlimited: seen.unlimited,
    }
}

/// All vms, without what their nodes see of them.
pub(super) fn vm_views(state: &State, seen: &GroupSeen) -> Vec<VmView> {
    let mut waits = BTreeMap::new();
    state.explain_waiting(&seen.reachable, |vm, verdicts| {
        waits.insert(vm.id, why_unplaced(&verdicts, seen));
    });
    state.vms.values().map(|vm| vm_view(vm, Some(seen), waits.remove(&vm.id))).collect()
}

/// A vm as the replicated state has it, with why it `waits` if it does and, as far as the group is seen, why it is silent.
fn vm_view(vm: &Vm, seen: Option<&GroupSeen>, waits: Option<String>) -> VmView {
    let observed = vm.observed.as_ref();
    let mut reason = observed.and_then(|observed| match &observed.phase {
        Phase::Stopped { reason } => reason.clone(),
        Phase::Failed { reason, .. } => Some(reason.clone()),
        Phase::Preparing | Phase::Running | Phase::Stopping => None,
    });
    let phase = match (&vm.placement, observed) {
        _ if vm.desired.deleting => "deleting",
        (None, _) => {
            reason = waits;
            "pending"
        }
        (Some(_), None) => "preparing",
        (Some(_), Some(observed)) => observed.phase.word(),
    };
    if let Some((placement, seen)) = vm.placement.zip(seen)
        && seen.by_leader
        && !seen.reachable.contains(&placement.node)
    {
        let silent = format!("node {} does not answer; this is what it last reported", placement.node);
        reason = Some(reason.map_or(silent.clone(), |reason| format!("{reason} ({silent})")));
    }
    VmView {
        id: vm.id,
        name: vm.name.clone(),
        image: vm.spec.image_name.clone(),
        image_id: vm.spec.image,
        vcpus: vm.spec.vcpus,
        memory_mib: vm.spec.memory_mib,
        disk_mib: vm.spec.disk_mib,
        publish: vm.spec.publish.clone(),
        restart: vm.spec.restart,
        node: vm.placement.map(|placement| placement.node),
        epoch: vm.epoch,
        desired: vm.desired,
        phase: phase.to_owned(),
        observed_run: observed.map_or(0, |observed| observed.run),
        reason,
        retrying: observed.is_some_and(|observed| matches!(observed.phase, Phase::Failed { retrying: true, .. })),
        restarts: observed.map_or(0, |observed| observed.restarts),
        since: observed.map(|observed| observed.since),
        created_at: vm.created_at,
        config_files: vm.spec.config_files.iter().map(|file| unlooked(&file.source)).collect(),
        live: None,
    }
}

/// A file whose value nobody has looked at.
fn unlooked(source: &ConfigSource) -> ConfigFileView {
    ConfigFileView { source: source.clone(), changed: None }
}

fn why_unplaced(verdicts: &[NodeVerdict], seen: &GroupSeen) -> String {
    if !seen.by_leader {
        return "no leader is there to place it".to_owned();
    }
    if verdicts.iter().any(|verdict| verdict.verdict.fits()) {
        return "about to be placed".to_owned();
    }
    if verdicts.len() <= NODES_NAMED_MAX {
        let words = verdicts.iter().map(|verdict| format!("node {}: {}", verdict.node, verdict.verdict));
        return format!("no node can carry it: {}", words.collect::<Vec<_>>().join("; "));
    }
    let mut sorts: BTreeMap<String, usize> = BTreeMap::new();
    for verdict in verdicts {
        if let Verdict::Refused(reason) = &verdict.verdict {
            *sorts.entry(reason.sort()).or_default() += 1;
        }
    }
    let mut sorts: Vec<_> = sorts.into_iter().collect();
    sorts.sort_by_key(|(sort, count)| (std::cmp::Reverse(*count), sort.clone()));
    let words = sorts.iter().map(|(sort, count)| format!("{sort} ({count})"));
    format!("none of {} nodes can carry it: {}", verdicts.len(), words.collect::<Vec<_>>().join("; "))
}
