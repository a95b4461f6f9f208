//! Reconcile by example: what an agent does in each situation, and what it leaves alone.
#![allow(clippy::unwrap_used)]

mod plausible;

use blixard_core::{
    Action, Ages, BlobHash, Change, DiskPart, LAZY_BYTES_MIN, LocalImage, LocalView, LocalVm, LocalVmState, Manifest,
    NodeId, Observed, Order, Part, Phase, Plan, RestartPolicy, State, UnixMs, VmId, VmSpec, limits, reconcile,
};
use plausible::{asked, cluster, image, manifest, spec, told, vm_id};

const ME: NodeId = NodeId(1);
const NOW: u64 = 1_000_000;

/// A cluster of two in which node 1 has a vm that is to run its first run.
fn with_vm(restart: RestartPolicy) -> (State, VmId) {
    let mut state = cluster(2);
    let id = vm_id(1);
    let spec = VmSpec { restart, ..spec(0) };
    state.apply(&asked(5_000, Change::CreateVm { id, name: "web".parse().unwrap(), spec, start: true })).unwrap();
    state.apply(&told(1, Change::PlaceVm { id, node: ME, epoch: 1 })).unwrap();
    (state, id)
}

fn on_failure(limit: u32) -> RestartPolicy {
    RestartPolicy::OnFailure { limit }
}

/// The vm as its first run, for as long as the dates say.
fn local(state: LocalVmState) -> LocalVm {
    let since = match &state {
        LocalVmState::Running { since, .. } => since.0,
        LocalVmState::Exited { at, .. } | LocalVmState::LaunchFailed { at, .. } => at.0,
        LocalVmState::Busy { .. } | LocalVmState::Damaged { .. } => NOW,
    };
    LocalVm { epoch: 1, run: 1, restarts: 0, state, for_ms: NOW - since }
}

fn running() -> LocalVmState {
    LocalVmState::Running { stopping: false, since: UnixMs(NOW - 500) }
}

fn ended(clean: bool, at: u64, ran_ms: u64) -> LocalVmState {
    LocalVmState::Exited { clean, requested: false, reason: "panic".into(), at: UnixMs(at), ran_ms }
}

/// The plan for a host that has every image of the pool, and this of the vm.
fn plan(state: &State, found: Option<LocalVm>) -> Plan {
    let images = (0..3).map(|index| (manifest(index).id(), LocalImage::Complete)).collect();
    let vms = found.into_iter().map(|vm| (vm_id(1), vm)).collect();
    reconcile(ME, state, &LocalView { vms, images, ..LocalView::default() }, UnixMs(NOW))
}

/// The plan's orders, without its reports.
fn orders(plan: &Plan) -> Vec<&Action> {
    plan.actions.iter().filter(|action| !matches!(action, Action::Propose(_))).collect()
}

fn reported(plan: &Plan) -> Option<&Observed> {
    plan.actions.iter().find_map(|action| match action {
        Action::Propose(Change::ReportVm { observed, .. }) => Some(observed),
        _ => None,
    })
}

fn phase(plan: &Plan) -> Option<&Phase> {
    reported(plan).map(|observed| &observed.phase)
}

fn report(state: &mut State, plan: &Plan) {
    let observed = reported(plan).unwrap().clone();
    state.apply(&told(1, Change::ReportVm { id: vm_id(1), node: ME, observed })).unwrap();
}

#[test]
fn a_vm_that_should_run_is_launched_and_then_reported_once() {
    let (mut state, id) = with_vm(on_failure(5));
    assert_eq!(orders(&plan(&state, None)), vec![&Action::Launch { vm: id, epoch: 1, run: 1, restarts: 0 }]);
    let busy = plan(&state, Some(local(LocalVmState::Busy { what: Order::Launch })));
    assert_eq!((orders(&busy), phase(&busy)), (vec![], Some(&Phase::Preparing)));
    report(&mut state, &busy);
    let again = reconcile(ME, &state, &LocalView::default(), UnixMs(NOW + 5_000));
    assert_eq!(reported(&again), None, "a report is no news for its date alone");
    let runs = plan(&state, Some(local(running())));
    assert_eq!(phase(&runs), Some(&Phase::Running));
    report(&mut state, &runs);
    assert_eq!(plan(&state, Some(local(running()))), Plan::default());
}

