//! The folder of a vm and the records in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::ProcessIdentity;
use crate::observed::{Accelerator, ExitReason};
use crate::spec::LaunchSpec;

/// The largest record that is read: a spec with the largest seed, escaped, stays well below.
const RECORD_BYTES_MAX: u64 = 4 << 20;

pub(crate) const DISK_FILE: &str = "disk.qcow2";
pub(crate) const SEED_FILE: &str = "seed.img";
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
const SPEC_FILE: &str = "spec.json";
const PLAN_FILE: &str = "plan.json";
const GUARD_FILE: &str = "guard.json";
const EXIT_FILE: &str = "exit.json";
const LAST_EXIT_FILE: &str = "last-exit.json";
const LOCK_FILE: &str = "lock";
const GUARD_STDERR_FILE: &str = "guard.stderr";

/// The descriptor of the first file that a hypervisor is handed: far above what a guard opens for itself.
pub(crate) const FIRST_FILE_FD: i32 = 100;

/// A file that a guard opens for its hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandedFile {
    /// Absolute, or relative to the vm's folder.
    pub(crate) path: PathBuf,
    pub(crate) handing: Handing,
}

/// How a hypervisor uses a file that it is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Handing {
    /// Through the descriptor, reading.
    ReadOnly,
    /// Through the descriptor, reading and writing.
    ReadWrite,
    /// It opens the descriptor anew, so its user must be allowed to read the file.
    Reopen,
    /// A folder that it only enters, to connect to a socket there.
    Folder,
}

/// How a guest is changed over from a server to the file of its base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settling {
    /// The file.
    pub(crate) base: PathBuf,
    /// What the monitor is told, one after the other; the first command comes with the descriptor of the file.
    pub(crate) steps: Vec<serde_json::Value>,
    /// What undoes the steps, so that they can be taken again after one has failed.
    pub(crate) undo: Vec<serde_json::Value>,
}

/// What a guard is to run; written by the driver, read once by the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) epoch: u64,
    pub(crate) run: u64,
    pub(crate) program: PathBuf,
    pub(crate) argv: Vec<String>,
    /// What the hypervisor is handed, from descriptor [`FIRST_FILE_FD`] on.
    #[serde(default)]
    pub(crate) files: Vec<HandedFile>,
    pub(crate) accelerator: Accelerator,
    /// The group that the guard enters before it starts the hypervisor, or why there is none.
    pub(crate) group: Result<PathBuf, String>,
    /// For a guest that is launched over a server.
    #[serde(default)]
    pub(crate) settling: Option<Settling>,
    /// The lowest port of this host that is published.
    #[serde(default)]
    pub(crate) lowest_port: Option<u16>,
}

/// What a guard says of itself while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuardRecord {
    pub(crate) epoch: u64,
    pub(crate) run: u64,
    pub(crate) guard: ProcessIdentity,
    pub(crate) hypervisor: ProcessIdentity,
    pub(crate) since_ms: u64,
    /// Whether the hypervisor has answered; before that the launch is under way.
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    /// Whether the guest reads its base from a server.
    #[serde(default)]
    pub(crate) lazy: bool,
    /// Why the last attempt to change it over to the file has failed.
    #[serde(default)]
    pub(crate) unsettled: Option<String>,
    pub(crate) accelerator: Accelerator,
    /// Why the hypervisor has no user of its own, when it has none.
    #[serde(default)]
    pub(crate) shared_user: Option<String>,
    /// The group that limits it, or else why there is none.
    #[serde(default)]
    pub(crate) group: Option<PathBuf>,
    #[serde(default)]
    pub(crate) unlimited: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) epoch: u64,
    pub(crate) run: u64,
    pub(crate) reason: ExitReason,
    pub(crate) at_ms: u64,
    pub(crate) ran_ms: u64,
}

/// A record that is there but cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {detail}")]
pub(crate) struct RecordError {
    file: String,
    detail: String,
}

/// The folder of one vm.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Folder {
        Folder { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the folder, open to its owner only: user data may hold secrets, and whoever reaches the sockets rules the vm.
    pub(crate) fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    pub(crate) fn spec(&self) -> Result<Option<LaunchSpec>, RecordError> {
        self.read(SPEC_FILE)
    }

    pub(crate) fn write_spec(&self, spec: &LaunchSpec) -> io::Result<()> {
        self.write(SPEC_FILE, spec)
    }

    pub(crate) fn plan(&self) -> Result<Option<Plan>, RecordError> {
        self.read(PLAN_FILE)
    }

    pub(crate) fn write_plan(&self, plan: &Plan) -> io::Result<()> {
        self.write(PLAN_FILE, plan)
    }

    pub(crate) fn guard(&self) -> Result<Option<GuardRecord>, RecordError> {
        self.read(GUARD_FILE)
    }

    pub(crate) fn write_guard(&self, record: &GuardRecord) -> io::Result<()> {
        self.write(GUARD_FILE, record)
    }

    pub(crate) fn exit(&self) -> Result<Option<ExitRecord>, RecordError> {
        self.read(EXIT_FILE)
    }

    pub(crate) fn write_exit(&self, record: &ExitRecord) -> io::Result<()> {
        self.write(EXIT_FILE, record)
    }

    /// Removes what the last run left, and keeps disk, seed, log and how it ended.
    pub(crate) fn clear_run(&self) -> io::Result<()> {
        match fs::rename(self.path.join(EXIT_FILE), self.path.join(LAST_EXIT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for file in [GUARD_FILE, PLAN_FILE, CONTROL_SOCKET, CONSOLE_SOCKET, GUARD_STDERR_FILE] {
            match fs::remove_file(self.path.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How the run before the present one ended. Only for people, so one that cannot be read counts as none.
    pub(crate) fn last_exit(&self) -> Option<ExitReason> {
        self.read::<ExitRecord>(LAST_EXIT_FILE).ok().flatten().map(|exit| exit.reason)
    }

    /// Takes the lock that says "this vm has a guard", or none when another process holds it.
    pub(crate) fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.path.join(LOCK_FILE))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Connects to one of the guard's sockets. A socket address holds 107 bytes and a data folder may be longer, so the
    /// way leads through a descriptor of the folder.
    pub(crate) fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        let dir = File::open(&self.path)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
        UnixStream::connect(format!("/proc/self/fd/{fd}/{socket}"))
    }

    /// Where the guard's standard error goes: nothing, unless it panics.
    pub(crate) fn create_guard_stderr(&self) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(self.path.join(GUARD_STDERR_FILE))
    }

    /// The first few lines of what the guard wrote to standard error.
    pub(crate) fn guard_stderr(&self) -> String {
        let mut text = String::new();
        if let Ok(file) = File::open(self.path.join(GUARD_STDERR_FILE)) {
            // Not being able to read the words of a dead guard changes nothing about its death.
            let _ = file.take(2048).read_to_string(&mut text);
        }
        text.trim().to_owned()
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, RecordError> {
        read_record(&self.path.join(file))
            .map_err(|error| RecordError { file: file.to_owned(), detail: error.to_string() })
    }

    fn write<T: Serialize>(&self, file: &str, record: &T) -> io::Result<()> {
        write_record(&self.path.join(file), record)
    }
}

/// Reads a JSON record; none when there is no file.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![];
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {RECORD_BYTES_MAX} bytes")));
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Writes a JSON record so that a reader, or the host after a power loss, finds the old one or the new one, never a part.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace_file(path, &serde_json::to_vec_pretty(record)?)
}

/// Replaces a file's content in one step, durably.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Now, in milliseconds since 1970; for people to read, never to decide by.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
