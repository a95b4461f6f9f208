//! What the demo says: a line a step, with the time that the step took, and evidence below it.

use std::time::{Duration, Instant};

/// Tells steps as they are done.
pub(super) struct Teller {
    started: Instant,
    step_started: Instant,
}

impl Teller {
    /// The time of the first step begins.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { started: now, step_started: now }
    }

    /// Tells that a step is done; the time of the next begins.
    pub(super) fn done(&mut self, what: &str) {
        println!("{:>7}  {what}", seconds(self.step_started.elapsed()));
        self.step_started = Instant::now();
    }

    /// Shows what a step saw, apart from what the demo says itself.
    pub(super) fn show(&self, evidence: &str) {
        for line in evidence.lines() {
            println!("         | {}", printable(line));
        }
    }

    /// Since the beginning.
    pub(super) fn elapsed(&self) -> String {
        seconds(self.started.elapsed())
    }

    /// Tells that all is done.
    pub(super) fn finish(&self) {
        println!("demo: all as it should be, in {}", self.elapsed());
    }
}

/// A span as people read it.
pub(super) fn seconds(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}

/// A line of a guest's console without what only a terminal understands.
fn printable(line: &str) -> String {
    let mut shown = String::new();
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\x1b' && rest.next_if_eq(&'[').is_some() {
            // A control sequence goes on until its first letter.
            while rest.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
        } else if !c.is_control() {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_line_is_shown_without_its_control_sequences() {
        assert_eq!(printable("web:~# \x1b[6nuname -a\r"), "web:~# uname -a");
        assert_eq!(printable("\x1b[1;31mred\x1b[0m\x07 plain ü"), "red plain ü");
        assert_eq!(printable("cut short \x1b["), "cut short ");
        assert_eq!(printable(""), "");
    }
}
