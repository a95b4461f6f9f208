//! Requests about images: upload blobs, make images of them, list, export and delete.

use std::time::{Duration, Instant};

use axum::body::Body as RawBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use blixard_core::{Answer, BlobHash, Change, DiskFormat, DiskPart, Image, ImageName, Manifest, NodeId, Part};
use blixard_hypervisor::InspectError;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;

use super::view::GroupSeen;
use super::{Asker, BYTES, Body, Freshness, Json, Path, Query, Server};
use crate::agent::MakeRoomError;
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{AddImage, BlobView, BootView, ImageSource, ImageView};
use crate::clock;
use crate::images::{ImportError, ImportedBlob};
use crate::metrics::outcome;

/// The tool for a second opinion on disks.
const QEMU_IMG: &str = "qemu-img";
/// Uploads that wait to become part of an image, at most.
const UPLOADS_MAX: usize = 64;
/// For so much of an upload room is made at a time: seldom enough to cost nothing, and little enough to go to the limit.
const ROOM_STEP_BYTES: u64 = 4 << 20;
/// How long an upload waits to become part of an image before it is dropped.
const UPLOAD_KEPT: Duration = Duration::from_secs(3600);

pub(super) async fn upload(State(server): State<Server>, body: RawBody) -> Result<Json<BlobView>, Fault> {
    {
        let mut uploads = server.inner.uploads.lock().expect("no holder of this lock panics");
        uploads.retain(|_, (_, at)| at.elapsed() < UPLOAD_KEPT);
        if uploads.len() >= UPLOADS_MAX {
            let text = format!("{UPLOADS_MAX} uploads wait to become part of an image: add the images first");
            return Err(Fault::new(FaultKind::Conflict, text));
        }
    }
    let content = TryStreamExt::map_err(body.into_data_stream(), std::io::Error::other);
    let imported = server.inner.images.import(with_room(&server, content)).await;
    let metrics = &server.inner.metrics;
    metrics.imports.get_or_create(&outcome(imported.is_ok())).inc();
    let blob = imported.map_err(|error| match error {
        ImportError::Source(error) if error.get_ref().is_some_and(|error| error.is::<MakeRoomError>()) => {
            Fault::new(FaultKind::Conflict, error)
        }
        ImportError::Source(_) => Fault::bad_request(format!("the upload broke off: {error}")),
        ImportError::Empty => Fault::bad_request(error),
        other => Fault::new(FaultKind::Internal, format!("{:#}", anyhow::Error::from(other))),
    })?;
    metrics.imported_bytes.inc_by(blob.bytes);
    let view = BlobView { hash: blob.hash, bytes: blob.bytes };
    server.inner.uploads.lock().expect("no holder of this lock panics").insert(blob.hash, (blob, Instant::now()));
    Ok(Json(view))
}

/// The same content, for which room is made as it comes: how much there will be, nobody says before.
fn with_room(
    server: &Server,
    content: impl Stream<Item = std::io::Result<Bytes>> + Send,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let (agent, mut room_bytes) = (server.inner.agent.clone(), 0u64);
    content.and_then(move |piece| {
        let bytes = piece.len() as u64;
        let wanted_bytes = (room_bytes < bytes).then_some(bytes.max(ROOM_STEP_BYTES));
        room_bytes = wanted_bytes.unwrap_or(room_bytes).saturating_sub(bytes);
        let agent = agent.clone();
        async move {
            if let Some(wanted_bytes) = wanted_bytes {
                agent.make_room(wanted_bytes).await.map_err(std::io::Error::other)?;
            }
            Ok(piece)
        }
    })
}

