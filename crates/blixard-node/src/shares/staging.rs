//! What is being fetched, on its way to where it belongs: beside the target, under a name of its own, until all of it is there.
//!
//! ```text
//! .NAME.<hash>.part   grows in the order of the listing    -> renamed to NAME
//! ```
//!
//! What was written is what was verified, in order; so the lengths of the files tell how far a fetch was that a crash cut short. Only
//! a crash of the host could make that a lie, or somebody who changes files: therefore what was there before is hashed again, and
//! held against the whole at the end. Everything here blocks.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blixard_core::BlobHash;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::listing::{Kind, Listing};
use crate::images::PIECE_BYTES;

/// Read at once of what is there already.
const READ_BYTES: usize = 1 << 20;
/// Of a folder that is not finished: nobody else looks into it.
const FOLDER_MODE: u32 = 0o700;
/// Of a file that is not finished.
const FILE_MODE: u32 = 0o600;
/// What is left free on the disk of the target, for whatever else is kept there.
const RESERVE_BYTES: u64 = 16 << 20;
/// Digits of a hash in the name of what is not finished: enough to tell two shares apart.
const NAME_DIGITS: usize = 16;

/// Why what was fetched cannot be put where it belongs.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// There is something already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// Another fetch is at it.
    #[error("another fetch of the same is under way: {} is in use", .0.display())]
    InUse(PathBuf),
    /// Something is in the way that no fetch has put there.
    #[error("{} is in the way, and not from a fetch of yours: remove it", .0.display())]
    Foreign(PathBuf),
    /// The disk is too small.
    #[error(
        "no room for {needed_bytes} bytes in {}, where {free_bytes} are free, of which {RESERVE_BYTES} stay so: free some, or \
         name another place",
        folder.display()
    )]
    NoSpace {
        /// Where.
        folder: PathBuf,
        /// What is still to come.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// What an earlier try left is not what it wrote.
    #[error(
        "what an earlier fetch had left in {} is not what was shared, and is removed: fetch it again", .0.display()
    )]
    Damaged(PathBuf),
    /// The disk failed.
    #[error("write {}: {source}", path.display())]
    Disk {
        /// Which file or folder.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> StagingError + use<> {
    let path = path.to_owned();
    |source| StagingError::Disk { path, source }
}

/// A file with content.
#[derive(Debug)]
struct Piece {
    path: PathBuf,
    begin: u64,
    end: u64,
}

/// A fetch on the disk.
#[derive(Debug)]
pub(super) struct Staging {
    listing: Arc<Listing>,
    target: PathBuf,
    root: PathBuf,
    pieces: Vec<Piece>,
    /// Bytes of the content that are there, from its beginning.
    done_bytes: u64,
    /// The file that was written to last.
    open: Option<(usize, File)>,
    /// Of all that is there, if some of it was there before.
    check: Option<Box<blake3::Hasher>>,
    /// Held until the end, so that no other fetch writes here.
    _lock: Flock<File>,
}

impl Staging {
    /// Begins, or goes on where an earlier fetch to the same target was.
    ///
    /// # Errors
    /// When the target exists and is not to be replaced, another fetch is at it, or there is no room.
    pub(super) fn open(
        listing: Arc<Listing>,
        hash: BlobHash,
        target: &Path,
        is_replacing: bool,
    ) -> Result<Self, StagingError> {
        let target = std::path::absolute(target).map_err(disk(target))?;
        if !is_replacing && target.symlink_metadata().is_ok() {
            return Err(StagingError::Exists(target));
        }
        let name = target.file_name().unwrap_or_default().as_bytes();
        let digits: String = hash.to_string().chars().take(NAME_DIGITS).collect();
        let mut fresh = [b".", name].concat();
        // Names have a limit, which that of the target may be close to.
        fresh.truncate(200);
        fresh.extend_from_slice(format!(".{digits}.part").as_bytes());
        let root = target.with_file_name(OsStr::from_bytes(&fresh));
        let lock = claim(&root, listing.is_folder())?;
        let mut staging = Self {
            pieces: pieces(&listing, &root),
            listing,
            target,
            root,
            done_bytes: 0,
            open: None,
            check: None,
            _lock: lock,
        };
        staging.make_folders()?;
        staging.look()?;
        staging.check_space()?;
        Ok(staging)
    }

