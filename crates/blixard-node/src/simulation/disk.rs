//! Disks that lose what was not flushed.
//!
//! What a process writes it reads back at once. It lasts when the flush after it has taken its time. A crash of the process
//! alone loses nothing; a loss of power keeps, of what was written since the last flush that was completed, any sectors
//! and not others.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::dice::Dice;
use super::life::{lock, virtual_ns};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A write that may not last.
enum Change {
    Bytes { offset: usize, before: Vec<u8>, after: Vec<u8> },
    Length { before: usize, after: usize, cut: Vec<u8> },
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    /// Changes in the order in which they were made, and when the flush that makes them last is completed, in virtual
    /// nanoseconds; nothing when none was asked for yet.
    unflushed: VecDeque<(Option<u64>, Vec<Change>)>,
}

impl Content {
    fn note(&mut self, change: Change) {
        match self.unflushed.back_mut() {
            Some((None, changes)) => changes.push(change),
            _ => self.unflushed.push_back((None, vec![change])),
        }
    }

    fn set_len(&mut self, after: usize) {
        let before = self.bytes.len();
        let cut = self.bytes.get(after..).map(<[u8]>::to_vec).unwrap_or_default();
        self.bytes.resize(after, 0);
        self.note(Change::Length { before, after, cut });
    }

    fn settle(&mut self, now: u64) {
        while self.unflushed.front().is_some_and(|(flushed, _)| flushed.is_some_and(|at| at <= now)) {
            self.unflushed.pop_front();
        }
    }

    fn undo(&mut self, changes: &[Change]) {
        for change in changes.iter().rev() {
            match change {
                Change::Bytes { offset, before, .. } => {
                    self.bytes[*offset..offset + before.len()].copy_from_slice(before);
                }
                Change::Length { before, cut, .. } => {
                    self.bytes.resize(*before, 0);
                    let from = before - cut.len();
                    self.bytes[from..].copy_from_slice(cut);
                }
            }
        }
    }

    /// What is there after the power came back. Says whether anything was lost.
    fn after_power_loss(&mut self, now: u64, dice: &Dice) -> bool {
        self.settle(now);
        let unflushed = std::mem::take(&mut self.unflushed);
        unflushed.iter().rev().for_each(|(_, changes)| self.undo(changes));
        let Some((_, mut changes)) = unflushed.into_iter().next() else { return false };
        // Only the oldest unflushed changes can have been on their way to the platter: later ones were held back by a flush.
        // Which order the process wrote them in does not matter to a disk, so the dice must not see it either.
        changes.sort_by_key(|change| match change {
            Change::Length { .. } => (0, 0),
            Change::Bytes { offset, .. } => (1, *offset),
        });
        let chance = *dice.pick(&[0, 50, 90]).expect("the list has members");
        for change in changes {
            match change {
                Change::Length { after, .. } => {
                    if dice.percent(chance) {
                        self.bytes.resize(after, 0);
                    }
                }
                Change::Bytes { offset, after, .. } => {
                    let mut at = 0;
                    while at < after.len() {
                        let step = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(after.len() - at);
                        let end = offset + at + step;
                        if dice.percent(chance) && end <= self.bytes.len() {
                            self.bytes[offset + at..end].copy_from_slice(&after[at..at + step]);
                        }
                        at += step;
                    }
                }
            }
        }
        true
    }
}

/// A disk with its files.
pub(crate) struct Disk {
    files: Mutex<BTreeMap<String, Arc<Mutex<Content>>>>,
    shared: Arc<Shared>,
}

struct Shared {
    dice: Dice,
    /// A disk that says "flushed" and has done nothing: a bug that is planted.
    forgets: bool,
    busy_until: Mutex<u64>,
}

impl Disk {
    pub(crate) fn new(seed: u64, forgets: bool) -> Self {
        let shared = Shared { dice: Dice::new(seed), forgets, busy_until: Mutex::default() };
        Self { files: Mutex::default(), shared: Arc::new(shared) }
    }

    /// When the last flush that was asked for is completed, in virtual nanoseconds.
    pub(crate) fn busy_until(&self) -> u64 {
        *lock(&self.shared.busy_until)
    }

    /// Opens a file, which is made when it is missing.
    pub(crate) fn open(&self, name: &str) -> File {
        let content = lock(&self.files).entry(name.to_owned()).or_default().clone();
        File { content, shared: self.shared.clone() }
    }

    /// The process ends. Files that it still holds open are out of its reach from now on. With `power_lost`, what was not
    /// flushed is lost; says whether anything was.
    pub(crate) fn crash(&self, power_lost: bool, dice: &Dice) -> bool {
        let now = virtual_ns();
        let mut lost = false;
        for content in lock(&self.files).values_mut() {
            let mut found = std::mem::take(&mut *lock(content));
            if power_lost {
                lost |= found.after_power_loss(now, dice);
            }
            *content = Arc::new(Mutex::new(found));
        }
        lost
    }

    /// All files are gone, as on a host that is set up anew.
    pub(crate) fn wipe(&self) {
        lock(&self.files).clear();
    }
}

/// A file that is open.
pub(crate) struct File {
    content: Arc<Mutex<Content>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("File")
    }
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.content).bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = index(offset)?;
        let content = lock(&self.content);
        // A file that was taken from a process that died is empty; whatever reads it is being dropped.
        let bytes = content.bytes.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = index(len)?;
        lock(&self.content).set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let now = virtual_ns();
        let mut busy_until = lock(&self.shared.busy_until);
        let took = if self.shared.dice.percent(3) {
            self.shared.dice.micros(20_000, 150_000)
        } else {
            self.shared.dice.micros(80, 1_500)
        };
        *busy_until = now.max(*busy_until) + u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut content = lock(&self.content);
        content.settle(now);
        if let Some((flushed @ None, _)) = content.unflushed.back_mut()
            && !self.shared.forgets
        {
            *flushed = Some(*busy_until);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = index(offset)?;
        let mut content = lock(&self.content);
        let end = offset + data.len();
        if end > content.bytes.len() {
            content.set_len(end);
        }
        let before = content.bytes[offset..end].to_vec();
        content.bytes[offset..end].copy_from_slice(data);
        content.note(Change::Bytes { offset, before, after: data.to_vec() });
        Ok(())
    }
}