#[test]
fn a_missing_image_is_fetched_at_once_and_its_failure_is_said() {
    let (state, _) = with_vm(on_failure(5));
    let image = manifest(0).id();
    let with = |here: Option<LocalImage>| {
        let images = here.into_iter().map(|here| (image, here)).collect();
        reconcile(ME, &state, &LocalView { images, ..LocalView::default() }, UnixMs(NOW))
    };
    let fetch = Action::FetchImage { image, urgent: true };
    assert_eq!(orders(&with(None)), vec![&fetch]);
    let fetching = |urgent, failure: Option<&str>| {
        with(Some(LocalImage::Fetching { urgent, failure: failure.map(str::to_owned) }))
    };
    assert_eq!(orders(&fetching(false, None)), vec![&fetch], "it becomes urgent");
    assert_eq!(orders(&fetching(false, Some("no"))), vec![&fetch], "however it goes");
    assert_eq!(fetching(true, None).look_again_at, None);
    assert_eq!(phase(&fetching(true, None)), Some(&Phase::Preparing));
    let failed = fetching(true, Some("node 1 is gone"));
    assert!(orders(&failed).is_empty(), "the queue tries again by itself");
    assert_eq!(failed.look_again_at, Some(UnixMs(NOW + 1000)));
    let reason = "image image-0 could not be fetched: node 1 is gone".to_owned();
    assert_eq!(phase(&failed), Some(&Phase::Failed { reason, retrying: true }));
    let long = "\u{e9}".repeat(100_000);
    let Some(Phase::Failed { reason, .. }) = phase(&fetching(true, Some(&long))).cloned() else { panic!("no report") };
    assert!(reason.len() <= 1024, "{} bytes", reason.len());
}

#[test]
fn a_lazy_vm_starts_before_its_image_is_whole_and_is_settled_when_it_is() {
    let (mut state, id) = with_vm(on_failure(5));
    let image = manifest(0).id();
    let see = |state: &State, here: LocalImage, bootable: bool, found: Option<LocalVm>| {
        let lazy = found.iter().map(|_| id).collect();
        let bootable = bootable.then_some(image).into_iter().collect();
        let vms = found.into_iter().map(|vm| (id, vm)).collect();
        let view = LocalView { vms, images: [(image, here)].into(), bootable, lazy, ..LocalView::default() };
        reconcile(ME, state, &view, UnixMs(NOW))
    };
    let fetching = |failure: Option<&str>| LocalImage::Fetching { urgent: true, failure: failure.map(str::to_owned) };
    let launch = Action::Launch { vm: id, epoch: 1, run: 1, restarts: 0 };
    assert_eq!(
        orders(&see(&state, fetching(None), true, None)),
        Vec::<&Action>::new(),
        "it is small, and was not asked"
    );
    let mut set = |lazy| state.vms.get_mut(&id).unwrap().spec.lazy = lazy;
    set(Some(true));
    let lazy = state.clone();
    assert_eq!(orders(&see(&lazy, fetching(None), true, None)), vec![&launch]);
    assert_eq!(orders(&see(&lazy, fetching(Some("gone")), true, None)), vec![&launch], "what is here is enough");
    assert_eq!(orders(&see(&lazy, fetching(None), false, None)), Vec::<&Action>::new(), "not so much is here yet");
    assert_eq!(orders(&see(&lazy, LocalImage::Importing, true, None)), Vec::<&Action>::new());

    let runs = see(&lazy, fetching(None), true, Some(local(running())));
    assert_eq!((orders(&runs), phase(&runs)), (vec![], Some(&Phase::Running)));
    let settle = Action::Settle { vm: id };
    assert_eq!(orders(&see(&lazy, LocalImage::Complete, false, Some(local(running())))), vec![&settle]);
    let busy = see(&lazy, LocalImage::Complete, false, Some(local(LocalVmState::Busy { what: Order::Settle })));
    assert_eq!((orders(&busy), phase(&busy)), (vec![], None), "nothing that anybody would notice");
    // A restart of the node, which has forgotten the queue: the guest needs the rest of its image.
    let view = LocalView { vms: [(id, local(running()))].into(), lazy: [id].into(), ..LocalView::default() };
    let forgot = reconcile(ME, &lazy, &view, UnixMs(NOW));
    assert_eq!(orders(&forgot), vec![&Action::FetchImage { image, urgent: true }]);
}

