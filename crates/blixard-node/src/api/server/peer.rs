//! What this node answers to other members, over the `blixard/peer/1` protocol: its view of the group, and what it alone can
//! show of the vms that are placed on it. `ask.rs` is the far end.
//!
//! What a member asks for in the name of a client is checked here once more, against the role that this node knows.

use axum::body::Body as RawBody;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use blixard_core::ClientRole::{self, Operator, Viewer};
use blixard_core::{BlobHash, EndpointId, ImageId, VmId};
use serde::Deserialize;

use super::ask::LogQuery;
use super::{Json, Path, Query, Server, logs, vms};
use crate::api::CLIENT_HEADER;
use crate::api::fault::Fault;
use crate::api::views::LiveView;

pub(super) fn routes(server: Server) -> axum::Router {
    let for_a = |least: ClientRole, handler: MethodRouter<Server>| {
        handler.route_layer(from_fn_with_state((server.clone(), least), gate))
    };
    axum::Router::new()
        // These two a node asks for on its own account.
        .route("/group", get(async |State(server): State<Server>| Json(server.inner.raft.view())))
        .route("/vms/{vm}/live", get(serve_live))
        .route("/vms/{vm}/logs", for_a(Viewer, get(serve_logs)))
        .route("/vms/{vm}/console", for_a(Operator, get(serve_console)))
        .route("/blobs/{hash}", for_a(Operator, get(serve_blob)))
        .with_state(server)
}

/// Lets a request pass whose client has the role for it. That the client asked at all is the word of the member.
async fn gate(
    State((server, least)): State<(Server, ClientRole)>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let client = request.headers().get(CLIENT_HEADER).and_then(|text| text.to_str().ok()?.parse::<EndpointId>().ok());
    let client = client.ok_or_else(|| Fault::bad_request(format!("{CLIENT_HEADER} must name the client that asks")))?;
    server.permit(client, least).await?;
    Ok(next.run(request).await)
}

#[derive(Deserialize)]
pub(super) struct LiveQuery {
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
    logs::show_here(&server, vm, query).await
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
