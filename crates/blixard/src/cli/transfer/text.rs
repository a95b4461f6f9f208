//! Transfers in words.

use blixard_core::ImageName;
use blixard_node::api::{NodeTransfersView, QueuedState, QueuedView};

use super::super::output::{self, Table};

/// The images on their way, each as often as it is.
pub(super) fn images(views: &[NodeTransfersView]) -> Vec<ImageName> {
    views.iter().flat_map(|view| &view.transfers).map(|queued| queued.image.clone()).collect()
}

fn state(queued: &QueuedView) -> &'static str {
    match queued.state {
        QueuedState::Queued => "queued",
        QueuedState::Running => "running",
        QueuedState::Paused => "paused",
        QueuedState::Failed => "failed",
    }
}

/// Why it does not run, what went wrong before, and when it is given up.
fn why(queued: &QueuedView) -> String {
    let deadline = queued.deadline_in_ms.map(|ms| format!("given up in {}", output::span(ms)));
    let words = [Some(how_it_is(queued)).filter(|words| !words.is_empty()), deadline];
    words.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn how_it_is(queued: &QueuedView) -> String {
    let failure = queued.failure.clone().unwrap_or_default();
    match (queued.state, queued.retry_in_ms) {
        (QueuedState::Failed, Some(ms)) => format!("{failure} (again in {})", output::span(ms)),
        (QueuedState::Failed, None) => format!("{failure} (not tried again until it is resumed)"),
        (QueuedState::Paused, _) => "until it is resumed".to_owned(),
        (QueuedState::Queued, _) if failure.is_empty() => "waits for its turn".to_owned(),
        (QueuedState::Queued | QueuedState::Running, _) => failure,
    }
}

/// What is on its way to each node, and which could not be asked.
pub(super) fn queues(views: &[NodeTransfersView]) -> String {
    let mut table =
        Table::new(&["NODE", "IMAGE", "FOR", "STATE", "DONE", "OF", "REUSED", "RATE", "LEFT", "FROM", "WHY"]);
    table.may_drop(&["REUSED", "OF", "FROM", "FOR"]);
    for view in views {
        for queued in &view.transfers {
            let is_running = queued.state == QueuedState::Running;
            let rate = if is_running { format!("{}/s", output::bytes(queued.bytes_per_s)) } else { String::new() };
            let from = match (is_running, queued.sources) {
                (false, _) => String::new(),
                (true, 1) => "1 node".to_owned(),
                (true, sources) => format!("{sources} nodes"),
            };
            table.row([
                &view.node,
                &queued.image,
                &queued.priority,
                &state(queued),
                &output::bytes(queued.bytes_done),
                &output::bytes(queued.bytes_total),
                &output::bytes(queued.bytes_reused),
                &rate,
                &queued.eta_ms.map(output::span).unwrap_or_default(),
                &from,
                &why(queued),
            ]);
        }
        if let Some(silent) = &view.silent {
            table.row([&view.node, &"", &"", &"unknown", &"", &"", &"", &"", &"", &"", silent]);
        }
    }
    let is_idle = views.iter().all(|view| view.transfers.is_empty() && view.silent.is_none());
    if is_idle { "nothing is on its way\n".to_owned() } else { table.render() }
}

/// What went through each node.
pub(super) fn stats(views: &[NodeTransfersView]) -> String {
    let mut table = Table::new(&["NODE", "PEER", "SENT", "RECEIVED", "REUSED", "DONE", "FAILED", "WHY"]);
    for view in views {
        if let Some(silent) = &view.silent {
            table.row([&view.node, &"", &"", &"", &"", &"", &"", silent]);
            continue;
        }
        let peers = &view.stats.peers;
        let sent: u64 = peers.iter().map(|peer| peer.sent_bytes).sum();
        let received: u64 = peers.iter().map(|peer| peer.received_bytes).sum();
        let failed = view.stats.failed.iter().filter(|(_, count)| **count > 0);
        let reused: u64 = view.stats.reused_bytes.values().sum();
        let sorts = output::list(failed.map(|(class, count)| format!("{class}: {count}")));
        let count: u64 = view.stats.failed.values().sum();
        table.row([
            &view.node,
            &"all",
            &output::bytes(sent),
            &output::bytes(received),
            &output::bytes(reused),
            &view.stats.done,
            &count,
            &sorts,
        ]);
        for peer in peers {
            let name = peer.peer.map_or_else(|| peer.endpoint_id.short(), |node| node.to_string());
            let (sent, received) = (output::bytes(peer.sent_bytes), output::bytes(peer.received_bytes));
            table.row([&view.node, &name, &sent, &received, &"", &"", &"", &""]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use blixard_core::{ImageId, NodeId};
    use blixard_node::api::TransferStatsView;

    use super::*;

    fn queued(state: QueuedState) -> QueuedView {
        QueuedView {
            image: "big".parse().expect("a name"),
            image_id: ImageId([1; 32]),
            priority: "copy".to_owned(),
            state,
            bytes_done: 1 << 20,
            bytes_total: 9 << 20,
            bytes_reused: 3 << 20,
            bytes_zero: 0,
            bytes_per_s: 2 << 20,
            eta_ms: None,
            sources: 1,
            holders: vec![NodeId(2)],
            failures: 0,
            failure: None,
            failure_class: None,
            retry_in_ms: None,
            deadline_in_ms: None,
        }
    }

    #[test]
    fn whoever_waits_is_told_why() {
        assert_eq!(why(&queued(QueuedState::Queued)), "waits for its turn");
        assert_eq!(why(&queued(QueuedState::Running)), "");
        assert_eq!(why(&queued(QueuedState::Paused)), "until it is resumed");
        let failed = QueuedView { failure: Some("gone".to_owned()), ..queued(QueuedState::Failed) };
        assert_eq!(why(&failed), "gone (not tried again until it is resumed)");
        assert_eq!(why(&QueuedView { retry_in_ms: Some(5000), ..failed.clone() }), "gone (again in 5s)");
        let late = |state| why(&QueuedView { deadline_in_ms: Some(40_000), ..queued(state) });
        assert_eq!(late(QueuedState::Running), "given up in 40s");
        assert_eq!(late(QueuedState::Queued), "waits for its turn; given up in 40s");
    }

    #[test]
    fn every_node_has_its_say() {
        let view = |node, silent: Option<&str>, transfers| NodeTransfersView {
            node: NodeId(node),
            silent: silent.map(str::to_owned),
            transfers,
            stats: TransferStatsView::default(),
        };
        let running = QueuedView { eta_ms: Some(4000), ..queued(QueuedState::Running) };
        let views = [view(1, None, vec![running]), view(2, None, vec![]), view(3, Some("it is down"), vec![])];
        let text = queues(&views);
        let rows: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[1], "1 big copy running 1 MiB 9 MiB 3 MiB 2 MiB/s 4s 1 node -");
        assert_eq!(rows[2], "3 - - unknown - - - - - - it is down");
        assert_eq!(queues(&views[1..2]), "nothing is on its way\n");
        assert_eq!(images(&views).len(), 1);
    }
}