#[test]
fn a_vm_is_lazy_when_it_was_asked_to_be_or_its_image_is_large() {
    let disk = |bytes| match manifest(0) {
        Manifest::Disk(disk) => Manifest::Disk(DiskPart { part: Part { bytes, ..disk.part }, chunks: None, ..disk }),
        kernel @ Manifest::Kernel { .. } => panic!("not a disk: {kernel:?}"),
    };
    let spec = |lazy| VmSpec { lazy, ..spec(0) };
    for (lazy, bytes, expected) in [
        (None, LAZY_BYTES_MIN - 1, false),
        (None, LAZY_BYTES_MIN, true),
        (Some(false), LAZY_BYTES_MIN, false),
        (Some(true), 1, true),
    ] {
        assert_eq!(spec(lazy).is_lazy(&disk(bytes)), expected, "{lazy:?} {bytes}");
    }
    let kernel = Part { hash: BlobHash([1; 32]), bytes: LAZY_BYTES_MIN };
    let diskless = Manifest::Kernel { kernel, initrd: None, root: None, cmdline: String::new() };
    assert!(!spec(Some(true)).is_lazy(&diskless), "a kernel is needed whole");
}

#[test]
fn a_stop_has_a_deadline_that_a_second_stop_moves() {
    let (mut state, id) = with_vm(on_failure(5));
    let stop = |state: &mut State, timeout_ms| state.apply(&asked(6_000, Change::StopVm { id, timeout_ms })).unwrap();
    stop(&mut state, 30_000);
    assert_eq!(orders(&plan(&state, Some(local(running())))), vec![&Action::Stop { vm: id, timeout_ms: 30_000 }]);
    let stopping = local(LocalVmState::Running { stopping: true, since: UnixMs(NOW - 10_000) });
    let waits = plan(&state, Some(stopping.clone()));
    assert_eq!((orders(&waits), phase(&waits)), (vec![], Some(&Phase::Stopping)));
    assert_eq!(waits.look_again_at, Some(UnixMs(NOW + 20_000)));
    stop(&mut state, 60_000);
    assert_eq!(plan(&state, Some(stopping.clone())).look_again_at, Some(UnixMs(NOW + 20_000)), "only ever shorter");
    stop(&mut state, 10_000);
    assert_eq!(orders(&plan(&state, Some(stopping))), vec![&Action::Kill { vm: id }]);
    let done =
        LocalVmState::Exited { clean: true, requested: true, reason: "shut down".into(), at: UnixMs(NOW), ran_ms: 9 };
    assert_eq!(phase(&plan(&state, Some(local(done)))), Some(&Phase::Stopped { reason: Some("shut down".into()) }));
    assert_eq!(phase(&plan(&state, None)), Some(&Phase::Stopped { reason: None }));
}

