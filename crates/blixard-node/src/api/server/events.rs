//! Requests about what happened.

use axum::extract::State;
use axum::response::Response;
use blixard_core::{Actor, Event, NodeId, State as ClusterState, VmName};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::vms::streamed;
use super::{Freshness, Json, Query, Server};
use crate::api::fault::Fault;
use crate::api::views::EventView;

/// Lines that wait for a slow reader.
const LINES_WAITING: usize = 64;

/// Which events.
#[derive(Debug, Clone, schemars::JsonSchema, Deserialize)]
pub(super) struct EventQuery {
    /// Only those after the one of this number.
    #[serde(default)]
    after: u64,
    /// Only the last so many.
    last: Option<usize>,
    vm: Option<VmName>,
    node: Option<NodeId>,
    #[serde(default)]
    stale: bool,
}

impl EventQuery {
    fn asks_for(&self, event: &Event) -> bool {
        event.number > self.after
            && self.vm.as_ref().is_none_or(|vm| event.what.vm() == Some(vm))
            && self.node.is_none_or(|node| event.what.node() == Some(node))
    }
}

fn view(state: &ClusterState, event: &Event) -> EventView {
    let by = match event.by {
        Actor::Node(node) => format!("node {node}"),
        Actor::Client(key) => state.clients.get(&key).map_or_else(|| key.short(), |client| client.name.clone()),
    };
    EventView {
        number: event.number,
        at: event.at,
        kind: event.what.words().to_owned(),
        vm: event.what.vm().cloned(),
        image: event.what.image().cloned(),
        node: event.what.node(),
        by,
        text: event.what.to_string(),
    }
}

/// The events that are asked for, oldest first.
fn find(state: &ClusterState, query: &EventQuery) -> Vec<EventView> {
    let found = state.history.events.iter().filter(|event| query.asks_for(event));
    let mut found: Vec<&Event> = found.rev().take(query.last.unwrap_or(usize::MAX)).collect();
    found.reverse();
    found.into_iter().map(|event| view(state, event)).collect()
}

pub(super) async fn list(
    State(server): State<Server>,
    Query(query): Query<EventQuery>,
) -> Result<Json<Vec<EventView>>, Fault> {
    server.read_point(Freshness { stale: query.stale }).await?;
    Ok(Json(server.inner.raft.read(|state| find(state, &query))))
}

/// What happened between what a follower has seen and what is kept, if anything did.
fn missed(state: &ClusterState, after: u64) -> Option<EventView> {
    let oldest = state.history.events.front()?;
    // The caller's number may be any, the largest included.
    let missed = oldest.number.saturating_sub(1).checked_sub(after).filter(|missed| *missed > 0)?;
    Some(EventView {
        number: oldest.number - 1,
        at: oldest.at,
        kind: "events missed".to_owned(),
        vm: None,
        image: None,
        node: None,
        by: "nobody".to_owned(),
        text: format!("{missed} events happened before this and are not kept any more"),
    })
}

/// One JSON line for each event after `after` that is asked for, as they happen, until the reader is gone.
pub(super) async fn watch(State(server): State<Server>, Query(query): Query<EventQuery>) -> Result<Response, Fault> {
    server.read_point(Freshness { stale: query.stale }).await?;
    let (send, lines) = mpsc::channel::<std::io::Result<Bytes>>(LINES_WAITING);
    tokio::spawn(async move {
        let mut query = query;
        let mut applied = server.inner.raft.watch();
        loop {
            applied.borrow_and_update();
            let (count, missed, found) = server.inner.raft.read(|state| {
                let missed = missed(state, query.after);
                (state.history.count, missed, find(state, &query))
            });
            query.after = query.after.max(count);
            for event in missed.into_iter().chain(found) {
                let Ok(mut line) = serde_json::to_vec(&event) else { return };
                line.push(b'\n');
                if send.send(Ok(line.into())).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() {
                    return;
                },
                () = send.closed() => return,
            }
        }
    });
    Ok(streamed(lines, "application/x-ndjson"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use blixard_core::{Happening, UnixMs};

    use super::*;

    fn story() -> ClusterState {
        let event = |number: u64| {
            let node = NodeId(number % 3);
            let what = match number % 2 {
                0 => Happening::NodeLost { node },
                _ => Happening::VmPlaced { vm: format!("vm-{}", number % 4).parse().unwrap(), node },
            };
            Event { number, at: UnixMs(number), by: Actor::Node(NodeId(1)), what }
        };
        let mut state = ClusterState::default();
        state.history.events = (101..=200).map(event).collect::<VecDeque<_>>();
        state.history.count = 200;
        state
    }

    fn numbers(query: &EventQuery) -> Vec<u64> {
        find(&story(), query).iter().map(|event| event.number).collect()
    }

    #[test]
    fn a_query_narrows_down() {
        let all = EventQuery { after: 0, last: None, vm: None, node: None, stale: false };
        assert_eq!(numbers(&all).len(), 100);
        assert_eq!(numbers(&EventQuery { last: Some(3), ..all.clone() }), [198, 199, 200]);
        assert_eq!(numbers(&EventQuery { after: 198, ..all.clone() }), [199, 200]);
        let vm = EventQuery { vm: Some("vm-3".parse().unwrap()), after: 190, ..all.clone() };
        assert_eq!(numbers(&vm), [191, 195, 199]);
        assert_eq!(numbers(&EventQuery { node: Some(NodeId(2)), last: Some(2), ..all }), [197, 200]);
    }

    #[test]
    fn what_is_not_kept_any_more_is_said() {
        let state = story();
        assert!(missed(&state, 50).unwrap().text.starts_with("50 events"));
        assert_eq!(missed(&state, 50).unwrap().number, 100);
        assert_eq!(missed(&state, 100), None);
        assert_eq!(missed(&state, 500), None);
        assert_eq!(missed(&state, u64::MAX), None);
        assert_eq!(missed(&ClusterState::default(), 0), None);
    }
}
