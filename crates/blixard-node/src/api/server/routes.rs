//! Every request of the control API, with the least role that may make it: the one place where this is decided for requests,
//! as [`Change::least_role`](blixard_core::Change::least_role) is for what they write.
//!
//! A route cannot be added without a role. A viewer sees what there is and what was done; an operator changes vms and
//! images, and reaches what is inside them; an admin changes what the cluster is and who has a part in it.

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use blixard_core::ClientRole;
use blixard_core::ClientRole::{Admin, Operator, Viewer};
use http::Method;

use super::{Server, audit, clients, cluster, events, images, tokens, vms};
use crate::api::fault::{Fault, FaultKind};
use crate::transport::http::Caller;

/// A request of the control API.
struct Route {
    rule: Rule,
    handler: MethodRouter<Server>,
}

/// Who may make a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its method.
    pub method: Method,
    /// Its path, with the names of its parts in braces.
    pub path: &'static str,
    /// The least role of a client that may make it.
    pub least: ClientRole,
}

fn route<T: 'static>(least: ClientRole, method: Method, path: &'static str, handler: impl Handler<T, Server>) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("the methods of this table are those of HTTP");
    Route { rule: Rule { method, path, least }, handler: on(filter, handler) }
}

fn table() -> Vec<Route> {
    vec![
        route(Viewer, Method::GET, "/v1/cluster", cluster::show),
        route(Admin, Method::PUT, "/v1/cluster/settings", cluster::change_settings),
        route(Admin, Method::POST, "/v1/cluster/leave", cluster::leave),
        route(Admin, Method::POST, "/v1/nodes/{node}/remove", cluster::remove),
        route(Viewer, Method::GET, "/v1/events", events::list),
        route(Viewer, Method::GET, "/v1/events/watch", events::watch),
        route(Admin, Method::GET, "/v1/tokens", tokens::list),
        route(Admin, Method::POST, "/v1/tokens", tokens::create),
        route(Admin, Method::DELETE, "/v1/tokens/{token}", tokens::revoke),
        route(Admin, Method::GET, "/v1/clients", clients::list),
        route(Admin, Method::PUT, "/v1/clients/{client}", clients::grant),
        route(Admin, Method::DELETE, "/v1/clients/{client}", clients::revoke),
        route(Viewer, Method::GET, "/v1/audit", audit::list),
        route(Viewer, Method::GET, "/v1/audit/watch", audit::watch),
        route(Operator, Method::POST, "/v1/blobs", images::upload),
        route(Viewer, Method::GET, "/v1/images", images::list),
        route(Operator, Method::POST, "/v1/images", images::add),
        route(Viewer, Method::GET, "/v1/images/{name}", images::show),
        route(Operator, Method::DELETE, "/v1/images/{name}", images::delete),
        route(Operator, Method::GET, "/v1/images/{name}/parts/{part}", images::export),
        route(Viewer, Method::GET, "/v1/vms", vms::list),
        route(Operator, Method::POST, "/v1/vms", vms::create),
        route(Viewer, Method::GET, "/v1/vms/{name}", vms::show),
        route(Operator, Method::DELETE, "/v1/vms/{name}", vms::delete),
        route(Operator, Method::POST, "/v1/vms/{name}/start", vms::start),
        route(Operator, Method::POST, "/v1/vms/{name}/stop", vms::stop),
        route(Operator, Method::POST, "/v1/vms/{name}/restart", vms::restart),
        route(Viewer, Method::GET, "/v1/vms/{name}/explain", vms::explain),
        route(Viewer, Method::GET, "/v1/vms/{name}/watch", vms::watch),
        route(Viewer, Method::GET, "/v1/vms/{name}/logs", vms::logs),
        route(Operator, Method::GET, "/v1/vms/{name}/console", vms::console),
    ]
}

/// Who may make which request, in the order of the paths.
pub fn rules() -> Vec<Rule> {
    table().into_iter().map(|route| route.rule).collect()
}

/// The router of the whole table.
pub(super) fn all(server: &Server) -> Router<Server> {
    table().into_iter().fold(Router::new(), |router, Route { rule, handler }| {
        let gate = from_fn_with_state((server.clone(), rule.least), gate);
        router.route(rule.path, handler.route_layer(gate))
    })
}

/// Lets a request pass whose caller has the role for it.
async fn gate(
    State((server, least)): State<(Server, ClientRole)>,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let caller = request.extensions().get::<Caller>().copied();
    let caller = caller.ok_or_else(|| Fault::new(FaultKind::Forbidden, "the caller is not known"))?;
    if let Err(fault) = server.permit(caller.0, least).await {
        let path = request.uri().path();
        tracing::info!(client = %caller.0.short(), method = %request.method(), path, "a request was forbidden");
        return Err(fault);
    }
    Ok(next.run(request).await)
}
