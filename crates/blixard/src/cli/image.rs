//! `blixard image`: what vms boot from.

mod cache;
mod explain;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use blixard_core::{BlobHash, DiskFormat, DiskPart, ImageKind, ImageName, Manifest, NodeId, Part};
use blixard_node::api::{AddImage, BlobView, Client, ComparedView, ImageSource, ImageView};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::connect::NodeAddress;
use super::files::{self, Sink, Source};
use super::output::{self, Output, Table};
use super::progress::{ByteBar, StatusLine};
use super::values;
use crate::failure::{Exit, Failure};

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add an image to the cluster: a bootable disk, or a Linux kernel with what it needs.
    #[command(after_help = "Examples:
  blixard image import --name debian debian-12.qcow2
  blixard image import --name debian-2 debian-12.7.qcow2 --base debian
  zcat disk.raw.gz | blixard image import --name appliance -
  blixard image import --name tiny --kernel vmlinuz --initrd initrd.gz --cmdline \"console=ttyS0\"")]
    Import(Import),
    /// List the images.
    #[command(after_help = "Examples:
  blixard image list
  blixard image list -o yaml")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show an image: what it is made of, who holds it, and who uses it.
    #[command(after_help = "Examples:
  blixard image show debian")]
    Show {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        #[command(flatten)]
        output: Output,
    },
    /// Have a node fetch an image now, before anything needs it there. It goes before copies, and behind what a vm waits for.
    #[command(after_help = "Examples:
  blixard image fetch debian --node 3
  blixard image fetch debian --node 3 --deadline 30m
  blixard transfer list                    see how far it is")]
    Fetch {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// The node that is to fetch it; without it, the one that is asked.
        #[arg(long, value_name = "N", value_parser = values::node_id)]
        node: Option<NodeId>,
        /// Give it up if it is not there in this time, as in 90s, 30m or 2h; also when the node is restarted meanwhile.
        #[arg(long, value_name = "DURATION", value_parser = values::duration)]
        deadline: Option<Duration>,
        #[command(flatten)]
        output: Output,
    },
    /// Show what images take of each node and may take (`cache.max`), when each was last used, and why it stays or when it goes.
    #[command(after_help = "Examples:
  blixard image cache
  blixard image cache --node 3 -o json")]
    Cache {
        /// Only this node.
        #[arg(long, value_name = "N", value_parser = values::node_id)]
        node: Option<NodeId>,
        #[command(flatten)]
        output: Output,
    },
    /// Explain where the copies of an image are and are going, and why.
    #[command(after_help = "Examples:
  blixard image explain debian")]
    Explain {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        #[command(flatten)]
        output: Output,
    },
    /// Keep an image on a node whatever room is needed for. Where it is not there yet, it is fetched.
    #[command(after_help = "Examples:
  blixard image pin debian --node 3")]
    Pin(OnNode),
    /// Keep an image on a node only while it is needed there and there is room.
    #[command(after_help = "Examples:
  blixard image unpin debian --node 3")]
    Unpin(OnNode),
    /// Read copies of an image again and hold every byte against its hash. What is damaged is fetched again from other nodes.
    #[command(after_help = "Examples:
  blixard image verify debian                 every node that holds it
  blixard image verify debian --node 3

It ends with 13 when a copy is damaged that no other node has.")]
    Verify {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Only the copy on this node.
        #[arg(long, value_name = "N", value_parser = values::node_id)]
        node: Option<NodeId>,
        #[command(flatten)]
        output: Output,
    },
    /// Remove at once what no image keeps on a node, and say how much that has freed. It is done by itself once a minute.
    #[command(after_help = "Examples:
  blixard image gc
  blixard image gc --node 3")]
    Gc {
        /// The node; without it, the one that is asked.
        #[arg(long, value_name = "N", value_parser = values::node_id)]
        node: Option<NodeId>,
        #[command(flatten)]
        output: Output,
    },
    /// Delete an image. One that vms use stays.
    #[command(after_help = "Examples:
  blixard image delete debian")]
    Delete {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        #[command(flatten)]
        output: Output,
    },
    /// Write a part of an image to a file.
    #[command(after_help = "Examples:
  blixard image export debian -o debian.qcow2
  blixard image export tiny --part kernel -o vmlinuz
  blixard image export debian -o - | gzip > debian.gz")]
    Export {
        /// The image's name.
        #[arg(value_name = "NAME")]
        name: ImageName,
        /// Which part; needed where there are several.
        #[arg(long, value_enum)]
        part: Option<PartName>,
        /// The file to write, or - for standard output.
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: PathBuf,
    },
}

