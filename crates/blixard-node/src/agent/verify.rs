//! Reading an image again that is here, and having it fetched again where it is not what it was.

use blixard_core::{BlobHash, ImageId};

use super::Agent;
use crate::images::BlobError;

/// How a verification goes, or how the last one went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verification {
    /// Where it stands.
    pub state: VerifyState,
    /// Bytes that were read.
    pub bytes_done: u64,
    /// Bytes of the image.
    pub bytes_total: u64,
}

/// Where a verification stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VerifyState {
    /// It waits for another one, or reads.
    Running,
    /// Every byte is as it was.
    Sound,
    /// Parts are not what they were. The node says that it holds the image no more.
    Damaged {
        /// Which.
        parts: Vec<BlobHash>,
        /// Whether it is fetched again, because another node has it.
        is_refetched: bool,
    },
    /// It could not be read.
    Failed(String),
}

impl Agent {
    /// How the verification of an image goes, or how the last one went in this process.
    pub(crate) fn verification(&self, image: ImageId) -> Option<Verification> {
        self.desk().verifications.get(&image).cloned()
    }

    /// Begins to read an image again, unless that is being done already.
    pub(crate) fn verify(&self, image: ImageId) -> Verification {
        let bytes_total =
            self.inner.raft.read(|state| state.images.get(&image).map_or(0, |image| image.manifest.bytes()));
        let begun = Verification { state: VerifyState::Running, bytes_done: 0, bytes_total };
        {
            let mut desk = self.desk();
            if let Some(known) = desk.verifications.get(&image).filter(|known| known.state == VerifyState::Running) {
                return known.clone();
            }
            desk.verifications.insert(image, begun.clone());
        }
        let agent = self.clone();
        tokio::spawn(async move {
            let read = tokio::spawn(agent.clone().read_again(image));
            let state = read.await.unwrap_or_else(|error| VerifyState::Failed(format!("it ended by a panic: {error}")));
            let label = match &state {
                VerifyState::Running | VerifyState::Sound => "sound",
                VerifyState::Damaged { .. } => "damaged",
                VerifyState::Failed(_) => "failed",
            };
            agent.inner.metrics.image_verifications.get_or_create(&[("outcome", label.into())]).inc();
            if let Some(known) = agent.desk().verifications.get_mut(&image) {
                known.state = state;
            }
            agent.inner.wake.notify_one();
        });
        begun
    }

    async fn read_again(self, image: ImageId) -> VerifyState {
        let _turn = self.inner.verifying.clone().lock_owned().await;
        let manifest = self.inner.raft.read(|state| state.images.get(&image).map(|image| image.manifest.clone()));
        let Some(manifest) = manifest else { return VerifyState::Failed("the image was deleted meanwhile".into()) };
        let told = |bytes: u64| {
            if let Some(known) = self.desk().verifications.get_mut(&image) {
                known.bytes_done = known.bytes_done.saturating_add(bytes);
            }
        };
        let mut parts = Vec::new();
        for part in manifest.parts() {
            match self.inner.images.rehash(part, told).await {
                Ok(()) => {}
                Err(BlobError::Damaged { hash, .. }) => parts.push(hash),
                Err(error) => return VerifyState::Failed(error.to_string()),
            }
        }
        if parts.is_empty() {
            return VerifyState::Sound;
        }
        // Other images may have the same parts; they are all looked at anew.
        self.desk().complete.clear();
        let is_refetched = self.inner.raft.read(|state| {
            let gives = |id: &&blixard_core::NodeId| {
                **id != self.inner.me && state.nodes.get(id).is_some_and(|node| node.shares_images)
            };
            let shares = state.nodes.get(&self.inner.me).is_some_and(|node| node.shares_images);
            shares && state.images.get(&image).is_some_and(|image| image.holders.iter().any(|id| gives(&id)))
        });
        if is_refetched && let Err(error) = self.request(image, None).await {
            return VerifyState::Failed(format!("it is damaged, and cannot be asked for again: {error:#}"));
        }
        VerifyState::Damaged { parts, is_refetched }
    }
}
