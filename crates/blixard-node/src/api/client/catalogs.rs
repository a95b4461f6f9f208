//! Requests about catalogs.

use blixard_core::{DocumentName, ImageName};
use http::Method;

use super::{Client, ClientError};
use crate::api::views::{CatalogView, PublishImage, PullImage, PullView};

impl Client {
    /// What this cluster publishes, and what those do that it follows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn catalogs(&self) -> Result<Vec<CatalogView>, ClientError> {
        self.get("/v1/catalogs").await
    }

    /// Publishes an image.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn publish_image(&self, name: &ImageName, request: &PublishImage) -> Result<(), ClientError> {
        self.call(Method::PUT, &format!("/v1/catalogs/catalog/images/{name}"), Some(request)).await
    }

    /// Takes a published image back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn withdraw_image(&self, name: &ImageName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/catalogs/catalog/images/{name}"), None::<&()>).await
    }

    /// Has the asked node pull an image of a catalog, or says how far that is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pull_image(
        &self,
        catalog: &DocumentName,
        image: &ImageName,
        request: &PullImage,
    ) -> Result<PullView, ClientError> {
        self.call(Method::POST, &format!("/v1/catalogs/{catalog}/images/{image}/pull"), Some(request)).await
    }
}
