//! What a guard does about a stop order and when, and what to call the end. Pure: time comes in as an argument.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::observed::ExitReason;

/// A guest that is still booting misses the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// What a hypervisor gets to close its disks after `quit`.
const QUIT_GRACE: Duration = Duration::from_secs(3);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    PressPowerButton,
    Quit,
    Kill,
}

/// The orders that a guard has been given.
#[derive(Debug, Default)]
pub(super) struct Orders {
    stop: Option<Stop>,
    kill: Option<Kill>,
}

#[derive(Debug)]
struct Stop {
    ordered: Instant,
    deadline: Instant,
    press: Instant,
    /// When `quit` was sent, after the deadline.
    quit: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kill {
    Ordered,
    Done,
}

impl Orders {
    /// Takes a stop order; true when it is the first. A later one can only bring the end nearer.
    pub(super) fn stop(&mut self, now: Instant, timeout: Duration) -> bool {
        // A timeout beyond what the clock can hold means "never force", and a century does the same.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400));
        match &mut self.stop {
            Some(stop) => {
                stop.deadline = stop.deadline.min(deadline);
                false
            }
            None => {
                self.stop = Some(Stop { ordered: now, deadline, press: now, quit: None });
                true
            }
        }
    }

    /// Takes a kill order.
    pub(super) fn kill(&mut self) {
        self.kill.get_or_insert(Kill::Ordered);
    }

    /// What is due; call again until there is nothing.
    pub(super) fn due(&mut self, now: Instant) -> Option<Deed> {
        match self.kill {
            Some(Kill::Ordered) => {
                self.kill = Some(Kill::Done);
                return Some(Deed::Kill);
            }
            Some(Kill::Done) => return None,
            None => {}
        }
        let stop = self.stop.as_mut()?;
        match stop.quit {
            Some(quit) if now >= quit + QUIT_GRACE => {
                stop.quit = Some(now);
                Some(Deed::Kill)
            }
            Some(_) => None,
            None if now >= stop.press => {
                stop.press = now + PRESS_AGAIN;
                Some(Deed::PressPowerButton)
            }
            None if now >= stop.deadline => {
                stop.quit = Some(now);
                Some(Deed::Quit)
            }
            None => None,
        }
    }

    /// When [`due`](Orders::due) is to be asked again, if ever.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.kill.is_some() {
            return None;
        }
        let stop = self.stop.as_ref()?;
        Some(stop.quit.map_or(stop.press.min(stop.deadline), |quit| quit + QUIT_GRACE))
    }

    /// Names the end of a hypervisor that had come up, from its status and the reason that it gave on its monitor.
    pub(super) fn exit_reason(&self, status: ExitStatus, shutdown: Option<&str>, stderr: String) -> ExitReason {
        let by_guest = matches!(shutdown, Some("guest-shutdown" | "guest-reset"));
        match &self.stop {
            // A kill that was ordered while this was under way ended nothing that was not ending.
            Some(stop) if stop.quit.is_some() && !by_guest => {
                let given = stop.deadline.saturating_duration_since(stop.ordered);
                return ExitReason::Forced { timeout_ms: u64::try_from(given.as_millis()).unwrap_or(u64::MAX) };
            }
            _ if self.kill.is_some() => return ExitReason::Killed,
            Some(_) if by_guest => return ExitReason::Stopped,
            _ => {}
        }
        match (shutdown, status.signal()) {
            (Some("guest-shutdown"), _) => ExitReason::GuestShutdown,
            (Some("guest-reset"), _) => ExitReason::GuestRebooted,
            (_, Some(signal)) => ExitReason::Signal { signal },
            // QEMU catches the polite signals and exits with code 0; which one it was it does not say.
            (Some("host-signal"), None) => ExitReason::Signal { signal: nix::sys::signal::Signal::SIGTERM as i32 },
            (_, None) => ExitReason::Code { code: status.code().unwrap_or(-1), stderr },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(orders: &Orders, raw: i32, shutdown: Option<&str>) -> ExitReason {
        orders.exit_reason(ExitStatus::from_raw(raw), shutdown, "words".into())
    }

    #[test]
    fn a_stop_presses_again_then_quits_then_kills() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut orders = Orders::default();
        assert_eq!((orders.due(start), orders.next()), (None, None));
        assert!(orders.stop(start, Duration::from_millis(5000)));
        assert_eq!(orders.due(start), Some(Deed::PressPowerButton));
        assert_eq!((orders.due(start), orders.next()), (None, Some(at(3000))));
        assert_eq!(orders.due(at(3000)), Some(Deed::PressPowerButton));
        assert_eq!((orders.due(at(4999)), orders.next()), (None, Some(at(5000))));
        assert_eq!(exited(&orders, 0, Some("guest-shutdown")), ExitReason::Stopped);
        assert_eq!(orders.due(at(5000)), Some(Deed::Quit));
        assert_eq!((orders.due(at(5000)), orders.next()), (None, Some(at(8000))));
        assert_eq!(exited(&orders, 0, Some("host-qmp-quit")), ExitReason::Forced { timeout_ms: 5000 });
        assert_eq!(exited(&orders, 0, Some("guest-shutdown")), ExitReason::Stopped);
        assert_eq!(orders.due(at(8000)), Some(Deed::Kill));
        assert_eq!(exited(&orders, 9, None), ExitReason::Forced { timeout_ms: 5000 });
    }

    #[test]
    fn a_second_stop_only_brings_the_end_nearer() {
        let start = Instant::now();
        let mut orders = Orders::default();
        assert!(orders.stop(start, Duration::MAX));
        assert_eq!(orders.due(start), Some(Deed::PressPowerButton));
        assert!(!orders.stop(start, Duration::from_millis(10)));
        assert!(!orders.stop(start, Duration::from_secs(60)));
        assert_eq!(orders.due(start + Duration::from_millis(10)), Some(Deed::Quit));
    }

    #[test]
    fn a_kill_is_done_once_and_overrides() {
        let mut orders = Orders::default();
        orders.stop(Instant::now(), Duration::from_secs(1));
        orders.kill();
        orders.kill();
        assert_eq!(orders.due(Instant::now()), Some(Deed::Kill));
        assert_eq!((orders.due(Instant::now()), orders.next()), (None, None));
        assert_eq!(exited(&orders, 9, None), ExitReason::Killed);
    }

    #[test]
    fn an_end_without_orders_is_named_by_what_happened() {
        let none = Orders::default();
        assert_eq!(exited(&none, 0, Some("guest-shutdown")), ExitReason::GuestShutdown);
        assert_eq!(exited(&none, 0, Some("guest-reset")), ExitReason::GuestRebooted);
        assert_eq!(exited(&none, 11, None), ExitReason::Signal { signal: 11 });
        assert_eq!(exited(&none, 0, Some("host-signal")), ExitReason::Signal { signal: 15 });
        assert_eq!(exited(&none, 1 << 8, None), ExitReason::Code { code: 1, stderr: "words".into() });
    }
}
