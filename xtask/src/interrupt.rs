//! Ctrl-C, and the signals like it: a task that has started other programs ends them before it ends itself.

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How soon a waiting task takes notice.
const POLL: Duration = Duration::from_millis(100);

/// Whether the user wants the task to end. From the first call of [`Interrupt::listen`] on, the signals only set this,
/// so whoever listens must ask often.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, flag.clone()).context("listen for signals")?;
        }
        Ok(Self(flag))
    }

    /// An error once a signal has arrived.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Waits for a time, because the time itself is what is wanted; an error once a signal has arrived.
    pub(crate) fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
        }
        self.check()
    }
}
