//! What an image has in common with another, by the indexes of their chunks.

use axum::extract::State;
use blixard_core::chunks::{ChunkIndex, INDEX_BYTES_MAX};
use blixard_core::{EndpointId, ImageName, Part};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;

use super::{Asker, Freshness, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::ComparedView;

/// The image to compare with; without one, nothing is known of before.
#[derive(Debug, Clone, schemars::JsonSchema, Deserialize)]
pub(super) struct With {
    base: Option<ImageName>,
}

pub(super) async fn compare(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(With { base }): Query<With>,
) -> Result<Json<ComparedView>, Fault> {
    server.read_point(Freshness::default()).await?;
    let index = index_of(&server, asker.caller.0, &name).await?;
    let others = match &base {
        Some(base) => vec![index_of(&server, asker.caller.0, base).await?],
        None => Vec::new(),
    };
    let compared = tokio::task::spawn_blocking(move || index.compare(&others)).await.map_err(anyhow::Error::from)?;
    Ok(Json(ComparedView::new(base, compared)))
}

/// The index of an image's disk, from this node or from one that holds the image.
async fn index_of(server: &Server, client: EndpointId, name: &ImageName) -> Result<ChunkIndex, Fault> {
    let found = server.inner.raft.read(|state| {
        let image = state.image_named(name)?;
        let holders = image.holders.iter().filter_map(|node| state.nodes.get(node)).map(|node| node.endpoint);
        Some((image.manifest.disk(), holders.collect::<Vec<_>>()))
    });
    let (disk, holders) = found.ok_or_else(|| Fault::not_found(format!("there is no image named {name}")))?;
    let Some(disk) = disk else {
        return Err(Fault::new(FaultKind::Conflict, format!("image {name} has no disk that could be compared")));
    };
    let Some(part) = disk.chunks else {
        let text = format!("the disk of image {name} has no index of its chunks: it is too large for one");
        return Err(Fault::new(FaultKind::Conflict, text));
    };
    let index = match server.inner.images.index_of(part, disk.part).await {
        Ok(index) => index,
        Err(_) => from_holders(server, client, &holders, part).await,
    };
    index.ok_or_else(|| {
        let text = format!("the index of the chunks of image {name} cannot be read, here or on a node that holds it");
        Fault::new(FaultKind::Unavailable, text)
    })
}

async fn from_holders(server: &Server, client: EndpointId, holders: &[EndpointId], part: Part) -> Option<ChunkIndex> {
    for holder in holders.iter().filter(|holder| **holder != server.inner.transport.id()) {
        let Ok(answer) = super::ask::blob(server, *holder, client, part).await else { continue };
        let bytes_max = usize::try_from(INDEX_BYTES_MAX).unwrap_or(usize::MAX);
        let Ok(body) = Limited::new(answer.into_body(), bytes_max).collect().await else { continue };
        let bytes = body.to_bytes();
        if *blake3::hash(&bytes).as_bytes() == part.hash.0
            && let Ok(index) = ChunkIndex::decode(&bytes)
        {
            return Some(index);
        }
    }
    None
}
