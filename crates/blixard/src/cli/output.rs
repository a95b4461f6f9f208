//! What people and scripts read: tables, JSON, and the one place that writes to standard output and standard error.
//!
//! No colours are used, so there is nothing for `NO_COLOR` to turn off here.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use blixard_core::UnixMs;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::failure::OutputClosed;

/// Between two columns.
const GAP: &str = "  ";

/// How a command's result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Table,
    /// For programs: the views of the control API as they are.
    Json,
}

/// The flag that chooses how a result is written.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// How to write the result: a table for people, or JSON for programs.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    format: OutputFormat,
}

impl Output {
    /// Writes a result as JSON, or as the text that `table` makes of it.
    pub(super) fn show<T: Serialize>(self, result: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Table => print(table(result).as_bytes()),
            OutputFormat::Json => {
                let mut text = serde_json::to_string_pretty(result).context("encode the answer as JSON")?;
                text.push('\n');
                print(text.as_bytes())
            }
        }
    }
}

/// Writes to standard output.
///
/// # Errors
/// [`OutputClosed`] when nobody reads it any more.
pub(super) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    output_result(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Tells a reader that has gone from an output that cannot be written.
pub(super) fn output_result(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        result => result.context("write to standard output"),
    }
}

/// Writes a line for people to standard error, beside the result. When that is closed, there is nobody to tell.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes why the program failed, and what to do, to standard error.
pub(crate) fn report(error: &anyhow::Error, next_step: Option<&str>) {
    note(&format!("error: {}", clean(&format!("{error:#}"))));
    if let Some(next_step) = next_step {
        note(&format!("next:  {next_step}"));
    }
}

/// Text from elsewhere, made fit for a terminal: nothing in it can move the cursor or change the order of reading.
pub(super) fn clean(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// Rows of text in aligned columns.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a head.
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    /// A table of names and values.
    pub(super) fn of_pairs() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row. Its cells may come from anywhere: they are cleaned. An empty cell shows as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [&dyn std::fmt::Display; N]) {
        let cell = |cell: &&dyn std::fmt::Display| match clean(&cell.to_string()) {
            text if text.is_empty() => "-".to_owned(),
            text => text,
        };
        self.rows.push(cells.iter().map(cell).collect());
    }

    /// The lines of the table.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:width$}{GAP}").expect("writing to a string does not fail");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A list in one cell.
pub(super) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// A span of time in its largest unit: `3m`.
pub(super) fn span(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match ms {
        0..SECOND => format!("{ms}ms"),
        SECOND..MINUTE => format!("{}s", ms / SECOND),
        MINUTE..HOUR => format!("{}m", ms / MINUTE),
        HOUR..DAY => format!("{}h", ms / HOUR),
        _ => format!("{}d", ms / DAY),
    }
}

/// The time now, for ages.
pub(super) fn now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago something was; `0s` for what the cluster's clock puts into our future.
pub(super) fn age(then: UnixMs) -> String {
    match now().since_ms(then) {
        0..1000 => "0s".to_owned(),
        ms => span(ms),
    }
}

/// Bytes in the unit that fits.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 3] = ["KiB", "MiB", "GiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut divisor = 1024_u64;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(divisor);
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// MiB in the unit that fits.
pub(super) fn mebibytes(mib: u64) -> String {
    bytes(mib.saturating_mul(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row([&"a", &"running"]);
        table.row([&"größer", &""]);
        assert_eq!(table.render(), "NAME    STATE\na       running\ngrößer  -\n");
        assert_eq!(Table::of_pairs().render(), "");
    }

    #[test]
    fn nothing_harmful_reaches_the_terminal() {
        let mut table = Table::of_pairs();
        table.row([&"a\x1b[2Jb\r\n\u{9b}1m\u{202e}c\u{7f}"]);
        let text = table.render();
        assert!(text.trim_end_matches('\n').chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text:?}");
        assert!(text.contains("a\\u{1b}[2Jb\\r\\n"), "{text}");
        assert_eq!(clean("plain äöü – text"), "plain äöü – text");
    }

    #[test]
    fn spans_and_sizes_are_short() {
        let spans =
            [(0, "0ms"), (999, "999ms"), (59_999, "59s"), (180_000, "3m"), (7_200_000, "2h"), (172_800_000, "2d")];
        for (ms, text) in spans {
            assert_eq!(span(ms), text);
        }
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            (10 << 30, "10 GiB"),
            (5 << 40, "5120 GiB"),
        ];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(mebibytes(512), "512 MiB");
        assert_eq!(mebibytes(1536), "1.5 GiB");
        assert_eq!(age(UnixMs(u64::MAX)), "0s", "a clock ahead of ours");
    }
}
