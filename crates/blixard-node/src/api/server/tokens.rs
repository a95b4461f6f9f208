//! Requests about join tokens.

use axum::extract::State;
use blixard_core::{Change, Token, TokenId, UnixMs};

use super::{Asker, Body, Freshness, Json, Path, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{CreateToken, CreatedToken, TokenView};
use crate::clock;
use crate::transport::{Ticket, TicketSecret};

/// Nodes named in a ticket: any of them can let a joiner in.
const TICKET_PEERS_MAX: usize = 8;

fn view(token: &Token, now: UnixMs) -> TokenView {
    let state = if token.revoked {
        "revoked"
    } else if token.expires_at.is_some_and(|at| at <= now) {
        "expired"
    } else if token.uses_left == Some(0) {
        "used up"
    } else {
        "valid"
    };
    TokenView {
        id: token.id,
        state: state.into(),
        uses_left: token.uses_left,
        expires_at: token.expires_at,
        created_at: token.created_at,
    }
}

/// A new token and the secret that only its ticket will hold.
pub(crate) fn mint(ttl_ms: Option<u64>, uses: Option<u32>) -> anyhow::Result<(Token, TicketSecret)> {
    let mut secret = TicketSecret { token: TokenId([0; 8]), secret: [0; 32] };
    getrandom::fill(&mut secret.token.0)?;
    getrandom::fill(&mut secret.secret)?;
    let now = clock::now();
    let token = Token {
        id: secret.token,
        secret_hash: secret.hash(),
        uses_left: uses,
        expires_at: ttl_ms.map(|ttl_ms| now.plus_ms(ttl_ms)),
        revoked: false,
        created_at: now,
    };
    Ok((token, secret))
}

pub(super) async fn create(
    State(server): State<Server>,
    Body(asker, request): Body<CreateToken>,
) -> Result<Json<CreatedToken>, Fault> {
    if request.uses == Some(0) || request.ttl_ms == Some(0) {
        return Err(Fault::bad_request(
            "a token that nobody can use makes no sense: give at least one use and some time",
        ));
    }
    let (token, secret) = mint(request.ttl_ms, request.uses)?;
    let view = view(&token, clock::now());
    server.change(asker, Change::CreateToken(token)).await?;
    server.read_point(Freshness::default()).await?;
    if !server.inner.raft.read(|state| state.tokens.contains_key(&view.id)) {
        // This was a retry: the first try made the token, and its secret was lost with its answer.
        let text = "the token was made, but its ticket was lost on the way: revoke it and make another";
        return Err(Fault::new(FaultKind::Unknown, text));
    }
    let cluster = server.inner.raft.read(|state| state.cluster);
    let cluster = cluster.ok_or_else(|| Fault::not_found("this node is not part of a cluster yet"))?;
    let peers = server.addresses(TICKET_PEERS_MAX);
    let ticket = Ticket { cluster, peers, secret: Some(secret) }.to_string();
    Ok(Json(CreatedToken { ticket, token: view }))
}

pub(super) async fn list(State(server): State<Server>) -> Result<Json<Vec<TokenView>>, Fault> {
    server.read_point(Freshness::default()).await?;
    let now = clock::now();
    Ok(Json(server.inner.raft.read(|state| state.tokens.values().map(|token| view(token, now)).collect())))
}

pub(super) async fn revoke(
    State(server): State<Server>,
    asker: Asker,
    Path(token): Path<TokenId>,
) -> Result<Json<()>, Fault> {
    server.change(asker, Change::RevokeToken(token)).await?;
    Ok(Json(()))
}