/// An image on a node.
#[derive(Debug, Args)]
pub(super) struct OnNode {
    /// The image's name.
    #[arg(value_name = "NAME")]
    name: ImageName,
    /// The node; without it, the one that is asked.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    node: Option<NodeId>,
    #[command(flatten)]
    output: Output,
}

/// What to import.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// The name to give it: lower-case letters, digits, `.`, `_` and `-`.
    #[arg(long, value_name = "NAME")]
    name: ImageName,
    /// A bootable disk, qcow2 or raw, or - for standard input.
    #[arg(value_name = "DISKFILE", required_unless_present = "kernel", conflicts_with = "kernel")]
    disk: Option<PathBuf>,
    /// A Linux kernel to start directly, in place of a bootable disk.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial ramdisk.
    #[arg(long, value_name = "FILE", requires = "kernel", conflicts_with = "disk")]
    initrd: Option<PathBuf>,
    /// The kernel's root disk, qcow2 or raw.
    #[arg(long, value_name = "FILE", requires = "kernel", conflicts_with = "disk")]
    root: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", conflicts_with = "disk")]
    cmdline: Option<String>,
    /// An image to compare with: how much of the new one would be sent to a node that has that one.
    #[arg(long, value_name = "NAME")]
    base: Option<ImageName>,
    #[command(flatten)]
    output: Output,
}

/// An image that was just added, and how much of it is new.
#[derive(Debug, Serialize)]
struct Imported {
    #[serde(flatten)]
    image: ImageView,
    /// Nothing when it has no disk that could be compared.
    compared: Option<ComparedView>,
}

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PartName {
    /// The disk of a disk image.
    Disk,
    /// The kernel.
    Kernel,
    /// The initial ramdisk.
    Initrd,
    /// The root disk of a kernel image.
    Root,
}

impl PartName {
    fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Root => "root",
        }
    }
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Import(import) => import_image(node, import).await,
        Verb::List { output } => {
            let names = |images: &Vec<ImageView>| images.iter().map(|image| image.name.clone()).collect();
            node.ask(async |client| output.show(&client.images().await?, |images| images_text(images), names)).await
        }
        Verb::Show { name, output } => {
            node.ask(async |client| output.show(&client.image(&name).await?, image_text, name_of)).await
        }
        Verb::Fetch { name, node: target, deadline, output } => {
            node.ask(async |client| {
                let target = client.fetch_image(&name, target, deadline).await?;
                let answer = serde_json::json!({ "image": name, "node": target });
                let text =
                    format!("node {target} fetches image {name}, unless it has it; see `blixard transfer list`\n");
                output.show(&answer, |_| text, |_| vec![name.clone()])
            })
            .await
        }
        Verb::Cache { node: shown, output } => node.ask(async |client| cache::show(client, shown, output).await).await,
        Verb::Explain { name, output } => node.ask(async |client| explain::show(client, &name, output).await).await,
        Verb::Pin(OnNode { name, node: target, output }) => {
            node.ask(async |client| cache::pin(client, &name, target, true, output).await).await
        }
        Verb::Unpin(OnNode { name, node: target, output }) => {
            node.ask(async |client| cache::pin(client, &name, target, false, output).await).await
        }
        Verb::Verify { name, node: target, output } => {
            node.ask(async |client| cache::verify(client, &name, target, output).await).await
        }
        Verb::Gc { node: target, output } => {
            node.ask(async |client| cache::collect(client, target, output).await).await
        }
        Verb::Delete { name, output } => {
            node.ask(async |client| {
                client.delete_image(&name).await?;
                let answer = serde_json::json!({ "deleted": name });
                output.show(&answer, |_| format!("image {name} is deleted\n"), |_| vec![name.clone()])
            })
            .await
        }
        Verb::Export { name, part, file } => node.ask(async |client| export(client, &name, part, &file).await).await,
    }
}

