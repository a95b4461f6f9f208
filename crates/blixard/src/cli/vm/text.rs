//! Vms in words and tables.

use blixard_core::{Power, RestartPolicy};
use blixard_node::api::{ConfinementView, TransferView, VmView};

use super::super::output::{self, Table};

/// How a vm does, in one line. `speed` is the transfer's, in bytes per second.
pub(super) fn progress(view: &VmView, speed: Option<u64>) -> String {
    let mut text = view.phase.clone();
    if let Some(node) = view.node {
        text.push_str(&format!(" on node {node}"));
    }
    if let Some(transfer) = view.live.as_ref().and_then(|live| live.transfer.as_ref()) {
        text.push_str(&format!(", image {}", transfer_text(transfer)));
        if let Some(speed) = speed {
            text.push_str(&format!(", {}/s", output::bytes(speed)));
        }
    }
    if let Some(reason) = &view.reason {
        text.push_str(&format!(": {reason}"));
    }
    if view.retrying {
        text.push_str(" (it will be tried again)");
    }
    text
}

fn transfer_text(transfer: &TransferView) -> String {
    let TransferView { bytes_done, bytes_total, sources, failure } = transfer;
    let percent = u128::from(*bytes_done) * 100 / u128::from((*bytes_total).max(1));
    let mut text = format!("{} % of {}", percent, output::bytes(*bytes_total));
    match sources {
        0 => {}
        1 => text.push_str(" from 1 node"),
        many => text.push_str(&format!(" from {many} nodes")),
    }
    if let Some(failure) = failure {
        text.push_str(&format!(" (last attempt: {failure})"));
    }
    text
}

/// What became of a request that was waited for.
pub(super) fn outcome(view: &VmView) -> String {
    let name = output::clean(view.name.as_str());
    let place = view.node.map_or_else(String::new, |node| format!(" on node {node}"));
    match view.desired.power {
        Power::On => format!("vm {name} is running{place}\n"),
        Power::Off if view.desired.run == 0 => format!("vm {name} is created{place} and was not started\n"),
        Power::Off => format!("vm {name} is stopped{place}\n"),
    }
}

/// All there is to say about a vm.
pub(super) fn status(view: &VmView) -> String {
    let mut table = Table::of_pairs();
    table.row([&"name", &view.name]);
    table.row([&"id", &view.id]);
    table.row([&"state", &progress(view, None)]);
    if let Some(since) = view.since {
        table.row([&"since", &format!("{} ago", output::age(since))]);
    }
    table.row([&"wanted", &wanted(view)]);
    let place = view.node.map_or_else(|| "none yet".to_owned(), |node| format!("{node}, epoch {}", view.epoch));
    table.row([&"node", &place]);
    table.row([&"image", &format!("{} ({})", view.image, view.image_id.short())]);
    table.row([&"vcpus", &view.vcpus]);
    table.row([&"memory", &output::mebibytes(view.memory_mib)]);
    table.row([&"disk", &disk_text(view)]);
    table.row([&"published", &output::list(&view.publish)]);
    let policy = match view.restart {
        RestartPolicy::Always => "always".to_owned(),
        RestartPolicy::Never => "never".to_owned(),
        RestartPolicy::OnFailure { limit } => format!("on-failure:{limit}"),
    };
    table.row([&"restart", &format!("{policy}, {} in this run", view.restarts)]);
    for file in &view.config_files {
        let state = match file.changed {
            Some(true) => " (its value has changed since)",
            _ => "",
        };
        table.row([&"config file", &format!("{}{state}", file.source)]);
    }
    if let Some(live) = &view.live {
        if let Some(last_exit) = &live.last_exit {
            table.row([&"last exit", last_exit]);
        }
        if let Some(accelerator) = &live.accelerator {
            table.row([&"accelerator", accelerator]);
        }
        if let Some(pid) = live.pid {
            table.row([&"process", &pid]);
        }
        if let Some(confinement) = &live.confinement {
            table.row([&"confinement", &confinement_text(confinement)]);
            table.row([&"limits", &limits_text(confinement)]);
        }
    }
    table.row([&"created", &format!("{} ago", output::age(view.created_at))]);
    table.render()
}

fn confinement_text(confinement: &ConfinementView) -> String {
    let Some(privileges) = &confinement.privileges else { return "none: there is no process".to_owned() };
    let user = match (&confinement.shared_user, privileges.user) {
        (None, user) => format!("user {user} of its own"),
        (Some(why), 0) => format!("root ({why})"),
        (Some(why), user) => format!("user {user}, not its own ({why})"),
    };
    let capabilities = match privileges.capabilities.as_slice() {
        [] => "no capabilities".to_owned(),
        some => format!("capabilities {}", some.join(", ")),
    };
    let gains = if privileges.no_new_privileges { "no new privileges" } else { "may gain privileges" };
    let filter = if privileges.system_call_filter { "system call filter" } else { "no system call filter" };
    format!("{user}, {capabilities}, {gains}, {filter}")
}

fn limits_text(confinement: &ConfinementView) -> String {
    match (confinement.memory_mib, confinement.processors) {
        (Some(memory_mib), Some(processors)) => {
            format!("memory {}, {processors} processors", output::mebibytes(memory_mib))
        }
        _ => format!("none: {}", confinement.unlimited.as_deref().unwrap_or("no reason was given")),
    }
}

