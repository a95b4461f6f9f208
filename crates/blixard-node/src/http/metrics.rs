//! The text of `/metrics`, in the OpenMetrics format: what was counted, and how things stand at the moment of asking.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use blixard_core::{NodeId, Phase, State};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::Seen;
use super::process::Process;
use crate::metrics::{Labels, PREFIX};
use crate::raft::{GroupView, Role};
use crate::transport::PathKind;

/// Gauges with a fraction, told apart by labels.
type Fractions<const N: usize> = Family<Labels<N>, Gauge<f64, AtomicU64>>;

/// Every word for how a vm is, so that each has a sample even when it is 0.
const PHASES: &[&str] = &["pending", "preparing", "running", "stopping", "stopped", "failed", "deleting"];

/// All that there is to say now.
pub(super) fn text(seen: &Seen) -> String {
    let mut now = Registry::with_prefix(PREFIX);
    let view = seen.raft.view();
    group(&mut now, &view);
    let nodes = seen.raft.read(|state| {
        holdings(&mut now, state, view.node);
        state.nodes.values().map(|node| (node.endpoint, node.id)).collect::<BTreeMap<_, _>>()
    });
    traffic(&mut now, seen, &nodes);
    content(&mut now, seen, view.node, &nodes);
    let mut process = Registry::default();
    of_process(&mut process);
    let mut text = String::new();
    for registry in [&seen.metrics.registry, &now, &process] {
        encode_registry(&mut text, registry).expect("writing to a string does not fail");
    }
    encode_eof(&mut text).expect("writing to a string does not fail");
    text
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
}

/// This node, and how it sees the group.
fn group(now: &mut Registry, view: &GroupView) {
    let label = |name, value: String| (name, value);
    let build = [label("version", env!("CARGO_PKG_VERSION").into()), label("node", view.node.to_string())];
    now.register("build", "The version that runs, and which node of the cluster this is", Info::new(build));
    gauge(now, "raft_term", "The Raft term", view.term);
    let role = Family::<Labels<1>, Gauge>::default();
    for (word, part) in [("leader", Role::Leader), ("voter", Role::Voter), ("learner", Role::Learner)] {
        let is_part = view.role(view.node) == Some(part);
        role.get_or_create(&[("role", word.into())]).set(i64::from(is_part));
    }
    now.register("raft_role", "The part that this node has in the group: 1 for what it is", role);
    gauge(now, "raft_has_leader", "Whether a leader is known", u64::from(view.leader.is_some()));
    let leader = Family::<Labels<1>, Gauge>::default();
    if let Some(node) = view.leader {
        leader.get_or_create(&[("node", node.to_string().into())]).set(1);
    }
    now.register("raft_leader", "The node that this one takes for the leader, if it knows of one", leader);
    gauge(now, "raft_voters", "Nodes that vote", view.voters.len() as u64);
    gauge(now, "raft_learners", "Nodes that hold a replica and do not vote", view.learners.len() as u64);
    gauge(now, "raft_log_index", "The last index of the log", view.last_log);
    gauge(now, "raft_committed_index", "The last index known to be committed", view.committed);
    gauge(now, "raft_applied_index", "The last index applied", view.applied);
    gauge(now, "raft_snapshot_index", "The last index in a snapshot", view.snapshot);
    let (lag, silence) = (Family::<Labels<1>, Gauge>::default(), Fractions::<1>::default());
    for (node, matched) in view.matched.iter().filter(|(node, _)| **node != view.node) {
        let entries = i64::try_from(view.last_log.saturating_sub(*matched)).unwrap_or(i64::MAX);
        lag.get_or_create(&[("node", node.to_string().into())]).set(entries);
    }
    for (node, silent_ms) in &view.silent_ms {
        if let Some(silent_ms) = silent_ms {
            silence.get_or_create(&[("node", node.to_string().into())]).set(*silent_ms as f64 / 1000.0);
        }
    }
    now.register("raft_lag_entries", "Entries that a node's log is behind; told by the leader", lag);
    let help = "Time since a node last answered; told by the leader";
    now.register_with_unit("raft_silence", help, Unit::Seconds, silence);
}

