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
use blixard_core::NodeId;
use http::Method;
use schemars::SchemaGenerator;

use super::extract::{Inputs, Operation, reader};
use super::openapi::{Answer, Document, bytes, console, json, lines};
use super::{
    Server, audit, cache, catalogs, clients, cluster, compare, documents, events, images, logs, peers, queue, shares,
    tokens, transfers, vms,
};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{
    AuditView, BlobView, CatalogView, ClientView, ClusterView, CollectedView, ComparedView, CreatedDocumentShare,
    CreatedShare, CreatedToken, DocumentShareView, DocumentView, EntryView, EventView, ExplainView, ImageView,
    LimitsView, NodeCacheView, NodeSharesView, NodeTransfersView, PeerView, PullView, TokenView, VerificationView,
    VmView,
};
use crate::transport::http::Caller;

/// A request of the control API.
struct Route {
    rule: Rule,
    handler: MethodRouter<Server>,
    reader: MethodRouter,
    summary: &'static str,
    describe: fn(&mut Operation, &mut SchemaGenerator),
    answer: Answer,
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

/// A row of the table. What the request takes is read from the handler; `answer` says what it gives.
fn route<T: Inputs + 'static>(
    least: ClientRole,
    method: Method,
    path: &'static str,
    handler: impl Handler<T, Server>,
    summary: &'static str,
    answer: Answer,
) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("the methods of this table are those of HTTP");
    let (handler, reader) = (on(filter, handler), reader::<T>(filter));
    Route { rule: Rule { method, path, least }, handler, reader, summary, describe: T::describe, answer }
}

