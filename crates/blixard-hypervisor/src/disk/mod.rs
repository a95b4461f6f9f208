//! Disks: what images from elsewhere may contain, and the overlay that a vm writes to.

pub(crate) mod overlay;
pub(crate) mod qcow2;
