//! What images take of the nodes, what stays, and whether it is still what it was.

use std::time::Duration;

use anyhow::bail;
use blixard_core::{ImageName, NodeId};
use blixard_node::api::{CachedView, Client, CollectedView, NodeCacheView, VerificationView, VerifiedState};

use super::super::output::{self, Output, Table};
use super::super::progress::StatusLine;
use crate::failure::{Exit, Failure};

/// Between two looks at how far verifications are.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Shows the caches of all nodes, or of one.
pub(super) async fn show(client: &Client, node: Option<NodeId>, output: Output) -> anyhow::Result<()> {
    let mut views = client.caches().await?;
    if let Some(node) = node {
        views.retain(|view| view.node == node);
        if views.is_empty() {
            bail!(Failure::new(Exit::NotFound, format!("there is no node {node} in the cluster")));
        }
    }
    let names = |views: &Vec<NodeCacheView>| {
        views.iter().flat_map(|view| &view.images).map(|cached| cached.image.clone()).collect()
    };
    output.show(&views, |views| caches(views), names)
}

/// Why an image stays, or when it goes.
pub(super) fn why(cached: &CachedView) -> String {
    match (&cached.stays, cached.goes) {
        (Some(reason), _) => format!("stays: {reason}"),
        (None, Some(place)) => format!("goes as number {place} when room is needed"),
        (None, None) => String::new(),
    }
}

fn caches(views: &[NodeCacheView]) -> String {
    let mut table = Table::new(&["NODE", "IMAGE", "SIZE", "LAST USED", "WHY"]);
    for view in views {
        let most = view.max_bytes.map_or_else(|| "any".to_owned(), output::bytes);
        let all = format!("of at most {most}");
        let silent = view.silent.as_deref().unwrap_or(&all);
        let used = if view.silent.is_some() { String::new() } else { output::bytes(view.used_bytes) };
        table.row([&view.node, &"all", &used, &"", &silent]);
        for cached in &view.images {
            let (size, used) = (output::bytes(cached.bytes), format!("{} ago", output::age(cached.used_at)));
            table.row([&view.node, &cached.image, &size, &used, &why(cached)]);
        }
    }
    table.render()
}

/// Has a node remove what nothing keeps.
pub(super) async fn collect(client: &Client, node: Option<NodeId>, output: Output) -> anyhow::Result<()> {
    let collected = client.collect(node).await?;
    let text = |collected: &CollectedView| {
        let (freed, used) = (output::bytes(collected.freed_bytes), output::bytes(collected.used_bytes));
        format!("node {} has freed {freed}; images take {used} of it\n", collected.node)
    };
    output.show(&collected, text, |collected| vec![collected.node])
}

/// Pins an image on a node, or no longer.
pub(super) async fn pin(
    client: &Client,
    name: &ImageName,
    node: Option<NodeId>,
    is_pinned: bool,
    output: Output,
) -> anyhow::Result<()> {
    let node = client.pin(name, node, is_pinned).await?;
    let answer = serde_json::json!({ "image": name, "node": node, "pinned": is_pinned });
    let text = match is_pinned {
        true => format!("image {name} stays on node {node}; where it is not there yet, it is fetched\n"),
        false => format!("image {name} goes from node {node} when it is not needed and there is no room\n"),
    };
    output.show(&answer, |_| text, |_| vec![name.clone()])
}

/// Has the copies of an image read again, all or that of one node, and waits for what comes of it.
pub(super) async fn verify(
    client: &Client,
    name: &ImageName,
    node: Option<NodeId>,
    output: Output,
) -> anyhow::Result<()> {
    let holders = match node {
        Some(node) => vec![node],
        None => client.image(name).await?.holders,
    };
    if holders.is_empty() {
        bail!(Failure::new(Exit::NotFound, format!("no node holds image {name}")));
    }
    let mut views = Vec::new();
    for holder in &holders {
        views.push(client.verify(name, Some(*holder)).await?);
    }
    let line = StatusLine::start();
    while views.iter().any(|view| view.state == VerifiedState::Running) {
        let (done, total) =
            views.iter().fold((0, 0), |(done, total), view| (done + view.bytes_done, total + view.bytes_total));
        line.set(&format!("{} of {} are read", output::bytes(done), output::bytes(total)));
        tokio::time::sleep(LOOK_EVERY).await;
        for view in views.iter_mut().filter(|view| view.state == VerifiedState::Running) {
            *view = client.verification(name, Some(view.node)).await?;
        }
    }
    drop(line);
    output.show(&views, |views| verdicts(views), |views| views.iter().map(|view| view.node).collect())?;
    judge(name, &views)
}

