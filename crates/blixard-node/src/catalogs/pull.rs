//! Pulls: images of another cluster that are on their way here.
//!
//! The bytes come through the queue of transfers, with its limits and retries. When all are here and verified the disk is looked at as
//! that of an import is, since another cluster made it, and the image is added to this one in the name of whoever asked.

use std::collections::BTreeMap;

use anyhow::Context;
use blixard_core::{
    Actor, Change, Command, DiskFormat, DiskPart, DocumentName, EndpointId, Image, ImageId, ImageName, Manifest,
    NodeId, RequestKey, UnixMs,
};
use blixard_hypervisor::InspectError;
use serde::{Deserialize, Serialize};

use super::{Catalogs, Leans};
use crate::clock;
use crate::documents::DocumentError;
use crate::kept::Keeping;
use crate::transfers::{Priority, TransferStatus};

/// The tool for a second opinion on disks.
const QEMU_IMG: &str = "qemu-img";
/// Pulls of one node that are under way: more would only wait for each other.
const PULLS_MAX: usize = 64;

/// An image that is being pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pull {
    /// The catalog that it stands in.
    pub(crate) catalog: DocumentName,
    /// Its name there.
    pub(crate) published: ImageName,
    /// What it will be called here.
    pub(crate) name: ImageName,
    /// What it is made of.
    pub(crate) manifest: Manifest,
    /// Who asked for it.
    pub(crate) by: EndpointId,
    /// When.
    pub(crate) asked_at: UnixMs,
}

/// All that are under way.
pub(super) type Pulls = BTreeMap<ImageId, Pull>;

pub(super) const KEEPING: Keeping = Keeping {
    what: "which images are being pulled from other clusters",
    // Each has a command line at most, which escaped takes six times its length.
    bytes_max: 4 << 20,
    lost: "remove it: images that were on their way from other clusters have to be pulled again",
};

/// Why an image is not pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// The catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] DocumentError),
    /// It is none that is followed.
    #[error("{0} is no catalog that this cluster follows: see `blixard catalog list`")]
    NotFollowed(DocumentName),
    /// The image is not in it.
    #[error("catalog {0} has no image {1}: see `blixard catalog list`")]
    NotPublished(DocumentName, ImageName),
    /// The name is taken.
    #[error("there is another image named {0} here: give this one another name with --name")]
    NameTaken(ImageName),
    /// It is here under another name.
    #[error("this image is here already, as {0}")]
    KnownAs(ImageName),
    /// Too many.
    #[error("{PULLS_MAX} images are on their way from other clusters to this node already")]
    TooMany,
    /// It was tried and did not go.
    #[error("the image was not pulled: {0}")]
    Failed(String),
    /// The node shares no images.
    #[error("this node shares no images (p2p_enabled is false): ask another one")]
    NotSharing,
    /// The node failed.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

/// How far a pull is.
#[derive(Debug, Clone)]
pub(crate) enum PullState {
    /// It is on its way; without a status its transfer is only beginning, or over and the image looked at.
    Coming(Option<TransferStatus>),
    /// It is an image of this cluster.
    Here,
}

impl Catalogs {
    /// Pulls an image, or says how far that is.
    ///
    /// # Errors
    /// See [`PullError`].
    pub(crate) async fn pull(
        &self,
        catalog: &DocumentName,
        published: &ImageName,
        name: Option<&ImageName>,
        by: EndpointId,
        is_again: bool,
    ) -> Result<(ImageId, PullState), PullError> {
        let name = name.unwrap_or(published);
        let under_way = self
            .inner
            .pulls
            .read()
            .into_iter()
            .find(|(_, pull)| (&pull.catalog, &pull.published, &pull.name) == (catalog, published, name));
        if let Some((id, _)) = under_way {
            return Ok((id, PullState::Coming(self.inner.rooms.transfers.status(id))));
        }
        let manifest = self.published_in(catalog, published).await?.manifest;
        let id = manifest.id();
        let (same, named) = self.inner.rooms.raft.read(|state| {
            (state.images.get(&id).map(|image| image.name.clone()), state.image_named(name).map(|image| image.id))
        });
        match (same, named) {
            (Some(same), _) if same == *name => return Ok((id, PullState::Here)),
            (Some(same), _) => return Err(PullError::KnownAs(same)),
            (None, Some(_)) => return Err(PullError::NameTaken(name.clone())),
            (None, None) => {}
        }
        if !self.inner.rooms.shares_images {
            return Err(PullError::NotSharing);
        }
        let failed = self.failures().remove(&id);
        if let Some(reason) = failed.filter(|_| is_again) {
            return Err(PullError::Failed(reason));
        }
        let pull = Pull {
            catalog: catalog.clone(),
            published: published.clone(),
            name: name.clone(),
            manifest,
            by,
            asked_at: clock::now(),
        };
        tracing::info!(image = %id.short(), %catalog, %published, client = %by.short(), "an image is pulled");
        let add = |pulls: &mut Pulls| {
            if pulls.len() >= PULLS_MAX {
                return Err(PullError::TooMany);
            }
            pulls.insert(id, pull);
            Ok(())
        };
        self.inner.pulls.try_change(add, |_| ()).await?;
        self.guard_pulls();
        self.inner.stirred.notify_one();
        Ok((id, PullState::Coming(None)))
    }