fn table() -> Vec<Route> {
    vec![
        route(Viewer, Method::GET, "/v1/cluster", cluster::show, "Show the cluster.", json::<ClusterView>),
        route(
            Admin,
            Method::PUT,
            "/v1/cluster/settings",
            cluster::change_settings,
            "Change the settings of the cluster.",
            json::<ClusterView>,
        ),
        route(
            Admin,
            Method::POST,
            "/v1/cluster/leave",
            cluster::leave,
            "Take the node that is asked out of the cluster.",
            json::<NodeId>,
        ),
        route(
            Admin,
            Method::POST,
            "/v1/nodes/{node}/remove",
            cluster::remove,
            "Remove a node from the cluster.",
            json::<()>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/peers",
            peers::list,
            "List the other nodes as one of them finds them, as sources of images.",
            json::<Vec<PeerView>>,
        ),
        route(Viewer, Method::GET, "/v1/events", events::list, "List what happened.", json::<Vec<EventView>>),
        route(Viewer, Method::GET, "/v1/events/watch", events::watch, "Follow what happens.", lines::<EventView>),
        route(Admin, Method::GET, "/v1/tokens", tokens::list, "List the join tokens.", json::<Vec<TokenView>>),
        route(Admin, Method::POST, "/v1/tokens", tokens::create, "Make a join token.", json::<CreatedToken>),
        route(Admin, Method::DELETE, "/v1/tokens/{token}", tokens::revoke, "Revoke a join token.", json::<()>),
        route(Admin, Method::GET, "/v1/clients", clients::list, "List the clients.", json::<Vec<ClientView>>),
        route(Admin, Method::PUT, "/v1/clients/{client}", clients::grant, "Give a client a role.", json::<ClientView>),
        route(Admin, Method::DELETE, "/v1/clients/{client}", clients::revoke, "Take a client its access.", json::<()>),
        route(Viewer, Method::GET, "/v1/audit", audit::list, "List who asked for which write.", json::<Vec<AuditView>>),
        route(
            Viewer,
            Method::GET,
            "/v1/audit/watch",
            audit::watch,
            "Follow who asks for which write.",
            lines::<AuditView>,
        ),
        route(Operator, Method::POST, "/v1/blobs", images::upload, "Upload a blob for an image.", json::<BlobView>),
        route(Viewer, Method::GET, "/v1/images", images::list, "List the images.", json::<Vec<ImageView>>),
        route(Operator, Method::POST, "/v1/images", images::add, "Make an image of uploaded blobs.", json::<ImageView>),
        route(Viewer, Method::GET, "/v1/images/{name}", images::show, "Show an image.", json::<ImageView>),
        route(
            Operator,
            Method::DELETE,
            "/v1/images/{name}",
            images::delete,
            "Remove an image from the catalog.",
            json::<()>,
        ),
        route(
            Operator,
            Method::GET,
            "/v1/images/{name}/compare",
            compare::compare,
            "Compare an image's disk with that of another.",
            json::<ComparedView>,
        ),
        route(
            Operator,
            Method::GET,
            "/v1/images/{name}/parts/{part}",
            images::export,
            "Read a part of an image.",
            bytes,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/images/{name}/fetch",
            queue::fetch,
            "Have a node fetch an image.",
            json::<NodeId>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/images/{name}/pin",
            cache::pin,
            "Keep an image on a node whatever happens.",
            json::<NodeId>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/images/{name}/unpin",
            cache::unpin,
            "Keep an image on a node only while it is needed and there is room.",
            json::<NodeId>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/images/{name}/verify",
            cache::verify,
            "Have a node read its copy of an image again, and fetch it again if it is damaged.",
            json::<VerificationView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/images/{name}/verify",
            cache::verification,
            "Show how the verification of a node's copy goes, or how the last one went.",
            json::<VerificationView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/cache",
            cache::list,
            "List what images take of each node, and which of them would go.",
            json::<Vec<NodeCacheView>>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/cache/gc",
            cache::collect,
            "Have a node remove what nothing keeps.",
            json::<CollectedView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/transfers",
            queue::list,
            "List what is on its way to each node.",
            json::<Vec<NodeTransfersView>>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/transfers/{name}/pause",
            queue::pause,
            "Let an image on its way to a node wait.",
            json::<NodeId>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/transfers/{name}/resume",
            queue::resume,
            "Let an image on its way to a node go on, or try again.",
            json::<NodeId>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/transfers/{name}/cancel",
            queue::cancel,
            "Give up an image that was asked for with a request to fetch it.",
            json::<NodeId>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/transfers/limits",
            transfers::limits,
            "Show how fast a node sends and receives image content, at most.",
            json::<LimitsView>,
        ),
        route(
            Operator,
            Method::PUT,
            "/v1/transfers/limits",
            transfers::set_limits,
            "Set how fast a node sends and receives image content, at most.",
            json::<LimitsView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/shares",
            shares::list,
            "List what each node shares with those who have a ticket.",
            json::<Vec<NodeSharesView>>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/shares",
            shares::create,
            "Share what was uploaded to the node that is asked: a listing, and the content that it names.",
            json::<CreatedShare>,
        ),
        route(
            Operator,
            Method::DELETE,
            "/v1/shares/{share}",
            shares::stop,
            "Share something no longer. Fetches that are under way end.",
            json::<NodeId>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/catalogs",
            catalogs::list,
            "List the images that this cluster publishes, and those of clusters that it follows.",
            json::<Vec<CatalogView>>,
        ),
        route(
            Operator,
            Method::PUT,
            "/v1/catalogs/catalog/images/{name}",
            catalogs::publish,
            "Publish an image of this cluster for those who have the catalog's ticket.",
            json::<()>,
        ),
        route(
            Operator,
            Method::DELETE,
            "/v1/catalogs/catalog/images/{name}",
            catalogs::withdraw,
            "Take a published image back. What others have pulled is theirs.",
            json::<()>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/catalogs/{document}/images/{name}/pull",
            catalogs::pull,
            "Have the asked node pull an image of a cluster that is followed, or say how far that is.",
            json::<PullView>,
        ),
        route(Viewer, Method::GET, "/v1/documents", documents::list, "List the documents.", json::<Vec<DocumentView>>),
        route(
            Operator,
            Method::PUT,
            "/v1/documents/{document}",
            documents::create,
            "Create a document, unless it is there already.",
            json::<()>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/documents/{document}/shares",
            documents::shares,
            "List the tickets with which other clusters may have a document.",
            json::<Vec<DocumentShareView>>,
        ),
        route(
            Operator,
            Method::POST,
            "/v1/documents/{document}/shares",
            documents::share,
            "Share a document with whoever gets the ticket, for reading or for writing as well.",
            json::<CreatedDocumentShare>,
        ),
        route(
            Operator,
            Method::DELETE,
            "/v1/documents/{document}/shares/{share}",
            documents::stop_share,
            "Have a ticket of a document open nothing any more.",
            json::<()>,
        ),
        route(
            Operator,
            Method::PUT,
            "/v1/documents/{document}/origin",
            documents::join,
            "Follow a document of another cluster, with its ticket, under a name that is free here.",
            json::<()>,
        ),
        route(
            Operator,
            Method::DELETE,
            "/v1/documents/{document}/origin",
            documents::leave,
            "Follow a document of another cluster no longer, and let go of what is here of it.",
            json::<()>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/documents/{document}/entries",
            documents::entries,
            "List the keys of a document, with who wrote them when.",
            json::<Vec<EntryView>>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/documents/{document}/watch",
            documents::watch,
            "Follow the keys of a document.",
            lines::<EntryView>,
        ),
        route(Viewer, Method::GET, "/v1/documents/{document}/value", documents::get, "Read the value of a key.", bytes),
        route(
            Operator,
            Method::PUT,
            "/v1/documents/{document}/value",
            documents::set,
            "Write the value of a key, of at most 1 MiB.",
            json::<EntryView>,
        ),
        route(
            Operator,
            Method::DELETE,
            "/v1/documents/{document}/value",
            documents::delete,
            "Delete a key.",
            json::<EntryView>,
        ),
        route(Viewer, Method::GET, "/v1/vms", vms::list, "List the vms.", json::<Vec<VmView>>),
        route(Operator, Method::POST, "/v1/vms", vms::create, "Create a vm.", json::<VmView>),
        route(Viewer, Method::GET, "/v1/vms/{name}", vms::show, "Show a vm.", json::<VmView>),
        route(Operator, Method::DELETE, "/v1/vms/{name}", vms::delete, "Delete a vm with its disk.", json::<()>),
        route(Operator, Method::POST, "/v1/vms/{name}/start", vms::start, "Start a vm.", json::<VmView>),
        route(Operator, Method::POST, "/v1/vms/{name}/stop", vms::stop, "Stop a vm.", json::<VmView>),
        route(Operator, Method::POST, "/v1/vms/{name}/restart", vms::restart, "Restart a vm.", json::<VmView>),
        route(
            Viewer,
            Method::GET,
            "/v1/vms/{name}/explain",
            vms::explain,
            "Explain why a vm is, or is not, on each node.",
            json::<ExplainView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/vms/{name}/watch",
            vms::watch,
            "Follow a vm until it is gone.",
            lines::<VmView>,
        ),
        route(
            Viewer,
            Method::GET,
            "/v1/vms/{name}/logs",
            logs::show,
            "Read what the guest wrote to its serial console. `x-blixard-log-position` says where the answer begins.",
            bytes,
        ),
        route(Operator, Method::GET, "/v1/vms/{name}/console", vms::console, "Sit at the serial console.", console),
    ]
}

/// Who may make which request, in the order of the paths.
pub fn rules() -> Vec<Rule> {
    table().into_iter().map(|route| route.rule).collect()
}

/// The OpenAPI document of the whole table.
pub fn openapi() -> serde_json::Value {
    let mut document = Document::new();
    for Route { rule, summary, describe, answer, .. } in table() {
        let least = rule.least.to_string();
        document.add((rule.method.as_str(), rule.path, &least), summary, describe, answer);
    }
    document.finish()
}

/// What reads each request of the table.
pub(super) fn readers() -> impl Iterator<Item = (&'static str, MethodRouter)> {
    table().into_iter().map(|route| (route.rule.path, route.reader))
}

/// The router of the whole table.
pub(super) fn all(server: &Server) -> Router<Server> {
    table().into_iter().fold(Router::new(), |router, Route { rule, handler, .. }| {
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
