//! What operators see of a cluster: metrics, and what is said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::cluster::{Cluster, Plan};
use crate::metrics::{self, Family};
use crate::program::{PATIENCE, as_text, eventually, free_address};
use crate::web;

/// A cluster that has done a little of everything: an image came in and was copied, a vm runs, a vm cannot be placed.
fn busy_cluster() -> Cluster {
    let cluster = Cluster::start(Plan::fake(3));
    let mut disk = vec![7; 1 << 20];
    // The mark of a boot sector: what has none is refused.
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let disk = cluster.bench.write("disk.raw", disk);
    cluster.run(2, &["image", "import", "--name", "base", &disk]).ends_with(0);
    cluster.run(2, &["vm", "create", "web", "--image", "base", "--memory", "64M"]).ends_with(0);
    cluster
        .run(2, &["vm", "create", "vast", "--image", "base", "--memory", "64M", "--require", "no=such", "--no-wait"])
        .ends_with(0);
    eventually("a second copy of the image", || {
        let image = cluster.ask(1, &["image", "show", "base"])?;
        (image["holders"].as_array()?.len() >= 2).then_some(())
    });
    cluster
}

fn metrics_of(cluster: &Cluster, id: usize) -> BTreeMap<String, Family> {
    let answer = cluster.http(id, "/metrics").expect("the node answers");
    metrics::parse(&answer.body).unwrap_or_else(|error| panic!("node {id}: {error}"))
}

/// A row of the table in the document: what is asked for by name, its type, its labels, and what it is.
type Row = (String, String, String, String);

fn row(name: &str, family: &Family) -> Row {
    let suffix = match family.kind.as_str() {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let labels = family.label_names().into_iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    (format!("{name}{suffix}"), family.kind.clone(), labels, family.help.trim_end_matches('.').to_owned())
}

#[test]
fn the_document_names_every_metric_and_no_other() {
    let cluster = busy_cluster();
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
    let told: BTreeSet<Row> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").map(str::trim);
            let mut cell = || cells.next().map(str::to_owned);
            Some((cell()?.trim_end_matches('`').to_owned(), cell()?, cell()?, cell()?))
        })
        .collect();
    // The leader alone tells of the others, and each node counts the requests that it got itself.
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    for id in 1..=3 {
        for (name, family) in metrics_of(&cluster, id) {
            all.entry(name).or_insert_with(|| family.clone()).samples.extend(family.samples);
        }
    }
    let there: BTreeSet<Row> = all.iter().map(|(name, family)| row(name, family)).collect();
    let lines = |rows: Vec<&Row>| {
        let line = |(name, kind, labels, help): &&Row| format!("| `{name}` | {kind} | {labels} | {help} |");
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(lines(there.difference(&told).collect()), "", "docs/metrics.md does not say");
    assert_eq!(lines(told.difference(&there).collect()), "", "docs/metrics.md says, and no node has");
}

