//! What this node answers to other members, over the `blixard/peer/1` protocol: its view of the group, and what it alone can
//! show of the vms that are placed on it. `ask.rs` is the far end.

use axum::body::Body as RawBody;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use blixard_core::{BlobHash, ImageId, VmId};
use serde::Deserialize;

use super::ask::LogQuery;
use super::{Json, Path, Query, Server, vms};
use crate::api::fault::Fault;
use crate::api::views::LiveView;

pub(super) fn routes(server: Server) -> axum::Router {
    axum::Router::new()
        .route("/group", get(async |State(server): State<Server>| Json(server.inner.raft.view())))
        .route("/vms/{vm}/live", get(serve_live))
        .route("/vms/{vm}/logs", get(serve_logs))
        .route("/vms/{vm}/console", get(serve_console))
        .route("/blobs/{hash}", get(serve_blob))
        .with_state(server)
}

#[derive(Deserialize)]
struct LiveQuery {
    image: ImageId,
}

async fn serve_live(
    State(server): State<Server>,
    Path(vm): Path<VmId>,
    Query(query): Query<LiveQuery>,
) -> Json<LiveView> {
    Json(server.live(vm, query.image).await)
}

async fn serve_logs(
    State(server): State<Server>,
    Path(vm): Path<VmId>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Fault> {
    vms::logs_here(&server, vm, query).await
}

async fn serve_console(
    State(server): State<Server>,
    Path(vm): Path<VmId>,
    request: Request,
) -> Result<Response, Fault> {
    vms::console_here(&server, vm, request).await
}

async fn serve_blob(State(server): State<Server>, Path(hash): Path<BlobHash>) -> Result<Response, Fault> {
    let content = server.inner.images.export(hash).await.map_err(anyhow::Error::from)?;
    Ok(RawBody::from_stream(content).into_response())
}