#[test]
fn a_restart_ends_the_old_run_before_it_begins_the_next() {
    let (mut state, id) = with_vm(RestartPolicy::Never);
    state.apply(&asked(6_000, Change::RestartVm { id, timeout_ms: 700 })).unwrap();
    assert_eq!(orders(&plan(&state, Some(local(running())))), vec![&Action::Stop { vm: id, timeout_ms: 700 }]);
    let gone = LocalVm { restarts: 3, ..local(ended(false, NOW, 5)) };
    assert_eq!(orders(&plan(&state, Some(gone))), vec![&Action::Launch { vm: id, epoch: 1, run: 2, restarts: 0 }]);
}

#[test]
fn restarts_back_off_and_end_at_the_limit() {
    let (state, id) = with_vm(on_failure(3));
    for (restarts, wait_ms) in [(0, 1_000), (1, 2_000), (2, 4_000)] {
        let failed = |at| LocalVm { restarts, ..local(ended(false, at, 5)) };
        let early = plan(&state, Some(failed(NOW - wait_ms + 1)));
        assert_eq!((orders(&early), early.look_again_at), (vec![], Some(UnixMs(NOW + 1))));
        assert_eq!(phase(&early), Some(&Phase::Failed { reason: "panic".into(), retrying: true }));
        let launch = Action::Launch { vm: id, epoch: 1, run: 1, restarts: restarts + 1 };
        assert_eq!(orders(&plan(&state, Some(failed(NOW - wait_ms)))), vec![&launch]);
    }
    let given_up = plan(&state, Some(LocalVm { restarts: 3, ..local(ended(false, NOW - 90_000, 599_999)) }));
    assert_eq!((orders(&given_up), given_up.look_again_at), (vec![], None));
    assert_eq!(phase(&given_up), Some(&Phase::Failed { reason: "panic".into(), retrying: false }));
    let was_well = plan(&state, Some(LocalVm { restarts: 3, ..local(ended(false, NOW - 90_000, 600_000)) }));
    assert_eq!(orders(&was_well), vec![&Action::Launch { vm: id, epoch: 1, run: 1, restarts: 1 }]);
}

#[test]
fn a_clock_that_is_set_ends_no_wait_and_prolongs_none() {
    const DAY_MS: u64 = 86_400_000;
    let (mut state, id) = with_vm(on_failure(3));
    let see = |ages: &mut Ages, state: &State, found: &LocalVmState, (now, steady_ms): (u64, u64)| {
        let vms = [(id, LocalVm { epoch: 1, run: 1, restarts: 0, state: found.clone(), for_ms: 0 })].into();
        let mut view =
            LocalView { vms, images: [(manifest(0).id(), LocalImage::Complete)].into(), ..LocalView::default() };
        ages.fill_in(&mut view, UnixMs(now), steady_ms);
        let plan = reconcile(ME, state, &view, UnixMs(now));
        (orders(&plan).into_iter().cloned().collect::<Vec<_>>(), plan.look_again_at.map(|at| at.0 - now))
    };
    let launch = vec![Action::Launch { vm: id, epoch: 1, run: 1, restarts: 1 }];
    for set_by in [DAY_MS as i64, -(DAY_MS as i64), 0] {
        let set = |ms: u64| (NOW + DAY_MS + ms).wrapping_add_signed(set_by);
        // It runs, ends, and then the clock is set; the restart comes when a second has passed.
        let mut ages = Ages::default();
        see(&mut ages, &state, &running(), (NOW + DAY_MS, 50));
        let gone = ended(false, NOW + DAY_MS + 100, 5);
        assert_eq!(
            see(&mut ages, &state, &gone, (set(200), 250)),
            (vec![], Some(800 + if set_by == 0 { 100 } else { 0 }))
        );
        assert_eq!(see(&mut ages, &state, &gone, (set(1_049), 1_049)).0, vec![]);
        assert_eq!(see(&mut ages, &state, &gone, (set(1_250), 1_250)).0, launch);
        // A process that knows no more than the dates does not wait for one.
        let first_look = see(&mut Ages::default(), &state, &gone, (set(1_500), 7)).0;
        assert_eq!(first_look, launch, "no vm waits a day for that");
    }
    state.apply(&asked(6_000, Change::StopVm { id, timeout_ms: 30_000 })).unwrap();
    for set_by in [DAY_MS as i64, -(DAY_MS as i64)] {
        let set = |ms: u64| (NOW + DAY_MS + ms).wrapping_add_signed(set_by);
        let mut ages = Ages::default();
        let stopping = LocalVmState::Running { stopping: true, since: UnixMs(NOW + DAY_MS) };
        assert_eq!(see(&mut ages, &state, &stopping, (NOW + DAY_MS, 400)), (vec![], Some(30_000)));
        assert_eq!(see(&mut ages, &state, &stopping, (set(10_000), 10_400)), (vec![], Some(20_000)));
        assert_eq!(see(&mut ages, &state, &stopping, (set(30_000), 30_400)).0, vec![Action::Kill { vm: id }]);
        // An end that fails is not waited for as long again.
        let killing = LocalVmState::Busy { what: Order::Kill };
        assert_eq!(see(&mut ages, &state, &killing, (set(30_100), 30_500)), (vec![], None));
        assert_eq!(see(&mut ages, &state, &stopping, (set(31_000), 31_400)).0, vec![Action::Kill { vm: id }]);
    }
}

