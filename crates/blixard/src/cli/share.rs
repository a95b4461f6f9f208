//! `blixard share`: files and folders for whoever has their tickets.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::{Part, ShareId};
use blixard_node::api::{Client, CreateShare, NodeSharesView, ShareState};
use blixard_node::shares::{PackError, Packed};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;

use super::connect::NodeAddress;
use super::files::ReadFailure;
use super::output::{self, Output, Table};
use super::progress::ByteBar;
use super::values::{self, Ttl};
use crate::failure::{Exit, Failure};

/// What to share, or to share no longer.
#[derive(Debug, Args)]
pub(super) struct Share {
    /// The file or folder to share. It is copied to the node, so that it can be changed or removed afterwards.
    #[arg(value_name = "PATH", required_unless_present_any = ["list", "stop"], conflicts_with_all = ["list", "stop"])]
    path: Option<PathBuf>,
    /// How long it is shared, as in 30m, 24h or 7d, or `unlimited`: until it is stopped.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = values::ttl, conflicts_with_all = ["list", "stop"])]
    expires: Ttl,
    /// What to call it where it is fetched; without it, the name that it has here.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "stop"])]
    name: Option<String>,
    /// List what each node shares.
    #[arg(long, conflicts_with = "stop")]
    list: bool,
    /// Share something no longer, by the id that `--list` shows. Fetches that are under way end, and its space is freed.
    #[arg(long, value_name = "ID")]
    stop: Option<ShareId>,
    #[command(flatten)]
    output: Output,
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, share: Share) -> anyhow::Result<()> {
    let Share { path, expires: Ttl(ttl), name, list, stop, output } = share;
    if list {
        let ids = |views: &Vec<NodeSharesView>| {
            views.iter().flat_map(|view| &view.shares).map(|share| share.id).collect::<Vec<_>>()
        };
        return node.ask(async |client| output.show(&client.shares().await?, |views| text(views), ids)).await;
    }
    if let Some(id) = stop {
        return node.ask(async |client| stop_share(client, id, output).await).await;
    }
    let Some(path) = path else { bail!(Failure::usage("name a file or a folder to share")) };
    let name = match name {
        Some(name) => name,
        None => name_of(&path)?,
    };
    // Before a node is asked, so that what cannot be shared costs no upload.
    let look = tokio::task::spawn_blocking(move || Packed::look(&path, &name));
    let packed = look.await.context("look through what is to be shared")?.map_err(|error| match error {
        error @ PackError::Read { .. } => anyhow::Error::from(error),
        error => Failure::usage(error).into(),
    })?;
    let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    node.ask(async |client| create(client, packed, ttl_ms, output).await).await
}

/// The name of a path, however it was written.
fn name_of(path: &Path) -> anyhow::Result<String> {
    let whole = path.canonicalize().with_context(|| format!("read {}", path.display()))?;
    // That of a link is the name that was chosen for it.
    let name = path.file_name().or(whole.file_name()).and_then(|name| name.to_str());
    let advice = || Failure::usage(format!("{} has no name that could be told: give one with --name", path.display()));
    Ok(name.ok_or_else(advice)?.to_owned())
}

async fn create(client: &Client, packed: Packed, ttl_ms: Option<u64>, output: Output) -> anyhow::Result<()> {
    let (name, bytes, files) = (packed.name(), packed.bytes(), packed.files());
    let content = match bytes {
        0 => None,
        bytes => {
            let (bar, failure) = (ByteBar::start(&name, Some(bytes)), ReadFailure::default());
            let (counted, noted) = (bar.clone(), failure.clone());
            let content = packed.content().map(move |chunk| match chunk {
                Ok(chunk) => {
                    counted.add(chunk.len());
                    Ok(chunk)
                }
                Err(error) => Err(noted.note(error)),
            });
            let sent = client.upload(content).await;
            bar.end();
            match (sent, failure.take()) {
                (_, Some(error)) => return Err(error).context("read what is to be shared"),
                (sent, None) => Some(sent?),
            }
        }
    };
    let listing = packed.listing(content.map(|blob| Part { hash: blob.hash, bytes: blob.bytes }))?;
    let listing = client.upload(futures::stream::iter([Ok(Bytes::from(listing))])).await?;
    let created = client.create_share(&CreateShare { listing: listing.hash, ttl_ms }).await?;
    // The ticket stands alone on standard output, for another command; what it is good for goes beside it.
    output.show(
        &created,
        |created| format!("{}\n", output::clean(&created.ticket)),
        |created| vec![created.share.id],
    )?;
    let end = ttl_ms.map_or_else(|| "until it is stopped".to_owned(), |ms| format!("for {}", output::span(ms)));
    let size = size(bytes, files);
    output::note(&output::clean(&format!(
        "shares {name}, {size}, {end}, by `blixard fetch TICKET`; share {}",
        created.share.id
    )));
    Ok(())
}

/// How much there is of something.
pub(super) fn size(bytes: u64, files: usize) -> String {
    let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
    format!("{} in {files}", output::bytes(bytes))
}

async fn stop_share(client: &Client, id: ShareId, output: Output) -> anyhow::Result<()> {
    let nodes = client.shares().await?;
    let Some(holder) = nodes.iter().find(|view| view.shares.iter().any(|share| share.id == id)) else {
        let silent: Vec<String> =
            nodes.iter().filter(|view| view.silent.is_some()).map(|view| view.node.to_string()).collect();
        let message = match silent.as_slice() {
            [] => format!("no node shares {id}"),
            silent => format!("no node that answers shares {id}; silent are {}", output::list(silent)),
        };
        bail!(Failure::new(Exit::NotFound, message).next_step("see `blixard share --list`"));
    };
    let node = client.stop_share(id, Some(holder.node)).await?;
    let answer = serde_json::json!({ "stopped": id, "node": node });
    output.show(&answer, |_| format!("node {node} shares {id} no longer\n"), |_| vec![id])
}

fn text(views: &[NodeSharesView]) -> String {
    let mut table = Table::new(&["NODE", "ID", "STATE", "NAME", "SIZE", "FILES", "EXPIRES IN", "AGE"]);
    for view in views {
        if let Some(silent) = &view.silent {
            table.row([&view.node, &"-", &"unknown", &silent, &"", &"", &"", &""]);
        }
        for share in &view.shares {
            let state = match share.state {
                ShareState::Ready => "ready",
                ShareState::Expired => "expired",
                ShareState::Lost => "failed",
            };
            let expires = match share.expires_at {
                None => "never".to_owned(),
                Some(at) => match at.since_ms(output::now()) {
                    0 => "over".to_owned(),
                    ms => output::span(ms),
                },
            };
            let name = if share.is_folder { format!("{}/", share.name) } else { share.name.clone() };
            let (bytes, age) = (output::bytes(share.bytes), output::age(share.created_at));
            table.row([&view.node, &share.id, &state, &name, &bytes, &share.files, &expires, &age]);
        }
    }
    table.render()
}
