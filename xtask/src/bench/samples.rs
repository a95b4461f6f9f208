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

    /// The middle one.
    pub(super) fn median(&self) -> Option<f64> {
        Some(self.spread()?.median)
    }

    /// The largest.
    pub(super) fn max(&self) -> Option<f64> {
        Some(self.spread()?.max)
    }

    /// How many times as large as another's the median is.
    pub(super) fn ratio(&self, other: &Self) -> Option<f64> {
        Some(self.median()? / other.median()?)
    }

    /// The newest value of each, for a line about a run.
    pub(super) fn last_told(all: &[&Self]) -> String {
        let told =
            |samples: &&Self| Some(format!("{} {} {}", samples.what, shown(*samples.values.last()?), samples.unit));
        all.iter().filter_map(told).collect::<Vec<_>>().join("; ")
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

/// What must be reached, and what was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Goal {
    what: String,
    value: f64,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// None when nothing was measured that could meet it.
    pub(super) fn at_least(what: &str, value: Option<f64>, bound: f64) -> Option<Self> {
        Some(Self { what: what.to_owned(), value: value?, bound: Bound::AtLeast(bound) })
    }

    /// See [`Self::at_least`].
    pub(super) fn at_most(what: &str, value: Option<f64>, bound: f64) -> Option<Self> {
        Some(Self { what: what.to_owned(), value: value?, bound: Bound::AtMost(bound) })
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.value >= bound,
            Bound::AtMost(bound) => self.value <= bound,
        }
    }

    fn to_json(&self) -> Value {
        let (kind, bound) = match self.bound {
            Bound::AtLeast(bound) => ("at_least", bound),
            Bound::AtMost(bound) => ("at_most", bound),
        };
        json!({ "what": self.what, "value": self.value, kind: bound, "met": self.is_met() })
    }
}

/// All that a bench has found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) all: Vec<Samples>,
    pub(super) goals: Vec<Goal>,
}

impl Findings {
    /// The samples and then the goals, a line each.
    pub(super) fn table(&self) -> String {
        let names = self.all.iter().map(|samples| &samples.what).chain(self.goals.iter().map(|goal| &goal.what));
        let width = names.map(|name| name.chars().count()).max().unwrap_or_default();
        let mut lines = format!("{:width$}  {:>8}  {:>8}  {:>8}\n", "", "MIN", "MEDIAN", "MAX");
        for samples in &self.all {
            let Some(Spread { min, median, max }) = samples.spread() else { continue };
            let [min, median, max] = [min, median, max].map(shown);
            lines += &format!("{:width$}  {min:>8}  {median:>8}  {max:>8}  {}\n", samples.what, samples.unit);
        }
        for goal in &self.goals {
            let (words, bound) = match goal.bound {
                Bound::AtLeast(bound) => ("at least", shown(bound)),
                Bound::AtMost(bound) => ("at most", shown(bound)),
            };
            let met = if goal.is_met() { "met" } else { "missed" };
            lines += &format!("{:width$}  {:>8}  goal: {words} {bound}: {met}\n", goal.what, shown(goal.value));
        }
        lines
    }

    pub(super) fn samples_to_json(&self) -> Value {
        self.all.iter().filter(|samples| !samples.values.is_empty()).map(Samples::to_json).collect()
    }

    pub(super) fn goals_to_json(&self) -> Value {
        self.goals.iter().map(Goal::to_json).collect()
    }
}

/// With as many digits as are worth reading.
fn shown(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
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
        let goals = [Goal::at_most("speed", Some(3.2), 3.0), Goal::at_least("speed", None, 3.0)];
        let all = vec![samples(&[10.0, 30.4, 20.0]), samples(&[])];
        let findings = Findings { all, goals: goals.into_iter().flatten().collect() };
        let table = findings.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "what was not measured is not told: {table}");
        assert_eq!(lines[1], "a write      10.0      20.0      30.4  ms");
        assert_eq!(lines[2], "speed        3.20  goal: at most 3.00: missed");
        assert_eq!(findings.samples_to_json()[0]["median"], 20.0);
        assert_eq!(findings.samples_to_json().as_array().map(Vec::len), Some(1));
        assert_eq!(findings.goals_to_json()[0]["met"], false);
    }

    #[test]
    fn a_goal_is_met_on_its_side_of_the_bound() {
        let met = |goal: Option<Goal>| goal.map(|goal| goal.is_met());
        assert_eq!(met(Goal::at_least("", Some(3.0), 3.0)), Some(true));
        assert_eq!(met(Goal::at_least("", Some(2.9), 3.0)), Some(false));
        assert_eq!(met(Goal::at_most("", Some(3.0), 3.0)), Some(true));
        assert_eq!(met(Goal::at_most("", Some(3.1), 3.0)), Some(false));
    }
}