    /// How much of the content is there.
    pub(super) fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    fn make_folders(&self) -> Result<(), StagingError> {
        for entry in self.listing.entries.iter().filter(|entry| entry.kind == Kind::Folder && !entry.path.is_empty()) {
            let path = below(&self.root, &entry.path);
            match DirBuilder::new().mode(FOLDER_MODE).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // Modes are set when all is there; a crash may have come in between.
                    if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                        return Err(StagingError::Foreign(path));
                    }
                    fs::set_permissions(&path, Permissions::from_mode(FOLDER_MODE)).map_err(disk(&path))?;
                }
                made => made.map_err(disk(&path))?,
            }
        }
        Ok(())
    }

    /// Finds out how far an earlier fetch was.
    fn look(&mut self) -> Result<(), StagingError> {
        for piece in &self.pieces {
            let Ok(meta) = piece.path.symlink_metadata() else { break };
            if !meta.is_file() {
                return Err(StagingError::Foreign(piece.path.clone()));
            }
            let bytes = meta.len().min(piece.end - piece.begin);
            self.done_bytes = piece.begin + bytes;
            if self.done_bytes < piece.end {
                break;
            }
        }
        if self.done_bytes < self.listing.bytes() {
            // What is asked for begins where verified pieces do.
            self.done_bytes -= self.done_bytes % PIECE_BYTES;
        }
        if self.done_bytes == 0 {
            return Ok(());
        }
        let mut check = Box::<blake3::Hasher>::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut left = self.done_bytes;
        for piece in &self.pieces {
            let file = reopen(&piece.path)?;
            let (mut at, end) = (0, left.min(piece.end - piece.begin));
            while at < end {
                let length = READ_BYTES.min(usize::try_from(end - at).unwrap_or(READ_BYTES));
                file.read_exact_at(&mut buffer[..length], at).map_err(disk(&piece.path))?;
                check.update(&buffer[..length]);
                at += length as u64;
            }
            left -= end;
            if left == 0 {
                break;
            }
        }
        self.check = Some(check);
        Ok(())
    }

    fn check_space(&self) -> Result<(), StagingError> {
        let folder = self.root.parent().unwrap_or(&self.root);
        let Ok(space) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
        let free_bytes = space.blocks_available().saturating_mul(space.fragment_size());
        let needed_bytes = self.listing.bytes() - self.done_bytes;
        if needed_bytes > 0 && free_bytes.saturating_sub(RESERVE_BYTES) < needed_bytes {
            return Err(StagingError::NoSpace { folder: folder.to_owned(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    /// Writes the next bytes of the content.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), StagingError> {
        if let Some(check) = &mut self.check {
            check.update(bytes);
        }
        while !bytes.is_empty() {
            let number = self.pieces.partition_point(|piece| piece.end <= self.done_bytes);
            let piece = &self.pieces[number];
            if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
                self.open = Some((number, reopen(&piece.path)?));
            }
            let (_, file) = self.open.as_ref().expect("it was opened just now");
            let room = usize::try_from(piece.end - self.done_bytes).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            file.write_all_at(now, self.done_bytes - piece.begin).map_err(disk(&piece.path))?;
            self.done_bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Puts what is there as a whole where it belongs, at once. Gives its path.
    ///
    /// # Errors
    /// When it is not what was shared, the disk fails, or the target has come to exist and is not to be replaced.
    pub(super) fn finish(mut self, is_replacing: bool) -> Result<PathBuf, StagingError> {
        self.open = None;
        if let (Some(check), Some(content)) = (self.check.take(), self.listing.content)
            && *check.finalize().as_bytes() != content.hash.0
        {
            remove(&self.root).map_err(disk(&self.root))?;
            return Err(StagingError::Damaged(self.root));
        }
        self.settle()?;
        let sync = || -> io::Result<()> {
            nix::unistd::syncfs(File::open(&self.root)?)?;
            Ok(())
        };
        // A root that nobody may read cannot be opened; its content is on its way to the disk all the same.
        match sync() {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(disk(&self.root)(error)),
            _ => {}
        }
        let exists = self.target.symlink_metadata().is_ok();
        if exists && !is_replacing {
            return Err(StagingError::Exists(self.target));
        }
        if exists {
            rename(&self.root, &self.target, RenameFlags::RENAME_EXCHANGE).map_err(disk(&self.target))?;
            remove(&self.root).map_err(disk(&self.root))?;
        } else {
            rename(&self.root, &self.target, RenameFlags::RENAME_NOREPLACE).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StagingError::Exists(self.target.clone()),
                _ => disk(&self.target)(error),
            })?;
        }
        if let Some(folder) = self.target.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(disk(folder))?;
        }
        Ok(self.target)
    }

    /// Makes what has no content, and sets all modes: those of folders last, and from the inside out.
    fn settle(&self) -> Result<(), StagingError> {
        for entry in &self.listing.entries {
            let path = below(&self.root, &entry.path);
            match &entry.kind {
                Kind::Folder => {}
                Kind::File(_) => {
                    let file = reopen(&path)?;
                    // What an earlier fetch left may be longer.
                    let Kind::File(bytes) = entry.kind else { continue };
                    file.set_len(bytes).map_err(disk(&path))?;
                    file.set_permissions(Permissions::from_mode(entry.mode)).map_err(disk(&path))?;
                }
                Kind::Link(target) => {
                    if path.symlink_metadata().is_ok() {
                        fs::remove_file(&path).map_err(disk(&path))?;
                    }
                    std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).map_err(disk(&path))?;
                }
            }
        }
        for entry in self.listing.entries.iter().rev().filter(|entry| entry.kind == Kind::Folder) {
            let path = below(&self.root, &entry.path);
            fs::set_permissions(&path, Permissions::from_mode(entry.mode)).map_err(disk(&path))?;
        }
        Ok(())
    }
}

