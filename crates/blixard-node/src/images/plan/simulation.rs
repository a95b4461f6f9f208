//! Whole swarms on simulated time: every receiver has a plan, and links carry what the plans ask for. Links are shared
//! fairly by whatever goes over them, as congestion control does in the long run; a request takes a round trip to begin.
//! The same seed gives the same run.

use iroh_blobs::protocol::ChunkRangesExt;

use super::tests::id;
use super::*;
use crate::images::workers::WORKERS_PER_SOURCE;

const HASH: BlobHash = BlobHash([9; 32]);
const MIB: u64 = 1 << 20;
/// 200 Mbit/s.
const LINK: u64 = 25_000_000;
/// The step of time, in milliseconds: a piece takes many of them.
const STEP_MS: u64 = 20;
/// How often a receiver asks a peer what it has.
const ASK_MS: u64 = 300;
/// Far longer than any run takes that goes well.
const END_MS: u64 = 600_000;

/// What is wrong with a host, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// It is gone from this time on.
    DiesAt(u64),
    /// All that it sends is wrong, which shows when a request is done.
    Lies,
}

struct Host {
    up: u64,
    down: u64,
    flaw: Flaw,
    has: ChunkRanges,
    plan: Option<Plan>,
    done_ms: Option<u64>,
    /// Bytes of content that it sent.
    sent: u64,
    received: u64,
}

struct Flow {
    from: usize,
    to: usize,
    order: Order,
    begins_ms: u64,
    left: u64,
}

struct Swarm {
    bytes: u64,
    round_trip_ms: u64,
    hosts: Vec<Host>,
    flows: Vec<Flow>,
    now_ms: u64,
}

fn key(host: usize) -> EndpointId {
    id(u8::try_from(host).expect("swarms are small"))
}

impl Swarm {
    /// Host 0 has the whole image, and all others fetch it.
    fn new(seed: u64, receivers: usize, bytes: u64) -> Self {
        let blob = Blob { hash: HASH, bytes, present: ChunkRanges::empty() };
        let mut hosts: Vec<Host> = (0..=receivers)
            .map(|host| Host {
                up: LINK,
                down: LINK,
                flaw: Flaw::None,
                has: if host == 0 { ChunkRanges::all() } else { ChunkRanges::empty() },
                plan: (host > 0).then(|| Plan::new(key(host), std::slice::from_ref(&blob), mix(seed ^ host as u64))),
                done_ms: None,
                sent: 0,
                received: 0,
            })
            .collect();
        for (at, host) in hosts.iter_mut().enumerate() {
            let Some(plan) = &mut host.plan else { continue };
            for source in (0..=receivers).filter(|source| *source != at) {
                plan.join(key(source), source == 0, Tier::Near);
            }
        }
        Self { bytes, round_trip_ms: 10, hosts, flows: Vec::new(), now_ms: 0 }
    }

    /// Host so-and-so has all of the image from the start as well.
    fn also_whole(&mut self, host: usize) {
        self.hosts[host].plan = None;
        self.hosts[host].has = ChunkRanges::all();
        for other in 1..self.hosts.len() {
            if let Some(plan) = &mut self.hosts[other].plan {
                plan.join(key(host), true, Tier::Near);
            }
        }
    }

    fn is_dead(&self, host: usize) -> bool {
        matches!(self.hosts[host].flaw, Flaw::DiesAt(at) if at <= self.now_ms)
    }

