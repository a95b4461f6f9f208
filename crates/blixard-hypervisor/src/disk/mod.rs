//! Disks and kernels: what files from elsewhere may contain, and the overlay that a vm writes to.

pub(crate) mod inspect;
pub(crate) mod kernel;
pub(crate) mod overlay;
pub(crate) mod qcow2;

use std::path::{Path, PathBuf};

pub use inspect::{DiskFacts, InspectError, inspect_disk};
pub use kernel::{KernelFormat, inspect_kernel};

/// Finds a program: as it is when its name has a slash, else in `PATH`.
pub(crate) fn search_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}