fn wanted(view: &VmView) -> &'static str {
    match view.desired.power {
        _ if view.desired.deleting => "deleted",
        Power::On => "on",
        Power::Off => "off",
    }
}

fn disk_text(view: &VmView) -> String {
    if view.disk_mib == 0 { "none".to_owned() } else { output::mebibytes(view.disk_mib) }
}

/// One line a vm.
pub(super) fn list(vms: &[VmView]) -> String {
    let mut table =
        Table::new(&["NAME", "STATE", "NODE", "IMAGE", "VCPUS", "MEMORY", "DISK", "PORTS", "AGE", "REASON"]);
    for vm in vms {
        table.row([
            &vm.name,
            &vm.phase,
            &vm.node.map_or_else(String::new, |node| node.to_string()),
            &vm.image,
            &vm.vcpus,
            &output::mebibytes(vm.memory_mib),
            &disk_text(vm),
            &output::list(&vm.publish),
            &output::age(vm.created_at),
            &vm.reason.as_deref().unwrap_or_default(),
        ]);
    }
    table.render()
}

#[cfg(test)]
pub(super) mod tests {
    use blixard_core::{Desired, ImageId, NodeId, UnixMs, VmId};
    use blixard_node::api::{LiveView, PrivilegesView};

    use super::*;

    /// A vm in a phase of its first run.
    pub(crate) fn view(phase: &str) -> VmView {
        VmView {
            id: VmId([1; 16]),
            name: "web".parse().expect("a good name"),
            image: "tiny".parse().expect("a good name"),
            image_id: ImageId([2; 32]),
            vcpus: 1,
            memory_mib: 256,
            disk_mib: 0,
            publish: vec![],
            restart: RestartPolicy::Never,
            node: Some(NodeId(2)),
            epoch: 1,
            desired: Desired { power: Power::On, run: 1, stop_timeout_ms: 30_000, deleting: false },
            phase: phase.to_owned(),
            observed_run: 1,
            reason: None,
            retrying: false,
            restarts: 0,
            since: None,
            created_at: UnixMs(0),
            config_files: vec![],
            live: None,
        }
    }

    #[test]
    fn a_confinement_is_told_with_what_it_lacks() {
        let privileges = PrivilegesView {
            user: 2_100_000_007,
            group: 2_100_000_007,
            groups: vec![],
            capabilities: vec![],
            no_new_privileges: true,
            system_call_filter: true,
        };
        let full = ConfinementView {
            privileges: Some(privileges.clone()),
            shared_user: None,
            memory_mib: Some(512),
            processors: Some(3),
            unlimited: None,
        };
        assert_eq!(
            confinement_text(&full),
            "user 2100000007 of its own, no capabilities, no new privileges, system call filter"
        );
        assert_eq!(limits_text(&full), "memory 512 MiB, 3 processors");
        let capabilities = vec!["net_bind_service".to_owned()];
        let open = PrivilegesView {
            user: 1000,
            capabilities,
            no_new_privileges: false,
            system_call_filter: false,
            ..privileges
        };
        let poor = ConfinementView {
            privileges: Some(open),
            shared_user: Some("the node is not root".to_owned()),
            memory_mib: None,
            processors: None,
            unlimited: Some("no control group".to_owned()),
        };
        assert_eq!(
            confinement_text(&poor),
            "user 1000, not its own (the node is not root), capabilities net_bind_service, may gain privileges, \
             no system call filter"
        );
        assert_eq!(limits_text(&poor), "none: no control group");
        assert_eq!(confinement_text(&ConfinementView::default()), "none: there is no process");
    }

    #[test]
    fn a_transfer_is_part_of_the_progress() {
        let transfer = TransferView { bytes_done: 512 << 20, bytes_total: 2 << 30, sources: 2, failure: None };
        let fetching = |transfer| VmView {
            live: Some(LiveView { transfer: Some(transfer), ..LiveView::default() }),
            ..view("preparing")
        };
        assert_eq!(
            progress(&fetching(transfer.clone()), Some(40 << 20)),
            "preparing on node 2, image 25 % of 2 GiB from 2 nodes, 40 MiB/s"
        );
        let failed = TransferView { sources: 0, failure: Some("node 1 is gone".to_owned()), ..transfer };
        assert!(progress(&fetching(failed), None).ends_with("25 % of 2 GiB (last attempt: node 1 is gone)"));
        let nothing = TransferView { bytes_done: 0, bytes_total: 0, sources: 1, failure: None };
        assert!(progress(&fetching(nothing), None).contains("0 % of 0 B from 1 node"));
    }

    #[test]
    fn a_reason_is_shown_and_cleaned() {
        let failed = VmView { reason: Some("qemu: \x1b[31mno\n".to_owned()), retrying: true, ..view("failed") };
        assert!(progress(&failed, None).ends_with("(it will be tried again)"));
        for text in [status(&failed), list(&[failed])] {
            assert!(text.contains("qemu: \\u{1b}[31mno") && !text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn outcomes_are_told_apart() {
        assert_eq!(outcome(&view("running")), "vm web is running on node 2\n");
        let off = |run| {
            let on = view("stopped");
            VmView { desired: Desired { power: Power::Off, run, ..on.desired }, ..on }
        };
        assert_eq!(outcome(&off(1)), "vm web is stopped on node 2\n");
        assert_eq!(outcome(&VmView { node: None, ..off(0) }), "vm web is created and was not started\n");
    }
}