async fn import_image(node: NodeAddress, import: Import) -> anyhow::Result<()> {
    let Import { name, disk, kernel, initrd, root, cmdline, base, output } = import;
    let paths = [&disk, &kernel, &initrd, &root].into_iter().flatten();
    if paths.filter(|path| files::is_stdio(path)).count() > 1 {
        bail!(Failure::usage("standard input can be only one of the files"));
    }
    // All are opened before the first is sent, so that a mistyped name costs no upload.
    let open = async |path: &Option<PathBuf>| match path {
        Some(path) => Source::open(path).await.map(Some),
        None => Ok(None),
    };
    let (disk, kernel) = (open(&disk).await?, open(&kernel).await?);
    let (initrd, root) = (open(&initrd).await?, open(&root).await?);
    node.ask(async |client| {
        if let Some(base) = &base {
            comparable(&client.image(base).await?)?;
        }
        let send = async |source: Option<Source>| -> anyhow::Result<Option<BlobHash>> {
            match source {
                Some(source) => Ok(Some(upload(client, source).await?.hash)),
                None => Ok(None),
            }
        };
        let source = match (send(disk).await?, send(kernel).await?) {
            (Some(disk), _) => ImageSource::Disk { disk },
            (None, Some(kernel)) => {
                let (initrd, root) = (send(initrd).await?, send(root).await?);
                ImageSource::Kernel { kernel, initrd, root, cmdline: cmdline.unwrap_or_default() }
            }
            (None, None) => bail!(Failure::usage("name a disk or a kernel to import")),
        };
        let line = StatusLine::start();
        line.set(&format!("the node looks into image {name}"));
        let image = client.add_image(&AddImage { name, source }).await?;
        let compared = match comparable(&image) {
            Ok(()) => {
                let compared = client.compare_images(&image.name, base.as_ref()).await;
                Some(compared.with_context(|| format!("image {} is imported; compare it", image.name))?)
            }
            // Only who asked for it is to hear that it cannot be.
            Err(error) if base.is_some() => return Err(error.context(format!("image {} is imported", image.name))),
            Err(_) => None,
        };
        drop(line);
        output.show(&Imported { image, compared }, imported_text, |imported| name_of(&imported.image))
    })
    .await
}

/// Whether an image has what others can be compared with.
fn comparable(image: &ImageView) -> anyhow::Result<()> {
    let name = &image.name;
    match image.manifest.disk() {
        Some(disk) if disk.chunks.is_some() => Ok(()),
        Some(_) => bail!(Failure::usage(format!("the disk of image {name} is too large to be compared"))),
        None => bail!(Failure::usage(format!("image {name} has no disk that could be compared"))),
    }
}

fn imported_text(imported: &Imported) -> String {
    let Imported { image, compared } = imported;
    let (kind, size) = (kind_word(image.kind), output::bytes(image.bytes));
    let mut text = format!("image {} is imported: {kind}, {size}, id {}\n", image.name, image.id.short());
    if let Some(ComparedView { base, zero_bytes, known_bytes, fresh_bytes, repeated_bytes }) = compared {
        let fresh = output::bytes(*fresh_bytes);
        let known = match base {
            Some(base) => format!("{fresh} are new against {base}, which has {}", output::bytes(*known_bytes)),
            None => format!("{fresh} are content"),
        };
        let (repeated, zeros) = (output::bytes(*repeated_bytes), output::bytes(*zero_bytes));
        text += &format!("of its disk, {known}; {repeated} repeat, and {zeros} are zeros\n");
    }
    text
}

async fn upload(client: &Client, source: Source) -> anyhow::Result<BlobView> {
    let (name, failure) = (source.name().to_owned(), source.failure());
    let bar = ByteBar::start(&name, source.bytes_total());
    let sent = client.upload(source.into_stream(bar.clone())).await;
    bar.end();
    match (sent, failure.take()) {
        (_, Some(error)) => Err(error).with_context(|| format!("read {name}")),
        (sent, None) => Ok(sent?),
    }
}

