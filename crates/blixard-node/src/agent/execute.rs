//! Carries plans out. Each order for a vm runs in a task of its own, one at a time for each vm.

use std::time::{Duration, Instant};

use anyhow::Context;
use blixard_core::{Action, Actor, Change, Command, ImageId, Order, VmId};
use tracing::{Instrument, info_span};

use super::Agent;
use super::launch::{Times, launch_spec};
use super::observe::LaunchFailure;
use super::sources::sources;
use crate::clock;
use crate::metrics::{observe, outcome};
use crate::trace;
use crate::transfers::Priority;

/// An order that is being carried out, and for a launch what is launched: epoch, run and restarts.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderInHand {
    pub(super) order: Order,
    pub(super) launching: Option<(u64, u64, u32)>,
}

/// The label of an order.
fn word(order: Order) -> &'static str {
    match order {
        Order::Prepare => "prepare",
        Order::Launch => "launch",
        Order::Stop => "stop",
        Order::Kill => "kill",
        Order::Remove => "remove",
        Order::Settle => "settle",
    }
}

impl Agent {
    /// Carries out the actions of a plan: at once what is quick, in the background what is not.
    pub(super) async fn execute(&self, actions: Vec<Action>) {
        let mut reports = Vec::new();
        for action in actions {
            match action {
                Action::FetchImage { image, urgent } => {
                    if urgent {
                        self.desk().missed.insert(image);
                    }
                    self.fetch(image, if urgent { Priority::VmWaiting } else { Priority::Copy }).await;
                }
                Action::DropImage { image } => self.drop_image(image).await,
                Action::Launch { vm, epoch, run, restarts } => self.launch(vm, epoch, run, restarts),
                Action::Settle { vm } => self.settle(vm),
                Action::Stop { vm, timeout_ms } => {
                    let timeout = Duration::from_millis(timeout_ms);
                    self.order(vm, Order::Stop, None, async move |agent| {
                        tracing::info!(%vm, timeout_ms, "stopping");
                        Ok(agent.blocking(move |driver| driver.stop(&vm.to_string(), timeout)).await?)
                    });
                }
                Action::Kill { vm } => self.order(vm, Order::Kill, None, async move |agent| {
                    tracing::info!(%vm, "killing");
                    Ok(agent.blocking(move |driver| driver.kill(&vm.to_string())).await?)
                }),
                Action::Remove { vm } => self.order(vm, Order::Remove, None, async move |agent| {
                    tracing::info!(%vm, "removing every file");
                    agent.desk().launch_failures.remove(&vm);
                    Ok(agent.blocking(move |driver| driver.remove(&vm.to_string())).await?)
                }),
                Action::Propose(change) => reports.push(change),
            }
        }
        self.report(reports);
    }

