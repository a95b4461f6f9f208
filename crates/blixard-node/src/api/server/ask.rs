//! What this node asks of other members, over the `blixard/peer/1` protocol. `peer.rs` is the far end.

use std::time::Duration;

use axum::body::Body as RawBody;
use axum::response::{IntoResponse, Response};
use blixard_core::{EndpointId, ImageId, NodeId, Part, VmId};
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Server;
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::LiveView;
use crate::api::{CLIENT_HEADER, CONSOLE_UPGRADE, LOG_POSITION_HEADER, VM_HEADER};
use crate::raft::GroupView;
use crate::transport::Protocol;
use crate::transport::http as wire;

/// The largest JSON answer of a member: a group of 1,000 nodes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long a member may take that is asked about itself: a connection that has to be made, and a small file to be written on
/// a busy disk.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// For requests that have none.
pub(super) const NO_BODY: Option<&()> = None;

/// Which part of a console log.
#[derive(Debug, Clone, Copy, schemars::JsonSchema, Deserialize)]
pub(super) struct LogQuery {
    /// Whether to go on with what the guest writes from now on.
    #[serde(default)]
    pub(super) follow: bool,
    /// Begin with the last so many bytes.
    #[serde(default = "all_of_it")]
    pub(super) tail_bytes: u64,
    /// Begin behind so many bytes of all that the guest ever wrote, as far as they are kept, instead.
    pub(super) from: Option<u64>,
}

fn all_of_it() -> u64 {
    u64::MAX
}

async fn send(server: &Server, peer: EndpointId, request: Request<RawBody>) -> Result<http::Response<Incoming>, Fault> {
    let unavailable = |error: anyhow::Error| Fault::new(FaultKind::Unavailable, format!("{error:#}"));
    let connection = server.inner.transport.connect(peer, Protocol::Peer).await.map_err(|e| unavailable(e.into()))?;
    let answer = wire::send(&connection, request).await.map_err(unavailable)?;
    if answer.status().is_success() || answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| unavailable(anyhow::anyhow!("{error}")))?.to_bytes();
    Err(serde_json::from_slice(&body).unwrap_or_else(|_| unavailable(anyhow::anyhow!("the node answered {status}"))))
}

fn get_request(path: &str) -> Result<Request<RawBody>, Fault> {
    let request = Request::get(path).header(http::header::HOST, "blixard").body(RawBody::empty());
    request.map_err(|error| Fault::bad_request(format!("{path}: {error}")))
}

/// Says for which client a member is asked, so that it can look at the role, too.
fn on_behalf(mut request: Request<RawBody>, client: EndpointId) -> Result<Request<RawBody>, Fault> {
    let text = http::HeaderValue::from_str(&client.to_string()).map_err(anyhow::Error::from)?;
    request.headers_mut().insert(CLIENT_HEADER, text);
    Ok(request)
}

async fn ask<T: DeserializeOwned>(server: &Server, peer: EndpointId, path: &str) -> Result<T, Fault> {
    read(send(server, peer, get_request(path)?).await?).await
}

async fn read<T: DeserializeOwned>(answer: http::Response<Incoming>) -> Result<T, Fault> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Fault::new(FaultKind::Unavailable, error))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| Fault::new(FaultKind::Unavailable, error))
}

/// Has a member answer what a client asks about it.
pub(super) async fn about_node<T: DeserializeOwned>(
    server: &Server,
    (node, endpoint): (NodeId, EndpointId),
    client: EndpointId,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Fault> {
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(anyhow::Error::from)?.into(),
        None => RawBody::empty(),
    };
    let request = Request::builder().method(method).uri(path).header(http::header::HOST, "blixard");
    let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
    let request = request.map_err(|error| Fault::bad_request(format!("{path}: {error}")))?;
    let asked = async { read(send(server, endpoint, on_behalf(request, client)?).await?).await };
    let silent = |why: String| Fault::new(FaultKind::Unavailable, format!("node {node} does not answer: {why}"));
    match tokio::time::timeout(NODE_PATIENCE, asked).await {
        Ok(Err(fault)) if fault.kind == FaultKind::Unavailable => Err(silent(fault.message)),
        Ok(answer) => answer,
        Err(_) => Err(silent(format!("nothing came within {} s", NODE_PATIENCE.as_secs()))),
    }
}

/// Asks a node for its view of the Raft group.
pub(super) async fn group(server: &Server, peer: EndpointId) -> Result<GroupView, Fault> {
    ask(server, peer, "/group").await
}

/// Asks a vm's node what it sees of it.
pub(super) async fn live(server: &Server, peer: EndpointId, vm: VmId, image: ImageId) -> Result<LiveView, Fault> {
    ask(server, peer, &format!("/vms/{vm}/live?image={image}")).await
}

/// Passes a vm's console log on from its node.
pub(super) async fn logs(
    server: &Server,
    peer: EndpointId,
    client: EndpointId,
    vm: VmId,
    query: LogQuery,
) -> Result<Response, Fault> {
    let from = query.from.map_or_else(String::new, |from| format!("&from={from}"));
    let path = format!("/vms/{vm}/logs?follow={}&tail_bytes={}{from}", query.follow, query.tail_bytes);
    let answer = send(server, peer, on_behalf(get_request(&path)?, client)?).await?;
    let (head, body) = answer.into_parts();
    let mut answer = RawBody::new(body.map_err(axum::Error::new)).into_response();
    for name in [http::header::CONTENT_TYPE.as_str(), LOG_POSITION_HEADER, VM_HEADER] {
        if let Some(value) = head.headers.get(name) {
            answer.headers_mut().insert(http::HeaderName::from_static(name), value.clone());
        }
    }
    Ok(answer)
}

/// Opens a vm's console on its node.
pub(super) async fn console(
    server: &Server,
    peer: EndpointId,
    client: EndpointId,
    vm: VmId,
) -> Result<hyper::upgrade::Upgraded, Fault> {
    let mut request = on_behalf(get_request(&format!("/vms/{vm}/console"))?, client)?;
    let headers = request.headers_mut();
    headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(http::header::UPGRADE, http::HeaderValue::from_static(CONSOLE_UPGRADE));
    let answer = send(server, peer, request).await?;
    hyper::upgrade::on(answer).await.map_err(|error| Fault::new(FaultKind::Unavailable, error))
}

/// Opens one part of an image on a node that holds it.
pub(super) async fn blob(
    server: &Server,
    peer: EndpointId,
    client: EndpointId,
    part: Part,
) -> Result<http::Response<Incoming>, Fault> {
    send(server, peer, on_behalf(get_request(&format!("/blobs/{}", part.hash))?, client)?).await
}
