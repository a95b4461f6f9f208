//! Requests about vms.

use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::{Request as AxumRequest, State};
use axum::response::{IntoResponse, Response};
use blixard_core::{Answer, Change, EndpointId, NodeId, Verdict, Vm, VmId, VmName, VmSpec, limits};
use blixard_hypervisor::ConsoleError;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::ask;
use super::view::vm_views;
use super::{Asker, Body, Freshness, Json, Path, Query, Server};
use crate::api::CONSOLE_UPGRADE;
use crate::api::fault::{Fault, FaultKind};
use crate::api::relay::relay;
use crate::api::views::{CreateVm, ExplainView, StopVm, VerdictView, VmView};

/// How often a watched vm is looked at while its image is on its way, for the progress that is not in the state.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How often a watched vm is looked at otherwise, though the state did not change: its node may have fallen silent.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Pieces of a log or watch that wait for a slow reader.
pub(super) const PIECES_WAITING: usize = 16;

fn no_such(name: &VmName) -> Fault {
    Fault::not_found(format!("there is no vm named {name}"))
}

/// The vm of a name, current as of this call.
pub(super) async fn find(server: &Server, name: &VmName) -> Result<Vm, Fault> {
    server.read_point(Freshness::default()).await?;
    server.inner.raft.read(|state| state.vm_named(name).cloned()).ok_or_else(|| no_such(name))
}

pub(super) async fn list(
    State(server): State<Server>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<Vec<VmView>>, Fault> {
    server.read_point(freshness).await?;
    let seen = server.group_seen().await;
    let mut vms = server.inner.raft.read(|state| vm_views(state, &seen));
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(vms))
}

pub(super) async fn show(
    State(server): State<Server>,
    Path(name): Path<VmName>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<VmView>, Fault> {
    server.read_point(freshness).await?;
    let id = server.inner.raft.read(|state| state.vm_named(&name).map(|vm| vm.id));
    server.vm_view(id.ok_or_else(|| no_such(&name))?).await.map(Json).ok_or_else(gone)
}

fn gone() -> Fault {
    Fault::not_found("the vm is gone")
}

pub(super) async fn create(
    State(server): State<Server>,
    Body(asker, request): Body<CreateVm>,
) -> Result<Json<VmView>, Fault> {
    server.read_point(Freshness::default()).await?;
    if let Some(answer) = server.answered(asker) {
        return changed(&server, answer?).await;
    }
    let image = server.inner.raft.read(|state| state.image_named(&request.image).cloned());
    let image = image.ok_or_else(|| Fault::not_found(format!("there is no image named {}", request.image)))?;
    let base_mib = image.manifest.disk().map_or(0, |disk| disk.virtual_bytes.div_ceil(1 << 20));
    let disk_mib = request.disk_mib.unwrap_or(base_mib);
    if disk_mib < base_mib {
        let text = format!("a disk of {disk_mib} MiB is smaller than that of image {}, {base_mib} MiB", image.name);
        return Err(Fault::new(FaultKind::Conflict, text));
    }
    let config_files = server.config_files(request.config_files).await?;
    let mut id = VmId([0; 16]);
    getrandom::fill(&mut id.0).map_err(|error| Fault::new(FaultKind::Internal, error))?;
    let spec = VmSpec {
        image: image.id,
        image_name: image.name,
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        disk_mib,
        publish: request.publish,
        seed: request.seed,
        require: request.require,
        anti_affinity: request.anti_affinity,
        strategy: request.strategy,
        node: request.node,
        restart: request.restart,
        config_files,
        lazy: request.lazy,
    };
    let create = Change::CreateVm { id, name: request.name, spec, start: request.start };
    changed(&server, server.change(asker, create).await?).await
}

/// Has a change to the vm of a name written.
async fn change(
    server: &Server,
    asker: Asker,
    name: &VmName,
    change: impl FnOnce(VmId) -> Change,
) -> Result<Answer, Fault> {
    server.read_point(Freshness::default()).await?;
    if let Some(answer) = server.answered(asker) {
        return answer;
    }
    let id = server.inner.raft.read(|state| state.vm_named(name).map(|vm| vm.id)).ok_or_else(|| no_such(name))?;
    server.change(asker, change(id)).await
}

/// The vm that a change was about, as it was written.
async fn changed(server: &Server, written: Answer) -> Result<Json<VmView>, Fault> {
    let Answer::Vm { id, .. } = written else { return Err(Fault::wrong_answer()) };
    server.read_point(Freshness::default()).await?;
    server.written_vm(id).map(Json).ok_or_else(gone)
}

pub(super) async fn start(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<VmName>,
) -> Result<Json<VmView>, Fault> {
    changed(&server, change(&server, asker, &name, Change::StartVm).await?).await
}

pub(super) async fn stop(
    State(server): State<Server>,
    Path(name): Path<VmName>,
    Body(asker, request): Body<StopVm>,
) -> Result<Json<VmView>, Fault> {
    let timeout_ms = request.timeout_ms.unwrap_or(limits::STOP_TIMEOUT_MS_DEFAULT);
    changed(&server, change(&server, asker, &name, |id| Change::StopVm { id, timeout_ms }).await?).await
}

pub(super) async fn restart(
    State(server): State<Server>,
    Path(name): Path<VmName>,
    Body(asker, request): Body<StopVm>,
) -> Result<Json<VmView>, Fault> {
    let timeout_ms = request.timeout_ms.unwrap_or(limits::STOP_TIMEOUT_MS_DEFAULT);
    changed(&server, change(&server, asker, &name, |id| Change::RestartVm { id, timeout_ms }).await?).await
}

pub(super) async fn delete(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<VmName>,
) -> Result<Json<()>, Fault> {
    change(&server, asker, &name, Change::DeleteVm).await?;
    Ok(Json(()))
}

pub(super) async fn explain(
    State(server): State<Server>,
    Path(name): Path<VmName>,
) -> Result<Json<ExplainView>, Fault> {
    let vm = find(&server, &name).await?;
    let seen = server.group_seen().await;
    if !seen.by_leader {
        return Err(Fault::new(FaultKind::NoLeader, "the leader cannot be asked which nodes it hears from: try again"));
    }
    let verdicts = server.inner.raft.read(|state| state.explain(&vm, &seen.reachable));
    let verdict = |verdict: blixard_core::NodeVerdict| VerdictView {
        node: verdict.node,
        fits: verdict.verdict.fits(),
        rank: verdict.verdict.rank(),
        sort: match &verdict.verdict {
            Verdict::Refused(reason) => Some(reason.sort()),
            Verdict::Placed | Verdict::Chosen(_) | Verdict::Fits { .. } => None,
        },
        text: verdict.verdict.to_string(),
    };
    let verdicts = verdicts.into_iter().map(verdict).collect();
    Ok(Json(ExplainView { vm: vm.name, node: vm.placement.map(|placement| placement.node), verdicts }))
}

/// One JSON line now and one whenever the vm has changed, until it is gone or the reader is.
pub(super) async fn watch(State(server): State<Server>, Path(name): Path<VmName>) -> Result<Response, Fault> {
    let id = find(&server, &name).await?.id;
    let (send, lines) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_WAITING);
    tokio::spawn(async move {
        let mut applied = server.inner.raft.watch();
        let mut last = None;
        loop {
            applied.borrow_and_update();
            let Some(view) = server.vm_view(id).await else { return };
            let pace = if view.phase == "preparing" { PROGRESS_EVERY } else { WATCH_EVERY };
            if last.as_ref() != Some(&view) {
                let Ok(mut line) = serde_json::to_vec(&view) else { return };
                line.push(b'\n');
                if send.send(Ok(line.into())).await.is_err() {
                    return;
                }
                last = Some(view);
            }
            tokio::select! {
                _ = applied.changed() => {}
                () = tokio::time::sleep(pace) => {}
                () = send.closed() => return,
            }
        }
    });
    Ok(streamed(lines, "application/x-ndjson"))
}

