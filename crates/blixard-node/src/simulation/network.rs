//! A network that delays, reorders, stalls and cuts.
//!
//! Streams behave as QUIC's do: what is sent on one arrives in order or the stream ends; two streams overtake each other. A
//! lost packet is a delay. A direction can be cut while the other works; a connection over a cut, to a process that died,
//! or to one that is paused, ends for both sides after the time in which nothing came.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use super::dice::Dice;
use super::life::{Life, lock, virtual_ns};

/// After so long without a sign of life a connection ends.
const IDLE: Duration = Duration::from_secs(3);
/// How often a packet that meets a cut is sent again.
const RESEND: Duration = Duration::from_millis(40);

/// How the network does now.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    /// Packets in a hundred that have to be sent again.
    pub(crate) loss_percent: u64,
    /// Packets in a hundred that take a detour.
    pub(crate) detour_percent: u64,
    /// The longest a packet usually takes, in microseconds.
    pub(crate) micros_max: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss_percent: 0, detour_percent: 1, micros_max: 1_000 };
}

#[derive(Default)]
struct Flow {
    arrived: BytesMut,
    has_ended: bool,
    is_broken: bool,
    /// The process that writes it died: no end of the stream is ever sent.
    is_orphan: bool,
    reader: Option<Waker>,
}

type Shared = Arc<Mutex<Flow>>;

fn wake(flow: &Shared) {
    if let Some(reader) = lock(flow).reader.take() {
        reader.wake();
    }
}

fn break_off(flow: &Shared) {
    lock(flow).is_broken = true;
    wake(flow);
}

/// Both directions between two processes.
struct Stream {
    ends: [Weak<Life>; 2],
    flows: [Shared; 2],
}

impl Stream {
    fn is_of(&self, life: &Arc<Life>) -> bool {
        self.ends.iter().any(|end| std::ptr::eq(end.as_ptr(), Arc::as_ptr(life)))
    }

    fn is_between(&self, a: u64, b: u64) -> bool {
        let hosts: BTreeSet<u64> = self.ends.iter().filter_map(|end| Some(end.upgrade()?.host.number)).collect();
        hosts == BTreeSet::from([a, b])
    }

    fn is_gone(&self) -> bool {
        self.flows.iter().all(|flow| lock(flow).is_broken)
    }
}