    /// Starts an order in the background. Until it is done, the plan sees the vm as busy.
    pub(super) fn order<F, Fut>(&self, vm: VmId, order: Order, launching: Option<(u64, u64, u32)>, carry_out: F)
    where
        F: FnOnce(Self) -> Fut,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.desk().orders.insert(vm, OrderInHand { order, launching });
        let task = tokio::spawn(carry_out(self.clone()));
        let agent = self.clone();
        tokio::spawn(async move {
            let failure = match task.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(format!("the order ended by a panic: {error}")),
            };
            {
                let mut desk = agent.desk();
                desk.orders.remove(&vm);
                if let Some(reason) = failure {
                    agent.inner.metrics.order_failures.get_or_create(&[("order", word(order).into())]).inc();
                    tracing::warn!(%vm, ?order, reason, "an order failed");
                    if let Some((epoch, run, restarts)) = launching {
                        let failure = LaunchFailure { epoch, run, restarts, reason, at: clock::now() };
                        desk.launch_failures.insert(vm, failure);
                    }
                } else if launching.is_some() {
                    desk.launch_failures.remove(&vm);
                }
            }
            agent.inner.wake.notify_one();
        });
    }

    fn launch(&self, vm: VmId, epoch: u64, run: u64, restarts: u32) {
        let launch = || info_span!(target: trace::TARGET, "launch", %vm, epoch, run);
        let span = trace::under(self.inner.raft.trace_of(vm), launch);
        let carry_out = async move |agent: Self| {
            let record = agent.inner.raft.read(|state| state.vms.get(&vm).cloned()).context("the vm is gone")?;
            let manifest =
                agent.inner.raft.read(|state| state.images.get(&record.spec.image).map(|i| i.manifest.clone()));
            let manifest = manifest.context("the image is gone from the catalog")?;
            let times = Times { epoch, run, restarts };
            let (images, disks) = (&agent.inner.images, &agent.inner.disks);
            let spec = launch_spec(images, disks, &record, &manifest, times).await?;
            tracing::info!(%vm, name = %record.name, epoch, run, restarts, "launching");
            let (metrics, start) = (agent.inner.metrics.clone(), Instant::now());
            let launch = agent.blocking(move |driver| driver.launch(&spec));
            let launched = launch.instrument(trace::here(|| info_span!(target: trace::TARGET, "driver"))).await;
            metrics.launches.get_or_create(&outcome(launched.is_ok())).inc();
            launched?;
            observe(&metrics.launch_times, start.elapsed());
            Ok(())
        };
        let launching = Some((epoch, run, restarts));
        if !self.hold_image_of(vm, OrderInHand { order: Order::Launch, launching }) {
            return;
        }
        self.order(vm, Order::Launch, launching, move |agent| async move { carry_out(agent).await }.instrument(span));
    }

    pub(super) async fn fetch(&self, image: ImageId, priority: Priority) {
        let found = self.inner.raft.read(|state| sources(state, self.inner.me, image));
        let Some((manifest, sources)) = found else { return };
        // Kept before the first byte comes, or what has come could be collected as garbage.
        if let Err(error) = self.inner.images.keep(image, &manifest).await {
            self.inner.metrics.agent_failures.inc();
            tracing::warn!(%image, error = format!("{error:#}"), "the image cannot be kept; it is tried again");
            return;
        }
        self.desk().sources.insert(image, sources.clone());
        self.inner.transfers.want(image, manifest, sources, priority);
    }

    /// Tells a transfer in hand when other nodes hold or fetch the image than when it was ordered.
    pub(super) fn refresh_sources(&self, image: ImageId, priority: Priority) {
        let found = self.inner.raft.read(|state| sources(state, self.inner.me, image));
        let Some((manifest, sources)) = found else { return };
        if self.desk().sources.get(&image) == Some(&sources) {
            return;
        }
        self.desk().sources.insert(image, sources.clone());
        self.inner.transfers.want(image, manifest, sources, priority);
    }

    async fn drop_image(&self, image: ImageId) {
        tracing::info!(image = %image.short(), "dropping an image that is not in the catalog");
        if let Err(error) = self.inner.transfers.forget(image).await {
            tracing::warn!(%image, error = format!("{error:#}"), "what was asked for of an image cannot be forgotten");
        }
        {
            let mut desk = self.desk();
            desk.complete.remove(&image);
            desk.booting.remove(&image);
            desk.sources.remove(&image);
        }
        if let Err(error) = self.inner.images.drop_image(image).await {
            self.inner.metrics.agent_failures.inc();
            tracing::warn!(%image, error = format!("{error:#}"), "the image cannot be dropped; it is tried again");
        }
    }

    /// Proposes reports in the background, one batch at a time. What a batch in hand leaves out is found again by looking.
    fn report(&self, reports: Vec<Change>) {
        if reports.is_empty() {
            return;
        }
        let Ok(turn) = self.inner.reporting.clone().try_lock_owned() else { return };
        let agent = self.clone();
        tokio::spawn(async move {
            for change in reports {
                let by = Actor::Node(agent.inner.me);
                let command = Command { request: None, at: clock::now(), by, change };
                match agent.inner.raft.propose(&command).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(rejection)) => tracing::debug!(%rejection, "a report came too late"),
                    Err(error) => {
                        tracing::debug!(%error, "a report could not be made; it is made again");
                        break;
                    }
                }
            }
            drop(turn);
            agent.inner.wake.notify_one();
        });
    }
}
