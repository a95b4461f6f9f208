//! Vms on the fake driver: placed, run, stopped, restarted, watched, adopted and deleted.

use std::collections::BTreeSet;

use blixard_core::{NodeId, Power, RestartPolicy, VmName};
use blixard_hypervisor::{Driver, ExitReason, FakeScript};
use blixard_node::api::{Client, FaultKind, LogStart, StopVm};
use blixard_node::{Node, config::NodeConfig};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::{Bench, PATIENCE, fault, import, kernel, until, until_phase, until_vm, vm};

const AT_ONCE: StopVm = StopVm { timeout_ms: Some(0) };
const PATIENT: StopVm = StopVm { timeout_ms: None };

async fn clients(bench: &Bench, nodes: &[Node]) -> Vec<Client> {
    futures::future::join_all(nodes.iter().map(|node| bench.client(node))).await
}

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

async fn gone(client: &Client, vm: &str) {
    until("the vm to be gone", async || client.vms(false).await.unwrap().iter().all(|seen| seen.name.as_str() != vm))
        .await;
}

async fn with_timeout<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it took too long")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_created_stopped_started_restarted_and_deleted_from_any_node() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.three().await;
    let clients = clients(&bench, &nodes).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let created = clients[1].create_vm(&vm("web", "tiny")).await.unwrap();
    assert_eq!((created.desired.power, created.desired.run), (Power::On, 1));
    let running = until_phase(&client, "web", "running").await;
    let node = running.node.unwrap();
    assert_eq!((running.epoch, running.observed_run, running.settled()), (1, 1, Some(Ok(()))));
    for other in &clients {
        let seen = other.vm(&name("web")).await.unwrap();
        assert_eq!((seen.phase.as_str(), seen.node, seen.since), ("running", Some(node), running.since));
        assert_eq!(seen.live.unwrap().accelerator.as_deref(), Some("fake"));
        assert_eq!(other.vms(false).await.unwrap().len(), 1);
    }

    clients[2].stop_vm(&name("web"), &PATIENT).await.unwrap();
    let stopped = until_phase(&clients[0], "web", "stopped").await;
    assert_eq!((stopped.node, stopped.reason.as_deref()), (Some(node), Some("stopped on request")));
    assert_eq!(clients[0].start_vm(&name("web")).await.unwrap().desired.run, 2);
    until_phase(&clients[1], "web", "running").await;
    assert_eq!(clients[1].start_vm(&name("web")).await.unwrap().desired.run, 2, "it runs already");
    let asked = clients[2].restart_vm(&name("web"), &AT_ONCE).await.unwrap();
    assert_eq!(asked.desired.run, 3);
    assert!(asked.live.is_none(), "the answer waits for the write alone, and not for the vm's node, which may be dead");
    let again = until_vm(&client, "web", "running anew", |vm| vm.phase == "running" && vm.observed_run == 3).await;
    assert_eq!((again.node, again.restarts), (Some(node), 0));

    clients[0].delete_vm(&name("web")).await.unwrap();
    gone(&clients[1], "web").await;
    assert!(bench.driver(node.0).list().unwrap().is_empty(), "its files are there still");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_or_makes_no_sense_is_refused() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    let absent = name("absent");
    assert_eq!(fault(client.vm(&absent).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.start_vm(&absent).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.stop_vm(&absent, &PATIENT).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.restart_vm(&absent, &PATIENT).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.delete_vm(&absent).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.explain_vm(&absent).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.vm_logs(&absent, false, LogStart::Last(10)).await.map(drop)).0, FaultKind::NotFound);
    assert_eq!(fault(client.vm_console(&absent).await.map(drop)).0, FaultKind::NotFound);
    assert_eq!(fault(client.watch_vm(&absent).await.map(drop)).0, FaultKind::NotFound);
    assert_eq!(fault(client.create_vm(&vm("web", "absent")).await).0, FaultKind::NotFound);

    import(&client, "tiny", kernel(1, 4096)).await;
    let mut off = vm("web", "tiny");
    off.start = false;
    client.create_vm(&off).await.unwrap();
    assert_eq!(fault(client.create_vm(&off).await).0, FaultKind::Conflict);
    let stopped = until_phase(&client, "web", "stopped").await;
    assert_eq!((stopped.desired.run, stopped.reason), (0, None), "it never ran");
    assert_eq!(fault(client.vm_console(&name("web")).await.map(drop)).0, FaultKind::Conflict);
    assert_eq!(fault(client.vm_logs(&name("web"), false, LogStart::Last(10)).await.map(drop)).0, FaultKind::NotFound);
    let mut pinned = vm("pinned", "tiny");
    pinned.node = Some(NodeId(7));
    assert_eq!(fault(client.create_vm(&pinned).await).0, FaultKind::NotFound);
    let mut tiny = vm("small", "tiny");
    tiny.memory_mib = 1;
    assert_eq!(fault(client.create_vm(&tiny).await).0, FaultKind::BadRequest);
    assert_eq!(client.vms(false).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_go_where_labels_pins_and_groups_want_them() {
    let bench = Bench::new();
    let mut configs: Vec<NodeConfig> = bench.configs(3, &[]);
    configs[1].labels.insert("disk".into(), "ssd".into());
    configs[2].labels.insert("disk".into(), "tape".into());
    let (_nodes, client) = bench.start_all(&configs, 3).await;
    import(&client, "tiny", kernel(1, 4096)).await;

    let mut fast = vm("fast", "tiny");
    fast.require.insert("disk".into(), "ssd".into());
    client.create_vm(&fast).await.unwrap();
    assert_eq!(until_phase(&client, "fast", "running").await.node, Some(NodeId(2)));
    let explained = client.explain_vm(&fast.name).await.unwrap();
    assert_eq!(explained.node, Some(NodeId(2)));
    let words: Vec<&str> = explained.verdicts.iter().map(|verdict| verdict.text.as_str()).collect();
    let expected = [
        "label disk=ssd required, node has no label disk",
        "the vm is here",
        "label disk=ssd required, node has disk=tape",
    ];
    assert_eq!(words, expected);

    let mut pinned = vm("pinned", "tiny");
    pinned.node = Some(NodeId(3));
    client.create_vm(&pinned).await.unwrap();
    assert_eq!(until_phase(&client, "pinned", "running").await.node, Some(NodeId(3)));

    let mut apart = BTreeSet::new();
    for member in ["db-1", "db-2", "db-3"] {
        let mut request = vm(member, "tiny");
        request.anti_affinity = Some("db".into());
        client.create_vm(&request).await.unwrap();
        apart.insert(until_phase(&client, member, "running").await.node.unwrap());
    }
    assert_eq!(apart.len(), 3, "{apart:?}");
    let mut fourth = vm("db-4", "tiny");
    fourth.anti_affinity = Some("db".into());
    client.create_vm(&fourth).await.unwrap();
    let pending = until_vm(&client, "db-4", "refused", |vm| {
        vm.phase == "pending" && vm.reason.as_ref().is_some_and(|reason| reason.contains("anti-affinity group db"))
    })
    .await;
    assert_eq!((pending.node, pending.settled()), (None, None));
    let freed = client.vm(&name("db-2")).await.unwrap().node;
    client.delete_vm(&name("db-2")).await.unwrap();
    assert_eq!(until_phase(&client, "db-4", "running").await.node, freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_nowhere_waits_until_it_does() {
    let bench = Bench::new();
    let (_, _nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    for large in ["one", "two"] {
        let mut request = vm(large, "tiny");
        request.memory_mib = 5000;
        client.create_vm(&request).await.unwrap();
        until_phase(&client, large, "running").await;
    }
    let mut third = vm("three", "tiny");
    third.memory_mib = 5000;
    client.create_vm(&third).await.unwrap();
    let pending = until_vm(&client, "three", "refused", |vm| {
        vm.reason.as_ref().is_some_and(|reason| reason.contains("needs 5000 MiB memory, 3192 free of 8192"))
    })
    .await;
    assert_eq!(pending.phase, "pending");
    assert!(client.explain_vm(&third.name).await.unwrap().verdicts.iter().all(|verdict| !verdict.fits));
    // It can be stopped, started and deleted like any other.
    client.stop_vm(&third.name, &PATIENT).await.unwrap();
    assert_eq!(client.vm(&third.name).await.unwrap().settled(), Some(Ok(())));
    client.start_vm(&third.name).await.unwrap();
    let freed = client.vm(&name("two")).await.unwrap().node;
    client.delete_vm(&name("two")).await.unwrap();
    assert_eq!(until_phase(&client, "three", "running").await.node, freed);
    // A smaller one finds its place beside it.
    client.create_vm(&vm("four", "tiny")).await.unwrap();
    until_phase(&client, "four", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policies_decide_what_follows_an_end() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let crash = || ExitReason::Signal { signal: 11 };
    let create = async |text: &str, restart| {
        let mut request = vm(text, "tiny");
        request.restart = restart;
        client.create_vm(&request).await.unwrap();
        until_phase(&client, text, "running").await
    };
    let always = create("always", RestartPolicy::Always).await;
    let once = create("once", RestartPolicy::OnFailure { limit: 1 }).await;
    let content = create("content", RestartPolicy::OnFailure { limit: 1 }).await;
    let never = create("never", RestartPolicy::Never).await;
    bench.end_run(1, &always, ExitReason::GuestShutdown);
    bench.end_run(1, &once, crash());
    bench.end_run(1, &content, ExitReason::GuestShutdown);
    bench.end_run(1, &never, crash());

    let ended = until_phase(&client, "never", "failed").await;
    assert_eq!(ended.reason.as_deref(), Some("the hypervisor was ended by signal 11"));
    assert!(!ended.retrying && ended.settled() == Some(Err(ended.reason.clone().unwrap())));
    let ended = until_phase(&client, "content", "stopped").await;
    assert_eq!(ended.reason.as_deref(), Some("the guest shut down"));
    let again = |vm: &blixard_node::api::VmView| vm.phase == "running" && vm.restarts == 1;
    let restarted = until_vm(&client, "always", "running again", again).await;
    assert_eq!((restarted.observed_run, restarted.desired.run), (1, 1), "a restart is no new run");
    assert!(restarted.since > always.since);
    until_vm(&client, "once", "running again", again).await;
    bench.end_run(1, &once, crash());
    let given_up = until_vm(&client, "once", "given up", |vm| vm.phase == "failed" && !vm.retrying).await;
    assert_eq!(given_up.restarts, 1);
    // A user may begin anew, and the count with it.
    client.start_vm(&name("once")).await.unwrap();
    until_vm(&client, "once", "running", |vm| vm.phase == "running" && vm.restarts == 0 && vm.observed_run == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn launches_that_fail_and_guests_that_ignore_a_stop_are_told_of() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let failures = [("doomed".to_owned(), "no room on the bus".to_owned())].into();
    let script = FakeScript { launch_failures: failures, ignore_stop: ["stubborn".to_owned()].into() };
    bench.script(1, &script);
    let mut doomed = vm("doomed", "tiny");
    doomed.restart = RestartPolicy::Never;
    client.create_vm(&doomed).await.unwrap();
    let failed = until_phase(&client, "doomed", "failed").await;
    assert!(failed.reason.as_ref().unwrap().contains("no room on the bus"), "{failed:?}");
    client.create_vm(&vm("stubborn", "tiny")).await.unwrap();
    until_phase(&client, "stubborn", "running").await;
    client.stop_vm(&name("stubborn"), &StopVm { timeout_ms: Some(60_000) }).await.unwrap();
    until_phase(&client, "stubborn", "stopping").await;
    // Asking again with less patience cuts it short.
    client.stop_vm(&name("stubborn"), &StopVm { timeout_ms: Some(100) }).await.unwrap();
    until_phase(&client, "stubborn", "stopped").await;

    bench.script(1, &FakeScript::default());
    client.start_vm(&doomed.name).await.unwrap();
    let running = until_phase(&client, "doomed", "running").await;
    assert_eq!((running.observed_run, running.reason), (2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_consoles_work_from_another_node() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(3, &[], 3).await;
    let clients = clients(&bench, &nodes).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let mut request = vm("web", "tiny");
    request.node = Some(NodeId(3));
    // A log that is followed before there is one begins when there is.
    request.start = false;
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "stopped").await;
    let mut followed = clients[1].vm_logs(&request.name, true, LogStart::At(0)).await.unwrap().content;
    client.start_vm(&request.name).await.unwrap();
    until_phase(&client, "web", "running").await;

    for viewer in [&clients[0], &clients[2]] {
        let mut console = viewer.vm_console(&request.name).await.unwrap();
        console.write_all(b"knock knock\n").await.unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("knock knock") {
            let mut chunk = [0; 256];
            let len = with_timeout(console.read(&mut chunk)).await.unwrap();
            assert!(len > 0, "the console ended: {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&chunk[..len]);
        }
        assert!(String::from_utf8_lossy(&seen).contains("fake guest web"), "it shows what came before");
    }
    let mut seen = Vec::new();
    while String::from_utf8_lossy(&seen).matches("knock knock").count() < 2 {
        let piece = with_timeout(followed.next()).await.expect("the log ended").unwrap();
        seen.extend_from_slice(&piece);
    }
    assert!(String::from_utf8_lossy(&seen).starts_with("fake guest web, epoch 1, run 1"));
    let read = async |client: &Client, start: LogStart| {
        let log = client.vm_logs(&request.name, false, start).await.unwrap();
        let pieces: Vec<_> = log.content.try_collect().await.unwrap();
        (log.position, pieces.concat())
    };
    let all = seen.len() as u64;
    assert_eq!(read(&clients[0], LogStart::Last(6)).await, (all - 6, b"knock\n".to_vec()));
    // From where another answer ended, also where that is more than the log has.
    assert_eq!(read(&clients[2], LogStart::At(all - 12)).await, (all - 12, b"knock knock\n".to_vec()));
    assert_eq!(read(&clients[1], LogStart::At(all + 5)).await, (all, vec![]));

    // The guest shuts down; the viewers see the end.
    let mut console = clients[0].vm_console(&request.name).await.unwrap();
    console.write_all(b"poweroff\n").await.unwrap();
    let mut rest = Vec::new();
    with_timeout(console.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(until_phase(&client, "web", "stopped").await.reason.as_deref(), Some("the guest shut down"));
    // The log is there still, and the follower is told of the end when the vm goes.
    let (_, log) = read(&clients[0], LogStart::Last(u64::MAX)).await;
    assert!(String::from_utf8_lossy(&log).contains("poweroff"));
    client.delete_vm(&request.name).await.unwrap();
    while let Some(piece) = with_timeout(followed.next()).await {
        piece.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_every_phase_and_ends_with_the_vm() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let mut request = vm("web", "tiny");
    request.start = false;
    request.node = Some(NodeId(1));
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "stopped").await;
    let watcher = bench.client(&nodes[1]).await;
    let mut watched = Box::pin(watcher.watch_vm(&request.name).await.unwrap());
    let mut until_seen = async |phase: &str| {
        loop {
            let view = with_timeout(watched.next()).await.expect("the watch ended").unwrap();
            if view.phase == phase {
                return view;
            }
        }
    };
    until_seen("stopped").await;
    client.start_vm(&request.name).await.unwrap();
    assert_eq!(until_seen("running").await.observed_run, 1);
    client.stop_vm(&request.name, &AT_ONCE).await.unwrap();
    until_seen("stopped").await;
    client.delete_vm(&request.name).await.unwrap();
    while let Some(view) = with_timeout(watched.next()).await {
        view.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_adopts_its_vms_as_they_are() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let create = async |text: &str| {
        let mut request = vm(text, "tiny");
        request.node = Some(NodeId(2));
        client.create_vm(&request).await.unwrap();
        until_phase(&client, text, "running").await
    };
    let (steady, fallen, unwanted) = (create("steady").await, create("fallen").await, create("unwanted").await);
    nodes.pop().unwrap().shutdown().await;
    // What happens while the node is away is found when it comes back.
    bench.end_run(2, &fallen, ExitReason::GuardDied);
    client.delete_vm(&unwanted.name).await.unwrap();
    let silent = until_vm(&client, "steady", "missed", |vm| {
        vm.reason.as_ref().is_some_and(|reason| reason.contains("node 2 does not answer"))
    })
    .await;
    assert_eq!(silent.phase, "running", "as it last reported");
    nodes.push(bench.start(&configs[1]).await);
    gone(&client, "unwanted").await;
    until_vm(&client, "fallen", "running again", |vm| vm.phase == "running" && vm.restarts == 1).await;
    let adopted = until_vm(&client, "steady", "heard of again", |vm| vm.reason.is_none() && vm.live.is_some()).await;
    assert_eq!(
        (adopted.since, adopted.observed_run, adopted.epoch, adopted.restarts, adopted.phase.as_str()),
        (steady.since, steady.observed_run, steady.epoch, steady.restarts, "running")
    );
    assert_eq!(adopted.live.unwrap().pid, steady.live.unwrap().pid);
    assert_eq!(bench.driver(2).list().unwrap().len(), 2);
}