#[test]
fn metrics_tell_what_happened() {
    let cluster = busy_cluster();
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    let placed = cluster.vm(1, "web").unwrap()["node"].as_u64().unwrap() as usize;
    let seen: Vec<_> = (1..=3).map(|id| metrics_of(&cluster, id)).collect();
    let value = |id: usize, name: &str, labels: &[(&str, &str)]| {
        seen[id - 1].get(name).and_then(|family| family.value(labels)).unwrap_or(-1.0)
    };
    for id in 1..=3 {
        let role = if id == leader { "leader" } else { "voter" };
        assert_eq!(value(id, "blixard_raft_role", &[("role", role)]), 1.0, "node {id}");
        assert_eq!(value(id, "blixard_raft_leader", &[("node", &leader.to_string())]), 1.0, "node {id}");
        assert_eq!(value(id, "blixard_vms", &[("phase", "running")]), 1.0, "node {id}");
        assert_eq!(value(id, "blixard_vms", &[("phase", "pending")]), 1.0, "node {id}");
        // The disk, and the index of its chunks.
        let image_bytes = value(id, "blixard_image_bytes", &[]) as u64;
        assert!(((1 << 20)..(1 << 20) + 4096).contains(&image_bytes), "node {id}: {image_bytes}");
        let launches = f64::from(u8::from(id == placed));
        assert_eq!(value(id, "blixard_vm_launches", &[("outcome", "done")]), launches, "node {id}");
        assert_eq!(value(id, "blixard_vm_launch_duration_seconds", &[]), launches, "node {id}");
        assert!(value(id, "blixard_raft_log_flush_duration_seconds", &[]) > 3.0, "node {id}");
        assert!(value(id, "blixard_raft_elections", &[]) >= 1.0, "node {id}");
        assert!(value(id, "blixard_transport_sent_bytes", &[("path", "direct")]) > 10_000.0, "node {id}");
        let raft = [("path", "direct"), ("protocol", "raft")];
        assert!(value(id, "blixard_transport_connections", &raft) >= 1.0, "node {id}");
        assert!(value(id, "process_resident_memory_bytes", &[]) > 1e6, "node {id}");
        assert!(value(id, "process_open_fds", &[]) > 5.0, "node {id}");
        let started = value(id, "process_start_time_seconds", &[]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(started > now - 600.0 && started < now + 1.0, "node {id} started at {started}, and it is {now}");
        if id != leader {
            let of = [("node", &*id.to_string())];
            assert!(value(leader, "blixard_raft_lag_entries", &of) >= 0.0, "the leader tells of node {id}");
            assert!(value(id, "blixard_raft_lag_entries", &of) < 0.0, "only the leader tells");
        }
    }
    assert_eq!(value(2, "blixard_image_imports", &[("outcome", "done")]), 1.0);
    assert_eq!(value(2, "blixard_image_imported_bytes", &[]), (1 << 20) as f64);
    let sum = |name: &str, labels: &[(&str, &str)]| (1..=3).map(|id| value(id, name, labels)).sum::<f64>();
    let fetched =
        || ["vm", "operator", "copy"].map(|priority| sum("blixard_image_fetched_bytes", &[("priority", priority)]));
    assert!(fetched().iter().sum::<f64>() >= (1 << 20) as f64, "a copy was fetched: {:?}", fetched());
    assert!(sum("blixard_image_fetches", &[("outcome", "done")]) >= 1.0);
    let create = [("route", "/v1/vms"), ("method", "POST"), ("status", "200")];
    assert_eq!(value(2, "blixard_api_requests", &create), 2.0);
    assert_eq!(value(2, "blixard_api_request_duration_seconds", &[("route", "/v1/vms")]), 2.0);
}

/// The events that a node tells.
fn story(cluster: &Cluster, id: usize, arguments: &[&str]) -> Option<Vec<Value>> {
    Some(cluster.ask(id, &[&["events", "-n", "1000"], arguments].concat())?.as_array().unwrap().clone())
}

fn said(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["text"].as_str().unwrap()).collect()
}

/// `blixard events -f`, and the lines it has printed.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<Value>,
}

