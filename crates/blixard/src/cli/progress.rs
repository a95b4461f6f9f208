//! What moves while a command waits: a status line, a bar for bytes, and the rate of a transfer that another node does.
//!
//! All of it goes to standard error, and only when that is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::clean;

/// How often the spinner turns: often enough to be seen alive.
const TICK: Duration = Duration::from_millis(120);
/// The span over which a rate is taken: long enough to be steady, short enough to be true.
const RATE_SPAN: Duration = Duration::from_secs(5);

/// A line that says what is going on, and vanishes when it is over.
#[derive(Debug)]
pub(super) struct StatusLine(ProgressBar);

impl StatusLine {
    /// An empty line.
    pub(super) fn start() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").expect("the template is well formed");
        bar.set_style(style);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Says something else.
    pub(super) fn set(&self, text: &str) {
        self.0.set_message(clean(text));
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar for bytes on their way, with their rate.
#[derive(Debug, Clone)]
pub(super) struct ByteBar(ProgressBar);

impl ByteBar {
    /// A bar for something of a known or unknown length.
    pub(super) fn start(label: &str, bytes_total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(bytes_total, ProgressDrawTarget::stderr());
        let template = match bytes_total {
            Some(_) => "{msg} [{wide_bar:.}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
            None => "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec}",
        };
        bar.set_style(
            ProgressStyle::with_template(template).expect("the templates are well formed").progress_chars("=> "),
        );
        bar.set_message(clean(label));
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Counts bytes that went by.
    pub(super) fn add(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// Says how many bytes are there, of which so many were before it began.
    pub(super) fn at(&self, bytes_done: u64, bytes_before: u64) {
        if self.0.position() < bytes_before {
            // What was there already says nothing of the rate.
            self.0.set_position(bytes_before);
            self.0.reset_eta();
        }
        self.0.set_position(bytes_done);
    }

    /// Says something else before the bar.
    pub(super) fn say(&self, label: &str) {
        self.0.set_message(clean(label));
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// The rate of something whose progress is heard of now and then.
#[derive(Debug, Default)]
pub(super) struct Rate {
    heard: Vec<(Instant, u64)>,
}

impl Rate {
    /// Takes in how many bytes are done; gives bytes per second once there is something to compare with.
    pub(super) fn update(&mut self, at: Instant, bytes_done: u64) -> Option<u64> {
        if self.heard.last().is_some_and(|(_, last)| bytes_done < *last) {
            self.heard.clear();
        }
        self.heard.push((at, bytes_done));
        let recent = |then: &Instant| at.duration_since(*then) <= RATE_SPAN;
        // One older entry stays, so that a slow stream of news still gives a rate.
        while self.heard.len() > 2 && !recent(&self.heard[1].0) {
            self.heard.remove(0);
        }
        let (then, before) = *self.heard.first()?;
        let ms = u64::try_from(at.duration_since(then).as_millis()).ok().filter(|ms| *ms > 0)?;
        Some((bytes_done - before).saturating_mul(1000) / ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::default();
        assert_eq!(rate.update(at(0), 0), None);
        assert_eq!(rate.update(at(1), 1000), Some(1000));
        assert_eq!(rate.update(at(2), 2000), Some(1000));
        for second in 3..20 {
            rate.update(at(second), 2000 + (second - 2) * 50);
        }
        assert_eq!(rate.update(at(20), 2900), Some(50), "the fast start is forgotten");
        assert!(rate.heard.len() < 10, "and takes no memory");
        assert_eq!(rate.update(at(21), 10), None, "another transfer");
        assert_eq!(rate.update(at(121), 1010), Some(10), "news may be rare");
    }
}