    fn receivers(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].plan.is_some()).collect()
    }

    /// Runs until every receiver that lives has all of it. Gives the time of the slowest, in milliseconds.
    fn run(&mut self) -> u64 {
        while self.receivers().iter().any(|host| !self.is_dead(*host) && self.hosts[*host].done_ms.is_none()) {
            assert!(self.now_ms < END_MS, "it takes for ever");
            self.bury();
            self.ask_around();
            self.order();
            self.carry();
            self.now_ms += STEP_MS;
        }
        self.hosts.iter().filter_map(|host| host.done_ms).max().expect("somebody receives")
    }

    /// Ends what dead hosts had a part in.
    fn bury(&mut self) {
        for dead in (0..self.hosts.len()).filter(|host| self.is_dead(*host)).collect::<Vec<_>>() {
            for at in (0..self.flows.len()).rev() {
                if self.flows[at].from == dead || self.flows[at].to == dead {
                    let flow = self.flows.swap_remove(at);
                    self.give_back(flow);
                }
            }
            for host in self.receivers() {
                self.hosts[host].plan.as_mut().expect("receivers have one").leave(key(dead));
            }
        }
    }

    /// What came of it is kept, in whole groups of 16 KiB.
    fn give_back(&mut self, flow: Flow) {
        let came = flow.order.bytes() - flow.left;
        let mut kept = ChunkRanges::empty();
        let mut rest = came / (16 << 10) * 16;
        for pair in flow.order.ranges.boundaries().chunks(2) {
            let (first, end) = (pair[0].0, pair.get(1).map_or(u64::MAX, |end| end.0));
            let end = end.min(first + rest);
            if first < end {
                kept |= ChunkRanges::from(pair[0]..pair[0] + (end - first));
                rest -= end - first;
            }
        }
        let host = &mut self.hosts[flow.to];
        host.has |= kept;
        if let Some(plan) = &mut host.plan {
            plan.give_back(flow.order.number, &host.has, self.now_ms);
        }
    }

    fn ask_around(&mut self) {
        for host in self.receivers() {
            for source in 0..self.hosts.len() {
                // Not all at the same time.
                let is_time = (self.now_ms / STEP_MS + (host * 7 + source * 3) as u64).is_multiple_of(ASK_MS / STEP_MS);
                if is_time && source != host && !self.is_dead(source) {
                    let held = self.hosts[source].has.clone();
                    self.hosts[host].plan.as_mut().expect("receivers have one").learn(key(source), HASH, &held);
                }
            }
        }
    }

    fn order(&mut self) {
        for host in self.receivers() {
            if self.is_dead(host) {
                continue;
            }
            for source in (0..self.hosts.len()).filter(|source| *source != host) {
                let busy = self.flows.iter().filter(|flow| flow.from == source && flow.to == host).count();
                for _ in busy..WORKERS_PER_SOURCE {
                    let plan = self.hosts[host].plan.as_mut().expect("receivers have one");
                    match plan.take(key(source), self.now_ms) {
                        Next::Fetch(order) => {
                            let (left, begins_ms) = (order.bytes(), self.now_ms + self.round_trip_ms);
                            self.flows.push(Flow { from: source, to: host, order, begins_ms, left });
                        }
                        Next::TakeBack(number) => {
                            let is_it = |flow: &Flow| flow.to == host && flow.order.number == number;
                            let at = self.flows.iter().position(is_it).expect("it is on its way");
                            let flow = self.flows.swap_remove(at);
                            self.give_back(flow);
                        }
                        Next::Wait | Next::Starve | Next::Done => break,
                    }
                }
            }
        }
    }

    /// The speed of each flow, in bytes a second: every link gives all that go over it the same, and what some cannot use
    /// goes to the others.
    fn rates(&self) -> Vec<u64> {
        let hosts = self.hosts.len();
        let mut free: Vec<f64> = self.hosts.iter().map(|host| host.up as f64).collect();
        free.extend(self.hosts.iter().map(|host| host.down as f64));
        let mut rates = vec![0u64; self.flows.len()];
        let is_open = |flow: &Flow| flow.begins_ms <= self.now_ms;
        let mut open: Vec<usize> = (0..self.flows.len()).filter(|at| is_open(&self.flows[*at])).collect();
        while !open.is_empty() {
            let mut users = vec![0u32; 2 * hosts];
            for at in &open {
                users[self.flows[*at].from] += 1;
                users[hosts + self.flows[*at].to] += 1;
            }
            let shares = (0..2 * hosts).filter(|link| users[*link] > 0);
            let share = |link: usize| free[link].max(0.0) / f64::from(users[link]);
            let narrowest = shares.min_by(|a, b| share(*a).total_cmp(&share(*b))).expect("some link is in use");
            let rate = share(narrowest);
            open.retain(|at| {
                let links = [self.flows[*at].from, hosts + self.flows[*at].to];
                if !links.contains(&narrowest) {
                    return true;
                }
                links.iter().for_each(|link| free[*link] -= rate);
                rates[*at] = rate as u64;
                false
            });
        }
        rates
    }

    fn carry(&mut self) {
        let rates = self.rates();
        let end_ms = self.now_ms + STEP_MS;
        for (flow, rate) in self.flows.iter_mut().zip(rates) {
            let bytes = (rate * STEP_MS / 1000).min(flow.left);
            flow.left -= bytes;
            self.hosts[flow.from].sent += bytes;
            self.hosts[flow.to].received += bytes;
            if let Some(plan) = &mut self.hosts[flow.to].plan {
                plan.received(flow.order.number, flow.order.bytes() - flow.left, end_ms);
            }
        }
        for at in (0..self.flows.len()).rev() {
            if self.flows[at].left > 0 {
                continue;
            }
            let flow = self.flows.swap_remove(at);
            let lies = self.hosts[flow.from].flaw == Flaw::Lies;
            let host = &mut self.hosts[flow.to];
            let plan = host.plan.as_mut().expect("receivers have one");
            if lies {
                // Found out by the hash: nothing is kept, and the source is asked last from then on.
                plan.place(key(flow.from), Tier::Doubtful);
                plan.give_back(flow.order.number, &host.has, end_ms);
                continue;
            }
            host.has |= flow.order.ranges.clone();
            plan.finish(flow.order.number, end_ms);
            if plan.is_done() {
                host.done_ms = Some(end_ms);
            }
        }
    }

    /// The shortest time in which all of it goes over one link, in milliseconds.
    fn bound_ms(&self) -> u64 {
        self.bytes * 1000 / LINK
    }
}

