//! Files of this host that go to a node, and parts of images that come from one.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::output;
use super::progress::ByteBar;
use crate::failure::Failure;

/// Read at once from a file to be uploaded: large enough that reading costs nothing beside sending.
const CHUNK_BYTES: usize = 256 << 10;
/// Stands for standard input or output in place of a file.
const STDIO: &str = "-";

/// Whether a path stands for standard input or output.
pub(super) fn is_stdio(path: &Path) -> bool {
    path == Path::new(STDIO)
}

/// A file, or standard input, opened to be uploaded.
pub(super) struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    name: String,
    bytes_total: Option<u64>,
    failure: ReadFailure,
}

/// Why reading stopped early. A failed upload alone could not tell a bad disk here from a lost node.
#[derive(Clone, Default)]
pub(super) struct ReadFailure(Arc<Mutex<Option<io::Error>>>);

impl ReadFailure {
    /// Keeps a failure, and gives another of its kind to end the upload with.
    pub(super) fn note(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        *self.0.lock().expect("no holder of this lock panics") = Some(error);
        kind.into()
    }

    /// The failure, if there was one.
    pub(super) fn take(&self) -> Option<io::Error> {
        self.0.lock().expect("no holder of this lock panics").take()
    }
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        let failure = ReadFailure::default();
        if is_stdio(path) {
            if io::stdin().is_terminal() {
                bail!(Failure::usage("standard input is a terminal: pipe the image in, or name a file instead of -"));
            }
            let reader = Box::new(tokio::io::stdin());
            return Ok(Self { reader, name: "standard input".to_owned(), bytes_total: None, failure });
        }
        let name = path.display().to_string();
        let file = File::open(path).await.with_context(|| format!("open {name}"))?;
        let meta = file.metadata().await.with_context(|| format!("open {name}"))?;
        if meta.is_dir() {
            bail!("{name} is a directory: name the file in it that holds the disk or kernel");
        }
        // Files that the kernel makes up, as in /proc, claim to be empty: only reading them tells.
        let bytes_total = Some(meta.len()).filter(|bytes| meta.is_file() && *bytes > 0);
        Ok(Self { reader: Box::new(file), name, bytes_total, failure })
    }

    /// What people call it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its length, where that is known before it was read.
    pub(super) fn bytes_total(&self) -> Option<u64> {
        self.bytes_total
    }

    /// Where a failure to read is noted.
    pub(super) fn failure(&self) -> ReadFailure {
        self.failure.clone()
    }

    /// The bytes, counted by a bar as they go by. That there are none is a failure, too.
    pub(super) fn into_stream(self, bar: ByteBar) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let chunks = ReaderStream::with_capacity(self.reader, CHUNK_BYTES);
        let failure = self.failure;
        futures::stream::try_unfold((chunks, true), move |(mut chunks, is_empty)| {
            let (bar, failure) = (bar.clone(), failure.clone());
            async move {
                match chunks.next().await {
                    Some(Ok(chunk)) => {
                        bar.add(chunk.len());
                        Ok(Some((chunk, (chunks, false))))
                    }
                    Some(Err(error)) => Err(failure.note(error)),
                    None if is_empty => Err(failure.note(io::Error::other("there is nothing in it"))),
                    None => Ok(None),
                }
            }
        })
    }
}

/// A file, or standard output, to which a part of an image goes.
pub(super) enum Sink {
    /// A file, complete or not there: the bytes go to `fresh`, which is renamed at the end.
    File {
        /// Where the bytes go.
        file: File,
        /// The path of `file`.
        fresh: FreshFile,
        /// Where the file belongs.
        path: PathBuf,
    },
    /// Standard output.
    Stdout,
}

/// Removes an unfinished file.
pub(super) struct FreshFile(PathBuf);

impl Drop for FreshFile {
    fn drop(&mut self) {
        // Once it was renamed there is nothing left to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Sink {
    /// Opens a file to be written, or standard output for `-`.
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        if is_stdio(path) {
            if io::stdout().is_terminal() {
                bail!(Failure::usage("standard output is a terminal: redirect it, or name a file instead of -"));
            }
            return Ok(Self::Stdout);
        }
        if path.is_dir() {
            bail!(Failure::usage(format!("{} is a directory: name a file in it", path.display())));
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".part");
        let fresh = PathBuf::from(fresh);
        let file = File::create(&fresh).await.with_context(|| format!("create {}", fresh.display()))?;
        Ok(Self::File { file, fresh: FreshFile(fresh), path: path.to_owned() })
    }

    /// Writes all of `content`, which must be `bytes_expected` long.
    pub(super) async fn write_all(
        self,
        mut content: impl Stream<Item = io::Result<Bytes>> + Unpin,
        bytes_expected: u64,
        bar: &ByteBar,
    ) -> anyhow::Result<()> {
        let (mut file, end) = match self {
            Self::File { file, fresh, path } => (Some(file), Some((fresh, path))),
            Self::Stdout => (None, None),
        };
        let mut bytes_done = 0;
        while let Some(chunk) = content.next().await {
            let chunk = chunk.context("receive the image")?;
            bytes_done += chunk.len() as u64;
            bar.add(chunk.len());
            match &mut file {
                Some(file) => file.write_all(&chunk).await.context("write the image")?,
                None => tokio::task::spawn_blocking(move || output::print(&chunk)).await??,
            }
        }
        if bytes_done != bytes_expected {
            bail!("the node sent {bytes_done} of {bytes_expected} bytes");
        }
        if let (Some(file), Some((fresh, path))) = (file, end) {
            file.sync_all().await.context("write the image")?;
            std::fs::rename(&fresh.0, &path).with_context(|| format!("rename to {}", path.display()))?;
        }
        Ok(())
    }
}
