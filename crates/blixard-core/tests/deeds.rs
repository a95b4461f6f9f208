//! What nodes did for people without the others, in the audit trail.
#![allow(clippy::unwrap_used)]

mod plausible;

use blixard_core::{Actor, Change, Deed, EndpointId, NodeId, Rejection, State};
use plausible::{USER, asked, cluster, endpoint, told};

fn record(node: u64, client: EndpointId, deed: Deed, object: &str) -> Change {
    Change::RecordDeed { node: NodeId(node), client, deed, object: object.to_owned() }
}

#[test]
fn a_deed_of_one_node_is_told_as_its_client_s_and_changes_nothing_else() {
    let mut state = cluster(2);
    let before = state.clone();
    state.apply(&told(2, record(2, USER, Deed::PauseTransfer, "big on node 2"))).unwrap();
    // Who was revoked meanwhile did it all the same.
    state.apply(&told(2, record(2, endpoint(77), Deed::LimitTransfers, "node 2 up=none down=none"))).unwrap();
    let mut entries = state.audit.entries.iter().rev();
    let (last, first) = (entries.next().unwrap(), entries.next().unwrap());
    assert_eq!((first.by, first.client_name.as_deref()), (Actor::Client(USER), Some("ada")));
    assert_eq!((first.deed, first.object.as_str()), (Deed::PauseTransfer, "big on node 2"));
    assert_eq!((last.by, last.client_name.as_deref()), (Actor::Client(endpoint(77)), None));
    let unchanged = State { audit: state.audit.clone(), answered: state.answered.clone(), ..before };
    assert_eq!(state, unchanged);
}

#[test]
fn nobody_can_lay_a_deed_at_somebody_s_door() {
    let mut state = cluster(2);
    let before = state.audit.clone();
    let others_word = state.apply(&told(1, record(2, USER, Deed::PinImage, "big on node 2")));
    assert!(matches!(others_word, Err(Rejection::NotAllowed(_))), "{others_word:?}");
    let by_a_client = state.apply(&asked(5_000, record(2, USER, Deed::PinImage, "big on node 2")));
    assert!(matches!(by_a_client, Err(Rejection::NotAllowed(_))), "{by_a_client:?}");
    let not_alone = state.apply(&told(2, record(2, USER, Deed::DeleteVm, "web"))).unwrap_err();
    assert!(not_alone.to_string().contains("not a matter of one node"), "{not_alone}");
    for object in [String::new(), "x".repeat(161), "big\u{1b}[2J".to_owned()] {
        assert!(matches!(state.apply(&told(2, record(2, USER, Deed::PinImage, &object))), Err(Rejection::Invalid(_))));
    }
    assert_eq!(state.audit, before);
}