pub(super) fn streamed(pieces: mpsc::Receiver<std::io::Result<Bytes>>, content_type: &'static str) -> Response {
    let pieces = futures::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    ([(header::CONTENT_TYPE, content_type)], RawBody::from_stream(pieces)).into_response()
}

/// The node that a vm is placed on, if it is another one.
pub(super) fn elsewhere(server: &Server, vm: &Vm) -> Result<Option<(NodeId, EndpointId)>, Fault> {
    let placement = vm.placement.ok_or_else(|| {
        Fault::new(
            FaultKind::Conflict,
            format!("vm {} is not placed on a node yet: see `blixard vm explain {}`", vm.name, vm.name),
        )
    })?;
    if placement.node == server.inner.me {
        return Ok(None);
    }
    let endpoint = server.inner.raft.read(|state| state.nodes.get(&placement.node).map(|node| node.endpoint));
    let place = endpoint.map(|endpoint| (placement.node, endpoint));
    place.map(Some).ok_or_else(|| Fault::not_found(format!("node {} is gone", placement.node)))
}

/// Says which node could not be reached: the asked one was.
pub(super) fn not_reached(node: NodeId, name: &VmName, fault: Fault) -> Fault {
    match fault.kind {
        FaultKind::Unavailable => {
            Fault::new(fault.kind, format!("node {node}, which has vm {name}, cannot be reached: {}", fault.message))
        }
        _ => fault,
    }
}

pub(super) async fn console(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<VmName>,
    request: AxumRequest,
) -> Result<Response, Fault> {
    let vm = find(&server, &name).await?;
    match elsewhere(&server, &vm)? {
        None => console_here(&server, vm.id, request).await,
        Some((node, endpoint)) => {
            let far = ask::console(&server, endpoint, asker.caller.0, vm.id).await;
            upgrade(request, TokioIo::new(far.map_err(|fault| not_reached(node, &vm.name, fault))?))
        }
    }
}

/// The console of a vm on this node.
pub(super) async fn console_here(server: &Server, vm: VmId, request: AxumRequest) -> Result<Response, Fault> {
    let console = server.inner.agent.console(vm).await.map_err(|error| match error {
        ConsoleError::Unknown { .. } | ConsoleError::NotRunning => Fault::new(
            FaultKind::Conflict,
            "the vm does not run, so it has no console: `blixard vm logs` shows what it printed",
        ),
        ConsoleError::Connect(_) => Fault::from(anyhow::Error::from(error)),
    })?;
    let open = || -> std::io::Result<_> {
        console.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(console)
    };
    let console = open().map_err(|error| Fault::new(FaultKind::Internal, error))?;
    upgrade(request, console)
}

/// Answers that the stream now carries a console, and passes its bytes on.
fn upgrade(
    request: AxumRequest,
    console: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
) -> Result<Response, Fault> {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value == CONSOLE_UPGRADE);
    if !asked {
        return Err(Fault::bad_request(format!("a console is asked for with `Upgrade: {CONSOLE_UPGRADE}`")));
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(viewer) => {
                if let Err(error) = relay(TokioIo::new(viewer), console).await {
                    tracing::debug!(%error, "a console ended");
                }
            }
            Err(error) => tracing::debug!(%error, "a console was asked for and not opened"),
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(CONSOLE_UPGRADE)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