fn below(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}

fn pieces(listing: &Listing, root: &Path) -> Vec<Piece> {
    let mut begin = 0;
    let mut pieces = Vec::new();
    for entry in &listing.entries {
        if let Kind::File(bytes) = entry.kind
            && bytes > 0
        {
            pieces.push(Piece { path: below(root, &entry.path), begin, end: begin + bytes });
            begin += bytes;
        }
    }
    pieces
}

/// Makes the root of what is to be fetched, or takes the one that an earlier fetch of this user has left, for this fetch alone.
fn claim(root: &Path, is_folder: bool) -> Result<Flock<File>, StagingError> {
    let open = || {
        if is_folder {
            match DirBuilder::new().mode(FOLDER_MODE).create(root) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let flags = nix::libc::O_NOFOLLOW | nix::libc::O_DIRECTORY;
            return OpenOptions::new().read(true).custom_flags(flags).open(root);
        }
        let mut file = OpenOptions::new();
        file.read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(root)
    };
    // With the modes that it is to have at the end, it may be closed to its own user.
    if root.symlink_metadata().is_ok_and(|meta| meta.uid() == nix::unistd::geteuid().as_raw() && !meta.is_symlink()) {
        let mode = if is_folder { FOLDER_MODE } else { FILE_MODE };
        fs::set_permissions(root, Permissions::from_mode(mode)).map_err(disk(root))?;
    }
    let opened = open().map_err(disk(root))?;
    let meta = opened.metadata().map_err(disk(root))?;
    let is_ours =
        meta.uid() == nix::unistd::geteuid().as_raw() && meta.is_dir() == is_folder && meta.mode() & 0o077 == 0;
    if !is_ours {
        return Err(StagingError::Foreign(root.to_owned()));
    }
    Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|_| StagingError::InUse(root.to_owned()))
}

/// Opens a file of what is being fetched, and makes it if it is not there. A link in its place is not followed.
fn reopen(path: &Path) -> Result<File, StagingError> {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & FILE_MODE != FILE_MODE) {
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE)).map_err(disk(path))?;
    }
    let mut file = OpenOptions::new();
    file.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(nix::libc::O_NOFOLLOW);
    file.open(path).map_err(disk(path))
}

/// Renames, and says when the file system knows no such way of it.
fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        Err(nix::errno::Errno::EINVAL) => {
            if flags == RenameFlags::RENAME_EXCHANGE {
                remove(to)?;
            }
            fs::rename(from, to)
        }
        renamed => Ok(renamed?),
    }
}

/// Removes a file, or a folder with all that is in it, whatever its modes are. A link is removed, and not what it leads to.
fn remove(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    let mut rest = vec![path.to_owned()];
    while let Some(folder) = rest.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                rest.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}
