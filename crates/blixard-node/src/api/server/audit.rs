//! Requests about the audit trail: who asked for which write, and how it ended.

use axum::extract::State;
use axum::response::Response;
use blixard_core::{AUDIT_MAX, Actor, AuditEntry};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::vms::{PIECES_WAITING, streamed};
use super::{Freshness, Json, Query, Server};
use crate::api::fault::Fault;
use crate::api::views::AuditView;

/// How much of the trail.
#[derive(Debug, Clone, Copy, schemars::JsonSchema, Deserialize)]
pub(super) struct AuditQuery {
    /// The last so many entries.
    #[serde(default = "all_of_it")]
    last: usize,
}

fn all_of_it() -> usize {
    AUDIT_MAX
}

fn view(entry: &AuditEntry) -> AuditView {
    let (client, node) = match entry.by {
        Actor::Client(key) => (Some(key), None),
        Actor::Node(node) => (None, Some(node)),
    };
    AuditView {
        number: entry.number,
        at: entry.at,
        client,
        client_name: entry.client_name.clone(),
        node,
        deed: entry.deed,
        object: entry.object.clone(),
        rejection: entry.rejection.as_ref().map(ToString::to_string),
    }
}

fn after(server: &Server, number: u64, max: usize) -> Vec<AuditView> {
    server.inner.raft.read(|state| state.audit.after(number, max).map(view).collect())
}

pub(super) async fn list(
    State(server): State<Server>,
    Query(query): Query<AuditQuery>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<Vec<AuditView>>, Fault> {
    server.read_point(freshness).await?;
    Ok(Json(after(&server, 0, query.last)))
}

/// One JSON line an entry: the last ones, and then each as it is written, until the reader is gone.
pub(super) async fn watch(State(server): State<Server>, Query(query): Query<AuditQuery>) -> Result<Response, Fault> {
    server.read_point(Freshness::default()).await?;
    let (send, lines) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_WAITING);
    tokio::spawn(async move {
        let mut applied = server.inner.raft.watch();
        applied.borrow_and_update();
        let mut seen = server.inner.raft.read(|state| state.audit.count);
        let mut fresh = after(&server, 0, query.last);
        loop {
            for entry in fresh {
                seen = seen.max(entry.number);
                let Ok(mut line) = serde_json::to_vec(&entry) else { return };
                line.push(b'\n');
                if send.send(Ok(line.into())).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                () = send.closed() => return,
            }
            fresh = after(&server, seen, AUDIT_MAX);
        }
    });
    Ok(streamed(lines, "application/x-ndjson"))
}