pub(super) async fn add(
    State(server): State<Server>,
    Body(asker, request): Body<AddImage>,
) -> Result<Json<ImageView>, Fault> {
    server.read_point(Freshness::default()).await?;
    if let Some(answer) = server.answered(asker) {
        // The uploads are part of the image by now, and no longer found as such.
        let Answer::Image(id) = answer? else { return Err(Fault::wrong_answer()) };
        let view = server.inner.raft.read(|state| state.images.get(&id).map(|image| view(state, image, None)));
        return view.map(Json).ok_or_else(|| Fault::not_found("the image was deleted after it was added"));
    }
    // The index of the disk's chunks is guarded until the image keeps it.
    let (manifest, _index) = match request.source {
        ImageSource::Disk { disk } => {
            let (disk, index) = disk_part(&server, disk).await?;
            (Manifest::Disk(disk), index)
        }
        ImageSource::Kernel { kernel, initrd, root, cmdline } => {
            let kernel_part = part(&server, kernel)?;
            let path = server.inner.images.path(kernel).await.map_err(anyhow::Error::from)?;
            let inspect = tokio::task::spawn_blocking(move || blixard_hypervisor::inspect_kernel(&path));
            inspect.await.map_err(anyhow::Error::from)?.map_err(|error| refused("kernel", error))?;
            let (root, index) = match root {
                Some(root) => disk_part(&server, root).await.map(|(root, index)| (Some(root), index))?,
                None => (None, None),
            };
            let initrd = initrd.map(|initrd| part(&server, initrd)).transpose()?;
            (Manifest::Kernel { kernel: kernel_part, initrd, root, cmdline }, index)
        }
    };
    let id = manifest.id();
    let me = server.inner.me;
    let importing = server.inner.agent.importing(id);
    server.inner.images.keep(id, &manifest).await?;
    let hashes: Vec<BlobHash> = manifest.parts().iter().map(|part| part.hash).collect();
    let image = Image {
        id,
        name: request.name,
        manifest,
        added_at: clock::now(),
        holders: [me].into(),
        wanted: Default::default(),
    };
    let added = server.change(asker, Change::AddImage(image)).await;
    // Until this node has applied what was written, if it was, the agent would take the image for one that nobody wants. One
    // that was not written after all is dropped by the agent.
    let caught_up = server.read_point(Freshness::default()).await;
    if caught_up.is_err() {
        let raft = server.inner.raft.clone();
        tokio::spawn(async move {
            while raft.barrier().await.is_err() {}
            drop(importing);
        });
    } else {
        drop(importing);
    }
    added?;
    caught_up?;
    let mut uploads = server.inner.uploads.lock().expect("no holder of this lock panics");
    uploads.retain(|hash, _| !hashes.contains(hash));
    drop(uploads);
    let view = server.inner.raft.read(|state| state.images.get(&id).map(|image| view(state, image, None)));
    view.map(Json).ok_or_else(|| Fault::not_found("the image was deleted right after it was added"))
}

/// A refusal in the user's words: where the store keeps the file says nothing to them.
fn refused(what: &str, error: InspectError) -> Fault {
    match error {
        InspectError::Refused { reason, .. } => {
            // The request is sound; what was uploaded before it is not.
            Fault::new(FaultKind::Conflict, format!("the {what} cannot be used: {reason}"))
        }
        InspectError::Read { .. } => anyhow::Error::from(error).into(),
    }
}

fn part(server: &Server, hash: BlobHash) -> Result<Part, Fault> {
    upload_of(server, hash).map(|(part, _)| part)
}

/// An upload, and the index of its chunks.
fn upload_of(server: &Server, hash: BlobHash) -> Result<(Part, Option<Bytes>), Fault> {
    let uploads = server.inner.uploads.lock().expect("no holder of this lock panics");
    let (blob, _) = uploads.get(&hash).ok_or_else(|| {
        Fault::not_found(format!(
            "blob {} was not uploaded to this node, or an hour ago: upload it again",
            hash.short()
        ))
    })?;
    Ok((Part { hash, bytes: blob.bytes }, blob.index.clone()))
}

async fn disk_part(server: &Server, hash: BlobHash) -> Result<(DiskPart, Option<ImportedBlob>), Fault> {
    let (part, index) = upload_of(server, hash)?;
    let path = server.inner.images.path(hash).await.map_err(anyhow::Error::from)?;
    let inspect = tokio::task::spawn_blocking(move || blixard_hypervisor::inspect_disk(&path, QEMU_IMG.as_ref()));
    let facts = inspect.await.map_err(anyhow::Error::from)?.map_err(|error| refused("disk", error))?;
    let format = match facts.format {
        blixard_hypervisor::DiskFormat::Raw => DiskFormat::Raw,
        blixard_hypervisor::DiskFormat::Qcow2 => DiskFormat::Qcow2,
    };
    let index = match index {
        Some(index) => Some(server.inner.images.import_index(index).await.map_err(anyhow::Error::from)?),
        None => None,
    };
    let chunks = index.as_ref().map(|index| Part { hash: index.hash, bytes: index.bytes });
    Ok((DiskPart { part, format, virtual_bytes: facts.virtual_bytes, chunks }, index))
}

