//! What a node counts and measures about itself, for `/metrics`. Background work that fails is counted here, so that none
//! fails silently.
//!
//! Here is what happens and would be forgotten; how things stand at the moment is looked up when somebody asks
//! (`http/metrics.rs`). `docs/metrics.md` explains every family. Labels come from closed sets only.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::EndpointId;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

/// The beginning of every name, but for those that Prometheus itself gives to processes.
pub(crate) const PREFIX: &str = "blixard";

/// The loop that looks after this host's vms.
pub(crate) const AGENT_LOOP: &str = "agent";
/// The loop that leads, or looks whether it is to lead.
pub(crate) const LEADER_LOOP: &str = "leader";
/// The loops by which a node does its work. One that stands still is a node that is there and of no use.
pub(crate) const LOOPS: [&str; 2] = [AGENT_LOOP, LEADER_LOOP];

/// Labels of one sample.
pub(crate) type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
/// Counters told apart by labels.
pub(crate) type Counters<const N: usize> = Family<Labels<N>, Counter>;
/// Histograms told apart by a label.
pub(crate) type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// 0.1 ms to 3.3 s: a flush of a disk, and a round trip with one.
fn short_times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

/// 0.5 ms to 16 s: a request of a user, whose writes wait 10 s for a leader at most.
fn request_times() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// 10 ms to 82 s: from the order to a guest that runs.
fn launch_times() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 14))
}

/// 1 ms to 131 s: a guest's read that waits, until it is given up with the setting as it comes.
fn read_times() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

/// 1 to 1024 entries, the largest group there is.
fn group_sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

/// Notes a time.
pub(crate) fn observe(histogram: &Histogram, time: Duration) {
    histogram.observe(time.as_secs_f64());
}

/// How something ended, as a label.
pub(crate) fn outcome(is_done: bool) -> Labels<1> {
    [("outcome", if is_done { "done" } else { "failed" }.into())]
}

/// Bytes by peer, for what has no bound on its labels while it is counted: only members are shown.
#[derive(Debug, Default)]
pub(crate) struct PeerBytes(Mutex<BTreeMap<EndpointId, Arc<AtomicU64>>>);

impl PeerBytes {
    /// What is to be counted up for a peer.
    pub(crate) fn of(&self, peer: EndpointId) -> Arc<AtomicU64> {
        self.0.lock().expect("no holder of this lock panics").entry(peer).or_default().clone()
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> BTreeMap<EndpointId, u64> {
        let counted = self.0.lock().expect("no holder of this lock panics");
        counted.iter().map(|(peer, bytes)| (*peer, bytes.load(Ordering::Relaxed))).collect()
    }
}

/// Where a fetch finds content on its own node.
pub(crate) const REUSED: [&str; 2] = ["image", "zeros"];

/// The metrics of one node.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    /// Elections, which are terms begun since this node started, by whichever voter.
    pub(crate) elections: Counter,
    /// How often this node learnt of another leader.
    pub(crate) leader_changes: Counter,
    /// Proposals of this node by outcome.
    pub(crate) proposals: Counters<1>,
    /// How long they took.
    pub(crate) proposal_times: Histogram,
    /// How long it took to bring one group of log orders to disk.
    pub(crate) log_flush_times: Histogram,
    /// Entries in such a group.
    pub(crate) log_group_sizes: Histogram,
    /// Rounds of the leader.
    pub(crate) leader_rounds: Counter,
    /// Rounds of the leader in which a decision could not be carried out.
    pub(crate) leader_failures: Counter,
    /// Turns of the loops that a node lives by, by loop: see [`LOOPS`].
    loop_turns: Counters<1>,
    /// Looks of the agent.
    pub(crate) agent_rounds: Counter,
    /// Looks of the agent that failed.
    pub(crate) agent_failures: Counter,
    /// Orders of the agent that failed, such as a launch, by order.
    pub(crate) order_failures: Counters<1>,
    /// Launches by outcome.
    pub(crate) launches: Counters<1>,
    /// How long launches took that succeeded.
    pub(crate) launch_times: Histogram,
    /// Guests that ran when this node's process started, and were taken over by it.
    pub(crate) adopted: Counter,
    /// Background tasks that ended by a panic and were started again, by task.
    pub(crate) task_restarts: Counters<1>,
    /// Transfers on this node by priority and state.
    pub(crate) transfers: Family<Labels<2>, Gauge>,
    /// Attempts that failed, by class.
    pub(crate) transfer_failures: Counters<1>,
    /// Attempts to fetch an image by outcome.
    pub(crate) fetches: Counters<1>,
    /// Bytes of content that fetches received, by priority.
    pub(crate) fetched_bytes: Counters<1>,
    /// Panics in the queue of transfers, which goes on.
    pub(crate) transfer_panics: Counter,
    /// Uploads by outcome.
    pub(crate) imports: Counters<1>,
    /// Bytes of images that a fetch found on this node, by where: see [`REUSED`].
    pub(crate) reused_bytes: Counters<1>,
    /// Bytes of content that uploads brought in.
    pub(crate) imported_bytes: Counter,
    /// Images that are whole on this node.
    pub(crate) images_held: Gauge,
    /// Launches, by whether the image was here.
    pub(crate) image_uses: Counters<1>,
    /// Verifications of images, by what they came to.
    pub(crate) image_verifications: Counters<1>,
    /// What images take of the disk.
    pub(crate) cache_used_bytes: Gauge,
    /// What they may take.
    pub(crate) cache_max_bytes: Gauge,
    /// Images given up to have room.
    pub(crate) cache_evictions: Counter,
    /// What that freed.
    pub(crate) cache_evicted_bytes: Counter,
    /// Whether the blob store works. Once it has failed, only a restart of the process brings it back.
    pub(crate) store_alive: Gauge,
    /// Whether the blob store frees what nothing keeps. Once that has failed, only a restart brings it back.
    pub(crate) store_collects: Gauge,
    /// Reads of guests whose image is on its way, by whether what they read was here.
    pub(crate) lazy_reads: Counters<1>,
    /// How long those waited that had to.
    pub(crate) lazy_waits: Histogram,
    /// Comparisons of a document with another member that this node began, by outcome.
    pub(crate) document_syncs: Counters<1>,
    /// Values that documents name and that have not come to this node yet.
    pub(crate) document_values_missing: Gauge,
    /// Requests to the control API by route, method and status.
    pub(crate) api_requests: Counters<3>,
    /// How long they took, to the head of the answer, by route.
    pub(crate) api_times: Histograms,
    /// Nodes that asked to join and were refused.
    pub(crate) joins_refused: Counter,
    /// Requests with the ticket of a document that opens nothing.
    pub(crate) document_tickets_refused: Counter,
    /// Bytes of content sent to those who fetch what this node shares.
    pub(crate) shared_bytes: Counter,
    /// Requests for a share that was not there, or no longer.
    pub(crate) shares_refused: Counter,
}