pub(crate) struct Network {
    dice: Dice,
    weather: Mutex<Weather>,
    /// Directions that are cut, and since which cut.
    cuts: Mutex<BTreeMap<(u64, u64), u64>>,
    cut_count: Mutex<u64>,
    streams: Mutex<Vec<Stream>>,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            dice: Dice::new(seed),
            weather: Mutex::new(Weather::FAIR),
            cuts: Mutex::default(),
            cut_count: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        *lock(&self.weather) = weather;
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        lock(&self.cuts).contains_key(&(from, to))
    }

    /// How long a packet takes.
    fn delay(&self) -> Duration {
        let weather = *lock(&self.weather);
        let mut delay = self.dice.micros(20, weather.micros_max);
        if self.dice.percent(weather.detour_percent) {
            delay += self.dice.millis(5, 200);
        }
        while self.dice.percent(weather.loss_percent) {
            delay += self.dice.millis(20, 300);
        }
        delay
    }

    /// One packet's way; nothing arrives over a cut.
    pub(crate) async fn leg(&self, from: u64, to: u64) -> bool {
        SimRuntime::sleep(self.delay()).await;
        !self.is_cut(from, to)
    }

    /// Cuts one direction. When it is still the same cut after a while, connections over it end.
    pub(crate) fn cut(self: &Arc<Self>, from: u64, to: u64) {
        let mut count = lock(&self.cut_count);
        *count += 1;
        let this = *count;
        drop(count);
        lock(&self.cuts).insert((from, to), this);
        let network = self.clone();
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(IDLE).await;
            let is_same = lock(&network.cuts).get(&(from, to)) == Some(&this);
            if is_same {
                network.end_streams(|stream| stream.is_between(from, to));
            }
        }));
    }

    pub(crate) fn heal(&self) {
        lock(&self.cuts).clear();
    }

    /// The peers of a process that died, or is paused, notice within the idle time.
    pub(crate) fn is_silent(self: &Arc<Self>, life: &Arc<Life>) {
        let (network, life) = (self.clone(), life.clone());
        let after = if life.is_over() { self.dice.millis(0, 3_000) } else { IDLE };
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(after).await;
            if life.is_over() || life.is_paused() {
                network.end_streams(|stream| stream.is_of(&life));
            }
        }));
    }

    fn end_streams(&self, which: impl Fn(&Stream) -> bool) {
        let mut streams = lock(&self.streams);
        streams.retain(|stream| !stream.is_gone());
        let ending: Vec<Shared> = streams.iter().filter(|stream| which(stream)).flat_map(|s| s.flows.clone()).collect();
        drop(streams);
        ending.iter().for_each(break_off);
    }

    /// A stream between two processes: both ends of it.
    pub(crate) fn stream(self: &Arc<Self>, from: &Arc<Life>, to: &Arc<Life>) -> [(Sending, Receiving); 2] {
        let (there, back) = (Shared::default(), Shared::default());
        let ends = [Arc::downgrade(from), Arc::downgrade(to)];
        let mut streams = lock(&self.streams);
        if streams.len() % 64 == 63 {
            streams.retain(|stream| !stream.is_gone());
        }
        streams.push(Stream { ends, flows: [there.clone(), back.clone()] });
        drop(streams);
        let (a, b) = (from.host.number, to.host.number);
        let (send_there, send_back) = (self.carry(a, b, there.clone()), self.carry(b, a, back.clone()));
        [(send_there, Receiving(back)), (send_back, Receiving(there))]
    }

    /// Carries what is written to whoever reads the flow.
    fn carry(self: &Arc<Self>, from: u64, to: u64, flow: Shared) -> Sending {
        let (packets, mut queue) = mpsc::unbounded_channel::<(u64, Bytes)>();
        let (network, carried) = (self.clone(), flow.clone());
        drop(SimRuntime::spawn(async move {
            while let Some((arrives_at, bytes)) = queue.recv().await {
                SimRuntime::sleep(Duration::from_nanos(arrives_at.saturating_sub(virtual_ns()))).await;
                while network.is_cut(from, to) {
                    SimRuntime::sleep(RESEND).await;
                    if lock(&carried).is_broken {
                        return;
                    }
                }
                lock(&carried).arrived.extend_from_slice(&bytes);
                wake(&carried);
            }
            {
                let mut carried = lock(&carried);
                carried.has_ended = !carried.is_orphan;
            }
            wake(&carried);
        }));
        Sending { network: self.clone(), flow, packets, last_arrival: 0 }
    }
}

/// Where one side of a stream writes. Dropping it ends the stream after what was written.
pub(crate) struct Sending {
    network: Arc<Network>,
    flow: Shared,
    packets: mpsc::UnboundedSender<(u64, Bytes)>,
    last_arrival: u64,
}

impl Drop for Sending {
    fn drop(&mut self) {
        lock(&self.flow).is_orphan = is_dying();
    }
}

/// Whether what is being dropped belongs to a process that died, which tells nobody.
fn is_dying() -> bool {
    super::life::current().is_some_and(|life| life.is_over())
}

impl AsyncWrite for Sending {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if lock(&self.flow).is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let delay = u64::try_from(self.network.delay().as_nanos()).unwrap_or(u64::MAX);
        self.last_arrival = self.last_arrival.max(virtual_ns() + delay);
        let packet = (self.last_arrival, Bytes::copy_from_slice(bytes));
        Poll::Ready(match self.packets.send(packet) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where one side of a stream reads. Dropping it stops the other side's writing.
pub(crate) struct Receiving(Shared);

impl Drop for Receiving {
    fn drop(&mut self) {
        if !is_dying() {
            lock(&self.0).is_broken = true;
        }
    }
}

impl AsyncRead for Receiving {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut flow = lock(&self.0);
        if flow.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if flow.arrived.is_empty() && !flow.has_ended {
            flow.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = out.remaining().min(flow.arrived.len());
        out.put_slice(&flow.arrived[..count]);
        flow.arrived.advance(count);
        Poll::Ready(Ok(()))
    }
}
