//! Every path, query and body of the API and of what members ask each other, read as it is for the real requests and with no
//! node behind: what a caller can reach before anything is decided.

use axum::routing::{delete, get, post, put};
use blixard_core::{BlobHash, EndpointId, ImageName, NodeId, Settings, TokenId, VmId, VmName};
use serde::de::DeserializeOwned;

use super::ask::LogQuery;
use super::audit::AuditQuery;
use super::events::EventQuery;
use super::peer::LiveQuery;
use super::{Asker, Body, Freshness, Path, Query, body_limit};
use crate::api::views::{AddImage, CreateToken, CreateVm, GrantClient, RemoveNode, StopVm};

/// The routes; each answers with nothing once it has read everything.
pub(crate) fn routes() -> axum::Router {
    axum::Router::new()
        .route("/v1/cluster", get(query::<Freshness>))
        .route("/v1/cluster/settings", put(body::<Settings>))
        .route("/v1/cluster/leave", post(body::<RemoveNode>))
        .route("/v1/nodes/{node}/remove", post(path_and_body::<NodeId, RemoveNode>))
        .route("/v1/events", get(query::<EventQuery>))
        .route("/v1/events/watch", get(query::<EventQuery>))
        .route("/v1/tokens", get(nothing).post(body::<CreateToken>))
        .route("/v1/tokens/{token}", delete(path::<TokenId>))
        .route("/v1/clients/{client}", put(path_and_body::<EndpointId, GrantClient>).delete(path::<EndpointId>))
        .route("/v1/audit", get(query::<AuditQuery>))
        .route("/v1/audit/watch", get(query::<AuditQuery>))
        .route("/v1/clients", get(nothing))
        .route("/v1/blobs", post(nothing))
        .route("/v1/images", get(query::<Freshness>).post(body::<AddImage>))
        .route("/v1/images/{name}", get(path_and_query::<ImageName, Freshness>).delete(path::<ImageName>))
        .route("/v1/images/{name}/parts/{part}", get(path::<(ImageName, String)>))
        .route("/v1/vms", get(query::<Freshness>).post(body::<CreateVm>))
        .route("/v1/vms/{name}", get(path_and_query::<VmName, Freshness>).delete(path::<VmName>))
        .route("/v1/vms/{name}/start", post(path::<VmName>))
        .route("/v1/vms/{name}/restart", post(path_and_body::<VmName, StopVm>))
        .route("/v1/vms/{name}/explain", get(path::<VmName>))
        .route("/v1/vms/{name}/watch", get(path::<VmName>))
        .route("/v1/vms/{name}/console", get(path::<VmName>))
        .route("/v1/vms/{name}/stop", post(path_and_body::<VmName, StopVm>))
        .route("/v1/vms/{name}/logs", get(path_and_query::<VmName, LogQuery>))
        .route("/vms/{vm}/live", get(path_and_query::<VmId, LiveQuery>))
        .route("/vms/{vm}/logs", get(path_and_query::<VmId, LogQuery>))
        .route("/vms/{vm}/console", get(path::<VmId>))
        .route("/blobs/{hash}", get(path::<BlobHash>))
        .layer(body_limit())
}

async fn nothing(_: Asker) {}

async fn path<P: DeserializeOwned + Send>(_: Asker, _: Path<P>) {}

async fn query<Q: DeserializeOwned>(_: Asker, _: Query<Q>) {}

async fn body<B: DeserializeOwned>(_: Asker, _: Body<B>) {}

async fn path_and_query<P: DeserializeOwned + Send, Q: DeserializeOwned>(_: Asker, _: Path<P>, _: Query<Q>) {}

async fn path_and_body<P: DeserializeOwned + Send, B: DeserializeOwned>(_: Asker, _: Path<P>, _: Body<B>) {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body as RawBody;
    use http::{Request, StatusCode};
    use tower::ServiceExt;

    use crate::api::server::routes::rules;
    use crate::transport::http::Caller;

    use super::*;

    #[tokio::test]
    async fn every_request_of_the_api_is_read_here_too() {
        for rule in rules() {
            let path = rule.path.replace(['{', '}'], "");
            let mut request = Request::builder().method(&rule.method).uri(&path).body(RawBody::empty()).unwrap();
            request.extensions_mut().insert(Caller(EndpointId([0; 32])));
            let status = routes().oneshot(request).await.unwrap().status();
            let is_known = !matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            assert!(is_known, "{} {path}: {status}", rule.method);
        }
    }
}
