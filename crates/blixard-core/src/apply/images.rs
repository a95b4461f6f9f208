//! The catalog of images, and who holds what.

use std::collections::BTreeSet;

use crate::boot;
use crate::limits::{self, IMAGES_MAX, listed, room_for_one};
use crate::{Answer, BootRecord, Image, ImageId, NodeId, Outcome, Rejection, State, UnixMs};

impl State {
    /// The same content under the same name is one image, however often it is imported: its holders are added up.
    pub(super) fn add_image(&mut self, image: &Image, at: UnixMs) -> Outcome {
        limits::image(image)?;
        if image.holders.is_empty() {
            return limits::invalid(format!("no node holds image {}", image.name));
        }
        if let Some(node) = image.holders.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Rejection::UnknownNode(*node));
        }
        if let Some(known) = self.images.get_mut(&image.id) {
            if known.name != image.name {
                return Err(Rejection::ImageKnownAs(known.name.clone()));
            }
            for node in &image.holders {
                known.wanted.remove(node);
                known.holders.insert(*node);
            }
            return Ok(Answer::Image(image.id));
        }
        if self.image_named(&image.name).is_some() {
            return Err(Rejection::ImageNameTaken(image.name.clone()));
        }
        room_for_one(self.images.len(), IMAGES_MAX, "images")?;
        self.images.insert(image.id, Image { added_at: at, wanted: BTreeSet::new(), ..image.clone() });
        Ok(Answer::Image(image.id))
    }

    pub(super) fn delete_image(&mut self, id: ImageId) -> Outcome {
        let image = self.images.get(&id).ok_or(Rejection::UnknownImage)?;
        if self.vms_using(id).next().is_some() {
            let vms = listed(self.vms_using(id).map(|vm| &vm.name));
            return Err(Rejection::ImageInUse { image: image.name.clone(), vms });
        }
        self.images.remove(&id);
        self.boots.remove(&id);
        Ok(Answer::Done)
    }

    pub(super) fn want_copy(&mut self, id: ImageId, node: NodeId) -> Outcome {
        let member = self.nodes.get(&node).ok_or(Rejection::UnknownNode(node))?;
        let image = self.images.get_mut(&id).ok_or(Rejection::UnknownImage)?;
        if image.holders.contains(&node) {
            return Ok(Answer::Done);
        }
        if !member.shares_images {
            return limits::invalid(format!("node {node} shares no images"));
        }
        image.wanted.insert(node);
        Ok(Answer::Done)
    }

    /// Asked by a node that holds no copy, it is granted: there is nothing to give up.
    pub(super) fn release_copy(&mut self, id: ImageId, node: NodeId) -> Outcome {
        let image = self.images.get(&id).ok_or(Rejection::UnknownImage)?;
        if let Err(reason) = self.may_release(id, node) {
            return Err(Rejection::CopyNeeded { image: image.name.clone(), node, reason: reason.to_string() });
        }
        if let Some(image) = self.images.get_mut(&id) {
            image.holders.remove(&node);
        }
        Ok(Answer::Done)
    }

    /// An image whose last copy is reported gone stays in the catalog: users must see the loss, not miss an image.
    pub(super) fn report_copy(&mut self, id: ImageId, node: NodeId, present: bool) -> Outcome {
        let image = self.images.get_mut(&id).ok_or(Rejection::UnknownImage)?;
        if present {
            image.wanted.remove(&node);
            image.holders.insert(node);
        } else {
            image.holders.remove(&node);
        }
        Ok(Answer::Done)
    }

    /// Two nodes may see a boot at the same time: the second is answered as if it had come first.
    pub(super) fn record_boot(&mut self, id: ImageId, record: &BootRecord) -> Outcome {
        boot::check(record, self.images.get(&id).ok_or(Rejection::UnknownImage)?)?;
        if self.wants_boot(id, record) {
            self.boots.insert(id, record.clone());
        }
        Ok(Answer::Done)
    }
}
