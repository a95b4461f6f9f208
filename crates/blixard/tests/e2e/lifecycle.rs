//! A vm's life under QEMU, on another node than the one that is asked.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::guests::{Seats, ask_guest, guest_file, is_gone};
use crate::program::eventually;
use crate::program::session::Session;
use crate::web;

/// Ports that guests publish: beside those of nodes, and below those that the system gives out by itself.
const PUBLISHED: std::ops::Range<u16> = 31_000..32_700;

fn free_published_port() -> u16 {
    let begin = std::process::id() as usize % PUBLISHED.len();
    let mut ports = PUBLISHED.cycle().skip(begin).take(PUBLISHED.len());
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("one of so many ports is free")
}

fn runs(view: &Value, restarts: u64) -> bool {
    view["phase"] == "running" && view["restarts"] == restarts
}

/// Follows a vm while something is done to it, and gives every reason that was shown on the way.
fn reasons_of(cluster: &Cluster, name: &str, until: impl Fn(&Value) -> bool, act: impl FnOnce()) -> Vec<String> {
    use futures::StreamExt;
    let (runtime, client) = cluster.client(1);
    runtime.block_on(async {
        let views = client.watch_vm(&name.parse().unwrap()).await.unwrap();
        futures::pin_mut!(views);
        views.next().await.unwrap().unwrap();
        act();
        let mut reasons = vec![];
        let following = async {
            while let Some(view) = views.next().await {
                let view = serde_json::to_value(view.unwrap()).unwrap();
                reasons.extend(view["reason"].as_str().map(str::to_owned));
                if until(&view) {
                    return;
                }
            }
            panic!("the stream about {name} has ended");
        };
        let outcome = tokio::time::timeout(crate::program::PATIENCE, following).await;
        assert!(outcome.is_ok(), "vm {name} does not get there; on the way: {reasons:?}");
        client.close().await;
        reasons
    })
}

