//! Traces of the real binary: from a command to the guest that it launched, over several nodes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;

use crate::cluster::{Cluster, Plan};
use crate::program::{Ran, eventually};

/// A span, and the process that it comes from.
#[derive(Debug, Clone)]
struct Span {
    process: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
}

/// The least of a collector: takes OTLP over HTTP and keeps every span.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::new(Mutex::new(vec![]));
        let kept = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                // A process that is killed may leave half a request.
                std::thread::spawn(move || take(stream).map(|spans| kept.lock().unwrap().extend(spans)));
            }
        });
        Self { url, spans }
    }

    /// The spans of the trace that has one of this name.
    fn trace_with(&self, name: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        let trace = spans.iter().find(|span| span.name == name).map(|span| span.trace.clone());
        spans.iter().filter(|span| Some(&span.trace) == trace.as_ref()).cloned().collect()
    }
}

fn take(stream: TcpStream) -> Option<Vec<Span>> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    assert!(first.starts_with("POST /v1/traces HTTP/1.1"), "{first}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("a request to export spans");
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    let mut spans = vec![];
    for resource in request.resource_spans {
        let attributes = resource.resource.as_ref().map(|resource| resource.attributes.as_slice()).unwrap_or_default();
        let instance = attributes.iter().find(|attribute| attribute.key == "service.instance.id");
        let process = match instance.and_then(|attribute| attribute.value.clone()?.value) {
            Some(Value::StringValue(process)) => process,
            other => panic!("a process without a name: {other:?}"),
        };
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let (name, trace, id, parent) = (span.name, span.trace_id, span.span_id, span.parent_span_id);
            spans.push(Span { process: process.clone(), name, trace, id, parent });
        }
    }
    Some(spans)
}

#[test]
fn one_trace_leads_from_the_command_to_the_launch() {
    let collector = Collector::start();
    let mut cluster = Cluster::planned(Plan::fake(3));
    for id in 1..=3 {
        cluster.spawn_with(id, &["--otlp-endpoint", &collector.url], &[]);
        if id == 1 {
            cluster.is_ready(1);
        }
    }
    cluster.is_whole();
    let mut disk = vec![7; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let disk = cluster.bench.write("disk.raw", disk);
    cluster.run(1, &["image", "import", "--name", "base", &disk]).ends_with(0);
    let leader = eventually("a leader", || cluster.leader_seen_by(1));
    // The command goes to one follower, and the guest to the other: all three nodes have a part in it.
    let (asked, placed) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let node = placed.to_string();
    let create = ["vm", "create", "web", "--image", "base", "--memory", "64M", "--node", &node, "--addr"];
    let mut command = cluster.bench.command(&[&create[..], &[&cluster.registry(asked)]].concat());
    command.env("BLIXARD_TRACING_OTLP_ENDPOINT", &collector.url);
    Ran::of(command.output().unwrap()).ends_with(0);

    // Spans come as they end, and each process sends its own when it is time.
    let is_whole = |spans: &[Span]| {
        let ids: Vec<&Vec<u8>> = spans.iter().map(|span| &span.id).collect();
        let of = |name: &str| spans.iter().filter(|span| span.name == name).count();
        // Both commands are applied on every node.
        of("driver") == 1
            && of("apply") >= 6
            && spans.iter().all(|span| span.parent.is_empty() || ids.contains(&&span.parent))
    };
    let mut spans = vec![];
    eventually("the whole trace", || {
        spans = collector.trace_with("blixard vm create");
        is_whole(&spans).then_some(())
    });
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for span in &spans {
        by_name.entry(&span.name).or_default().push(&span.process);
    }
    let (leader, asked, placed) = (format!("node {leader}"), format!("node {asked}"), format!("node {placed}"));
    let of = |name: &str| by_name.get(name).cloned().unwrap_or_default();
    assert_eq!(of("blixard vm create"), ["command"], "{by_name:#?}");
    assert_eq!(of("POST /v1/vms"), [&asked], "{by_name:#?}");
    assert!(of("propose").contains(&asked.as_str()) && of("propose").contains(&leader.as_str()), "{by_name:#?}");
    assert!(of("write").len() >= 2 && of("write").iter().all(|process| *process == leader), "{by_name:#?}");
    assert_eq!(of("place"), [&leader], "{by_name:#?}");
    assert_eq!((of("launch"), of("driver")), (vec![placed.as_str()], vec![placed.as_str()]), "{by_name:#?}");
    for node in [&leader, &asked, &placed] {
        assert!(of("apply").contains(&node.as_str()), "{by_name:#?}");
    }
    // From the launch upwards, one by one, to the command.
    let mut way = vec![];
    let mut at = spans.iter().find(|span| span.name == "driver");
    while let Some(span) = at {
        way.push(span.name.as_str());
        at = spans.iter().find(|other| other.id == span.parent);
    }
    let expected =
        ["driver", "launch", "write", "propose", "place", "write", "propose", "POST /v1/vms", "blixard vm create"];
    assert_eq!(way, expected);

    // Without an endpoint a command leaves no trace, though the nodes have theirs.
    cluster.run(1, &["vm", "stop", "web"]).ends_with(0);
    // A collector that takes connections and never answers holds nobody up for long.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = cluster.bench.command(&["vm", "start", "web", "--addr", &cluster.registry(1)]);
    command.env("BLIXARD_TRACING_OTLP_ENDPOINT", format!("http://{}", silent.local_addr().unwrap()));
    Ran::of(command.output().unwrap()).ends_with(0);
    assert!(collector.trace_with("POST /v1/vms/{name}/stop").is_empty());
}
