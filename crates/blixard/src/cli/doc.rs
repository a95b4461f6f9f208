//! `blixard doc`: configuration and other small values that every node of the cluster has.

use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::limits::DOCUMENT_VALUE_BYTES_MAX;
use blixard_core::{DocumentKey, DocumentName, ShareId};
use blixard_node::api::{Client, CreateDocumentShare, DocumentShareView, DocumentTicket, DocumentView, EntryView};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::{StreamExt, pin_mut};

use super::connect::NodeAddress;
use super::fetch::given_ticket;
use super::files;
use super::output::{self, Output, Table};
use super::values::{self, Ttl};
use crate::failure::Failure;

/// What to do with documents.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a document. All nodes have it then; `config` is there from the beginning.
    #[command(after_help = "Examples:
  blixard doc create web")]
    Create {
        /// The document's name: lower-case letters, digits, `.`, `_` and `-`.
        #[arg(value_name = "DOCUMENT")]
        document: DocumentName,
        #[command(flatten)]
        output: Output,
    },
    /// Share a document with another cluster: prints a ticket for `blixard doc join`. It gives no other right.
    #[command(after_help = "Examples:
  blixard doc share config --read
  blixard doc share web --write --expires 7d
  blixard doc share config --list
  blixard doc share config --stop 6a1f0c9d2e4b8a37")]
    Share(Share),
    /// Follow a document of another cluster, with the ticket that `blixard doc share` printed there. All nodes have it then.
    #[command(after_help = "Examples:
  blixard doc join blixarddocaf3...
  blixard doc join blixarddocaf3... --as theirs")]
    Join {
        /// The ticket, or - to read it from standard input, where nobody sees it in a list of processes.
        #[arg(value_name = "TICKET")]
        ticket: String,
        /// What to call the document here; without it, as there.
        #[arg(long = "as", value_name = "NAME")]
        name: Option<DocumentName>,
        #[command(flatten)]
        output: Output,
    },
    /// Follow a document of another cluster no longer, and let go of what is here of it. That cluster keeps it.
    #[command(after_help = "Examples:
  blixard doc leave theirs")]
    Leave {
        /// The document's name here.
        #[arg(value_name = "DOCUMENT")]
        document: DocumentName,
        #[command(flatten)]
        output: Output,
    },
    /// List the documents, and for those of other clusters how it is with these.
    #[command(after_help = "Examples:
  blixard doc list")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// List the keys of a document, with which node wrote them last and when.
    #[command(after_help = "Examples:
  blixard doc ls config
  blixard doc ls config --prefix web/
  blixard doc ls config --all       what each node wrote last under a key, deletions included")]
    Ls {
        #[command(flatten)]
        keys: Keys,
        /// Show what each node wrote last under a key, deletions included, and not only what counts.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Print the value of a key, or write it to a file.
    #[command(after_help = "Examples:
  blixard doc get config app.conf
  blixard doc get config app.conf -o /etc/app.conf")]
    Get {
        #[command(flatten)]
        place: Place,
        /// The file to write; standard output without it, or for -.
        #[arg(short = 'o', long = "output", value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// Write the value of a key, in place of what was there.
    #[command(after_help = "Examples:
  blixard doc set config app.conf ./app.conf
  echo 'hello' | blixard doc set config motd -")]
    Set {
        #[command(flatten)]
        place: Place,
        /// The file with the value, of at most 1 MiB, or - for standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a key, whichever node wrote it.
    #[command(after_help = "Examples:
  blixard doc delete config app.conf")]
    Delete {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        output: Output,
    },
    /// Show the keys of a document, and then whatever is written or deleted, until interrupted.
    #[command(after_help = "Examples:
  blixard doc watch config
  blixard doc watch config --prefix web/ -o json    one JSON object a line")]
    Watch {
        #[command(flatten)]
        keys: Keys,
        #[command(flatten)]
        output: Output,
    },
    /// Write the values of a document into a folder, one file for each key.
    #[command(after_help = "Examples:
  blixard doc export config ./config
  blixard doc export config ./web --prefix web/")]
    Export {
        #[command(flatten)]
        keys: Keys,
        /// The folder, which is made when it is not there. Files of the same names are replaced.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        #[command(flatten)]
        output: Output,
    },
}

/// How to share a document, or to share it no longer.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["read", "write", "list", "stop"]))]
pub(super) struct Share {
    /// The document's name.
    #[arg(value_name = "DOCUMENT")]
    document: DocumentName,
    /// Whoever has the ticket may read the document.
    #[arg(long)]
    read: bool,
    /// Whoever has the ticket may read and write the document.
    #[arg(long)]
    write: bool,
    /// How long the ticket holds, as in 30m, 24h or 7d, or `unlimited`: until it is stopped.
    #[arg(long, value_name = "TIME", default_value = "unlimited", value_parser = values::ttl, conflicts_with_all = ["list", "stop"])]
    expires: Ttl,
    /// List the tickets of the document.
    #[arg(long)]
    list: bool,
    /// Have a ticket open nothing any more, by the id that `--list` shows. What was read with it stays where it was read.
    #[arg(long, value_name = "ID")]
    stop: Option<ShareId>,
    #[command(flatten)]
    output: Output,
}

/// A key of a document.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The document's name.
    #[arg(value_name = "DOCUMENT")]
    document: DocumentName,
    /// The key: letters, digits, `.`, `_` and `-`, with `/` between parts.
    #[arg(value_name = "KEY")]
    key: DocumentKey,
}

/// Keys of a document.
#[derive(Debug, Args)]
pub(super) struct Keys {
    /// The document's name.
    #[arg(value_name = "DOCUMENT")]
    document: DocumentName,
    /// Only keys that begin with this.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prefix: String,
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Create { document, output } => {
            node.ask(async |client| {
                client.create_document(&document).await?;
                let answer = serde_json::json!({ "name": document });
                output.show(&answer, |_| format!("document {document} is there\n"), |_| vec![document.clone()])
            })
            .await
        }
        Verb::Share(wanted) => node.ask(async |client| share(client, &wanted).await).await,
        Verb::Join { ticket, name, output } => {
            let ticket: DocumentTicket = given_ticket(&ticket)?;
            let name = name.unwrap_or_else(|| ticket.name.clone());
            node.ask(async |client| {
                client.join_document(&name, &ticket.to_string()).await?;
                let write = ticket.right.is_write();
                let answer = serde_json::json!({ "name": name, "write": write });
                let right = if write { "read and written" } else { "read" };
                output.show(&answer, |_| format!("document {name} can be {right} here\n"), |_| vec![name.clone()])
            })
            .await
        }
        Verb::Leave { document, output } => {
            node.ask(async |client| {
                client.leave_document(&document).await?;
                let answer = serde_json::json!({ "left": document });
                output.show(&answer, |_| format!("document {document} is left\n"), |_| vec![document.clone()])
            })
            .await
        }
        Verb::List { output } => {
            let names = |documents: &Vec<DocumentView>| documents.iter().map(|one| one.name.clone()).collect();
            node.ask(async |client| output.show(&client.documents().await?, |all| documents_text(all), names)).await
        }
        Verb::Ls { keys, all, output } => {
            node.ask(async |client| {
                let entries = client.entries(&keys.document, &keys.prefix, all).await?;
                output.show(&entries, |entries| entries_text(entries), |entries| keys_of(entries))
            })
            .await
        }
        Verb::Get { place, file } => {
            node.ask(async |client| write_value(&client.value(&place.document, &place.key).await?, &file)).await
        }
        Verb::Set { place: Place { document, key }, file, output } => {
            let value = read_value(&file)?;
            node.ask(async |client| {
                let entry = client.set_value(&document, &key, value).await?;
                let text = |entry: &EntryView| format!("{key} in {document} has {}\n", output::bytes(entry.bytes));
                output.show(&entry, text, key_of)
            })
            .await
        }
        Verb::Delete { place: Place { document, key }, output } => {
            node.ask(async |client| {
                let entry = client.delete_value(&document, &key).await?;
                output.show(&entry, |_| format!("{key} in {document} is deleted\n"), key_of)
            })
            .await
        }
        Verb::Watch { keys, output } => node.ask(async |client| watch(client, &keys, output).await).await,
        Verb::Export { keys, folder, output } => {
            node.ask(async |client| export(client, &keys, &folder, output).await).await
        }
    }
}

