//! The secret of the documents: set once, by a member, and shown to nobody.
#![allow(clippy::unwrap_used)]

mod plausible;

use blixard_core::{Actor, BlobHash, Change, Command, ConfigFile, DocumentsSecret, Rejection, State, VmSpec};
use plausible::{asked, cluster, endpoint, spec, told, vm_id};

const FIRST: DocumentsSecret = DocumentsSecret([0xab; 32]);

#[test]
fn the_first_secret_stays() {
    let mut state = cluster(2);
    assert_eq!(state.documents_secret, None);
    state.apply(&told(1, Change::SetDocumentsSecret(FIRST))).unwrap();
    state.apply(&told(2, Change::SetDocumentsSecret(DocumentsSecret([1; 32])))).unwrap();
    assert_eq!(state.documents_secret, Some(FIRST));
    assert_eq!(State::decode(&state.encode()).unwrap().documents_secret, Some(FIRST));
}

#[test]
fn the_secret_is_in_nothing_that_people_are_shown() {
    let mut state = cluster(1);
    let before = (state.audit.clone(), state.history.clone());
    state.apply(&told(1, Change::SetDocumentsSecret(FIRST))).unwrap();
    assert_eq!(
        (&state.audit, &state.history),
        (&before.0, &before.1),
        "neither an event nor the audit trail tells of it"
    );
    let shown = format!("{state:?} {:?}", told(1, Change::SetDocumentsSecret(FIRST)));
    assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
}

#[test]
fn only_members_set_it() {
    let mut state = cluster(2);
    let by_client = state.apply(&asked(5_000, Change::SetDocumentsSecret(FIRST)));
    assert!(matches!(by_client, Err(Rejection::NotAllowed(_))), "{by_client:?}");
    let by_stranger = Command { by: Actor::Client(endpoint(99)), ..told(1, Change::SetDocumentsSecret(FIRST)) };
    assert!(matches!(state.apply(&by_stranger), Err(Rejection::NotAllowed(_))));
    assert!(matches!(state.apply(&told(9, Change::SetDocumentsSecret(FIRST))), Err(Rejection::NotAllowed(_))));
    assert_eq!(state.documents_secret, None);
}

#[test]
fn files_of_documents_are_bounded_with_all_that_cloud_init_is_given() {
    let file = |path: &str, bytes: usize| ConfigFile {
        source: format!("{path}=doc:config/a").parse().unwrap(),
        hash: BlobHash([1; 32]),
        content: vec![b'x'; bytes],
    };
    let refused = |config_files: Vec<ConfigFile>| {
        let spec = VmSpec { config_files, ..spec(0) };
        let create = Change::CreateVm { id: vm_id(1), name: "web".parse().unwrap(), spec, start: false };
        cluster(1).apply(&asked(5_000, create)).err().map(|rejection| rejection.to_string())
    };
    assert_eq!(refused(vec![file("/a", 60_000), file("/b", 5_536)]), None);
    let large = refused(vec![file("/a", 60_000), file("/b", 5_537)]).unwrap();
    assert!(large.contains("65537 bytes; at most 65536"), "{large}");
    assert!(refused(vec![file("/a", 1), file("/a", 1)]).unwrap().contains("/a is named twice"));
    let many = refused((0..33).map(|n| file(&format!("/{n}"), 1)).collect()).unwrap();
    assert!(many.contains("at most 32"), "{many}");
}
