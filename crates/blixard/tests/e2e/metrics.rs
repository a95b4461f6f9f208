//! A checker of the OpenMetrics text format, as strict as a scraper and a little more: names, types, units, suffixes,
//! labels, and that histograms add up.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
pub(crate) type Labels = BTreeMap<String, String>;

/// A family of samples.
#[derive(Debug, Default, Clone)]
pub(crate) struct Family {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub(crate) kind: String,
    /// What it is, in words.
    pub(crate) help: String,
    unit: Option<String>,
    /// Samples by the whole of their names and their labels.
    pub(crate) samples: BTreeMap<(String, Labels), f64>,
}

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Reads `{a="b",c="d"}`.
fn labels(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    if text.is_empty() {
        return Ok(labels);
    }
    let wrong = || format!("{text:?} are no labels");
    let mut rest = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(wrong)?;
    while !rest.is_empty() {
        let (name, quoted) = rest.split_once("=\"").ok_or_else(wrong)?;
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        let end = loop {
            match letters.next().ok_or_else(wrong)? {
                (at, '"') => break at,
                (_, '\\') => match letters.next().ok_or_else(wrong)?.1 {
                    'n' => value.push('\n'),
                    letter @ ('\\' | '"') => value.push(letter),
                    _ => return Err(wrong()),
                },
                (_, letter) => value.push(letter),
            }
        };
        if !is_name(name) || labels.insert(name.to_owned(), value).is_some() {
            return Err(wrong());
        }
        rest = &quoted[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').filter(|rest| !rest.is_empty()).ok_or_else(wrong)?;
        }
    }
    Ok(labels)
}

/// Reads an exposition, and says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with `# EOF` and a line feed")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line:?}");
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("a comment that says nothing"));
            };
            if name != current {
                if !is_name(name) || families.insert(name.to_owned(), Family::default()).is_some() {
                    return Err(wrong("no name of a family, or one that comes twice"));
                }
                current = name.to_owned();
            }
            let family = families.get_mut(&current).expect("just entered");
            if !family.samples.is_empty() {
                return Err(wrong("a description that follows samples"));
            }
            let place = match what {
                "TYPE" if ["counter", "gauge", "histogram", "info"].contains(&text) => &mut family.kind,
                "HELP" if text.ends_with('.') => &mut family.help,
                "UNIT" if name.ends_with(&format!("_{text}")) => family.unit.insert(String::new()),
                _ => return Err(wrong("an unknown description, or a unit that the name does not end in")),
            };
            if !place.is_empty() {
                return Err(wrong("a description that comes twice"));
            }
            *place = text.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("a sample without a value"))?;
        let value: f64 = value.parse().map_err(|_| wrong("a value that is no number"))?;
        let (name, of) = series.split_at(series.find('{').unwrap_or(series.len()));
        let family = families.get_mut(&current).ok_or_else(|| wrong("a sample before its family"))?;
        let suffixes: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => return Err(wrong("a sample whose type is not known")),
        };
        if !suffixes.iter().any(|suffix| name == format!("{current}{suffix}")) {
            return Err(wrong("a sample that is not of the family above it"));
        }
        if (family.kind == "counter" && value < 0.0) || (family.kind == "info" && value != 1.0) {
            return Err(wrong("a value that its type cannot have"));
        }
        if family.samples.insert((name.to_owned(), labels(of)?), value).is_some() {
            return Err(wrong("a sample that comes twice"));
        }
    }
    for (name, family) in &families {
        if family.kind.is_empty() || family.help.is_empty() || family.samples.is_empty() {
            return Err(format!("{name} lacks a type, a help or samples"));
        }
        if family.kind == "histogram" {
            adds_up(name, family)?;
        }
    }
    Ok(families)
}

/// Buckets that rise, and end in the count.
fn adds_up(name: &str, family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for ((sample, labels), value) in &family.samples {
        let mut of = labels.clone();
        if sample.ends_with("_bucket") {
            let le = of.remove("le").and_then(|le| le.parse().ok()).ok_or_else(|| format!("{name} has no `le`"))?;
            series.entry(of).or_default().push((le, *value));
        }
    }
    for (of, mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = family.samples.get(&(format!("{name}_count"), of.clone()));
        let last = buckets.last().filter(|(le, _)| le.is_infinite()).map(|(_, value)| value);
        let rises = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
        if !rises || last.is_none() || last != count || !family.samples.contains_key(&(format!("{name}_sum"), of)) {
            return Err(format!("the buckets of {name} do not add up: {buckets:?}, count {count:?}"));
        }
    }
    Ok(())
}

impl Family {
    /// The value of the sample with these labels, if there is one.
    pub(crate) fn value(&self, of: &[(&str, &str)]) -> Option<f64> {
        let of: Labels = of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples
            .iter()
            .find(|((name, labels), _)| *labels == of && !name.ends_with("_sum"))
            .map(|(_, value)| *value)
    }

    /// The names of its labels.
    pub(crate) fn label_names(&self) -> BTreeSet<String> {
        let names = self.samples.keys().flat_map(|(_, labels)| labels.keys().cloned());
        names.filter(|name| name != "le").collect()
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let good = "# HELP a Some.\n# TYPE a gauge\na{b=\"c\"} 1\na{b=\"d \\\" e\"} 2\n\
        # HELP n_bytes Any.\n# TYPE n_bytes counter\n# UNIT n_bytes bytes\nn_bytes_total 3\n\
        # HELP h Times.\n# TYPE h histogram\nh_sum 2.5\nh_count 3\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 3\n\
        # HELP i It.\n# TYPE i info\ni_info{version=\"1\"} 1\n# EOF\n";
    let families = parse(good).unwrap();
    assert_eq!(families["a"].value(&[("b", "d \" e")]), Some(2.0));
    assert_eq!(families["n_bytes"].value(&[]), Some(3.0));
    for (from, to) in [
        ("# EOF\n", ""),
        ("n_bytes_total 3", "n_bytes 3"),
        ("n_bytes_total 3", "n_bytes_total three"),
        ("n_bytes_total 3", "n_bytes_total -3"),
        ("# UNIT n_bytes bytes", "# UNIT n_bytes seconds"),
        ("# TYPE a gauge\n", ""),
        ("# HELP a Some.\n", ""),
        ("d \\\" e", "c"),
        ("b=\"c\"", "b=c"),
        ("# HELP n_bytes Any.", "# HELP a Any."),
        ("h_bucket{le=\"1.0\"} 2", "h_bucket{le=\"1.0\"} 4"),
        ("h_count 3", "h_count 4"),
        ("h_sum 2.5\n", ""),
        ("i_info{version=\"1\"} 1", "i_info{version=\"1\"} 2"),
        ("i_info{version=\"1\"} 1", "i{version=\"1\"} 1"),
    ] {
        assert!(good.contains(from));
        assert!(parse(&good.replacen(from, to, 1)).is_err(), "{from} as {to}");
    }
}