impl Follower {
    fn start(cluster: &Cluster, id: usize) -> Self {
        let notes = File::create(cluster.bench.path("follower.err")).unwrap();
        let arguments = ["events", "-f", "-n", "1000", "-o", "json", "--addr", &cluster.registry(id)];
        let mut child = cluster.bench.command(&arguments).stdout(Stdio::piped()).stderr(notes).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, seen: vec![] }
    }

    /// Reads on until something was told.
    #[track_caller]
    fn hears(&mut self, text: &str) {
        while !said(&self.seen).contains(&text) {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("never heard {text:?}: {:#?}", said(&self.seen)));
            self.seen.push(serde_json::from_str(&line).unwrap());
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_tell_the_same_everywhere_and_outlive_every_node() {
    let mut cluster = busy_cluster();
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    let placed = cluster.vm(1, "web").unwrap()["node"].as_u64().unwrap();
    let mut all = vec![];
    eventually("one story on all nodes", || {
        all = (1..=3).map(|id| story(&cluster, id, &[])).collect::<Option<Vec<_>>>()?;
        all.iter().all(|story| *story == all[0]).then_some(())
    });
    let told = said(&all[0]);
    assert_eq!(told[0], "node 1 founded the cluster");
    for text in [
        "node 2 was let in",
        "node 3 was let in",
        "node 2 started and has caught up",
        "nodes 1, 2, 3 vote",
        "image base was added on node 2",
        "vm web was created",
        &format!("vm web was given to node {placed}"),
        &format!("vm web runs on node {placed}"),
        "vm vast was created",
    ] {
        assert!(told.contains(&text), "{text:?} is not among {told:#?}");
    }
    let created = all[0].iter().find(|event| event["text"] == "vm web was created").unwrap();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    assert_eq!((&created["by"], &created["kind"]), (&user.into(), &"vm created".into()));
    let of_web = story(&cluster, 3, &["--vm", "web"]).unwrap();
    assert!(of_web.len() >= 3 && of_web.iter().all(|event| event["vm"] == "web"), "{of_web:#?}");
    assert_eq!(story(&cluster, 3, &["--node", "2", "--vm", "nobody"]).unwrap(), Vec::<Value>::new());

    // The node that is listened to goes without a word.
    let listened = 1 + leader % 3;
    let other = 1 + listened % 3;
    let mut follower = Follower::start(&cluster, listened);
    follower.hears(&format!("vm web runs on node {placed}"));
    cluster.run(other, &["vm", "stop", "web"]).ends_with(0);
    follower.hears("vm web is to stop");
    cluster.kill(&[listened]);
    follower.hears(&format!("node {listened} does not answer the leader"));
    cluster.run(other, &["vm", "delete", "vast"]).ends_with(0);
    follower.hears("vm vast and its files are gone");
    cluster.spawn(listened);
    follower.hears(&format!("node {listened} answers the leader again"));
    let numbers: Vec<u64> = follower.seen.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "none is missing and none comes twice: {numbers:?}");
    let notes = std::fs::read_to_string(cluster.bench.path("follower.err")).unwrap();
    assert!(notes.contains("is lost") && notes.contains("going on where"), "{notes:?}");

    cluster.is_whole();
    let before = story(&cluster, other, &[]).unwrap();
    cluster.kill(&[1, 2, 3]);
    (1..=3).for_each(|id| cluster.spawn(id));
    cluster.is_whole();
    let after = eventually("the story after the restart", || story(&cluster, other, &[]));
    assert_eq!(after[..before.len()], before, "a restart forgets nothing");
}

/// How long the dashboard's graphs look back for a rate, in the test: some scrapes.
const RATE_INTERVAL: &str = "10s";

/// A Prometheus that scrapes the nodes of a cluster every second. It ends with the test.
struct Prometheus {
    address: String,
    child: Child,
}

impl Prometheus {
    fn start(cluster: &Cluster, nodes: usize) -> Self {
        let targets: Vec<String> = (1..=nodes).map(|id| format!("'{}'", cluster.http_address(id))).collect();
        let config = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: blixard\n    static_configs:\n      - targets: [{}]\n",
            targets.join(", ")
        );
        let config = cluster.bench.write("prometheus.yml", config);
        let address = free_address();
        let log = File::create(cluster.bench.path("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={config}"))
            .arg(format!("--storage.tsdb.path={}", as_text(&cluster.bench.path("prometheus"))))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Prometheus is installed by `cargo xtask setup`");
        Self { address, child }
    }

    /// What a query comes to: its samples, or why there are none.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = web::get(&self.address, &format!("/api/v1/query?query={encoded}")).ok_or("no answer")?;
        let answer: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        answer["data"]["result"].as_array().cloned().ok_or_else(|| format!("no result: {answer}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cluster = busy_cluster();
    let prometheus = Prometheus::start(&cluster, 3);
    eventually("some scrapes of all three nodes", || {
        let scraped = prometheus.query("sum_over_time(up{job='blixard'}[1m]) >= 5").ok()?;
        (scraped.len() == 3).then_some(())
    });
    // Requests of the time that is looked at, so that there are rates.
    cluster.run(1, &["vm", "stop", "web"]).ends_with(0);
    cluster.run(1, &["vm", "start", "web"]).ends_with(0);
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", RATE_INTERVAL);
            let mut last = Err("never asked".to_owned());
            let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("an answer", || {
                    last = prometheus.query(&query);
                    last.as_ref().is_ok_and(|samples| !samples.is_empty()).then_some(())
                });
            }));
            assert!(answered.is_ok(), "{}: {query}: {last:?}", panel["title"]);
            queries += 1;
        }
    }
    assert!(queries > 50, "the dashboard has only {queries} queries");
    // What the dashboard asks for is also what the nodes have: a name with a slip in it would find nothing above, and this
    // shows that it would.
    assert_eq!(prometheus.query("blixard_no_such_thing"), Ok(vec![]));
}
