//! Waiting for what a request asked for: running, stopped or gone.
//!
//! Views come from a stream that any node may serve, so they may be behind the request, and it may break off. What a view
//! means is decided by [`judge`]; [`Wait::run`] keeps the stream up, shows the state of things, and gives up in time.

use std::time::{Duration, Instant};

use blixard_core::{Desired, Power, VmId, VmName};
use blixard_node::api::{Client, ClientError, FaultKind, VmView};
use futures::{StreamExt, pin_mut};

use super::super::progress::{Rate, StatusLine};
use super::text;
use crate::failure::{Exit, Failure};

/// Between a stream that broke off and the next.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a vm that was just created may be unknown to the node that is asked.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// What the request that made this wish asked for.
    Settled(Desired),
    /// That the vm is gone.
    Gone,
}

/// What a view means for a goal.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// Nothing yet.
    Wait,
    /// It is reached.
    Done,
    /// It cannot be reached any more.
    Failed(String),
}

/// Wishes in the order in which a vm can go through them: a run begins with power on, and may end in power off, and
/// deletion ends them all.
fn order(desired: &Desired) -> (bool, u64, bool) {
    (desired.deleting, desired.run, desired.power == Power::Off)
}

fn judge(goal: Goal, view: &VmView) -> Judgement {
    let Goal::Settled(asked) = goal else { return Judgement::Wait };
    let desired = &view.desired;
    if order(desired) < order(&asked) {
        // The node that serves the stream has not heard of the request yet.
        return Judgement::Wait;
    }
    if desired.deleting {
        return Judgement::Failed("another request deletes it".to_owned());
    }
    if desired.power != asked.power {
        let verb = if desired.power == Power::On { "starts" } else { "stops" };
        return Judgement::Failed(format!("another request {verb} it"));
    }
    match view.settled() {
        None => Judgement::Wait,
        Some(Ok(())) => Judgement::Done,
        Some(Err(reason)) => Judgement::Failed(reason),
    }
}

/// Why waiting ended.
enum End {
    Reached(Box<VmView>),
    Failed(String),
    Gone,
    TimedOut,
    Interrupted,
}

/// What to wait for, and how long.
#[derive(Debug)]
pub(super) struct Wait {
    /// The vm's name.
    pub(super) name: VmName,
    /// Its id: another vm may get the name.
    pub(super) id: VmId,
    /// What is waited for.
    pub(super) goal: Goal,
    /// When waiting is given up.
    pub(super) limit: Duration,
}

impl Wait {
    /// Waits. Gives the vm as it then is, or nothing when it is gone and was to go.
    ///
    /// # Errors
    /// When the goal cannot be reached any more, takes too long, or the user does not want to wait any more.
    pub(super) async fn run(&self, client: &Client) -> anyhow::Result<Option<VmView>> {
        let line = StatusLine::start();
        let mut last = None;
        let end = tokio::select! {
            end = self.follow(client, &line, &mut last) => end?,
            () = tokio::time::sleep(self.limit) => End::TimedOut,
            _ = tokio::signal::ctrl_c() => End::Interrupted,
        };
        drop(line);
        let name = &self.name;
        let is_to_go = matches!(self.goal, Goal::Gone);
        match end {
            End::Reached(view) => Ok(Some(*view)),
            End::Gone if is_to_go => Ok(None),
            End::Gone => Err(Failure::new(Exit::WaitFailed, format!("vm {name} was deleted meanwhile")).into()),
            End::Failed(reason) => {
                let failure = Failure::new(Exit::WaitFailed, format!("vm {name}: {reason}"));
                let next_step =
                    format!("`blixard vm logs {name}` shows what the guest said, `blixard vm status {name}` the rest");
                Err(failure.next_step(next_step).into())
            }
            End::TimedOut => {
                let state =
                    last.map_or_else(|| "nothing was heard of it".to_owned(), |view| text::progress(&view, None));
                let limit = humantime::format_duration(self.limit);
                let missed = match self.goal {
                    Goal::Gone => "is not gone",
                    Goal::Settled(Desired { power: Power::On, .. }) => "does not run",
                    Goal::Settled(_) => "is not stopped",
                };
                let failure = Failure::new(Exit::WaitFailed, format!("vm {name} {missed} after {limit}: {state}"));
                let next_step = format!(
                    "the request goes on; look with `blixard vm status {name}` and `blixard vm explain {name}`"
                );
                Err(failure.next_step(next_step).into())
            }
            End::Interrupted => {
                let failure = Failure::new(Exit::Interrupted, format!("stopped waiting for vm {name}"));
                Err(failure.next_step(format!("the request goes on; look with `blixard vm status {name}`")).into())
            }
        }
    }

