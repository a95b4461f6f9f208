//! The console log: bounded on disk, with positions that only grow.
//!
//! A log is at most two files named by the position of their first byte, `console-<20 digits>.log`. When the newer is
//! full a third begins and the oldest goes. A position counts every byte since the vm was created, across rotations and
//! runs, so a reader that keeps its position never sees a byte twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Size at which a log file is full. Two of them hold some 40,000 lines, and a guest that prints without end costs no
/// more disk than this.
pub const LOG_FILE_BYTES_MAX: u64 = 2 << 20;
/// Files kept: the one being written and the one before.
const LOG_FILES_MAX: usize = 2;

/// A place in a vm's console log: the number of bytes before it since the vm was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LogPosition(pub u64);

/// The part of a log that is still kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpan {
    /// Position of the oldest byte.
    pub oldest: LogPosition,
    /// Position behind the newest byte.
    pub end: LogPosition,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Position of the first byte; later than was asked for when older bytes are gone.
    pub start: LogPosition,
    /// The bytes, as the guest wrote them.
    pub bytes: Vec<u8>,
    /// Where to read on.
    pub next: LogPosition,
}

struct Segment {
    start: u64,
    bytes: u64,
    path: PathBuf,
}

fn segment_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("console-{start:020}.log"))
}

fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = vec![];
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("console-")?.strip_suffix(".log"));
        let Some(start) = digits.and_then(|digits| digits.parse().ok()) else { continue };
        match entry.metadata() {
            Ok(meta) => found.push(Segment { start, bytes: meta.len(), path: entry.path() }),
            // The writer may remove the oldest file at any moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|segment| segment.start);
    Ok(found)
}

/// The end that the guard writes. There is one per vm.
pub(crate) struct LogWriter {
    dir: PathBuf,
    file: File,
    start: u64,
    bytes: u64,
    file_bytes_max: u64,
}

impl LogWriter {
    /// Continues the log in `dir`, or begins one.
    pub(crate) fn open(dir: &Path) -> io::Result<LogWriter> {
        Self::open_limited(dir, LOG_FILE_BYTES_MAX)
    }

    fn open_limited(dir: &Path, file_bytes_max: u64) -> io::Result<LogWriter> {
        let (start, bytes) = segments(dir)?.last().map_or((0, 0), |segment| (segment.start, segment.bytes));
        Ok(LogWriter { dir: dir.to_owned(), file: open_segment(dir, start)?, start, bytes, file_bytes_max })
    }

    /// Appends what the guest wrote. After an error (a full disk) the bytes are lost and the next call tries again.
    pub(crate) fn append(&mut self, mut output: &[u8]) -> io::Result<()> {
        while !output.is_empty() {
            if self.bytes >= self.file_bytes_max {
                self.rotate()?;
            }
            let room = usize::try_from(self.file_bytes_max - self.bytes).unwrap_or(usize::MAX).min(output.len());
            let written = self.file.write(&output[..room])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.bytes += written as u64;
            output = &output[written..];
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let start = self.start + self.bytes;
        self.file = open_segment(&self.dir, start)?;
        (self.start, self.bytes) = (start, 0);
        let all = segments(&self.dir)?;
        for old in all.iter().take(all.len().saturating_sub(LOG_FILES_MAX)) {
            fs::remove_file(&old.path)?;
        }
        Ok(())
    }
}

fn open_segment(dir: &Path, start: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(segment_path(dir, start))
}

/// The kept part of the log in `dir`.
pub(crate) fn span(dir: &Path) -> io::Result<LogSpan> {
    let all = segments(dir)?;
    let oldest = all.first().map_or(0, |segment| segment.start);
    let end = all.last().map_or(0, |segment| segment.start + segment.bytes);
    Ok(LogSpan { oldest: LogPosition(oldest), end: LogPosition(end) })
}

/// Reads at most `bytes_max` bytes of the log in `dir` from a position on.
pub(crate) fn read(dir: &Path, from: LogPosition, bytes_max: usize) -> io::Result<LogChunk> {
    let all = segments(dir)?;
    let oldest = all.first().map_or(0, |segment| segment.start);
    let end = all.last().map_or(0, |segment| segment.start + segment.bytes);
    let start = from.0.clamp(oldest, end);
    let mut at = start;
    let mut bytes = Vec::new();
    for segment in &all {
        let wanted = (segment.start + segment.bytes).saturating_sub(at).min((bytes_max - bytes.len()) as u64);
        if wanted == 0 || at < segment.start {
            continue;
        }
        let mut file = match File::open(&segment.path) {
            Ok(file) => file,
            // Rotated away since the folder was listed: what is newer is still there, so begin there instead.
            Err(error) if error.kind() == io::ErrorKind::NotFound && bytes.is_empty() => {
                return read(dir, LogPosition(segment.start + segment.bytes), bytes_max);
            }
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(at - segment.start))?;
        let got = file.take(wanted).read_to_end(&mut bytes)?;
        at += got as u64;
    }
    Ok(LogChunk { start: LogPosition(start), bytes, next: LogPosition(at) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is written in whatever pieces, with reopenings between them, a reader that keeps up sees exactly
        /// those bytes, and the disk holds no more than two files' worth.
        #[test]
        fn a_reader_that_keeps_up_sees_every_byte(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..90), any::<bool>()), 0..60),
            bytes_max in 1_usize..50,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = LogWriter::open_limited(dir.path(), 64).unwrap();
            let (mut wrote, mut seen, mut at) = (vec![], vec![], LogPosition(0));
            for (piece, reopen) in pieces {
                if reopen {
                    writer = LogWriter::open_limited(dir.path(), 64).unwrap();
                }
                writer.append(&piece).unwrap();
                wrote.extend_from_slice(&piece);
                loop {
                    let chunk = read(dir.path(), at, bytes_max).unwrap();
                    prop_assert!(chunk.bytes.len() <= bytes_max);
                    // One piece may be longer than a file, so the reader may fall behind the oldest byte.
                    seen.resize(usize::try_from(chunk.start.0).unwrap(), 0);
                    let start = seen.len();
                    seen.extend_from_slice(&chunk.bytes);
                    prop_assert_eq!(&seen[start..], &wrote[start..start + chunk.bytes.len()]);
                    at = chunk.next;
                    if chunk.bytes.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!(at.0, wrote.len() as u64);
                let kept = span(dir.path()).unwrap();
                prop_assert_eq!(kept.end, at);
                prop_assert!(kept.end.0 - kept.oldest.0 <= 128);
                prop_assert!(segments(dir.path()).unwrap().len() <= LOG_FILES_MAX);
            }
        }
    }

    #[test]
    fn a_position_beyond_the_end_is_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        LogWriter::open(dir.path()).unwrap().append(b"hello").unwrap();
        let chunk = read(dir.path(), LogPosition(99), 10).unwrap();
        assert_eq!((chunk.start, chunk.next, chunk.bytes.len()), (LogPosition(5), LogPosition(5), 0));
    }
}