async fn share(client: &Client, wanted: &Share) -> anyhow::Result<()> {
    let Share { document, write, expires: Ttl(ttl), list, stop, output, .. } = wanted;
    if *list {
        let shares = client.document_shares(document).await?;
        let ids = |shares: &Vec<DocumentShareView>| shares.iter().map(|share| share.id).collect();
        return output.show(&shares, |shares| shares_text(shares), ids);
    }
    if let Some(id) = stop {
        client.stop_document_share(document, *id).await?;
        let answer = serde_json::json!({ "stopped": id });
        return output.show(&answer, |_| format!("ticket {id} of {document} opens nothing any more\n"), |_| vec![*id]);
    }
    let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let created = client.share_document(document, CreateDocumentShare { write: *write, ttl_ms }).await?;
    // The ticket stands alone on standard output, for another command; what it is good for goes beside it.
    output.show(
        &created,
        |created| format!("{}\n", output::clean(&created.ticket)),
        |created| vec![created.share.id],
    )?;
    let end = ttl_ms.map_or_else(|| "until it is stopped".to_owned(), |ms| format!("for {}", output::span(ms)));
    let right = if *write { "reads and writes" } else { "reads" };
    let id = created.share.id;
    output::note(&format!(
        "whoever has the ticket {right} {document}, {end}, by `blixard doc join TICKET`; ticket {id}"
    ));
    Ok(())
}

