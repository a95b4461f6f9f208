//! Measured values and what is told of them.

use serde_json::{Value, json};

/// The values of one quantity, a run each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Samples {
    what: String,
    unit: &'static str,
    values: Vec<f64>,
}

/// What is told of many values.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Samples {
    /// No values yet.
    pub(super) fn of(what: &str, unit: &'static str) -> Self {
        Self { what: what.to_owned(), unit, values: Vec::new() }
    }

    pub(super) fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// None when nothing was measured.
    fn spread(&self) -> Option<Spread> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { sorted[half - 1].midpoint(sorted[half]) } else { sorted[half] };
        Some(Spread { min, median, max })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut told = json!({ "what": self.what, "unit": self.unit, "values": self.values });
        if let Some(Spread { min, median, max }) = self.spread() {
            told["min"] = min.into();
            told["median"] = median.into();
            told["max"] = max.into();
        }
        told
    }
}

/// All of them, a line each.
pub(super) fn table(all: &[Samples]) -> String {
    let width = all.iter().map(|samples| samples.what.chars().count()).max().unwrap_or_default();
    let mut lines = format!("{:width$}  {:>8}  {:>8}  {:>8}\n", "", "MIN", "MEDIAN", "MAX");
    for samples in all {
        let Some(Spread { min, median, max }) = samples.spread() else { continue };
        lines += &format!("{:width$}  {min:>8.0}  {median:>8.0}  {max:>8.0}  {}\n", samples.what, samples.unit);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples { values: values.to_vec(), ..Samples::of("a write", "ms") }
    }

    #[test]
    fn the_middle_is_that_of_the_sorted_values() {
        assert_eq!(samples(&[]).spread(), None);
        assert_eq!(samples(&[5.0]).spread(), Some(Spread { min: 5.0, median: 5.0, max: 5.0 }));
        assert_eq!(samples(&[9.0, 1.0, 2.0]).spread(), Some(Spread { min: 1.0, median: 2.0, max: 9.0 }));
        assert_eq!(samples(&[10.0, 1.0, 2.0, 4.0]).spread(), Some(Spread { min: 1.0, median: 3.0, max: 10.0 }));
    }

    #[test]
    fn tables_and_json_say_the_same() {
        let all = [samples(&[10.0, 30.4, 20.0]), samples(&[])];
        assert_eq!(table(&all).lines().nth(1), Some("a write        10        20        30  ms"));
        assert_eq!(table(&all).lines().count(), 2, "what was not measured is not told");
        assert_eq!(all[0].to_json()["median"], 20.0);
        assert_eq!(all[1].to_json().get("median"), None);
    }
}
