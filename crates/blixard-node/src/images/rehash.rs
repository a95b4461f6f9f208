//! Looking again at what is here: every byte is read and held against its hash.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;

use blixard_core::Part;
use futures::StreamExt;
use iroh_blobs::Hash;

use super::{BlobError, Images};

/// The mode of a file that is not sealed, as the store makes it.
const UNSEALED_MODE: u32 = 0o644;

impl Images {
    /// Reads all of a part that is here and holds it against its hash; `told` hears how many bytes were read. A part that does
    /// not match is no longer sealed, so that it is neither booted nor reported as held, also after a restart; its file stays
    /// until the image is fetched again or dropped.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when it does not match, and the others when it could not be read at all.
    pub(crate) async fn rehash(&self, part: Part, told: impl Fn(u64)) -> Result<(), BlobError> {
        let path = self.inner.files.data_path(&Hash::from_bytes(part.hash.0));
        let found = match self.export(part.hash).await {
            Err(error @ BlobError::NotWhole(_)) => return Err(error),
            Err(BlobError::Storage(error)) => Err(error),
            Err(damaged @ BlobError::Damaged { .. }) => Err(damaged.to_string()),
            Ok(content) => {
                let mut content = std::pin::pin!(content);
                let mut read = Ok(());
                while let Some(bytes) = content.next().await {
                    match bytes {
                        Ok(bytes) => told(bytes.len() as u64),
                        Err(error) => {
                            read = Err(error.to_string());
                            break;
                        }
                    }
                }
                read
            }
        };
        let Err(why) = found else { return Ok(()) };
        tracing::error!(blob = %part.hash, why, "a blob on this disk is not what was written");
        let unseal = path.clone();
        let unsealed = tokio::task::spawn_blocking(move || {
            std::fs::set_permissions(unseal, Permissions::from_mode(UNSEALED_MODE))
        });
        match unsealed.await {
            Ok(Ok(())) => {}
            // What is not there is not sealed either.
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(error)) => return Err(BlobError::Storage(format!("mark {} as damaged: {error}", path.display()))),
            Err(error) => return Err(BlobError::Storage(format!("mark {} as damaged: {error}", path.display()))),
        }
        Err(BlobError::Damaged { hash: part.hash, path: path.display().to_string() })
    }
}
