//! The text of `/metrics`, in the OpenMetrics format.

use std::fmt::Write;

use blixard_core::Phase;

use crate::counters::Counters;
use crate::raft::Raft;

fn family(text: &mut String, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
    let suffix = if kind == "counter" { "_total" } else { "" };
    // Writing into a String cannot fail.
    let _ = writeln!(text, "# TYPE blixard_{name} {kind}\n# HELP blixard_{name} {help}");
    for (labels, value) in samples {
        let _ = writeln!(text, "blixard_{name}{suffix}{labels} {value}");
    }
}

pub(super) fn text(raft: &Raft, counters: &Counters) -> String {
    let view = raft.view();
    let (nodes, images, phases) = raft.read(|state| {
        let mut phases =
            [("running", 0), ("stopped", 0), ("failed", 0), ("preparing", 0), ("stopping", 0), ("pending", 0)];
        for vm in state.vms.values() {
            let word =
                vm.observed.as_ref().map_or(if vm.placement.is_some() { "preparing" } else { "pending" }, |observed| {
                    Phase::word(&observed.phase)
                });
            if let Some((_, count)) = phases.iter_mut().find(|(name, _)| *name == word) {
                *count += 1;
            }
        }
        (state.nodes.len() as u64, state.images.len() as u64, phases)
    });
    let mut text = String::new();
    let gauge = "gauge";
    family(&mut text, "raft_term", gauge, "The Raft term.", &[("", view.term)]);
    family(&mut text, "raft_is_leader", gauge, "Whether this node leads.", &[("", u64::from(view.is_leader()))]);
    family(
        &mut text,
        "raft_has_leader",
        gauge,
        "Whether a leader is known.",
        &[("", u64::from(view.leader.is_some()))],
    );
    family(&mut text, "raft_voters", gauge, "Nodes that vote.", &[("", view.voters.len() as u64)]);
    family(&mut text, "raft_log_index", gauge, "The last index of the log.", &[("", view.last_log)]);
    family(&mut text, "raft_committed_index", gauge, "The last index known to be committed.", &[("", view.committed)]);
    family(&mut text, "raft_applied_index", gauge, "The last index applied.", &[("", view.applied)]);
    family(&mut text, "raft_snapshot_index", gauge, "The last index in a snapshot.", &[("", view.snapshot)]);
    family(&mut text, "nodes", gauge, "Members of the cluster.", &[("", nodes)]);
    family(&mut text, "images", gauge, "Images in the catalog.", &[("", images)]);
    let labels = phases.map(|(phase, _)| format!("{{phase=\"{phase}\"}}"));
    let samples: Vec<(&str, u64)> =
        labels.iter().zip(phases).map(|(labels, (_, count))| (labels.as_str(), count)).collect();
    family(&mut text, "vms", gauge, "Vms of the cluster by phase.", &samples);
    let alive = [("", counters.store_alive.get())];
    family(&mut text, "store_alive", gauge, "Whether the blob store works.", &alive);
    let collects = [("", counters.store_collects.get())];
    family(&mut text, "store_collects", gauge, "Whether the blob store frees what nothing keeps.", &collects);
    for (name, help, counter) in [
        ("transfer_panics", "Panics in the queue of transfers.", &counters.transfer_panics),
        ("transfer_failures", "Attempts to fetch an image that failed.", &counters.transfer_failures),
        ("leader_failures", "Decisions of the leader that could not be carried out.", &counters.leader_failures),
        ("agent_failures", "Looks of the agent that failed.", &counters.agent_failures),
        ("order_failures", "Orders of the agent that failed.", &counters.order_failures),
        ("task_restarts", "Background tasks that panicked and were started again.", &counters.task_restarts),
        ("api_requests", "Requests to the control API.", &counters.api_requests),
        ("joins_refused", "Nodes that asked to join and were refused.", &counters.joins_refused),
    ] {
        family(&mut text, name, "counter", help, &[("", counter.get())]);
    }
    text.push_str("# EOF\n");
    text
}
