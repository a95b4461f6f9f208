//! Opens what a hypervisor needs and gives it descriptors with known numbers, so that it need not be allowed to open
//! anything itself.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::fcntl::OFlag;
use rustix::io::fcntl_dupfd_cloexec;

use crate::folder::{FIRST_FILE_FD, HandedFile, Handing};
use crate::process::Rights;

/// Opens the files in order; the first gets the descriptor [`FIRST_FILE_FD`], each one the next number.
pub(super) fn open(files: &[HandedFile], rights: &Rights) -> Result<Vec<OwnedFd>, String> {
    let numbered = (FIRST_FILE_FD..).zip(files);
    numbered.map(|(number, file)| open_one(number, file, rights)).collect()
}

fn open_one(number: i32, file: &HandedFile, rights: &Rights) -> Result<OwnedFd, String> {
    let context = |error: io::Error| format!("open {}: {error}", file.path.display());
    let mut how = OpenOptions::new();
    how.read(true).write(file.handing == Handing::ReadWrite);
    if file.handing == Handing::Folder {
        // Enough to go through it, and too little to list it.
        how.custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits());
    }
    let opened = how.open(&file.path).map_err(context)?;
    if let (Handing::Reopen, Some(account)) = (file.handing, &rights.account)
        && opened.metadata().map_err(context)?.mode() & 0o004 == 0
    {
        return Err(format!(
            "{} cannot be read by user {}, which the guest runs as; let others read it (chmod o+r)",
            file.path.display(),
            account.id
        ));
    }
    let fd = fcntl_dupfd_cloexec(&opened, number).map_err(|error| context(error.into()))?;
    // A guard has one thread and few descriptors, so the number can only be taken if somebody left us one open.
    if fd.as_raw_fd() == number { Ok(fd) } else { Err(format!("descriptor {number} is taken")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::process::Account;

    #[test]
    fn what_the_guests_user_could_not_read_again_is_said_before_it_tries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "a kernel").unwrap();
        let rights = Rights { account: Some(Account { id: 7, groups: vec![] }), keeps_bind: false };
        let set_mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let open_as = |handing, rights: &Rights| open_one(200, &HandedFile { path: path.clone(), handing }, rights);
        set_mode(0o640);
        let refused = open_as(Handing::Reopen, &rights).unwrap_err();
        assert!(refused.contains("user 7") && refused.contains("chmod o+r"), "{refused}");
        // What is handed over open needs no mode for that user, and a guest of the node's own user reads what it may.
        drop(open_as(Handing::ReadOnly, &rights).unwrap());
        drop(open_as(Handing::Reopen, &Rights { account: None, keeps_bind: false }).unwrap());
        set_mode(0o644);
        let held = open_as(Handing::Reopen, &rights).unwrap();
        assert_eq!(held.as_raw_fd(), 200);
        assert!(open_as(Handing::Reopen, &rights).unwrap_err().contains("200 is taken"));
    }
}