async fn export(client: &Client, name: &ImageName, part: Option<PartName>, file: &Path) -> anyhow::Result<()> {
    let image = client.image(name).await?;
    let parts = parts(&image.manifest);
    let words = || output::list(parts.iter().map(|(part, _)| part.word()));
    let (part, content) = match (part, parts.as_slice()) {
        (None, [only]) => *only,
        (None, _) => {
            bail!(Failure::usage(format!("image {name} has several parts: choose one with --part ({})", words())))
        }
        (Some(part), parts) => match parts.iter().find(|(known, _)| *known == part) {
            Some(found) => *found,
            None => {
                let message = format!("image {name} has no part {}: it has {}", part.word(), words());
                bail!(Failure::new(Exit::NotFound, message));
            }
        },
    };
    let sink = Sink::open(file).await?;
    let stream = Box::pin(client.export_image(name, part.word()).await?);
    let bar = ByteBar::start(&format!("{name} {}", part.word()), Some(content.bytes));
    let written = sink.write_all(stream, content.bytes, &bar).await;
    bar.end();
    written.with_context(|| format!("export the {} of image {name}", part.word()))
}

/// The parts of an image, in the order in which they are named everywhere.
fn parts(manifest: &Manifest) -> Vec<(PartName, Part)> {
    match manifest {
        Manifest::Disk(disk) => vec![(PartName::Disk, disk.part)],
        Manifest::Kernel { kernel, initrd, root, .. } => {
            let initrd = initrd.map(|initrd| (PartName::Initrd, initrd));
            let root = root.map(|root| (PartName::Root, root.part));
            [Some((PartName::Kernel, *kernel)), initrd, root].into_iter().flatten().collect()
        }
    }
}

fn name_of(image: &ImageView) -> Vec<ImageName> {
    vec![image.name.clone()]
}

pub(super) fn kind_word(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Disk => "disk",
        ImageKind::Kernel => "kernel",
    }
}

/// The nodes that hold an image, with those marked that are away.
fn holders(image: &ImageView) -> Vec<String> {
    let marked = |node: &NodeId| match image.unreachable.contains(node) {
        true => format!("{node} (unreachable)"),
        false => node.to_string(),
    };
    image.holders.iter().map(marked).collect()
}

fn images_text(images: &[ImageView]) -> String {
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "ID", "HELD BY", "FETCHED BY", "USED BY", "AGE"]);
    for image in images {
        let used = match image.used_by.len() {
            0 => "-".to_owned(),
            1 => "1 vm".to_owned(),
            many => format!("{many} vms"),
        };
        table.row([
            &image.name,
            &kind_word(image.kind),
            &output::bytes(image.bytes),
            &image.id.short(),
            &output::list(holders(image)),
            &output::list(&image.wanted),
            &used,
            &output::age(image.added_at),
        ]);
    }
    table.render()
}

fn image_text(image: &ImageView) -> String {
    let nodes = |nodes: &[String]| match nodes {
        [] => "none".to_owned(),
        [node] => format!("node {node}"),
        nodes => format!("nodes {}", output::list(nodes)),
    };
    let wanted: Vec<String> = image.wanted.iter().map(ToString::to_string).collect();
    let mut table = Table::of_pairs();
    table.row([&"name", &image.name]);
    table.row([&"id", &image.id]);
    table.row([&"kind", &kind_word(image.kind)]);
    table.row([&"size", &output::bytes(image.bytes)]);
    for (name, part) in parts(&image.manifest) {
        table.row([&name.word(), &format!("{}, blake3 {}", output::bytes(part.bytes), part.hash)]);
    }
    if let Some(DiskPart { format, virtual_bytes, .. }) = image.manifest.disk() {
        let format = match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        table.row([&"guest's disk", &format!("{}, {format}", output::bytes(virtual_bytes))]);
    }
    if let Manifest::Kernel { cmdline, .. } = &image.manifest {
        table.row([&"command line", cmdline]);
    }
    table.row([&"held by", &nodes(&holders(image))]);
    table.row([&"fetched by", &nodes(&wanted)]);
    table.row([&"used by", &output::list(&image.used_by)]);
    if let Some(boot) = &image.boot {
        let places = if boot.places == 1 { "1 place".to_owned() } else { format!("{} places", boot.places) };
        let end = if boot.is_whole { "" } else { ", seen in part" };
        table.row([&"a boot reads", &format!("{} in {places}{end}", output::bytes(boot.bytes))]);
    }
    table.row([&"added", &format!("{} ago", output::age(image.added_at))]);
    table.render()
}