/// Enters metrics into a registry, and hands them back.
struct Book(Registry);

impl Book {
    fn enter<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn enter_in<M: Metric + Clone>(&mut self, name: &str, unit: Unit, help: &str, metric: M) -> M {
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.enter(name, help, Counter::default())
    }

    /// Counters by outcome, both of which are there from the start: a rate of failures needs a zero to begin with.
    fn outcomes(&mut self, name: &str, help: &str) -> Counters<1> {
        let outcomes = self.enter(name, help, Counters::default());
        [true, false].into_iter().for_each(|is_done| drop(outcomes.get_or_create(&outcome(is_done))));
        outcomes
    }

    /// A family whose one label has these values, all of which are there from the start.
    fn states<M: Metric + Clone + Default>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[&'static str],
    ) -> Family<Labels<1>, M>
    where
        Family<Labels<1>, M>: Metric,
    {
        let states = self.enter(name, help, Family::default());
        values.iter().for_each(|value| drop(states.get_or_create(&[(label, (*value).into())])));
        states
    }

    fn times(&mut self, name: &str, help: &str, histogram: Histogram) -> Histogram {
        self.enter_in(name, Unit::Seconds, help, histogram)
    }
}

impl Metrics {
    /// The turns of one of [`LOOPS`].
    pub(crate) fn turns_of(&self, name: &'static str) -> Counter {
        self.loop_turns.get_or_create(&[("loop", name.into())]).clone()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut book = Book(Registry::with_prefix(PREFIX));
        // Well until seen otherwise.
        let well = Gauge::default();
        well.set(1);
        let collects = Gauge::default();
        collects.set(1);
        Self {
            elections: book.counter("raft_elections", "Elections since this node started, won by whichever voter"),
            leader_changes: book.counter("raft_leader_changes", "How often this node learnt of another leader"),
            proposals: book
                .outcomes("raft_proposals", "Commands that this node proposed, by whether they were written"),
            proposal_times: book.times(
                "raft_proposal_duration",
                "Time from a proposal of this node to its answer, forwarding included",
                short_times(),
            ),
            log_flush_times: book.times(
                "raft_log_flush_duration",
                "Time to bring one group of log entries to disk, the flush included",
                short_times(),
            ),
            log_group_sizes: book.enter(
                "raft_log_group_entries",
                "Entries that shared one flush of the disk",
                group_sizes(),
            ),
            leader_rounds: book.counter("leader_rounds", "Rounds of decisions while this node led"),
            leader_failures: book.counter("leader_failures", "Rounds in which a decision could not be carried out"),
            loop_turns: book.states(
                "loop_turns",
                "Turns of the loops by which this node does its work; systemd is told that all is well while all turn",
                "loop",
                &LOOPS,
            ),
            agent_rounds: book.counter("agent_rounds", "Looks of the agent at this host"),
            agent_failures: book.counter("agent_failures", "Looks of the agent that failed"),
            order_failures: book.states(
                "order_failures",
                "Orders of the agent that failed",
                "order",
                &["launch", "stop", "kill", "remove"],
            ),
            launches: book.outcomes("vm_launches", "Guests launched on this node, by outcome"),
            launch_times: book.times(
                "vm_launch_duration",
                "Time from the order to launch a guest until it runs",
                launch_times(),
            ),
            adopted: book.counter("vm_adopted", "Guests that ran already when this node's process started"),
            task_restarts: book.enter(
                "task_restarts",
                "Background tasks that panicked and were started again",
                Family::default(),
            ),
            transfers: book.enter(
                "transfers",
                "Images on their way to this node, by priority and state",
                Family::default(),
            ),
            transfer_failures: book.states(
                "transfer_failures",
                "Attempts to fetch an image that failed, by what sort of failure it was",
                "class",
                &["sources", "damaged", "no_space", "manifest", "storage", "deadline"],
            ),
            fetches: book.outcomes("image_fetches", "Attempts of this node to fetch an image, by outcome"),
            fetched_bytes: book.enter_in(
                "image_fetched",
                Unit::Bytes,
                "Image content received from other nodes, by the priority of its transfer",
                Counters::default(),
            ),
            transfer_panics: book.counter("transfer_panics", "Panics in the queue of transfers"),
            imports: book.outcomes("image_imports", "Uploads of image content to this node, by outcome"),
            reused_bytes: book.enter_in(
                "image_reused",
                Unit::Bytes,
                "Image content that a fetch found on this node, in other images or as zeros, and did not ask for",
                Counters::default(),
            ),
            imported_bytes: book.enter_in(
                "image_imported",
                Unit::Bytes,
                "Image content uploaded to this node",
                Counter::default(),
            ),
            images_held: book.enter("images_held", "Images that are whole on this node", Gauge::default()),
            image_uses: book.states(
                "image_uses",
                "Launches of guests, by whether their image was here or had to be fetched first",
                "image",
                &["here", "fetched"],
            ),
            image_verifications: book.states(
                "image_verifications",
                "Copies of images that were read again, by what came of it",
                "outcome",
                &["sound", "damaged", "failed"],
            ),
            cache_used_bytes: book.enter_in(
                "cache_used",
                Unit::Bytes,
                "What images take of this node's disk",
                Gauge::default(),
            ),
            cache_max_bytes: book.enter_in(
                "cache_max",
                Unit::Bytes,
                "What images may take of this node's disk; -1 without a limit",
                Gauge::default(),
            ),
            cache_evictions: book.counter("cache_evictions", "Images that this node gave up, to have room"),
            cache_evicted_bytes: book.enter_in(
                "cache_evicted",
                Unit::Bytes,
                "What giving images up has freed",
                Counter::default(),
            ),
            store_alive: book.enter("store_alive", "Whether the blob store works", well),
            store_collects: book.enter("store_collects", "Whether the blob store frees what nothing keeps", collects),
            lazy_reads: book.states(
                "lazy_reads",
                "Reads of guests whose image is on its way, by whether what they read was here, came in time, or did not",
                "content",
                &["here", "waited", "failed"],
            ),
            lazy_waits: book.times(
                "lazy_read_wait",
                "Time that reads of guests waited for content which was not here and came",
                read_times(),
            ),
            document_syncs: book.outcomes(
                "document_syncs",
                "Comparisons of a document with another member that this node began, by outcome",
            ),
            document_values_missing: book.enter(
                "document_values_missing",
                "Values that documents name and that have not come to this node yet",
                Gauge::default(),
            ),
            api_requests: book.enter("api_requests", "Requests to the control API", Family::default()),
            api_times: book.enter_in(
                "api_request_duration",
                Unit::Seconds,
                "Time to the head of the answer to a request to the control API",
                Histograms::new_with_constructor(request_times),
            ),
            joins_refused: book.counter("joins_refused", "Nodes that asked to join and were refused"),
            document_tickets_refused: book.counter(
                "document_tickets_refused",
                "Requests with the ticket of a document that opens nothing, or no longer",
            ),
            shared_bytes: book.enter_in(
                "share_sent",
                Unit::Bytes,
                "Content of shares sent to those who have their tickets",
                Counter::default(),
            ),
            shares_refused: book.counter("shares_refused", "Requests for a share that is not there, or no longer"),
            registry: book.0,
        }
    }
}
