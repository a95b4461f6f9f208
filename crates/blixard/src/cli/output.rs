//! What people and scripts read: tables, JSON, YAML and names, and the one place that writes to standard output and standard
//! error.
//!
//! Colours are for terminals only, and for none on which `NO_COLOR` is set: what goes to a file or a program is plain text.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use anyhow::Context;
use blixard_core::UnixMs;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::failure::OutputClosed;

/// Between two columns.
const GAP: &str = "  ";
/// The column whose words are coloured by what they mean for the reader.
const STATE_COLUMN: &str = "STATE";
/// Heads of tables and the words that name an error, so that they stand out.
const BOLD: Style = Style::new().bold();

/// Whether tables are coloured. Nothing is until a result is to be shown on a terminal.
static IS_COLOURED: AtomicBool = AtomicBool::new(false);
/// Characters in a line of the terminal that a result is shown on; 0 where it is shown on none.
static WIDTH: AtomicUsize = AtomicUsize::new(0);
/// The last column is not cut to less than this.
const LAST_WIDTH_MIN: usize = 12;

/// How a command's result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people.
    Table,
    /// For programs: the views of the control API as they are.
    Json,
    /// The same, as YAML.
    Yaml,
    /// Only the name or id of each thing, one a line.
    Name,
}

/// The flag that chooses how a result is written.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// How to write the result: a table for people, JSON or YAML for programs, or only names, one a line.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t = OutputFormat::Table)]
    format: OutputFormat,
}

impl Output {
    /// Writes a result as JSON or YAML, as the text that `table` makes of it, or as the names that `names` finds in it.
    pub(super) fn show<T: Serialize, N: ToString>(
        self,
        result: &T,
        table: impl FnOnce(&T) -> String,
        names: impl FnOnce(&T) -> Vec<N>,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            OutputFormat::Table => {
                let is_coloured = wants_colour(&io::stdout());
                IS_COLOURED.store(is_coloured, Ordering::Relaxed);
                let size = rustix::termios::tcgetwinsize(io::stdout());
                WIDTH.store(size.map_or(0, |size| usize::from(size.ws_col)), Ordering::Relaxed);
                table(result)
            }
            OutputFormat::Json => serde_json::to_string_pretty(result).context("encode the answer as JSON")? + "\n",
            OutputFormat::Yaml => yaml(result)?,
            OutputFormat::Name => names(result).iter().map(|name| clean(&name.to_string()) + "\n").collect(),
        };
        print(text.as_bytes())
    }
}

impl Output {
    /// Writes one result of a stream: for people and by name as [`Output::show`] does, for programs as one line or one
    /// document.
    pub(super) fn show_one_of_many<T: Serialize, N: ToString>(
        self,
        result: &T,
        line: impl FnOnce(&T) -> String,
        name: impl FnOnce(&T) -> N,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            OutputFormat::Table => line(result),
            OutputFormat::Json => serde_json::to_string(result).context("encode the answer as JSON")? + "\n",
            OutputFormat::Yaml => format!("---\n{}", yaml(result)?),
            OutputFormat::Name => clean(&name(result).to_string()) + "\n",
        };
        print(text.as_bytes())
    }
}

/// A result as YAML, with the same names and values as its JSON.
fn yaml(result: &impl Serialize) -> anyhow::Result<String> {
    // By way of JSON, because that is what the contract says: no enum is to look different here.
    let value = serde_json::to_value(result).context("encode the answer")?;
    serde_saphyr::to_string(&value).context("encode the answer as YAML")
}

/// Whether a stream goes to a terminal that shows colours, to somebody who has not said that they want none. The crate takes every
/// terminal of a build server for one that does, even where `TERM` says that it does not.
fn wants_colour(stream: &impl RawStream) -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !is_dumb && AutoStream::choice(stream) != ColorChoice::Never
}

/// A word in a style, where `is_coloured`.
fn styled(word: &str, style: Style, is_coloured: bool) -> String {
    if is_coloured { format!("{style}{word}{style:#}") } else { word.to_owned() }
}

