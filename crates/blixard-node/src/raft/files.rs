//! The files of the log and the state: made once and together, and looked at before they are opened.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;

use crate::damage::check_database;

/// The file with the log and the vote.
pub(super) const LOG_FILE: &str = "log.redb";
/// The file with the last snapshot of the state.
pub(super) const STATE_FILE: &str = "state.redb";
/// What to do when one of them is lost.
const LOG_LOST: &str = "at another node, remove this one with `blixard cluster remove`, then start it with an empty data \
                        directory to join anew. Do not put an older copy in its place: what this node has promised since \
                        then would be broken. Only a cluster of this node alone is restored from a copy";

/// Looks whether log and state in `dir` are what this node wrote; a node that is not in use yet gets empty ones. One that is
/// must have both: with an empty log in its place it could vote a second time in one term, or help to elect a leader that
/// lacks what it had acknowledged.
///
/// # Errors
/// With [`crate::Damage`] when a file is damaged or missing.
pub(crate) fn prepare(dir: &Path, is_in_use: bool) -> anyhow::Result<()> {
    let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_in_use && is_empty {
        make_empty(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    for file in [LOG_FILE, STATE_FILE] {
        check_database(&dir.join(file), LOG_LOST)?;
    }
    Ok(())
}

/// Makes empty stores. They appear together or not at all, so that a store that is missing later was lost.
fn make_empty(dir: &Path) -> anyhow::Result<()> {
    let fresh = dir.with_extension("fresh");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    // Closed to others, as the directory whose place it takes.
    std::fs::DirBuilder::new().mode(0o700).create(&fresh)?;
    for file in [LOG_FILE, STATE_FILE] {
        redb::Database::create(fresh.join(file))?;
    }
    std::fs::File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, dir)?;
    if let Some(parent) = dir.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