    /// Follows the vm, over as many streams as it takes.
    async fn follow(&self, client: &Client, line: &StatusLine, last: &mut Option<VmView>) -> anyhow::Result<End> {
        let begun = Instant::now();
        let mut rate = Rate::default();
        loop {
            match client.watch_vm(&self.name).await {
                Ok(views) => {
                    pin_mut!(views);
                    while let Some(Ok(view)) = views.next().await {
                        if view.id != self.id {
                            return Ok(End::Gone);
                        }
                        let speed = transfer_rate(&mut rate, &view);
                        line.set(&format!("vm {}: {}", self.name, text::progress(&view, speed)));
                        match judge(self.goal, &view) {
                            Judgement::Done => return Ok(End::Reached(Box::new(view))),
                            Judgement::Failed(reason) => return Ok(End::Failed(reason)),
                            Judgement::Wait => *last = Some(view),
                        }
                    }
                }
                Err(ClientError::Fault(fault)) if fault.kind == FaultKind::NotFound => {
                    let may_be_news = matches!(self.goal, Goal::Settled(_)) && last.is_none();
                    if !may_be_news || begun.elapsed() > UNKNOWN_MAX {
                        return Ok(End::Gone);
                    }
                }
                Err(error) if is_passing(&error) => line.set(&format!("vm {}: {error}; trying again", self.name)),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

/// Whether asking again may help, where an earlier answer showed that there is something to be told.
pub(super) fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable(_) | ClientError::Lost(_) => true,
        ClientError::Refused(..) | ClientError::Unreadable(_) | ClientError::Ambiguous(_) => false,
        ClientError::Fault(fault) => {
            matches!(fault.kind, FaultKind::Unavailable | FaultKind::NoLeader | FaultKind::Unknown)
        }
    }
}

fn transfer_rate(rate: &mut Rate, view: &VmView) -> Option<u64> {
    let transfer = view.live.as_ref()?.transfer.as_ref()?;
    rate.update(Instant::now(), transfer.bytes_done)
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::view;
    use super::*;

    fn desired(power: Power, run: u64) -> Desired {
        Desired { power, run, stop_timeout_ms: 30_000, deleting: false }
    }

    /// What a view with this wish, phase and observed run means to somebody who asked for `asked`.
    fn verdict(asked: Desired, wish: Desired, phase: &str, observed_run: u64) -> Judgement {
        let view = VmView { desired: wish, observed_run, ..view(phase) };
        judge(Goal::Settled(asked), &view)
    }

    #[test]
    fn a_start_waits_for_its_own_run() {
        let asked = desired(Power::On, 2);
        assert_eq!(verdict(asked, asked, "pending", 0), Judgement::Wait);
        assert_eq!(verdict(asked, asked, "preparing", 2), Judgement::Wait);
        assert_eq!(verdict(asked, asked, "running", 1), Judgement::Wait, "the run before still runs");
        assert_eq!(verdict(asked, asked, "running", 2), Judgement::Done);
        assert_eq!(verdict(asked, asked, "failed", 1), Judgement::Wait, "the run before had failed");
        assert!(matches!(verdict(asked, asked, "failed", 2), Judgement::Failed(_)));
    }

    #[test]
    fn a_view_older_than_the_request_means_nothing() {
        let before = desired(Power::On, 1);
        assert_eq!(verdict(desired(Power::Off, 1), before, "running", 1), Judgement::Wait, "asked to stop");
        assert_eq!(verdict(desired(Power::On, 2), before, "running", 1), Judgement::Wait, "asked to restart");
        assert_eq!(
            verdict(desired(Power::On, 2), desired(Power::Off, 1), "stopped", 1),
            Judgement::Wait,
            "asked to start"
        );
    }

    #[test]
    fn a_stop_is_done_when_nothing_runs() {
        let asked = desired(Power::Off, 1);
        assert_eq!(verdict(asked, asked, "running", 1), Judgement::Wait);
        assert_eq!(verdict(asked, asked, "stopping", 1), Judgement::Wait);
        assert_eq!(verdict(asked, asked, "stopped", 1), Judgement::Done);
        assert_eq!(verdict(asked, asked, "failed", 1), Judgement::Done);
        let created = desired(Power::Off, 0);
        assert_eq!(verdict(created, created, "pending", 0), Judgement::Done, "created without a start");
    }

    #[test]
    fn another_request_meanwhile_is_told() {
        let says = |judgement, word: &str| match judgement {
            Judgement::Failed(reason) => assert!(reason.contains(word), "{reason}"),
            other => panic!("{other:?} does not say {word}"),
        };
        says(verdict(desired(Power::On, 1), desired(Power::Off, 1), "stopping", 1), "stops");
        says(verdict(desired(Power::Off, 1), desired(Power::On, 2), "running", 1), "starts");
        says(
            verdict(desired(Power::On, 1), Desired { deleting: true, ..desired(Power::On, 1) }, "running", 1),
            "deletes",
        );
        let restarted = verdict(desired(Power::On, 1), desired(Power::On, 2), "running", 2);
        assert_eq!(restarted, Judgement::Done, "a later run is as good");
    }

    #[test]
    fn a_failure_that_will_be_tried_again_is_waited_out() {
        let asked = desired(Power::On, 1);
        let view = VmView { desired: asked, observed_run: 1, retrying: true, ..view("failed") };
        assert_eq!(judge(Goal::Settled(asked), &view), Judgement::Wait);
    }

    #[test]
    fn what_is_to_go_is_waited_for_until_the_stream_says_so() {
        for phase in ["running", "stopped", "deleting", "failed"] {
            assert_eq!(judge(Goal::Gone, &view(phase)), Judgement::Wait);
        }
    }
}