/// What a state means to whoever looks for trouble; nothing where it is neither good nor bad.
fn style_of_state(state: &str) -> Option<Style> {
    let colour = match state {
        "ready" | "running" | "valid" => AnsiColor::Green,
        "failed" | "unreachable" => AnsiColor::Red,
        "pending" | "preparing" | "joining" | "stopping" | "deleting" | "unknown" | "queued" | "paused" => {
            AnsiColor::Yellow
        }
        _ => return None,
    };
    Some(colour.on_default())
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

/// Writes why the program failed, and what to do, to standard error: as text whatever the format of results is, so that
/// whoever reads a log sees words. Programs have the exit code.
pub(crate) fn report(error: &anyhow::Error, next_step: Option<&str>) {
    let is_coloured = wants_colour(&io::stderr());
    let label = |word, colour: AnsiColor| styled(word, colour.on_default().bold(), is_coloured);
    note(&format!("{} {}", label("error:", AnsiColor::Red), clean(&format!("{error:#}"))));
    if let Some(next_step) = next_step {
        note(&format!("{}  {next_step}", label("next:", AnsiColor::Cyan)));
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
    has_head: bool,
    dropped_first: &'static [&'static str],
}

impl Table {
    /// A table with a head.
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()], has_head: true, dropped_first: &[] }
    }

    /// A table of names and values.
    pub(super) fn of_pairs() -> Self {
        Self { rows: Vec::new(), has_head: false, dropped_first: &[] }
    }

    /// Names columns that are left out, the first of them first, when the terminal is too narrow for all.
    pub(super) fn may_drop(&mut self, columns: &'static [&'static str]) {
        self.dropped_first = columns;
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
        let width_max = match WIDTH.load(Ordering::Relaxed) {
            0 => usize::MAX,
            width => width,
        };
        self.fitted(width_max).render_with(IS_COLOURED.load(Ordering::Relaxed))
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        (0..columns).map(|column| width(column).unwrap_or(0)).collect()
    }

    /// The table without the columns, and without the ends of the last one, that a line of this width has no room for.
    fn fitted(&self, width_max: usize) -> Self {
        let (mut rows, has_head, dropped_first) = (self.rows.clone(), self.has_head, self.dropped_first);
        let total = |rows: &Vec<Vec<String>>| {
            let widths = Self { rows: rows.clone(), has_head, dropped_first }.widths();
            widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
        };
        for name in self.dropped_first {
            let column = rows.first().and_then(|head| head.iter().position(|cell| cell == name));
            if let Some(column) = column.filter(|_| total(&rows) > width_max) {
                rows.iter_mut().for_each(|row| drop(row.remove(column)));
            }
        }
        let over = total(&rows).saturating_sub(width_max);
        let widths = Self { rows: rows.clone(), has_head, dropped_first }.widths();
        if let Some(last) = widths.last().filter(|_| over > 0) {
            // Cut to less, it would say nothing: then the terminal wraps the line.
            let room = last.saturating_sub(over).max(LAST_WIDTH_MIN);
            for cell in rows.iter_mut().filter(|row| row.len() == widths.len()).filter_map(|row| row.last_mut()) {
                if cell.chars().count() > room {
                    *cell = cell.chars().take(room - 1).chain(['…']).collect();
                }
            }
        }
        Self { rows, has_head, dropped_first }
    }

    fn render_with(&self, is_coloured: bool) -> String {
        let widths = self.widths();
        let style = |row: usize, column: usize, cell: &str| match row {
            0 if self.has_head => Some(BOLD),
            _ if self.has_head && self.rows[0].get(column).is_some_and(|head| head == STATE_COLUMN) => {
                style_of_state(cell)
            }
            _ => None,
        };
        let mut text = String::new();
        for (at, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match style(at, column, cell) {
                    Some(style) => text.push_str(&styled(cell, style, is_coloured)),
                    None => text.push_str(cell),
                }
                // Nothing follows the last cell, so that no line ends in blanks.
                if column + 1 < row.len() {
                    let blanks = width - cell.chars().count();
                    write!(text, "{:blanks$}{GAP}", "").expect("writing to a string does not fail");
                }
            }
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
    fn a_narrow_terminal_gets_what_matters() {
        let mut table = Table::new(&["NODE", "ADDRESS", "STATE", "WHY"]);
        table.may_drop(&["ADDRESS"]);
        table.row([&"1", &"10.0.0.1:7001", &"ready", &"it is all as it should be"]);
        let fitted = |width| table.fitted(width).render_with(false);
        assert_eq!(fitted(usize::MAX), table.render(), "on no terminal nothing is left out");
        assert_eq!(fitted(53), table.render(), "it fits to the character");
        assert_eq!(fitted(52), "NODE  STATE  WHY\n1     ready  it is all as it should be\n");
        assert_eq!(fitted(30), "NODE  STATE  WHY\n1     ready  it is all as it …\n");
        assert_eq!(fitted(5), "NODE  STATE  WHY\n1     ready  it is all a…\n", "less would say nothing");
    }

    #[test]
    fn colours_mean_something_and_move_nothing() {
        let mut table = Table::new(&["NAME", "STATE", "AGE"]);
        table.row([&"running", &"failed", &"1d"]);
        table.row([&"b", &"stopped", &"2d"]);
        let (plain, coloured) = (table.render_with(false), table.render_with(true));
        assert_eq!(plain, "NAME     STATE    AGE\nrunning  failed   1d\nb        stopped  2d\n");
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        assert!(coloured.contains("\nrunning  \x1b[31mfailed\x1b[0m   1d\nb        stopped  2d\n"), "{coloured:?}");
        assert_eq!(table.render(), plain, "nothing is coloured before a terminal is known to be there");
    }

    /// What another parser reads in our YAML, as JSON.
    fn read_back(text: &str) -> serde_json::Value {
        fn value(node: &yaml_rust2::Yaml) -> serde_json::Value {
            use yaml_rust2::Yaml;
            match node {
                Yaml::Null => serde_json::Value::Null,
                Yaml::Boolean(flag) => (*flag).into(),
                Yaml::Integer(number) => (*number).into(),
                Yaml::Real(number) => number.parse::<f64>().expect("a number").into(),
                Yaml::String(text) => text.as_str().into(),
                Yaml::Array(items) => items.iter().map(value).collect(),
                Yaml::Hash(pairs) => {
                    let pair = |(key, item): (&Yaml, &Yaml)| (key.as_str().expect("a name").to_owned(), value(item));
                    serde_json::Value::Object(pairs.iter().map(pair).collect())
                }
                other => panic!("{other:?} is nothing that JSON has"),
            }
        }
        let documents = yaml_rust2::YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(documents.len(), 1, "{text}");
        value(&documents[0])
    }

    #[test]
    fn yaml_says_what_json_says() {
        // Texts that a careless writer leaves bare, and a reader takes for something else.
        let tricky = [
            "",
            " ",
            "no",
            "Yes",
            "on",
            "off",
            "true",
            "null",
            "~",
            "-",
            "- a",
            "0",
            "007",
            "0x1f",
            "1e3",
            "1_000",
            ".5",
            ".inf",
            "1:30",
            "2024-01-01",
            "a: b",
            "a #b",
            "#",
            "key:",
            "? x",
            "[a",
            "{a",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "'",
            "\"",
            "\\",
            "a\nb",
            "a\n",
            "\n",
            "\ttab",
            "tail ",
            "\u{1b}[31m",
            "\u{202e}",
            "größer",
            "<<",
            "=",
            "0202020202020202020202020202020202020202020202020202020202020202",
            "|",
            ">",
            "--- x",
            "...",
        ];
        let value = serde_json::json!({
            "texts": tricky.as_slice(),
            "keys": tricky.iter().map(|key| ((*key).to_owned(), 1.into())).collect::<serde_json::Map<_, _>>(),
            "numbers": [0, -1, u64::from(u32::MAX), i64::MAX],
            "others": [null, true, false, [], {}, [[]], [{}], [[1, [2]], {"a": {"b": []}}]],
        });
        assert_eq!(read_back(&yaml(&value).expect("it can be encoded")), value);
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
