//! Catalogs, as the control API gives them.

use blixard_core::{DocumentName, ImageId, ImageKind, ImageName, Manifest, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OriginView;

/// Images that a cluster publishes.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CatalogView {
    /// What it is called here; this cluster's own is `catalog`.
    pub name: DocumentName,
    /// For the catalog of another cluster, how it is with that.
    pub origin: Option<OriginView>,
    /// Its images, by name.
    pub images: Vec<PublishedView>,
}

/// A published image.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PublishedView {
    /// Its name in the catalog.
    pub name: ImageName,
    /// The hash of its manifest.
    pub id: ImageId,
    /// What kind it is.
    pub kind: ImageKind,
    /// Bytes of all its parts.
    pub bytes: u64,
    /// What it is made of.
    pub manifest: Manifest,
    /// What its publisher says of it.
    pub note: Option<String>,
    /// When it was published, by the clock of the node that was asked to.
    pub published_at: UnixMs,
    /// What it is called in this cluster, if it is here.
    pub here_as: Option<ImageName>,
    /// Whether the asked node is pulling it.
    pub coming: bool,
}

/// Asks for an image to be published.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishImage {
    /// What to say of it.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub note: Option<String>,
}

/// Asks for an image of a catalog to be pulled by the asked node, or how far that is.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// What to call it here; without a name, as in the catalog.
    #[serde(default)]
    pub name: Option<ImageName>,
    /// Whether it was asked for before: then, when that has failed, the answer is why, and it is not begun anew.
    #[serde(default)]
    pub again: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PullView {
    /// The image's id.
    pub image: ImageId,
    /// Whether it is an image of this cluster by now.
    pub here: bool,
    /// Bytes of it that are on the asked node and verified.
    pub bytes_done: u64,
    /// Bytes of the image; 0 until its transfer begins.
    pub bytes_total: u64,
    /// Nodes of the other cluster that deliver.
    pub sources: usize,
    /// Why it could not be fetched the last time. It is tried again.
    pub failure: Option<String>,
}