/// Reads a value, which must be small enough; what is read is bounded, not what the file claims to be.
fn read_value(file: &Path) -> anyhow::Result<Bytes> {
    let (name, reader): (String, Box<dyn Read>) = match files::is_stdio(file) {
        true if io::stdin().is_terminal() => {
            bail!(Failure::usage("standard input is a terminal: pipe the value in, or name a file instead of -"))
        }
        true => ("standard input".to_owned(), Box::new(io::stdin())),
        false => {
            let name = file.display().to_string();
            let opened = std::fs::File::open(file).with_context(|| format!("open {name}"))?;
            (name, Box::new(opened))
        }
    };
    let mut value = Vec::new();
    reader.take(DOCUMENT_VALUE_BYTES_MAX + 1).read_to_end(&mut value).with_context(|| format!("read {name}"))?;
    let wrong = match value.len() as u64 {
        0 => "is empty, and a value has at least one byte: `blixard doc delete` removes a key".to_owned(),
        bytes if bytes > DOCUMENT_VALUE_BYTES_MAX => {
            let most = output::bytes(DOCUMENT_VALUE_BYTES_MAX);
            format!("has more than {most}, which is the most that a value may have")
        }
        _ => return Ok(value.into()),
    };
    bail!(Failure::usage(format!("{name} {wrong}")))
}

/// Prints a value, or puts it into a file.
fn write_value(value: &[u8], file: &Path) -> anyhow::Result<()> {
    if !files::is_stdio(file) {
        return write_file(value, file);
    }
    // Another user wrote it: it must not steer the terminal of this one.
    let is_text =
        |text: &str| text.lines().all(|line| output::clean(&line.replace('\t', " ")) == line.replace('\t', " "));
    if io::stdout().is_terminal() && !std::str::from_utf8(value).is_ok_and(is_text) {
        bail!(Failure::usage("the value is no plain text: write it to a file with -o FILE, or redirect it"));
    }
    output::print(value)
}

/// Writes a file as a whole, or not at all.
fn write_file(value: &[u8], path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!(Failure::usage(format!("{} is a directory: name a file in it", path.display())));
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".part");
    let fresh = PathBuf::from(fresh);
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(value)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| format!("write {}", path.display())).inspect_err(|_| {
        // It may not have come into being.
        let _ = std::fs::remove_file(&fresh);
    })
}

async fn watch(client: &Client, keys: &Keys, output: Output) -> anyhow::Result<()> {
    let changes = client.watch_document(&keys.document, &keys.prefix).await?;
    pin_mut!(changes);
    while let Some(entry) = changes.next().await {
        output.show_one_of_many(&entry?, line, |entry| entry.key.clone())?;
    }
    bail!("the node has stopped telling of document {}: ask again, or another node", keys.document)
}

async fn export(client: &Client, keys: &Keys, folder: &Path, output: Output) -> anyhow::Result<()> {
    let entries = client.entries(&keys.document, &keys.prefix, false).await?;
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for entry in &entries {
        let path = place_in(folder, &entry.key)?;
        let value = client.value(&keys.document, &entry.key).await?;
        write_file(&value, &path).with_context(|| format!("export {}", entry.key))?;
    }
    let text = |entries: &Vec<EntryView>| match entries.len() {
        1 => format!("1 key is in {}\n", folder.display()),
        keys => format!("{keys} keys are in {}\n", folder.display()),
    };
    output.show(&entries, text, |entries| keys_of(entries))
}