#[test]
fn a_vm_lives_through_everything_but_its_deletion() {
    let _seats = Seats::take(1);
    let cluster = Cluster::start(Plan::qemu(2));
    cluster.import_tiny(1);
    let port = free_published_port();
    let (publish, user_data) =
        (format!("{port}:80"), cluster.bench.write("user-data", "#cloud-config\nbrought: along\n"));
    let create = ["vm", "create", "web", "--image", "tiny", "--memory", "128M", "--node", "2", "--restart", "always"];
    // Written at one node, given to a guest at the other.
    let value = cluster.bench.write("app.conf", "level = 3\n");
    cluster.run(2, &["doc", "set", "config", "app.conf", &value]).ends_with(0);
    eventually("the value at the other node", || {
        (cluster.run(1, &["doc", "get", "config", "app.conf"]).stdout == "level = 3\n").then_some(())
    });
    let config_file = "/etc/app.conf=doc:config/app.conf";
    let create =
        [&create[..], &["--publish", &publish, "--user-data", &user_data, "--config-file", config_file]].concat();
    let created = cluster.run(1, &create).ends_with(0);
    assert_eq!(created.stdout, "vm web is running on node 2\n");
    let registry = cluster.registry(1);
    let mut logs = Session::start(&cluster.bench, &["vm", "logs", "-f", "web", "--addr", &registry]);
    logs.sees("blixard-guest: hostname web");
    logs.sees(crate::guests::READY);

    // Published, seeded, and looked at by several at once.
    let answer = eventually("the guest's web page", || web::get(&format!("127.0.0.1:{port}"), "/"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello from web\n"));
    let (mut one, mut two) = (cluster.console(1, "web"), cluster.console(2, "web"));
    assert_eq!(ask_guest(&mut one, "seed", "sed -n 2p /seed/user-data"), "brought: along");
    two.finds("what the other viewer asked", |seen| seen.contains("<seed:brought: along:seed>").then_some(()));
    // By programs that are none of ours: the guest's kernel, its sed and its base64.
    let content = r"sed -n 's/.*content...\([A-Za-z0-9+/=]*\).*/\1/p' /seed/vendor-data | base64 -d";
    assert_eq!(ask_guest(&mut one, "file", content), "level = 3");
    assert_eq!(ask_guest(&mut two, "name", "hostname"), "web");
    one.finds("what the other viewer asked", |seen| seen.contains("<name:web:name>").then_some(()));
    two.press(b"\x1d");
    two.ends_with(0);

    // How well it is confined is what the kernel says, for people and for programs.
    let live = cluster.run(1, &["vm", "status", "web", "-o", "json"]).ends_with(0).json()["live"].clone();
    let user = std::fs::metadata(format!("/proc/{}", live["pid"])).unwrap().uid();
    assert_eq!(live["confinement"]["privileges"]["user"], user);
    let status = cluster.run(1, &["vm", "status", "web"]).ends_with(0).stdout;
    assert!(status.contains(&format!("user {user}")) && status.contains("system call filter"), "{status}");
    assert_eq!(status.contains("of its own"), geteuid().is_root(), "{status}");

    // The guest ends itself, its hypervisor is killed, its guard is killed: the policy says that it goes on.
    let reasons = reasons_of(&cluster, "web", |view| runs(view, 1), || one.press(b"poweroff -f\r"));
    assert!(reasons.iter().any(|reason| reason == "the guest shut down"), "{reasons:?}");
    let vm = cluster.vm(1, "web").unwrap();
    let first = cluster.processes(2, &vm);
    let killed = || kill(first.hypervisor, Signal::SIGKILL).unwrap();
    let reasons = reasons_of(&cluster, "web", |view| runs(view, 2), killed);
    assert!(reasons.iter().any(|reason| reason.contains("ended by signal 9")), "{reasons:?}");
    let second = cluster.processes(2, &vm);
    assert_ne!(second, first);
    let killed = || kill(second.guard, Signal::SIGKILL).unwrap();
    let reasons = reasons_of(&cluster, "web", |view| runs(view, 3), killed);
    assert!(reasons.iter().any(|reason| reason == "the guard died"), "{reasons:?}");
    is_gone(second.hypervisor);
    let status = cluster.run(1, &["vm", "status", "web"]).ends_with(0).stdout;
    assert!(status.contains("always, 3 in this run"), "{status}");
    let last = status.lines().find(|line| line.starts_with("last exit")).unwrap_or_default();
    assert!(last.ends_with("the guard died"), "{status}");

    // Asked politely, the guest obeys; a new start counts from nothing.
    eventually("the last boot", || (cluster.vm_log(1, "web").matches(crate::guests::READY).count() >= 2).then_some(()));
    logs.finds("a later boot", |seen| (seen.matches(crate::guests::READY).count() >= 2).then_some(()));
    let ready = cluster.vm_log(1, "web").matches(crate::guests::READY).count();
    let restarted = cluster.run(1, &["vm", "restart", "web", "-o", "json"]).ends_with(0).json();
    assert_eq!((&restarted["observed_run"], &restarted["restarts"]), (&2.into(), &0.into()));
    cluster.guest_is_up(1, "web", ready + 1);
    let stopped = cluster.run(1, &["vm", "stop", "web", "-o", "json"]).ends_with(0).json();
    assert_eq!((&stopped["phase"], &stopped["reason"]), (&"stopped".into(), &"stopped on request".into()));
    logs.sees("power button pressed");
    let third = cluster.processes(2, &vm);
    is_gone(third.hypervisor);
    assert!(web::get(&format!("127.0.0.1:{port}"), "/").is_none());

    // Somebody else has its port: it says which, and starts when the port is free.
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    cluster.run(1, &["vm", "start", "web", "--no-wait"]).ends_with(0);
    let failed = cluster.vm_becomes(1, "web", "failed", |view| view["phase"] == "failed");
    assert!(failed["reason"].as_str().unwrap().contains(&format!(":{port} of this host")), "{failed}");
    drop(taken);
    cluster.vm_becomes(1, "web", "running", |view| view["phase"] == "running");

    let dir = cluster.vm_dir(2, &vm);
    assert!(dir.join("seed.img").is_file());
    assert_eq!(cluster.run(1, &["vm", "delete", "web"]).ends_with(0).stdout, "vm web is deleted\n");
    assert!(!dir.exists(), "{} is still there", dir.display());
    is_gone(third.guard);
}

#[test]
fn a_stubborn_guest_is_forced_and_a_willing_one_stays_down() {
    let _seats = Seats::take(2);
    let cluster = Cluster::start(Plan::qemu(1));
    cluster.import_tiny(1);
    // Without anything to run the kernel panics, and `panic=0` lets it stay like that for ever.
    let import = ["image", "import", "--name", "stubborn", "--kernel", &guest_file("vmlinuz"), "--cmdline", "panic=0"];
    cluster.run(1, &import).ends_with(0);
    let create = |name, image, more: &[&str]| {
        let create = ["vm", "create", name, "--image", image, "--memory", "128M", "--restart", "never"];
        cluster.run(1, &[&create[..], more].concat())
    };
    create("mule", "stubborn", &[]).ends_with(0);
    create("lamb", "tiny", &[]).ends_with(0);
    let stopped = cluster.run(1, &["vm", "stop", "mule", "--timeout", "1s", "-o", "json"]).ends_with(0).json();
    let reason = stopped["reason"].as_str().unwrap();
    assert!(reason.starts_with("forced off") && reason.contains("1000 ms"), "{reason}");

    cluster.guest_is_up(1, "lamb", 1);
    let mut console = cluster.console(1, "lamb");
    console.press(b"poweroff -f\r");
    // The end of the guest is the end of its console.
    console.ends_with(3);
    let ended = cluster.vm_becomes(1, "lamb", "stopped", |view| view["phase"] == "stopped");
    assert_eq!((&ended["reason"], &ended["restarts"]), (&"the guest shut down".into(), &0.into()));

    let taken = TcpListener::bind(("127.0.0.1", free_published_port())).unwrap();
    let port = taken.local_addr().unwrap().port();
    let ran = create("late", "tiny", &["--publish", &format!("127.0.0.1:{port}:80")]).ends_with(8);
    assert!(ran.stderr.contains(&format!("127.0.0.1:{port}")), "{ran:?}");
    let vm = cluster.vm(1, "late").unwrap();
    assert_eq!((&vm["phase"], &vm["retrying"]), (&"failed".into(), &false.into()));
    for name in ["mule", "lamb", "late"] {
        cluster.run(1, &["vm", "delete", name]).ends_with(0);
    }
    let entries = std::fs::read_dir(cluster.data_dir(1).join("vms")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = entries.collect();
    assert_eq!(left, ["host.json"], "what is known of the host, and nothing of a vm");
}
