//! Holds what the compiler cannot: the walls between crates, the directions between the rooms of `blixard-node`, one
//! room per effect, and how files are named, sized and documented.
//!
//! Each rule reads a [`Tree`] of the sources below a root and returns findings; it changes nothing and runs nothing
//! (but `licences`, which asks cargo for the packages). The tests plant a violation of every rule and want it found,
//! and want the real tree clean. A rule that has to give way is changed here, in the commit that needs it.

mod crates;
mod documents;
mod effects;
mod lexer;
mod licences;
mod paths;
mod purity;
mod rooms;
mod shape;
mod tree;

use anyhow::{Result, bail};
use std::fmt;
use std::path::Path;
use tree::Tree;

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file, relative to the root.
    pub file: String,
    /// Counted from 1; 0 when the whole file is meant.
    pub line: usize,
    /// The rule's short name.
    pub rule: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, message } = self;
        if *line == 0 {
            write!(formatter, "{file}: {message} [{rule}]")
        } else {
            write!(formatter, "{file}:{line}: {message} [{rule}]")
        }
    }
}

/// Everything in the tree below `root` that breaks a rule, in the order of files and lines.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = Tree::read(root)?;
    let mut findings = Vec::new();
    for rule in [crates::check, rooms::check, effects::check, purity::check, shape::check, documents::check] {
        findings.extend(rule(&tree)?);
    }
    findings.sort();
    findings.dedup();
    Ok(findings)
}

/// Every package that the workspace at `root` is built from and whose licence, or number of versions, `deny.toml` does
/// not allow.
pub fn check_packages(root: &Path) -> Result<Vec<Finding>> {
    licences::check(root)
}

/// `cargo xtask tidy`: all rules on the workspace; an error that counts the findings, after printing them.
pub fn run(root: &Path) -> Result<()> {
    let findings = [check(root)?, check_packages(root)?].concat();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy has {} findings", findings.len());
    }
    Ok(())
}