/// An image as the replicated state has it and, where the group was looked at, which of its holders are away.
fn view(state: &blixard_core::State, image: &Image, seen: Option<&GroupSeen>) -> ImageView {
    let away = |node: &NodeId| seen.is_some_and(|seen| seen.by_leader && !seen.reachable.contains(node));
    ImageView {
        id: image.id,
        name: image.name.clone(),
        kind: image.manifest.kind(),
        bytes: image.manifest.bytes(),
        manifest: image.manifest.clone(),
        holders: image.holders.iter().copied().collect(),
        unreachable: image.holders.iter().copied().filter(away).collect(),
        wanted: image.wanted.iter().copied().collect(),
        used_by: state.vms_using(image.id).map(|vm| vm.name.clone()).collect(),
        added_at: image.added_at,
        boot: state.boots.get(&image.id).map(|record| BootView {
            bytes: record.bytes(),
            places: record.ranges.len(),
            is_whole: record.is_whole,
        }),
    }
}

fn no_such(name: &ImageName) -> Fault {
    Fault::not_found(format!("there is no image named {name}"))
}

pub(super) async fn list(
    State(server): State<Server>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<Vec<ImageView>>, Fault> {
    server.read_point(freshness).await?;
    let seen = server.group_seen().await;
    let mut images: Vec<ImageView> =
        server.inner.raft.read(|state| state.images.values().map(|image| view(state, image, Some(&seen))).collect());
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(images))
}

pub(super) async fn show(
    State(server): State<Server>,
    Path(name): Path<ImageName>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<ImageView>, Fault> {
    server.read_point(freshness).await?;
    let seen = server.group_seen().await;
    let found = server.inner.raft.read(|state| state.image_named(&name).map(|image| view(state, image, Some(&seen))));
    found.map(Json).ok_or_else(|| no_such(&name))
}

pub(super) async fn delete(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
) -> Result<Json<()>, Fault> {
    server.read_point(Freshness::default()).await?;
    if let Some(answer) = server.answered(asker) {
        return answer.map(|_| Json(()));
    }
    let id = server.inner.raft.read(|state| state.image_named(&name).map(|image| image.id));
    server.change(asker, Change::DeleteImage(id.ok_or_else(|| no_such(&name))?)).await?;
    Ok(Json(()))
}

/// An answer that is a part of an image.
fn whole(part: Part, content: RawBody) -> Response {
    let length = part.bytes.to_string();
    ([(CONTENT_TYPE, BYTES.to_owned()), (CONTENT_LENGTH, length)], content).into_response()
}

pub(super) async fn export(
    State(server): State<Server>,
    asker: Asker,
    Path((name, wanted)): Path<(ImageName, String)>,
) -> Result<Response, Fault> {
    server.read_point(Freshness::default()).await?;
    let manifest = server.inner.raft.read(|state| state.image_named(&name).map(|image| image.manifest.clone()));
    let manifest = manifest.ok_or_else(|| no_such(&name))?;
    let part = match (&manifest, wanted.as_str()) {
        (Manifest::Disk(disk), "disk") => Some(disk.part),
        (Manifest::Kernel { kernel, .. }, "kernel") => Some(*kernel),
        (Manifest::Kernel { initrd, .. }, "initrd") => *initrd,
        (Manifest::Kernel { root, .. }, "root") => root.map(|root| root.part),
        _ => None,
    };
    let part = part.ok_or_else(|| Fault::not_found(format!("image {name} has no part named {wanted:?}")))?;
    if server.inner.images.is_complete(&manifest).await.map_err(anyhow::Error::from)? {
        let content = server.inner.images.export(part.hash).await.map_err(anyhow::Error::from)?;
        return Ok(whole(part, RawBody::from_stream(content)));
    }
    let holders = server.inner.raft.read(|state| {
        let holders = state.image_named(&name).map(|image| image.holders.clone()).unwrap_or_default();
        holders.iter().filter_map(|node| state.nodes.get(node)).map(|node| node.endpoint).collect::<Vec<_>>()
    });
    for holder in holders {
        if let Ok(answer) = super::ask::blob(&server, holder, asker.caller.0, part).await {
            return Ok(whole(part, RawBody::new(answer.into_body().map_err(axum::Error::new))));
        }
    }
    Err(Fault::new(FaultKind::Unavailable, format!("no node that holds image {name} can be reached now")))
}