/// What the cluster has, and what of it is on this node.
fn holdings(now: &mut Registry, state: &State, me: NodeId) {
    gauge(now, "nodes", "Members of the cluster", state.nodes.len() as u64);
    gauge(now, "images", "Images in the catalog", state.images.len() as u64);
    let bytes = state.images.values().fold(0u64, |sum, image| sum.saturating_add(image.manifest.bytes()));
    let bytes = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
    now.register_with_unit("image", "Content of all images in the catalog, one copy of each", Unit::Bytes, bytes);
    let vms = Family::<Labels<1>, Gauge>::default();
    for phase in PHASES {
        vms.get_or_create(&[("phase", (*phase).into())]).set(0);
    }
    for vm in state.vms.values() {
        let phase = match (&vm.placement, &vm.observed) {
            _ if vm.desired.deleting => "deleting",
            (None, _) => "pending",
            (Some(_), None) => "preparing",
            (Some(_), Some(observed)) => Phase::word(&observed.phase),
        };
        vms.get_or_create(&[("phase", phase.into())]).inc();
    }
    now.register("vms", "Vms of the cluster by phase", vms);
    gauge(now, "vms_placed", "Vms placed on this node", state.vms_on(me).count() as u64);
}

/// What goes through the endpoint.
fn traffic(now: &mut Registry, seen: &Seen, nodes: &BTreeMap<blixard_core::EndpointId, NodeId>) {
    let traffic = seen.transport.traffic();
    let connections = Family::<Labels<2>, Gauge>::default();
    for ((protocol, path), count) in &traffic.connections {
        let labels = [("protocol", protocol.word().into()), ("path", path.word().into())];
        connections.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    now.register("transport_connections", "Open connections by protocol and kind of path", connections);
    let by_path = |bytes: &BTreeMap<PathKind, u64>| {
        let family = Family::<Labels<1>, Counter>::default();
        for (path, bytes) in bytes {
            family.get_or_create(&[("path", path.word().into())]).inc_by(*bytes);
        }
        family
    };
    let (sent, received) = (by_path(&traffic.sent_bytes), by_path(&traffic.received_bytes));
    now.register_with_unit("transport_sent", "Bytes sent by kind of path", Unit::Bytes, sent);
    now.register_with_unit("transport_received", "Bytes received by kind of path", Unit::Bytes, received);
    let refused = ConstCounter::new(traffic.refused);
    now.register("transport_refused", "Connections refused at the handshake", refused);
    let round_trips = Fractions::<1>::default();
    // Members only: the keys of clients and strangers are without number.
    let times = traffic.peers.iter().filter_map(|(endpoint, with)| Some((endpoint, with.round_trip?)));
    for (endpoint, time) in times {
        if let Some(node) = nodes.get(endpoint) {
            round_trips.get_or_create(&[("node", node.to_string().into())]).set(time.as_secs_f64());
        }
    }
    let help = "The shortest round trip to a node over an open connection";
    now.register_with_unit("transport_round_trip", help, Unit::Seconds, round_trips);
}

/// Image content that went between this node and the others.
fn content(now: &mut Registry, seen: &Seen, me: NodeId, nodes: &BTreeMap<blixard_core::EndpointId, NodeId>) {
    let family = Family::<Labels<2>, Counter>::default();
    for (direction, counted) in [("sent", &seen.sent_bytes), ("received", &seen.received_bytes)] {
        let counted = counted.read();
        for (endpoint, node) in nodes.iter().filter(|(_, node)| **node != me) {
            let labels = [("direction", direction.into()), ("node", node.to_string().into())];
            family.get_or_create(&labels).inc_by(counted.get(endpoint).copied().unwrap_or(0));
        }
    }
    let help = "Image content that went between this node and each of the others; sent, with the hashes that prove it";
    now.register_with_unit("image_moved", help, Unit::Bytes, family);
    let help = "Image content received, by whether somebody waited for it, a boot was known to read it, or neither";
    now.register_with_unit("image_received", help, Unit::Bytes, seen.received_why.clone());
}

fn of_process(registry: &mut Registry) {
    let process = Process::look();
    if let Some(seconds) = process.cpu_seconds {
        let help = "Time on processors, in user and kernel mode";
        registry.register_with_unit("process_cpu", help, Unit::Seconds, ConstCounter::new(seconds));
    }
    if let Some(bytes) = process.resident_bytes {
        let help = "Memory in use";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, ConstGauge::new(bytes));
    }
    if let Some(fds) = process.open_fds {
        registry.register("process_open_fds", "Open files, sockets included", ConstGauge::new(fds));
    }
    if let Some(seconds) = process.start_seconds {
        let help = "When the process started, since 1970";
        registry.register_with_unit("process_start_time", help, Unit::Seconds, ConstGauge::new(seconds));
    }
}
