//! Requests about clients: who may use the control API, and with which role.

use axum::extract::State;
use blixard_core::{Change, Client, EndpointId};

use super::{Asker, Body, Freshness, Json, Path, Server};
use crate::api::fault::Fault;
use crate::api::views::{ClientView, GrantClient};
use crate::clock;

fn view(client: &Client) -> ClientView {
    ClientView { id: client.key, name: client.name.clone(), role: client.role, added_at: client.added_at }
}

pub(super) async fn list(State(server): State<Server>) -> Result<Json<Vec<ClientView>>, Fault> {
    server.read_point(Freshness::default()).await?;
    let mut clients: Vec<ClientView> = server.inner.raft.read(|state| state.clients.values().map(view).collect());
    clients.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    Ok(Json(clients))
}

pub(super) async fn grant(
    State(server): State<Server>,
    Path(key): Path<EndpointId>,
    Body(asker, request): Body<GrantClient>,
) -> Result<Json<ClientView>, Fault> {
    server.read_point(Freshness::default()).await?;
    // A client keeps its name, and one without a name is known by the beginning of its key.
    let known = || server.inner.raft.read(|state| state.clients.get(&key).map(|client| client.name.clone()));
    let name = request.name.or_else(known).unwrap_or_else(|| key.short());
    let client = Client { key, name, added_at: clock::now(), role: request.role };
    server.change(asker, Change::GrantClient(client)).await?;
    server.read_point(Freshness::default()).await?;
    let granted = server.inner.raft.read(|state| state.clients.get(&key).map(view));
    granted.map(Json).ok_or_else(|| Fault::not_found("the client was revoked right after it was granted"))
}

pub(super) async fn revoke(
    State(server): State<Server>,
    asker: Asker,
    Path(key): Path<EndpointId>,
) -> Result<Json<()>, Fault> {
    server.change(asker, Change::RevokeClient(key)).await?;
    Ok(Json(()))
}
