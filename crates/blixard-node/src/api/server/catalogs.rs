//! Requests about catalogs: what this cluster publishes, what others do, and pulling images from these.

use axum::extract::State;
use blixard_core::{DocumentName, ImageName};

use super::{Asker, Body, Freshness, Json, Path, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{CatalogView, OriginView, PublishImage, PublishedView, PullImage, PullView};
use crate::catalogs::{Catalog, NOTE_CHARS_MAX, PublishedImage, PullError, PullState};

impl From<PullError> for Fault {
    fn from(error: PullError) -> Self {
        let kind = match error {
            PullError::Catalog(error) => return error.into(),
            PullError::Internal(error) => return error.into(),
            PullError::NotFollowed(_) | PullError::NotPublished(..) => FaultKind::NotFound,
            PullError::NameTaken(_) | PullError::KnownAs(_) | PullError::TooMany => FaultKind::Conflict,
            PullError::Failed(_) | PullError::NotSharing => FaultKind::Conflict,
        };
        Self::new(kind, error)
    }
}

pub(super) async fn list(State(server): State<Server>) -> Result<Json<Vec<CatalogView>>, Fault> {
    let catalogs = server.inner.catalogs.list().await?;
    Ok(Json(catalogs.into_iter().map(|catalog| view(&server, catalog)).collect()))
}

fn view(server: &Server, catalog: Catalog) -> CatalogView {
    let pulls = server.inner.catalogs.names();
    let images = server.inner.raft.read(|state| {
        let published = |published: crate::catalogs::Published| {
            let id = published.image.manifest.id();
            PublishedView {
                name: published.name,
                id,
                kind: published.image.manifest.kind(),
                bytes: published.image.manifest.bytes(),
                manifest: published.image.manifest,
                note: published.image.note,
                published_at: published.published_at,
                here_as: state.images.get(&id).map(|image| image.name.clone()),
                coming: pulls.contains_key(&id),
            }
        };
        catalog.images.into_iter().map(published).collect()
    });
    let origin =
        catalog.contact.map(|contact| OriginView { write: false, met_at: contact.met_at, failure: contact.failure });
    CatalogView { name: catalog.document, origin, images }
}

pub(super) async fn publish(
    State(server): State<Server>,
    Path(name): Path<ImageName>,
    Body(asker, request): Body<PublishImage>,
) -> Result<Json<()>, Fault> {
    server.read_point(Freshness::default()).await?;
    if request.note.as_ref().is_some_and(|note| note.chars().count() > NOTE_CHARS_MAX) {
        return Err(Fault::bad_request(format!("a note has at most {NOTE_CHARS_MAX} characters")));
    }
    let manifest = server.inner.raft.read(|state| state.image_named(&name).map(|image| image.manifest.clone()));
    let manifest = manifest.ok_or_else(|| Fault::not_found(format!("there is no image named {name}")))?;
    server.inner.catalogs.publish(&name, &PublishedImage { manifest, note: request.note }).await?;
    tracing::info!(client = %asker.caller.0.short(), image = %name, "an image is published");
    Ok(Json(()))
}

pub(super) async fn withdraw(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
) -> Result<Json<()>, Fault> {
    server.inner.catalogs.withdraw(&name).await?;
    tracing::info!(client = %asker.caller.0.short(), image = %name, "an image is published no longer");
    Ok(Json(()))
}

pub(super) async fn pull(
    State(server): State<Server>,
    Path((catalog, published)): Path<(DocumentName, ImageName)>,
    Body(asker, request): Body<PullImage>,
) -> Result<Json<PullView>, Fault> {
    let PullImage { name, again } = request;
    let pulled = server.inner.catalogs.pull(&catalog, &published, name.as_ref(), asker.caller.0, again).await;
    let (image, state) = pulled?;
    let view = PullView { image, here: false, bytes_done: 0, bytes_total: 0, sources: 0, failure: None };
    Ok(Json(match state {
        PullState::Here => PullView { here: true, ..view },
        PullState::Coming(None) => view,
        PullState::Coming(Some(status)) => PullView {
            bytes_done: status.progress.bytes_done,
            bytes_total: status.progress.bytes_total,
            sources: status.progress.sources,
            failure: status.failure.map(|failure| failure.reason),
            ..view
        },
    }))
}
