//! What this node answers to other members, over the `blixard/peer/1` protocol: its view of the group, and what it alone can
//! show of the vms that are placed on it. `ask.rs` is the far end.
//!
//! What a member asks for in the name of a client is checked here once more, against the role that this node knows.

use axum::body::Body as RawBody;
use axum::extract::{FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use blixard_core::ClientRole::{self, Operator, Viewer};
use blixard_core::{BlobHash, EndpointId, ImageId, NodeId, ShareId, VmId};
use http::request::Parts;
use schemars::SchemaGenerator;
use serde::Deserialize;

use super::ask::LogQuery;
use super::cache::{self, Pinning};
use super::extract::{Input, Inputs, Operation, read_from_head, reader};
use super::queue::Deadline;
use super::{Body, Json, Path, Query, Server, logs, peers, queue, shares, transfers, vms};
use crate::api::CLIENT_HEADER;
use crate::api::fault::Fault;
use crate::api::views::{
    CollectedView, LimitsView, LiveView, NodeCacheView, NodeSharesView, NodeTransfersView, PeerView, SetLimits,
    TransferOrder, VerificationView,
};

/// A request of a member.
struct Route {
    path: &'static str,
    /// The least role of the client that it is made for; none where a node asks on its own account.
    least: Option<ClientRole>,
    handler: MethodRouter<Server>,
    reader: MethodRouter,
}

fn route<T: Inputs + 'static>(
    least: Option<ClientRole>,
    method: MethodFilter,
    path: &'static str,
    handler: impl Handler<T, Server>,
) -> Route {
    Route { path, least, handler: on(method, handler), reader: reader::<T>(method) }
}

fn table() -> [Route; 17] {
    const GET: MethodFilter = MethodFilter::GET;
    const POST: MethodFilter = MethodFilter::POST;
    [
        route(None, GET, "/group", async |State(server): State<Server>| Json(server.inner.raft.view())),
        route(None, GET, "/vms/{vm}/live", serve_live),
        route(Some(Viewer), GET, "/vms/{vm}/logs", serve_logs),
        route(Some(Operator), GET, "/vms/{vm}/console", serve_console),
        route(Some(Operator), GET, "/blobs/{hash}", serve_blob),
        route(Some(Viewer), GET, "/transfers", serve_transfers),
        route(Some(Operator), MethodFilter::POST, "/transfers/{image}/{order}", serve_order),
        route(Some(Viewer), GET, "/transfers/limits", serve_limits),
        route(Some(Operator), MethodFilter::PUT, "/transfers/limits", serve_set_limits),
        route(Some(Viewer), GET, "/shares", serve_shares),
        route(Some(Operator), MethodFilter::DELETE, "/shares/{share}", serve_stop_share),
        route(Some(Viewer), GET, "/peers", serve_peers),
        route(Some(Viewer), GET, "/cache", serve_cache),
        route(Some(Operator), POST, "/cache/gc", serve_collect),
        route(Some(Operator), POST, "/cache/{image}/{pinning}", serve_pin),
        route(Some(Operator), POST, "/cache/{image}/verify", serve_verify),
        route(Some(Viewer), GET, "/cache/{image}/verify", serve_verification),
    ]
}

/// What reads each request.
pub(super) fn readers() -> impl Iterator<Item = (&'static str, MethodRouter)> {
    table().into_iter().map(|route| (route.path, route.reader))
}

pub(super) fn routes(server: Server) -> axum::Router {
    let routes = table().into_iter().fold(axum::Router::new(), |router, Route { path, least, handler, .. }| {
        let handler = match least {
            Some(least) => handler.route_layer(from_fn_with_state((server.clone(), least), gate)),
            None => handler,
        };
        router.route(path, handler)
    });
    routes.with_state(server)
}

/// The client for which a member asks. That it asked at all is the word of the member.
struct OnBehalfOf(EndpointId);

impl<S: Send + Sync> FromRequestParts<S> for OnBehalfOf {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let client = parts.headers.get(CLIENT_HEADER).and_then(|text| text.to_str().ok()?.parse().ok());
        client.map(Self).ok_or_else(|| Fault::bad_request(format!("{CLIENT_HEADER} must name the client that asks")))
    }
}

impl Input for OnBehalfOf {
    // Members' requests to each other are no part of the API's document.
    fn describe(_: &mut Operation, _: &mut SchemaGenerator) {}

    async fn read(request: Request) -> Result<Request, Fault> {
        read_from_head::<Self>(request).await
    }
}

/// Lets a request pass whose client has the role for it.
async fn gate(
    State((server, least)): State<(Server, ClientRole)>,
    OnBehalfOf(client): OnBehalfOf,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    server.permit(client, least).await?;
    Ok(next.run(request).await)
}

#[derive(schemars::JsonSchema, Deserialize)]
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

async fn serve_transfers(State(server): State<Server>) -> Json<NodeTransfersView> {
    Json(queue::here(&server))
}

async fn serve_order(
    State(server): State<Server>,
    OnBehalfOf(client): OnBehalfOf,
    Path((image, order)): Path<(ImageId, TransferOrder)>,
    Query(by): Query<Deadline>,
) -> Result<Json<NodeId>, Fault> {
    queue::order_here(&server, client, image, order, by).await.map(Json)
}

async fn serve_peers(State(server): State<Server>) -> Json<Vec<PeerView>> {
    Json(peers::here(&server))
}

async fn serve_cache(State(server): State<Server>) -> Json<NodeCacheView> {
    Json(cache::here(&server).await)
}

async fn serve_collect(State(server): State<Server>) -> Json<CollectedView> {
    Json(cache::collect_here(&server).await)
}

async fn serve_pin(
    State(server): State<Server>,
    OnBehalfOf(client): OnBehalfOf,
    Path((image, pinning)): Path<(ImageId, Pinning)>,
) -> Result<Json<NodeId>, Fault> {
    cache::pin_here(&server, client, image, pinning).await.map(Json)
}

async fn serve_verify(
    State(server): State<Server>,
    Path(image): Path<ImageId>,
) -> Result<Json<VerificationView>, Fault> {
    cache::verify_here(&server, image).map(Json)
}

async fn serve_verification(
    State(server): State<Server>,
    Path(image): Path<ImageId>,
) -> Result<Json<VerificationView>, Fault> {
    cache::verification_here(&server, image).map(Json)
}

async fn serve_limits(State(server): State<Server>) -> Json<LimitsView> {
    Json(transfers::limits_here(&server))
}

async fn serve_set_limits(
    State(server): State<Server>,
    OnBehalfOf(client): OnBehalfOf,
    Body(_, limits): Body<SetLimits>,
) -> Result<Json<LimitsView>, Fault> {
    transfers::set_limits_here(&server, client, limits).await.map(Json)
}

async fn serve_shares(State(server): State<Server>) -> Json<NodeSharesView> {
    Json(shares::here(&server).await)
}

async fn serve_stop_share(
    State(server): State<Server>,
    OnBehalfOf(client): OnBehalfOf,
    Path(share): Path<ShareId>,
) -> Result<Json<NodeId>, Fault> {
    shares::stop_here(&server, client, share).await.map(Json)
}
