//! Giving out published images: a stranger shows the secret of the catalog's ticket on the first stream of a connection, and may then
//! ask for blobs of published images, as members do for all.

use std::time::Duration;

use blixard_core::{BlobHash, EndpointId};
use tokio::time::timeout;

use super::Catalogs;
use crate::transport::{Connection, Handler, REFUSED, handler};

/// How long a stranger has to show the secret.
const SECRET_TIMEOUT: Duration = Duration::from_secs(5);
/// The length of a secret.
const SECRET_BYTES: usize = 32;
/// What is answered to a secret that opens the catalog.
const OPENED: &[u8] = &[1];

impl Catalogs {
    /// What gives published images out.
    pub(crate) fn handler(&self) -> Handler {
        let catalogs = self.clone();
        handler(move |connection| catalogs.clone().serve(connection))
    }

    async fn serve(self, connection: Connection) {
        let peer = EndpointId(*connection.remote_id().as_bytes());
        let shown = timeout(SECRET_TIMEOUT, async {
            let (mut send, mut recv) = connection.accept_bi().await.ok()?;
            let shown: [u8; SECRET_BYTES] = recv.read_to_end(SECRET_BYTES).await.ok()?.try_into().ok()?;
            if self.opens(&shown) {
                send.write_all(OPENED).await.ok()?;
                send.finish().ok()?;
            }
            Some(shown)
        });
        let Some(secret) = shown.await.ok().flatten().filter(|shown| self.opens(shown)) else {
            tracing::info!(peer = %peer.short(), "somebody asked for published images with a secret that opens none");
            connection.close(REFUSED.into(), b"the ticket opens nothing here");
            return;
        };
        let (images, published) = (&self.inner.rooms.images, self.inner.published.subscribe());
        let is_published = {
            let catalogs = self.clone();
            // Asked for each request: a ticket can be stopped and an image be taken back while somebody is connected.
            move |hash: BlobHash| catalogs.opens(&secret) && published.borrow().contains(&hash)
        };
        images.serve_published(connection, is_published).await;
    }

    /// Whether a secret opens this cluster's catalog.
    fn opens(&self, secret: &[u8; SECRET_BYTES]) -> bool {
        self.inner.rooms.documents.opens_catalog(secret)
    }
}
