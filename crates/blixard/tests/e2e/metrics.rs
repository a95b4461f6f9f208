//! A small checker of the OpenMetrics text format: as much of it as a scraper trips over.

use std::collections::{BTreeMap, BTreeSet};

/// A sample without its value: the name of its family, and its labels as they stand in the text.
type Series = (String, String);

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Splits `{a="b",c="d"}` off, and holds it to its form.
fn labels(text: &str) -> Result<(), String> {
    let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        return if text.is_empty() { Ok(()) } else { Err(format!("{text:?} are no labels")) };
    };
    for pair in inner.split(',') {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is no label"))?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        if !is_name(name) || value.is_none_or(|value| value.contains(['"', '\n'])) {
            return Err(format!("{pair:?} is no label"));
        }
    }
    Ok(())
}

/// Reads an exposition, and says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<Series, f64>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with `# EOF` and a line feed")?;
    let mut samples = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut family: Option<(String, String)> = None;
    for line in body.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line:?}"));
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (Some(kind), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
                return wrong("a comment that is neither TYPE nor HELP");
            };
            let is_current = family.as_ref().is_some_and(|(current, _)| current == name);
            match kind {
                "TYPE" if !["gauge", "counter"].contains(&text) => return wrong("a type that is not known"),
                "TYPE" if !is_name(name) => return wrong("no name of a family"),
                "TYPE" if !seen.insert(name.to_owned()) => return wrong("a family that comes twice"),
                "TYPE" => family = Some((name.to_owned(), text.to_owned())),
                "HELP" if !is_current => return wrong("help that does not follow its type"),
                "HELP" if text.is_empty() => return wrong("help that says nothing"),
                "HELP" => {}
                _ => return wrong("a comment that is neither TYPE nor HELP"),
            }
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { return wrong("a sample without a value") };
        let Ok(value) = value.parse::<f64>() else { return wrong("a value that is no number") };
        let (name, of) = series.split_at(series.find('{').unwrap_or(series.len()));
        labels(of)?;
        let Some((current, kind)) = &family else { return wrong("a sample before its type") };
        let expected = if kind == "counter" { format!("{current}_total") } else { current.clone() };
        if name != expected {
            return wrong("a sample that is not of the family above it");
        }
        if kind == "counter" && value < 0.0 {
            return wrong("a counter below nothing");
        }
        if samples.insert((current.clone(), of.to_owned()), value).is_some() {
            return wrong("a sample that comes twice");
        }
    }
    Ok(samples)
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let good = "# TYPE a gauge\n# HELP a Some.\na{b=\"c\"} 1\na{b=\"d\"} 2\n# TYPE n counter\n# HELP n Any.\nn_total 3\n# EOF\n";
    let samples = parse(good).unwrap();
    assert_eq!(samples[&("a".to_owned(), "{b=\"d\"}".to_owned())], 2.0);
    for (from, to) in [
        ("# EOF\n", ""),
        ("n_total 3", "n 3"),
        ("n_total 3", "n_total three"),
        ("# TYPE a gauge\n", ""),
        ("b=\"d\"", "b=\"c\""),
        ("b=\"d\"", "b=d"),
        ("# TYPE n counter", "# TYPE a counter"),
        ("# HELP n Any.", "# HELP m Any."),
        ("n_total 3", "n_total -3"),
    ] {
        assert!(parse(&good.replacen(from, to, 1)).is_err(), "{from} as {to}");
    }
}