#[test]
fn each_policy_judges_an_ending_its_own_way() {
    let long_ago = NOW - 90_000;
    let launches = |restart: RestartPolicy, state: LocalVmState| {
        let found = LocalVm { restarts: 40, ..local(state) };
        !orders(&plan(&with_vm(restart).0, Some(found))).is_empty()
    };
    let failed_launch = LocalVmState::LaunchFailed { reason: "no such machine".into(), at: UnixMs(long_ago) };
    assert!(launches(RestartPolicy::Always, ended(true, long_ago, 5)));
    assert!(launches(RestartPolicy::Always, failed_launch.clone()));
    assert!(!launches(RestartPolicy::Never, ended(false, long_ago, 5)));
    assert!(!launches(RestartPolicy::Never, failed_launch.clone()));
    assert!(!launches(on_failure(50), ended(true, long_ago, 5)));
    assert!(launches(on_failure(50), failed_launch));
    let (state, _) = with_vm(on_failure(5));
    let clean = plan(&state, Some(local(ended(true, long_ago, 5))));
    assert_eq!(phase(&clean), Some(&Phase::Stopped { reason: Some("panic".into()) }));
    // What the node itself stopped, say because the host went down, goes on whatever the policy.
    let paused =
        LocalVmState::Exited { clean: true, requested: true, reason: String::new(), at: UnixMs(NOW), ran_ms: 5 };
    assert!(launches(RestartPolicy::Never, paused));
}

#[test]
fn a_damaged_vm_is_reported_and_not_launched_over() {
    let (mut state, id) = with_vm(RestartPolicy::Always);
    state.apply(&asked(6_000, Change::RestartVm { id, timeout_ms: 0 })).unwrap();
    let long = "ä".repeat(limits::REASON_BYTES_MAX);
    let damaged = plan(&state, Some(local(LocalVmState::Damaged { reason: long })));
    assert!(orders(&damaged).is_empty());
    report(&mut state, &damaged);
    assert_eq!(reported(&damaged).unwrap().run, 2);

    // A record that cannot be read does not say of which placement it is, and the folder may hold the only disk of the vm.
    let unread = LocalVm { epoch: 0, run: 0, ..local(LocalVmState::Damaged { reason: "spec.json: torn".into() }) };
    let unread = plan(&state, Some(unread));
    assert!(orders(&unread).is_empty(), "{unread:?}");
    assert!(
        matches!(phase(&unread), Some(Phase::Failed { reason, .. }) if reason.starts_with("spec.json: torn. Its disk"))
    );
}

