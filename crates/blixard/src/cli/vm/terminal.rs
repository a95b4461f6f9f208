//! The user's terminal: raw while a console is shown in it, and guarded against what a log may contain.

use std::io;
use std::os::fd::AsFd;

use anyhow::Context;
use nix::sys::termios::{self, SetArg, Termios};

/// A terminal in raw mode: every key goes to the guest. Dropping it puts the terminal back as it was, so that it comes back
/// on every way out, panics included.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal at standard input into raw mode.
    ///
    /// # Errors
    /// When it cannot be asked or set.
    pub(super) fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).context("set the terminal to raw mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing is left to try when the terminal itself has gone.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// The longest colour sequence that is let through; a longer one is no colour.
const SEQUENCE_BYTES_MAX: usize = 64;
const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;

/// Takes everything out of a stream of text that could do more to a terminal than show text in colour.
#[derive(Debug, Default)]
pub(super) struct LogFilter {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In `ESC [ ...`: parameters so far.
    Sequence(Vec<u8>),
    /// In `ESC ] ...` and its like, which end with BEL or ESC `\`.
    Command,
    /// After ESC in a command.
    CommandEscape,
    /// After 0xC2, which begins a control character (0x80 to 0x9f) or a harmless letter.
    Lead,
}

impl LogFilter {
    /// The part of the next `bytes` that may be shown.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.step(byte, &mut shown);
        }
        shown
    }

    fn step(&mut self, byte: u8, shown: &mut Vec<u8>) {
        self.state = match (std::mem::take(&mut self.state), byte) {
            (State::Command, BELL) | (State::CommandEscape, b'\\') => State::Text,
            (State::Command, ESCAPE) => State::CommandEscape,
            (State::Command | State::CommandEscape, _) => State::Command,
            (_, ESCAPE) => State::Escape,
            (State::Escape, b'[') => State::Sequence(Vec::new()),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::Command,
            // The intermediate bytes of a longer sequence, such as the choice of a character set.
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Escape, _) => State::Text,
            (State::Sequence(mut parameters), 0x20..=0x3f) => {
                parameters.push(byte);
                if parameters.len() > SEQUENCE_BYTES_MAX { State::Text } else { State::Sequence(parameters) }
            }
            (State::Sequence(parameters), b'm') => {
                shown.extend([ESCAPE, b'[']);
                shown.extend(parameters);
                shown.push(b'm');
                State::Text
            }
            (State::Sequence(_), _) => State::Text,
            (State::Text, 0xc2) => State::Lead,
            (State::Lead, 0x80..=0x9f) => State::Text,
            (State::Lead, _) => {
                shown.push(0xc2);
                return self.step(byte, shown);
            }
            (State::Text, b'\n' | b'\r' | b'\t' | 0x20..=0x7e | 0x80..) => {
                shown.push(byte);
                State::Text
            }
            (State::Text, _) => State::Text,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(text: &str) -> String {
        let whole = LogFilter::default().pass(text.as_bytes());
        let mut filter = LogFilter::default();
        let by_bytes: Vec<u8> = text.bytes().flat_map(|byte| filter.pass(&[byte])).collect();
        assert_eq!(whole, by_bytes, "chunks make no difference");
        String::from_utf8_lossy(&whole).into_owned()
    }

    #[test]
    fn text_and_colours_pass() {
        for text in ["hello\r\n\tworld", "größer · ©", "\x1b[1;32m[  OK  ]\x1b[0m Started", "日本語"] {
            assert_eq!(pass(text), text);
        }
    }

    #[test]
    fn everything_else_is_taken_out() {
        assert_eq!(pass("a\x1b[2J\x1b[Hb"), "ab", "clear the screen");
        assert_eq!(pass("a\x1b]0;title\x07b"), "ab", "set the title");
        assert_eq!(pass("a\x1b]52;c;ZXZpbA==\x1b\\b"), "ab", "set the clipboard");
        assert_eq!(pass("a\x1bP+q544e\x1b\\b"), "ab", "ask the terminal");
        assert_eq!(pass("a\x1b[6nb\x1bcc"), "abc", "ask for the cursor, reset");
        assert_eq!(pass("a\x1b(0b"), "ab", "another character set");
        assert_eq!(pass("a\u{9b}2Jb"), "a2Jb", "the one-character form loses its power");
        assert_eq!(pass("a\x08\x00\x7fb"), "ab");
        assert_eq!(pass("\x1b[2\x1b[31mred"), "\x1b[31mred", "a sequence cut off by another");
    }
}