fn verdict(view: &VerificationView) -> (&'static str, String) {
    match view.state {
        VerifiedState::Running => ("running", String::new()),
        VerifiedState::Sound => ("sound", String::new()),
        VerifiedState::Failed => ("failed", view.failure.clone().unwrap_or_default()),
        VerifiedState::Damaged if view.refetched => ("damaged", "it is fetched again from another node".to_owned()),
        VerifiedState::Damaged => ("damaged", "no other node has it".to_owned()),
    }
}

fn verdicts(views: &[VerificationView]) -> String {
    let mut table = Table::new(&["NODE", "COPY", "READ", "WHY"]);
    for view in views {
        let (word, why) = verdict(view);
        table.row([&view.node, &word, &output::bytes(view.bytes_done), &why]);
    }
    table.render()
}

/// Fails when something is damaged that nobody has otherwise, or could not be read.
fn judge(name: &ImageName, views: &[VerificationView]) -> anyhow::Result<()> {
    let lost = views.iter().filter(|view| view.state == VerifiedState::Damaged && !view.refetched);
    let lost: Vec<NodeId> = lost.map(|view| view.node).collect();
    if !lost.is_empty() {
        let text =
            format!("the copy of image {name} on node {} is damaged, and no other node has it", output::list(lost));
        let step = "import the same file again under the same name: the damaged copy is then replaced";
        bail!(Failure::new(Exit::Damaged, text).next_step(step));
    }
    if let Some(failed) = views.iter().find(|view| view.state == VerifiedState::Failed) {
        let why = failed.failure.as_deref().unwrap_or_default();
        bail!(Failure::new(Exit::Failure, format!("node {} could not read image {name}: {why}", failed.node)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use blixard_core::{BlobHash, ImageId, UnixMs};

    use super::*;
    use crate::failure::exit_of;

    #[test]
    fn who_has_a_damaged_copy_is_told_whether_it_is_the_only_one() {
        let sound = VerificationView {
            image: "big".parse().expect("a name"),
            node: NodeId(1),
            state: VerifiedState::Sound,
            bytes_done: 1 << 20,
            bytes_total: 1 << 20,
            damaged: vec![],
            refetched: false,
            failure: None,
        };
        let name = sound.image.clone();
        let damaged =
            VerificationView { state: VerifiedState::Damaged, damaged: vec![BlobHash([1; 32])], ..sound.clone() };
        let replaced = VerificationView { refetched: true, node: NodeId(2), ..damaged.clone() };
        assert!(judge(&name, &[sound.clone(), replaced.clone()]).is_ok());
        let lost = judge(&name, std::slice::from_ref(&damaged)).expect_err("it is lost");
        assert_eq!(exit_of(&lost), Exit::Damaged);
        assert!(lost.to_string().contains("no other node has it"), "{lost}");
        let unread =
            VerificationView { state: VerifiedState::Failed, failure: Some("the disk".into()), ..sound.clone() };
        assert_eq!(exit_of(&judge(&name, &[unread]).expect_err("nobody knows")), Exit::Failure);
        let text = verdicts(&[sound, replaced]);
        let rows: Vec<String> = text.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[1..], ["1 sound 1 MiB -", "2 damaged 1 MiB it is fetched again from another node"]);
    }

    #[test]
    fn each_image_says_why_it_stays_or_when_it_goes() {
        let goes = CachedView {
            image: "old".parse().expect("a name"),
            image_id: ImageId([1; 32]),
            bytes: 3 << 20,
            used_at: UnixMs(0),
            pinned: false,
            goes: Some(1),
            stays: None,
        };
        let stays = CachedView { pinned: true, goes: None, stays: Some("pinned".into()), ..goes.clone() };
        assert_eq!(why(&goes), "goes as number 1 when room is needed");
        assert_eq!(why(&stays), "stays: pinned");
        let view = |node, silent: Option<&str>, images| NodeCacheView {
            node: NodeId(node),
            silent: silent.map(str::to_owned),
            used_bytes: 6 << 20,
            max_bytes: Some(8 << 20),
            images,
        };
        let text = caches(&[view(1, None, vec![goes, stays]), view(2, Some("it is down"), vec![])]);
        let rows: Vec<String> = text.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[1], "1 all 6 MiB - of at most 8 MiB");
        assert!(rows[3].ends_with("stays: pinned") && rows[4] == "2 all - - it is down", "{text}");
    }
}