/// The file of a key, with the folders that lead to it. None of them may lead elsewhere.
fn place_in(folder: &Path, key: &DocumentKey) -> anyhow::Result<PathBuf> {
    let mut path = folder.to_owned();
    let mut parts = key.as_str().split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_none() {
            break;
        }
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => bail!("{} is no folder, and key {key} would have to go into it", path.display()),
            Err(_) => std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?,
        }
    }
    Ok(path)
}

fn key_of(entry: &EntryView) -> Vec<DocumentKey> {
    vec![entry.key.clone()]
}

fn keys_of(entries: &[EntryView]) -> Vec<DocumentKey> {
    entries.iter().map(|entry| entry.key.clone()).collect()
}

fn documents_text(documents: &[DocumentView]) -> String {
    let mut table = Table::new(&["NAME", "KEYS", "SIZE", "FROM", "STATE"]);
    for document in documents {
        let (from, state) = match &document.origin {
            None => ("this cluster", "here".to_owned()),
            Some(origin) => {
                let from = if origin.write { "another, read and written" } else { "another, read" };
                let state = match (&origin.failure, origin.met_at) {
                    (Some(failure), _) => output::clean(failure),
                    (None, Some(met_at)) => format!("met {} ago", output::age(met_at)),
                    (None, None) => "being looked for".to_owned(),
                };
                (from, state)
            }
        };
        table.row([&document.name, &document.keys, &output::bytes(document.bytes), &from, &state]);
    }
    table.render()
}

fn shares_text(shares: &[DocumentShareView]) -> String {
    let mut table = Table::new(&["ID", "FOR", "STATE", "EXPIRES IN", "AGE"]);
    for share in shares {
        let right = if share.write { "writing" } else { "reading" };
        let state = if share.expired { "expired" } else { "ready" };
        let expires = match share.expires_at {
            None => "never".to_owned(),
            Some(at) => match at.since_ms(output::now()) {
                0 => "over".to_owned(),
                ms => output::span(ms),
            },
        };
        table.row([&share.id, &right, &state, &expires, &output::age(share.created_at)]);
    }
    table.render()
}

/// Which node wrote an entry: its number, or the beginning of its key when it is no member any more.
fn writer(entry: &EntryView) -> String {
    entry.node.map_or_else(|| entry.written_by.short(), |node| format!("node {node}"))
}

/// What an entry has, and what there is to know of that.
fn state(entry: &EntryView) -> &'static str {
    match entry {
        EntryView { latest: false, .. } => "replaced",
        EntryView { deleted: true, .. } => "deleted",
        EntryView { here: false, .. } => "on its way",
        _ => "here",
    }
}

fn entries_text(entries: &[EntryView]) -> String {
    let mut table = Table::new(&["KEY", "SIZE", "WRITTEN BY", "AGE", "STATE"]);
    for entry in entries {
        table.row([
            &entry.key,
            &output::bytes(entry.bytes),
            &writer(entry),
            &output::age(entry.written_at),
            &state(entry),
        ]);
    }
    table.render()
}

/// One line of those that come one by one.
fn line(entry: &EntryView) -> String {
    match entry.deleted {
        true => format!("{}  deleted by {}\n", entry.key, writer(entry)),
        false => format!("{}  {} by {}\n", entry.key, output::bytes(entry.bytes), writer(entry)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_key_stays_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        std::fs::create_dir(&folder).unwrap();
        let place = place_in(&folder, &"web/a/b.conf".parse().unwrap()).unwrap();
        assert_eq!(place, folder.join("web/a/b.conf"));
        assert!(folder.join("web/a").is_dir());
        std::os::unix::fs::symlink(dir.path(), folder.join("elsewhere")).unwrap();
        std::fs::write(folder.join("file"), "x").unwrap();
        for key in ["elsewhere/x", "file/x"] {
            let refused = place_in(&folder, &key.parse().unwrap()).unwrap_err().to_string();
            assert!(refused.contains("is no folder"), "{refused}");
        }
        assert!(!dir.path().join("x").exists());
    }
}
