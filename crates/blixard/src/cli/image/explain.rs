//! Where the copies of an image are and are going, and why: put together from what the cluster, its caches and its queues say.

use blixard_core::{ImageName, NodeId};
use blixard_node::api::{Client, ImageView, NodeCacheView, NodeTransfersView, QueuedState, QueuedView};
use serde::Serialize;

use super::super::output::{self, Output, Table};

/// A copy, whole or on its way.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Copy {
    node: NodeId,
    /// `held`, or where its transfer stands.
    state: &'static str,
    bytes_done: u64,
    bytes_total: u64,
    why: String,
}

/// Shows the copies of an image.
pub(super) async fn show(client: &Client, name: &ImageName, output: Output) -> anyhow::Result<()> {
    let image = client.image(name).await?;
    let (caches, queues) = (client.caches().await?, client.transfers().await?);
    let wanted = client.cluster(false).await?.settings.copies;
    let copies = copies(&image, &caches, &queues, wanted);
    output.show(&copies, |copies| text(copies), |copies| copies.iter().map(|copy| copy.node).collect())
}

fn copies(image: &ImageView, caches: &[NodeCacheView], queues: &[NodeTransfersView], wanted: u8) -> Vec<Copy> {
    let mut copies: Vec<Copy> = image.holders.iter().map(|node| held(image, *node, caches)).collect();
    for view in queues {
        let is_here = |queued: &&QueuedView| queued.image_id == image.id;
        // What has just arrived is in the queue for a moment more.
        if image.holders.contains(&view.node) {
            continue;
        }
        if let Some(queued) = view.transfers.iter().find(is_here) {
            copies.push(coming(view.node, queued, wanted));
        } else if image.wanted.contains(&view.node) {
            let silent = view.silent.clone().unwrap_or_else(|| "the node has not begun yet".to_owned());
            let why = format!("{}; {silent}", purpose("copy", wanted));
            copies.push(Copy { node: view.node, state: "wanted", bytes_done: 0, bytes_total: image.bytes, why });
        }
    }
    copies.sort_by_key(|copy| copy.node);
    copies
}

fn held(image: &ImageView, node: NodeId, caches: &[NodeCacheView]) -> Copy {
    let cached = caches.iter().find(|view| view.node == node);
    let here = cached.and_then(|view| view.images.iter().find(|cached| cached.image_id == image.id));
    let why = match (here, cached.and_then(|view| view.silent.clone())) {
        _ if image.unreachable.contains(&node) => "the node does not answer: nobody can have it from there".to_owned(),
        (_, Some(silent)) => silent,
        (Some(here), None) => super::cache::why(here),
        (None, None) => String::new(),
    };
    Copy { node, state: "held", bytes_done: image.bytes, bytes_total: image.bytes, why }
}

fn purpose(priority: &str, wanted: u8) -> String {
    match priority {
        "vm" => "a vm there waits for it".to_owned(),
        "operator" => "somebody asked for it there".to_owned(),
        _ => format!("{wanted} copies are to be kept"),
    }
}

fn coming(node: NodeId, queued: &QueuedView, wanted: u8) -> Copy {
    let (state, more) = match queued.state {
        QueuedState::Queued => ("queued", "it waits for its turn".to_owned()),
        QueuedState::Running => ("running", format!("from nodes {}", output::list(&queued.holders))),
        QueuedState::Paused => ("paused", "until it is resumed".to_owned()),
        QueuedState::Failed => ("failed", String::new()),
    };
    let more = queued.failure.clone().unwrap_or(more);
    let why = format!("{}; {more}", purpose(&queued.priority, wanted));
    Copy { node, state, bytes_done: queued.bytes_done, bytes_total: queued.bytes_total, why }
}

fn text(copies: &[Copy]) -> String {
    let mut table = Table::new(&["NODE", "COPY", "DONE", "OF", "WHY"]);
    for copy in copies {
        let (done, total) = (output::bytes(copy.bytes_done), output::bytes(copy.bytes_total));
        table.row([&copy.node, &copy.state, &done, &total, &copy.why]);
    }
    if copies.is_empty() { "no node holds it, and none fetches it\n".to_owned() } else { table.render() }
}

#[cfg(test)]
mod tests {
    use blixard_core::{BlobHash, DiskFormat, DiskPart, ImageKind, Manifest, Part, UnixMs};
    use blixard_node::api::{CachedView, TransferStatsView};

    use super::*;

    #[test]
    fn each_copy_says_where_it_is_and_why() {
        let part = Part { hash: BlobHash([1; 32]), bytes: 4 << 20 };
        let manifest = Manifest::Disk(DiskPart { part, format: DiskFormat::Raw, virtual_bytes: 4 << 20, chunks: None });
        let image = ImageView {
            id: manifest.id(),
            name: "big".parse().expect("a name"),
            kind: ImageKind::Disk,
            bytes: 4 << 20,
            manifest,
            holders: vec![NodeId(1), NodeId(2)],
            unreachable: vec![NodeId(2)],
            wanted: vec![NodeId(3), NodeId(5)],
            used_by: vec![],
            added_at: UnixMs(0),
            boot: None,
        };
        let cached = CachedView {
            image: image.name.clone(),
            image_id: image.id,
            bytes: image.bytes,
            used_at: UnixMs(0),
            pinned: true,
            goes: None,
            stays: Some("pinned".into()),
        };
        let cache =
            NodeCacheView { node: NodeId(1), silent: None, used_bytes: 0, max_bytes: None, images: vec![cached] };
        let queued = QueuedView {
            image: image.name.clone(),
            image_id: image.id,
            priority: "vm".into(),
            state: QueuedState::Running,
            bytes_done: 1 << 20,
            bytes_total: 4 << 20,
            bytes_reused: 0,
            bytes_zero: 0,
            bytes_per_s: 0,
            eta_ms: None,
            sources: 1,
            holders: vec![NodeId(1)],
            failures: 0,
            failure: None,
            failure_class: None,
            retry_in_ms: None,
            deadline_in_ms: None,
        };
        let queue = |node, silent: Option<&str>, transfers| NodeTransfersView {
            node: NodeId(node),
            silent: silent.map(str::to_owned),
            transfers,
            stats: TransferStatsView::default(),
        };
        let queues = [queue(3, Some("it is down"), vec![]), queue(4, None, vec![queued]), queue(5, None, vec![])];
        let found = copies(&image, &[cache], &queues, 2);
        let told: Vec<(u64, &str, &str)> =
            found.iter().map(|copy| (copy.node.0, copy.state, copy.why.as_str())).collect();
        assert_eq!(
            told,
            [
                (1, "held", "stays: pinned"),
                (2, "held", "the node does not answer: nobody can have it from there"),
                (3, "wanted", "2 copies are to be kept; it is down"),
                (4, "running", "a vm there waits for it; from nodes 1"),
                (5, "wanted", "2 copies are to be kept; the node has not begun yet"),
            ]
        );
        assert!(text(&[]).contains("no node holds it"));
    }
}
