//! What to do about each image.

use std::collections::BTreeSet;

use super::vms::Needs;
use super::{Action, LocalImage, LocalView, Plan};
use crate::{Change, ImageId, NodeId, State, UnixMs};

/// Plans for every image that is here or should be.
pub(super) fn reconcile(me: NodeId, state: &State, local: &LocalView, needs: &Needs, now: UnixMs, plan: &mut Plan) {
    // A vm that is on its way out may still have its disk over an image that nothing names any more.
    let has_strays = local.vms.keys().any(|id| !state.vms.contains_key(id));
    let ids: BTreeSet<ImageId> = local.images.keys().chain(state.images.keys()).copied().collect();
    for id in ids {
        let here = local.images.get(&id).copied();
        let Some(image) = state.images.get(&id) else {
            if !has_strays && here != Some(LocalImage::Importing) {
                plan.push(Action::DropImage { image: id });
            }
            continue;
        };
        let present = here == Some(LocalImage::Complete);
        // While it is being imported here, the command that adds it says what there is to say.
        if here != Some(LocalImage::Importing) && present != image.holders.contains(&me) {
            plan.push(Action::Propose(Change::ReportCopy { image: id, node: me, present }));
        }
        let urgent = needs.get(&id).copied();
        if urgent.is_none() && !image.wanted.contains(&me) {
            continue;
        }
        let urgent = urgent.unwrap_or(false);
        match here {
            None => plan.push(Action::FetchImage { image: id, urgent }),
            Some(LocalImage::Failed { retry_at }) if retry_at <= now => {
                plan.push(Action::FetchImage { image: id, urgent });
            }
            Some(LocalImage::Failed { retry_at }) => plan.look_again(retry_at),
            Some(LocalImage::Fetching { urgent: false }) if urgent => {
                plan.push(Action::FetchImage { image: id, urgent })
            }
            Some(LocalImage::Fetching { .. } | LocalImage::Complete | LocalImage::Importing) => {}
        }
    }
}
