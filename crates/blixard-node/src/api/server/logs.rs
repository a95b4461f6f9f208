//! Requests about what guests wrote to their serial consoles.
//!
//! A log is bytes with positions that only grow (`blixard_hypervisor::LogPosition`). An answer says at which one it begins, so that
//! whoever lost it half-way goes on where it ended, at whichever node. That can only hold while nothing is left out: a
//! reader that falls behind what is kept is cut off, and learns at the next start how much is gone.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use blixard_core::{VmId, VmName};
use blixard_hypervisor::{LogError, LogPosition, LogSpan};
use bytes::Bytes;
use http::HeaderValue;
use tokio::sync::mpsc;

use super::ask::{self, LogQuery};
use super::vms::{PIECES_WAITING, elsewhere, find, not_reached, streamed};
use super::{Asker, BYTES, Path, Query, Server};
use crate::api::fault::Fault;
use crate::api::{LOG_POSITION_HEADER, VM_HEADER};

/// How often a followed log is looked at. A person does not notice it, and a log is read from the page cache.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// A piece of a log.
const PIECE_BYTES: usize = 64 << 10;

pub(super) async fn show(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<VmName>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Fault> {
    let vm = find(&server, &name).await?;
    match elsewhere(&server, &vm)? {
        None => show_here(&server, vm.id, query).await,
        Some((node, endpoint)) => {
            let answer = ask::logs(&server, endpoint, asker.caller.0, vm.id, query).await;
            answer.map_err(|fault| not_reached(node, &vm.name, fault))
        }
    }
}

/// The console log of a vm on this node.
pub(super) async fn show_here(server: &Server, vm: VmId, query: LogQuery) -> Result<Response, Fault> {
    let unknown = |error: LogError| match error {
        LogError::Unknown { .. } => Fault::not_found("the vm has not run yet, so there is no log"),
        LogError::Read(_) => Fault::from(anyhow::Error::from(error)),
    };
    let span = match server.inner.agent.log_span(vm).await {
        Ok(span) => span,
        // A log that is followed from before the first start begins when there is one.
        Err(LogError::Unknown { .. }) if query.follow => LogSpan { oldest: LogPosition(0), end: LogPosition(0) },
        Err(error) => return Err(unknown(error)),
    };
    let asked = query.from.unwrap_or_else(|| span.end.0.saturating_sub(query.tail_bytes));
    let begin = LogPosition(asked.clamp(span.oldest.0, span.end.0));
    let (send, pieces) = mpsc::channel(PIECES_WAITING);
    tokio::spawn(tell(server.clone(), vm, begin, query.follow, send));
    let mut answer = streamed(pieces, BYTES);
    let headers = answer.headers_mut();
    headers.insert(LOG_POSITION_HEADER, HeaderValue::from(begin.0));
    headers.insert(VM_HEADER, HeaderValue::try_from(vm.to_string()).map_err(anyhow::Error::from)?);
    Ok(answer)
}

/// Sends a log from a position on: what is there and, when it is followed, what comes, until the vm is gone.
async fn tell(server: Server, vm: VmId, mut at: LogPosition, follow: bool, send: mpsc::Sender<std::io::Result<Bytes>>) {
    let cut_off = async |error: std::io::Error| {
        // A reader that has gone needs no reason.
        let _ = send.send(Err(error)).await;
    };
    loop {
        match server.inner.agent.read_log(vm, at, PIECE_BYTES).await {
            Ok(chunk) if chunk.start > at => {
                return cut_off(std::io::Error::other("what is next in the log is not kept any more")).await;
            }
            Ok(chunk) if chunk.bytes.is_empty() => {
                if !follow {
                    return;
                }
                // After a loss of power the log may have become shorter, and goes on from there.
                at = chunk.next;
            }
            Ok(chunk) => {
                at = chunk.next;
                if send.send(Ok(chunk.bytes.into())).await.is_err() {
                    return;
                }
                continue;
            }
            // It will be there when the vm is launched, unless the vm is gone.
            Err(LogError::Unknown { .. }) if server.inner.raft.read(|state| state.vms.contains_key(&vm)) => {}
            Err(LogError::Unknown { .. }) => return,
            Err(error) => return cut_off(std::io::Error::other(error)).await,
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
            () = send.closed() => return,
        }
    }
}