#[test]
fn a_deleted_vm_goes_in_steps() {
    let (mut state, id) = with_vm(on_failure(5));
    state.apply(&asked(6_000, Change::DeleteVm(id))).unwrap();
    assert_eq!(orders(&plan(&state, Some(local(running())))), vec![&Action::Kill { vm: id }]);
    assert!(orders(&plan(&state, Some(local(LocalVmState::Busy { what: Order::Kill })))).is_empty());
    assert_eq!(orders(&plan(&state, Some(local(ended(false, NOW, 5))))), vec![&Action::Remove { vm: id }]);
    let damaged = LocalVmState::Damaged { reason: "no record".into() };
    assert_eq!(orders(&plan(&state, Some(local(damaged)))), vec![&Action::Remove { vm: id }]);
    let forget = Change::ForgetVm { id, node: ME, epoch: 1 };
    assert_eq!(plan(&state, None).actions, vec![Action::Propose(forget)]);
}

#[test]
fn what_belongs_elsewhere_or_to_an_earlier_placement_is_cleared() {
    let (mut state, id) = with_vm(on_failure(5));
    let old = LocalVm { epoch: 0, ..local(running()) };
    assert_eq!(orders(&plan(&state, Some(old))), vec![&Action::Kill { vm: id }]);
    let old = LocalVm { epoch: 0, ..local(ended(true, NOW, 5)) };
    assert_eq!(orders(&plan(&state, Some(old))), vec![&Action::Remove { vm: id }]);
    let unknown = cluster(2);
    assert_eq!(orders(&plan(&unknown, Some(local(running())))), vec![&Action::Kill { vm: id }]);
    state.apply(&asked(6_000, Change::RemoveNode { node: ME, force: true })).unwrap();
    assert_eq!(orders(&plan(&state, Some(local(running())))), vec![&Action::Kill { vm: id }]);
    assert!(plan(&state, Some(local(ended(true, NOW, 5)))).actions.is_empty(), "files outlive the membership");
}

#[test]
fn a_replica_that_is_behind_the_host_gives_no_orders() {
    let (mut state, id) = with_vm(on_failure(5));
    assert_eq!(plan(&State::default(), Some(local(running()))), Plan::default(), "an empty replica knows nothing");
    for ahead in [LocalVm { epoch: 2, ..local(running()) }, LocalVm { run: 2, ..local(running()) }] {
        assert_eq!(plan(&state, Some(ahead)), Plan::default());
    }
    state.apply(&asked(6_000, Change::StopVm { id, timeout_ms: 0 })).unwrap();
    assert_eq!(plan(&state, Some(LocalVm { run: 2, ..local(running()) })), Plan::default());
}

#[test]
fn a_report_on_an_earlier_run_than_the_last_is_not_tried() {
    let (mut state, id) = with_vm(on_failure(5));
    state.apply(&asked(6_000, Change::RestartVm { id, timeout_ms: 90_000 })).unwrap();
    let observed = Observed { epoch: 1, run: 2, phase: Phase::Preparing, since: UnixMs(0), restarts: 0 };
    state.apply(&told(1, Change::ReportVm { id, node: ME, observed })).unwrap();
    let stopping = LocalVmState::Running { stopping: true, since: UnixMs(NOW) };
    assert_eq!(reported(&plan(&state, Some(local(stopping)))), None, "it would be refused for ever");
}