/// Runs a swarm, and holds it to having brought the image to everybody in so many times the bound.
#[track_caller]
fn takes_at_most(times: f64, what: &str, swarm: &mut Swarm) {
    let slowest_ms = swarm.run();
    for host in swarm.receivers().into_iter().filter(|host| !swarm.is_dead(*host)) {
        assert!(swarm.hosts[host].has.is_superset(&ChunkRanges::bytes(0..swarm.bytes)), "{what}: host {host}");
    }
    let sent = swarm.hosts[0].sent as f64 / swarm.bytes as f64;
    let ratio = slowest_ms as f64 / swarm.bound_ms() as f64;
    assert!(ratio <= times, "{what}: {slowest_ms} ms, {ratio:.2} times the bound; the source sent {sent:.2} images");
}

#[test]
fn one_to_eight_and_to_sixteen_are_near_the_bound_of_a_link() {
    for (receivers, seeds) in [(8, 0..2), (16, 0..1)] {
        for seed in seeds {
            let mut swarm = Swarm::new(seed, receivers, 128 * MIB);
            takes_at_most(1.3, &format!("1 -> {receivers}, seed {seed}"), &mut swarm);
            for host in swarm.receivers() {
                assert!(swarm.hosts[host].received <= swarm.bytes * 11 / 10, "host {host} received too much twice");
            }
        }
    }
}

#[test]
fn a_source_that_dies_when_all_of_it_is_out_stops_nobody() {
    let mut swarm = Swarm::new(1, 8, 64 * MIB);
    // What it has sent by then is about the image once.
    swarm.hosts[0].flaw = Flaw::DiesAt(swarm.bound_ms() * 5 / 4);
    takes_at_most(1.6, "the source dies", &mut swarm);
}

#[test]
fn a_receiver_that_dies_takes_nothing_with_it() {
    let mut swarm = Swarm::new(2, 8, 64 * MIB);
    swarm.hosts[3].flaw = Flaw::DiesAt(swarm.bound_ms() / 2);
    takes_at_most(1.5, "a receiver dies", &mut swarm);
}

#[test]
fn a_host_with_a_slow_link_holds_up_nobody_else() {
    let mut swarm = Swarm::new(3, 8, 64 * MIB);
    swarm.hosts[5].up = LINK / 50;
    takes_at_most(1.8, "a receiver that sends slowly", &mut swarm);
    let mut swarm = Swarm::new(4, 1, 128 * MIB);
    // Two whole sources, one of which is slow, for one receiver.
    swarm.hosts.push(Host { up: LINK / 50, ..Swarm::new(4, 1, MIB).hosts.remove(0) });
    swarm.also_whole(2);
    takes_at_most(1.2, "a slow source beside a fast one", &mut swarm);
}

#[test]
fn a_host_that_lies_is_left_out() {
    let mut swarm = Swarm::new(5, 8, 64 * MIB);
    swarm.hosts[2].flaw = Flaw::Lies;
    takes_at_most(1.7, "a receiver lies", &mut swarm);
    for host in swarm.receivers().into_iter().filter(|host| *host != 2) {
        let wasted = swarm.hosts[host].received.saturating_sub(swarm.bytes);
        assert!(wasted <= swarm.bytes / 8, "host {host} was sent {wasted} bytes for nothing");
    }
}

#[test]
fn another_site_takes_little_more_than_one_copy_over_the_long_way() {
    let mut swarm = Swarm::new(6, 8, 64 * MIB);
    // Hosts 5 to 8 are at another site than the source and the first four.
    let is_there = |host: usize| host > 4;
    for host in swarm.receivers() {
        for source in (0..=8).filter(|source| *source != host && is_there(*source) != is_there(host)) {
            swarm.hosts[host].plan.as_mut().expect("receivers have one").place(key(source), Tier::Far);
        }
    }
    let mut over = 0;
    while swarm.receivers().iter().any(|host| swarm.hosts[*host].done_ms.is_none()) {
        assert!(swarm.now_ms < END_MS, "it takes for ever");
        swarm.ask_around();
        swarm.order();
        let before: Vec<u64> = swarm.flows.iter().map(|flow| flow.left).collect();
        let rates = swarm.rates();
        for ((flow, left), rate) in swarm.flows.iter().zip(before).zip(rates) {
            if is_there(flow.to) && !is_there(flow.from) {
                over += (rate * STEP_MS / 1000).min(left);
            }
        }
        swarm.carry();
        swarm.now_ms += STEP_MS;
    }
    let copies = over as f64 / swarm.bytes as f64;
    assert!(copies <= 2.0, "{copies:.2} copies went over to the other site, which has 4 receivers");
}