    /// Gives up a pull. What was fetched is dropped. Gives whether there was one.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) async fn give_up(&self, image: ImageId) -> anyhow::Result<bool> {
        let is_known = self.inner.pulls.read().contains_key(&image);
        if is_known {
            self.end(image, Some("it was cancelled".to_owned())).await?;
        }
        Ok(is_known)
    }

    async fn published_in(
        &self,
        catalog: &DocumentName,
        published: &ImageName,
    ) -> Result<super::PublishedImage, PullError> {
        let documents = &self.inner.rooms.documents;
        if !documents.knows_joined() {
            return Err(DocumentError::NotOpen.into());
        }
        if documents.secret_of(catalog).is_none() {
            return Err(PullError::NotFollowed(catalog.clone()));
        }
        let not_published = || PullError::NotPublished(catalog.clone(), published.clone());
        match documents.get(catalog, &super::image_key(published)?).await {
            Ok((_, value)) => super::PublishedImage::decode(&value).ok_or_else(not_published),
            Err(DocumentError::NoKey(..)) => Err(not_published()),
            Err(error) => Err(error.into()),
        }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, BTreeMap<ImageId, String>> {
        self.inner.failures.lock().expect("no holder of this lock panics")
    }

    /// Protects what is being pulled from being dropped as unknown, and nothing else.
    pub(super) fn guard_pulls(&self) {
        let pulls = self.inner.pulls.read();
        let mut guards = self.inner.guards.lock().expect("no holder of this lock panics");
        guards.retain(|image, _| pulls.contains_key(image));
        for image in pulls.keys() {
            guards.entry(*image).or_insert_with(|| self.inner.rooms.agent.importing(*image));
        }
    }

    /// Looks how far each pull is, and does what is next.
    pub(super) async fn look_after_pulls(&self) {
        for (image, pull) in self.inner.pulls.read() {
            let ended = match self.look_after(image, &pull).await {
                Ok(Looked::Goes) => continue,
                Ok(Looked::Here) => None,
                Ok(Looked::Over(reason)) => Some(reason),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(image = %image.short(), error, "a pull cannot go on now; it is tried again");
                    continue;
                }
            };
            if let Err(error) = self.end(image, ended).await {
                tracing::warn!(image = %image.short(), error = format!("{error:#}"), "a pull cannot be ended");
            }
        }
    }

    async fn look_after(&self, id: ImageId, pull: &Pull) -> anyhow::Result<Looked> {
        let Leans { raft, images, transfers, .. } = &self.inner.rooms;
        if raft.read(|state| state.images.contains_key(&id)) {
            return Ok(Looked::Here);
        }
        if images.is_complete(&pull.manifest).await? {
            return self.add(id, pull).await;
        }
        let holders = match self.published_in(&pull.catalog, &pull.published).await {
            Ok(published) if published.manifest == pull.manifest => self.holders_of(&pull.catalog).await?,
            Err(PullError::NotFollowed(_)) => {
                return Ok(Looked::Over(format!("catalog {} is not followed any more", pull.catalog)));
            }
            Ok(_) | Err(PullError::NotPublished(..)) => {
                return Ok(Looked::Over("its cluster does not publish it any more".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        // Kept before the first byte comes, or what has come could be collected as garbage.
        images.keep(id, &pull.manifest).await?;
        transfers.want(id, pull.manifest.clone(), holders, Priority::Operator);
        Ok(Looked::Goes)
    }

    /// Adds an image that is here to the cluster, if it can be used.
    async fn add(&self, id: ImageId, pull: &Pull) -> anyhow::Result<Looked> {
        if let Some(refused) = self.inspect(&pull.manifest).await? {
            return Ok(Looked::Over(refused));
        }
        let Leans { raft, transport, .. } = &self.inner.rooms;
        let me = raft.read(|state| state.node_of(&transport.id()).map(|node| node.id)).context("find this node")?;
        let command = command(id, pull, me);
        match raft.propose(&command).await? {
            // Until this node has applied it, the agent would take the image for one that nobody wants.
            Ok(_) => raft.barrier().await.map(|_| Looked::Here).map_err(anyhow::Error::from),
            Err(rejection) => Ok(Looked::Over(rejection.to_string())),
        }
    }

    /// Looks at what came as an import does. Gives why it cannot be used, if it cannot.
    async fn inspect(&self, manifest: &Manifest) -> anyhow::Result<Option<String>> {
        let images = &self.inner.rooms.images;
        if let Manifest::Kernel { kernel, .. } = manifest {
            let path = images.path(kernel.hash).await?;
            let looked = crate::runtime::blocking(move || blixard_hypervisor::inspect_kernel(&path)).await?;
            if let Some(refused) = refusal("kernel", looked.map(drop))? {
                return Ok(Some(refused));
            }
        }
        let Some(DiskPart { part, format, virtual_bytes, .. }) = manifest.disk() else { return Ok(None) };
        let path = images.path(part.hash).await?;
        let looked =
            crate::runtime::blocking(move || blixard_hypervisor::inspect_disk(&path, QEMU_IMG.as_ref())).await?;
        let facts = match looked {
            Ok(facts) => facts,
            Err(error) => return refusal("disk", Err(error)),
        };
        let is_format = match facts.format {
            blixard_hypervisor::DiskFormat::Raw => format == DiskFormat::Raw,
            blixard_hypervisor::DiskFormat::Qcow2 => format == DiskFormat::Qcow2,
        };
        let is_so = is_format && facts.virtual_bytes == virtual_bytes;
        Ok((!is_so).then(|| "the disk is another than its catalog says".to_owned()))
    }

    /// Ends a pull: with an image, or with why there is none.
    async fn end(&self, image: ImageId, reason: Option<String>) -> anyhow::Result<()> {
        let Leans { transfers, .. } = &self.inner.rooms;
        if let Some(reason) = reason {
            tracing::warn!(image = %image.short(), reason, "an image was not pulled");
            self.failures().insert(image, reason);
            transfers.forget(image).await?;
        }
        self.inner.pulls.change(|pulls| drop(pulls.remove(&image)), |_| ()).await?;
        // The agent then drops what no image needs.
        self.guard_pulls();
        Ok(())
    }
}

/// What was found of a pull.
enum Looked {
    /// It goes on.
    Goes,
    /// The image is the cluster's.
    Here,
    /// There will be none, and why.
    Over(String),
}

fn refusal(what: &str, looked: Result<(), InspectError>) -> anyhow::Result<Option<String>> {
    match looked {
        Ok(()) => Ok(None),
        Err(InspectError::Refused { reason, .. }) => Ok(Some(format!("the {what} cannot be used: {reason}"))),
        Err(error @ InspectError::Read { .. }) => Err(error.into()),
    }
}

/// The command that adds a pulled image. It is the same however often it is proposed.
fn command(id: ImageId, pull: &Pull, me: NodeId) -> Command {
    let image = Image {
        id,
        name: pull.name.clone(),
        manifest: pull.manifest.clone(),
        added_at: pull.asked_at,
        holders: [me].into(),
        wanted: Default::default(),
    };
    let change = Change::AddImage(image);
    let told = [&id.0[..], &pull.asked_at.0.to_le_bytes(), &pull.by.0, pull.name.as_str().as_bytes()].concat();
    let mut key = RequestKey { id: blixard_core::RequestId([0; 16]), content: blixard_core::ContentHash([0; 16]) };
    blake3::Hasher::new().update(b"pull").update(&told).finalize_xof().fill(&mut key.id.0);
    blake3::Hasher::new().update(b"of").update(&told).finalize_xof().fill(&mut key.content.0);
    Command { request: Some(key), at: clock::now(), by: Actor::Client(pull.by), change }
}
