//! A client that writes without a pause and remembers what was acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use blixard_node::api::{Client, ClientError, CreateVm, FaultKind};

use crate::cluster::Cluster;
use crate::program::eventually;

/// Every so many vms one is deleted again.
const DELETE_EVERY: usize = 4;

/// What the writer was told.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    /// Vms whose creation was acknowledged.
    pub(crate) there: BTreeSet<String>,
    /// Vms whose deletion was acknowledged.
    pub(crate) gone: BTreeSet<String>,
    /// Vms of which nobody can know.
    pub(crate) unknown: BTreeSet<String>,
    /// When each acknowledged request was sent, and when the answer came.
    pub(crate) answers: Vec<(Instant, Instant)>,
}

impl Promised {
    /// Takes in what another writer was told later.
    pub(crate) fn add(&mut self, later: Self) {
        self.there.extend(later.there);
        self.gone.extend(later.gone);
        self.unknown.extend(later.unknown);
        self.answers.extend(later.answers);
    }

    /// Deletes all vms that are there, through a node.
    #[track_caller]
    pub(crate) fn clear_out(&mut self, cluster: &Cluster, id: usize) {
        let (runtime, client) = cluster.client(id);
        let list = cluster.ask(id, &["vm", "list"]).expect("the node answers");
        for vm in list.as_array().unwrap() {
            let name: blixard_core::VmName = vm["name"].as_str().unwrap().parse().unwrap();
            eventually("the deletion of a vm", || {
                let deleted = runtime.block_on(client.delete_vm(&name));
                // One whose answer was lost is found to be done.
                let is_gone = matches!(&deleted, Err(ClientError::Fault(fault)) if fault.kind == FaultKind::NotFound);
                (deleted.is_ok() || is_gone).then_some(())
            });
            self.there.remove(name.as_str());
            self.gone.insert(name.to_string());
        }
        runtime.block_on(client.close());
    }

    /// Holds the cluster to its promises, as far as one node knows.
    #[track_caller]
    pub(crate) fn is_kept(&self, cluster: &Cluster, id: usize) {
        let list = cluster.ask(id, &["vm", "list"]).expect("the node answers");
        let names: BTreeSet<String> =
            list.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
        let lost: Vec<_> = self.there.difference(&names).filter(|name| !self.unknown.contains(*name)).collect();
        assert!(lost.is_empty(), "node {id} has lost {lost:?}");
        let back: Vec<_> = self.gone.intersection(&names).collect();
        assert!(back.is_empty(), "on node {id} these are back: {back:?}");
        println!("node {id} keeps {} acknowledged writes", self.there.len() + 2 * self.gone.len());
    }
}

/// A running writer.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Promised>,
}

impl Writer {
    /// Starts to write vms of an image through a node. The prefix tells the vms of several writers apart.
    pub(crate) fn start(cluster: &Cluster, id: usize, prefix: &str) -> Self {
        let (runtime, client) = cluster.client(id);
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, prefix) = (stop.clone(), count.clone(), prefix.to_owned());
        let thread = std::thread::spawn(move || {
            let promised = runtime.block_on(write(&client, &prefix, &stopped, &counted));
            runtime.block_on(client.close());
            promised
        });
        Self { stop, count, thread }
    }

    /// Waits until so many more requests were acknowledged.
    #[track_caller]
    pub(crate) fn goes_on_for(&self, more: usize) {
        let goal = self.count.load(Ordering::Relaxed) + more;
        eventually("further acknowledged writes", || {
            assert!(!self.thread.is_finished(), "the writer has failed");
            (self.count.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Holds that it has not failed.
    #[track_caller]
    pub(crate) fn is_alive(&self) {
        assert!(!self.thread.is_finished(), "the writer has failed");
    }

    /// Stops it and gives what it was told.
    pub(crate) fn stop(self) -> Promised {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Whether an answer leaves open what became of the request, or says that it was not carried out for a passing reason.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable(_) | ClientError::Lost(_) => true,
        ClientError::Refused(..) | ClientError::Unreadable(_) | ClientError::Ambiguous(_) => false,
        ClientError::Fault(fault) => {
            matches!(fault.kind, FaultKind::NoLeader | FaultKind::Unknown | FaultKind::Unavailable)
        }
    }
}

async fn write(client: &Client, prefix: &str, stop: &AtomicBool, count: &AtomicUsize) -> Promised {
    let mut promised = Promised::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{number}");
        let began = Instant::now();
        // No node has the label, so nothing comes of the vm but the write.
        let request = serde_json::json!({
            "name": name, "image": "disk", "vcpus": 1, "memory_mib": 64, "start": false, "require": { "place": "none" },
        });
        let request: CreateVm = serde_json::from_value(request).unwrap();
        match client.create_vm(&request).await {
            Ok(view) => assert_eq!(view.name.to_string(), name),
            Err(error) if is_passing(&error) => {
                promised.unknown.insert(name);
                continue;
            }
            // A conflict would be a request that was carried out twice.
            Err(error) => panic!("create {name}: {error}"),
        }
        promised.answers.push((began, Instant::now()));
        count.fetch_add(1, Ordering::Relaxed);
        if number % DELETE_EVERY != 0 {
            promised.there.insert(name);
            continue;
        }
        let began = Instant::now();
        match client.delete_vm(&name.parse().unwrap()).await {
            Ok(()) => {
                promised.answers.push((began, Instant::now()));
                promised.gone.insert(name);
            }
            Err(error) if is_passing(&error) => drop(promised.unknown.insert(name)),
            Err(error) => panic!("delete {name}: {error}"),
        }
    }
    promised
}
