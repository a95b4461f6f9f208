//! A file of this host that cannot be used as it is: which, what is wrong with it, and what to do.
//!
//! Nothing that is damaged is ever replaced in silence: a node that went on with an empty log could break what it had
//! promised to the others, and one with a new key would be another node.

use std::fs::File;
use std::io::{self, Read};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use redb::Database;

/// A file that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", path.display())]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, as the rest of a sentence that begins with its path.
    pub problem: String,
    /// What whoever runs the node can do.
    pub next_step: String,
}

impl Damage {
    pub(crate) fn new(path: &Path, problem: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { path: path.to_owned(), problem: problem.into(), next_step: next_step.into() }
    }

    pub(crate) fn missing(path: &Path, next_step: impl Into<String>) -> Self {
        Self::new(path, "is missing, though this node has been in use", next_step)
    }
}

/// Reads a file of at most `bytes_max` bytes. It is the bytes that come which are counted: what a path leads to may claim to be
/// empty and have no end.
///
/// # Errors
/// When it cannot be read or has more.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        let text = format!("it has more than {bytes_max} bytes, so it is something else than was looked for");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(content)
}

/// Reads all of a database that must be there, and holds every page against its checksum. A crash leaves none that fails: what
/// it cut short is left out by the database itself.
///
/// # Errors
/// When the file is missing, empty, or holds what was not written.
pub(crate) fn check_database(path: &Path, next_step: &str) -> Result<(), Damage> {
    // An empty file would pass for one that is just being made.
    if !std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        return Err(Damage::missing(path, next_step));
    }
    let damaged = |detail: String| Damage::new(path, format!("is damaged: {detail}"), next_step);
    let look = || Database::open(path).map(|mut db| db.check_integrity());
    // The database's own assertions meet what no release of it has written.
    match std::panic::catch_unwind(AssertUnwindSafe(look)) {
        Ok(Ok(Ok(true))) => Ok(()),
        Ok(Ok(Ok(false))) => Err(damaged("some of its pages do not match their checksums".into())),
        Ok(Ok(Err(error)) | Err(error)) => Err(damaged(error.to_string())),
        Err(_) => Err(damaged("it makes no sense as a database".into())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use redb::TableDefinition;

    use super::*;

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");

    #[test]
    fn no_more_of_a_file_is_read_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.json");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(read_bounded(&path, 4).unwrap_err().to_string().contains("more than 4 bytes"));
        // It claims to be empty, and does not end.
        assert!(read_bounded(Path::new("/dev/zero"), 1 << 20).is_err());
    }

    /// A database with some rows, closed in order.
    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("some.redb");
        let db = Database::create(&path).unwrap();
        for round in 0..4 {
            let txn = db.begin_write().unwrap();
            for row in 0..64 {
                txn.open_table(TABLE).unwrap().insert(round * 64 + row, [row as u8; 300].as_slice()).unwrap();
            }
            txn.commit().unwrap();
        }
        path
    }

    #[test]
    fn every_flipped_bit_of_what_is_in_use_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        check_database(&path, "restore it").unwrap();
        let whole = std::fs::read(&path).unwrap();
        let rows = whole.iter().enumerate().filter(|(_, byte)| **byte == 7).map(|(at, _)| at);
        let mut found = 0;
        for at in rows.step_by(97) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            found += u32::from(check_database(&path, "restore it").is_err());
        }
        // What earlier commits have left behind in free pages is nobody's.
        assert!(found >= 10, "only {found} were found");
        std::fs::write(&path, &whole).unwrap();
        check_database(&path, "restore it").unwrap();
    }

    #[test]
    fn what_is_no_database_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        for (content, word) in [
            (Vec::new(), "missing"),
            (whole[..whole.len() / 2].to_vec(), "damaged"),
            (whole[..100].to_vec(), "damaged"),
            (vec![0; whole.len()], "damaged"),
            (b"something else".repeat(1000), "damaged"),
        ] {
            std::fs::write(&path, content).unwrap();
            let told = check_database(&path, "restore it").unwrap_err();
            assert!(told.problem.contains(word) && told.to_string().contains("some.redb"), "{told}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(check_database(&path, "restore it").unwrap_err().problem.contains("missing"));
    }
}
