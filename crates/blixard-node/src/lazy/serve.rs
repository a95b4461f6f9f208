//! Serves one disk to one hypervisor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::Notes;
use super::nbd::{self, Request, Trouble};
use crate::images::Arriving;

/// Connections at once: a hypervisor has one, and makes another when it takes that for lost.
const CONNECTIONS_MAX: usize = 4;
/// Reads under way on one connection, as many as QEMU sends; the next is heard when one of them is answered. With the length
/// of a read this bounds what a connection takes of memory.
const READS_MAX: usize = 16;
/// What hypervisors count disks in.
const SECTOR_BYTES: u64 = 512;
/// The pause after no connection could be accepted, as when this process has too many files open.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Serves whoever connects.
pub(super) async fn accept(listener: UnixListener, disk: Arc<Arriving>, notes: Notes, patience: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let (disk, notes) = (disk.clone(), notes.clone());
                    connections.spawn(async move {
                        if let Err(error) = serve(stream, disk, notes, patience).await {
                            tracing::debug!(%error, "a hypervisor's connection to its disk ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a hypervisor cannot be let in to its disk");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: UnixStream, disk: Arc<Arriving>, notes: Notes, patience: Duration) -> std::io::Result<()> {
    // Half a sector at the end of a file is a whole one of a disk.
    let export_bytes = disk.bytes().next_multiple_of(SECTOR_BYTES);
    if !nbd::shake_hands(&mut stream, export_bytes).await? {
        return Ok(());
    }
    let (requests, replies) = stream.into_split();
    let (mut requests, replies) = (BufReader::new(requests), Arc::new(Mutex::new(replies)));
    let room = Arc::new(Semaphore::new(READS_MAX));
    // They end with the connection.
    let mut reads = JoinSet::new();
    while let Some(request) = nbd::read_request(&mut requests).await? {
        while reads.try_join_next().is_some() {}
        match request {
            Request::Read { cookie, offset, length } => {
                notes.note(offset.min(disk.bytes())..offset.saturating_add(length.into()).min(disk.bytes()));
                let turn = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                let (disk, notes, replies) = (disk.clone(), notes.clone(), replies.clone());
                reads.spawn(async move {
                    answer(&disk, &notes, &replies, (cookie, offset, length), export_bytes, patience).await;
                    drop(turn);
                });
            }
            Request::Refused { cookie } => {
                nbd::reply(&mut *replies.lock().await, cookie, Err(Trouble::Invalid)).await?;
            }
            Request::Disconnect => break,
        }
    }
    Ok(())
}

async fn answer(
    disk: &Arriving,
    notes: &Notes,
    replies: &Mutex<OwnedWriteHalf>,
    (cookie, offset, length): (u64, u64, u32),
    export_bytes: u64,
    patience: Duration,
) {
    let content = match offset.checked_add(u64::from(length)).filter(|end| *end <= export_bytes) {
        None => Err(Trouble::Invalid),
        Some(end) => {
            let range = offset.min(disk.bytes())..end.min(disk.bytes());
            let (is_here, begun) = (disk.has(&range), Instant::now());
            let read = disk.read(range, patience).await;
            notes.count(is_here, read.is_ok(), begun.elapsed());
            let read = read.map(|mut content| {
                content.resize(length as usize, 0);
                content
            });
            read.map_err(|error| {
                tracing::warn!(%error, "a guest reads what cannot be had, and sees an error of its disk");
                Trouble::Io
            })
        }
    };
    let content = content.as_deref().map_err(|trouble| *trouble);
    // Who does not hear the reply is gone, which the reader of its requests notices.
    let _ = nbd::reply(&mut *replies.lock().await, cookie, content).await;
}
