//! What to do about each image.

use std::collections::BTreeSet;

use super::vms::Needs;
use super::{Action, LocalImage, LocalView, Plan};
use crate::{Change, ImageId, NodeId, State, UnixMs};

/// How long until the next look at whether something comes again of an image that could not be fetched, in milliseconds.
const FAILURE_LOOK_MS: u64 = 1000;

/// Plans for every image that is here or should be.
pub(super) fn reconcile(me: NodeId, state: &State, local: &LocalView, needs: &Needs, now: UnixMs, plan: &mut Plan) {
    // A vm that is on its way out may still have its disk over an image that nothing names any more.
    let has_strays = local.vms.keys().any(|id| !state.vms.contains_key(id));
    let ids: BTreeSet<ImageId> = local.images.keys().chain(state.images.keys()).copied().collect();
    for id in ids {
        let here = local.images.get(&id);
        let Some(image) = state.images.get(&id) else {
            if !has_strays && here != Some(&LocalImage::Importing) {
                plan.push(Action::DropImage { image: id });
            }
            continue;
        };
        let present = here == Some(&LocalImage::Complete);
        // While it is being imported or given up here, the command for that says what there is to say.
        let is_told = matches!(here, Some(LocalImage::Importing | LocalImage::Leaving));
        if !is_told && present != image.holders.contains(&me) {
            plan.push(Action::Propose(Change::ReportCopy { image: id, node: me, present }));
        }
        if let Some(record) = local.boots.get(&id).filter(|record| state.wants_boot(id, record)) {
            plan.push(Action::Propose(Change::RecordBoot { image: id, node: me, record: record.clone() }));
        }
        let urgent = needs.get(&id).copied();
        if urgent.is_none() && !image.wanted.contains(&me) {
            continue;
        }
        let urgent = urgent.unwrap_or(false);
        match here {
            None => plan.push(Action::FetchImage { image: id, urgent }),
            Some(LocalImage::Fetching { urgent: was_urgent, failure }) => {
                if urgent && !was_urgent {
                    plan.push(Action::FetchImage { image: id, urgent });
                }
                if failure.is_some() {
                    plan.look_again(now.plus_ms(FAILURE_LOOK_MS));
                }
            }
            Some(LocalImage::Complete | LocalImage::Importing | LocalImage::Leaving) => {}
        }
    }
}