#[test]
fn images_are_reported_wanted_and_dropped() {
    let mut state = cluster(2);
    let id = manifest(0).id();
    let see = |state: &State, me: u64, here: Option<LocalImage>| {
        let images = here.into_iter().map(|here| (id, here)).collect();
        let plan = reconcile(NodeId(me), state, &LocalView { images, ..LocalView::default() }, UnixMs(NOW));
        let is_about = |action: &Action| match action {
            Action::Propose(Change::ReportCopy { image, .. })
            | Action::FetchImage { image, .. }
            | Action::DropImage { image } => *image == id,
            _ => false,
        };
        plan.actions.into_iter().filter(is_about).collect::<Vec<_>>()
    };
    let copy = |node, present| Action::Propose(Change::ReportCopy { image: id, node: NodeId(node), present });
    assert_eq!(see(&state, 1, Some(LocalImage::Complete)), vec![]);
    assert_eq!(see(&state, 1, None), vec![copy(1, false)]);
    assert_eq!(see(&state, 2, Some(LocalImage::Complete)), vec![copy(2, true)]);
    assert_eq!(see(&state, 2, None), vec![]);
    state.apply(&told(1, Change::WantCopy { image: id, node: NodeId(2) })).unwrap();
    assert_eq!(see(&state, 2, None), vec![Action::FetchImage { image: id, urgent: false }]);
    assert_eq!(see(&state, 2, Some(LocalImage::Fetching { urgent: false, failure: None })), vec![]);
    state.apply(&asked(6_000, Change::DeleteImage(id))).unwrap();
    assert_eq!(
        see(&state, 2, Some(LocalImage::Fetching { urgent: false, failure: None })),
        vec![Action::DropImage { image: id }]
    );
    assert_eq!(see(&state, 1, Some(LocalImage::Importing)), vec![], "its command is on the way");
    state.apply(&told(1, Change::AddImage(image(0, 0, [NodeId(1)].into())))).unwrap();
    assert_eq!(see(&state, 1, Some(LocalImage::Complete)), vec![]);
}

#[test]
fn an_image_that_is_being_given_up_is_neither_reported_nor_launched_from() {
    let (mut state, id) = with_vm(RestartPolicy::Never);
    let leaving = LocalView { images: [(manifest(0).id(), LocalImage::Leaving)].into(), ..LocalView::default() };
    let first = reconcile(ME, &state, &leaving, UnixMs(NOW));
    assert_eq!((orders(&first), phase(&first)), (vec![], Some(&Phase::Preparing)));
    let copies =
        |plan: &Plan| plan.actions.iter().filter(|it| matches!(it, Action::Propose(Change::ReportCopy { .. }))).count();
    // The images of the pool that are not there at all are reported as such.
    assert_eq!(copies(&first), 2);
    state.apply(&asked(6_000, Change::DeleteVm(id))).unwrap();
    state.apply(&told(1, Change::ForgetVm { id, node: ME, epoch: 1 })).unwrap();
    state.images.get_mut(&manifest(0).id()).unwrap().holders.clear();
    let gone = reconcile(ME, &state, &leaving, UnixMs(NOW));
    assert_eq!((orders(&gone), copies(&gone)), (vec![], 2), "it was agreed to, and will be gone in a moment");
}

#[test]
fn no_image_is_dropped_while_a_vm_that_nobody_knows_may_use_it() {
    let mut state = cluster(2);
    state.apply(&asked(6_000, Change::DeleteImage(manifest(0).id()))).unwrap();
    let drops = |plan: &Plan| orders(plan).iter().any(|action| matches!(action, Action::DropImage { .. }));
    assert!(!drops(&plan(&state, Some(local(ended(true, NOW, 5))))));
    assert!(drops(&plan(&state, None)));
}

#[test]
fn what_frees_comes_before_what_takes() {
    let (state, id) = with_vm(on_failure(5));
    let stray = vm_id(9);
    let images = (0..3).map(|index| (manifest(index).id(), LocalImage::Complete)).collect();
    let vms = [(stray, local(running()))].into();
    let plan = reconcile(ME, &state, &LocalView { vms, images, ..LocalView::default() }, UnixMs(NOW));
    let launch = Action::Launch { vm: id, epoch: 1, run: 1, restarts: 0 };
    assert_eq!(orders(&plan), vec![&Action::Kill { vm: stray }, &launch]);
}
