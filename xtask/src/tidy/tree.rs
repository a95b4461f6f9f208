//! Reads the texts of a source tree once, for all rules.

use super::lexer::{self, Token};
use super::paths::{self, NamedPath};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Folders that hold nothing anybody wrote here. Hidden folders are left out too, except those in [`HIDDEN_KEPT`].
const SKIPPED: &[&str] = &["target"];
const HIDDEN_KEPT: &[&str] = &[".cargo", ".ci", ".github"];
/// The endings of files that are read; `.ci/run` has none.
const TEXT_EXTENSIONS: &[&str] = &["rs", "md", "toml", "sh", "yml", "yaml", "html", "js", "css"];

/// The texts below a root.
pub(super) struct Tree {
    pub(super) files: Vec<TextFile>,
    /// Every folder and file, relative to the root, whether it is read or not.
    pub(super) entries: BTreeSet<String>,
}

/// A text and, for Rust, what it consists of.
pub(super) struct TextFile {
    /// Relative to the root, with slashes.
    pub(super) path: String,
    pub(super) text: String,
    pub(super) tokens: Vec<Token>,
    pub(super) paths: Vec<NamedPath>,
    /// Declared by its parent under `#[cfg(test)]`.
    pub(super) is_test: bool,
}

impl TextFile {
    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the path at hand is only compiled for tests.
    pub(super) fn in_test(&self, path: &NamedPath) -> bool {
        self.is_test || path.is_test
    }

    /// Where the file's child modules lie: `a/mod.rs` and `a/lib.rs` have them in `a`, `a/b.rs` in `a/b`.
    fn children(&self) -> String {
        let stem = self.path.trim_end_matches(".rs");
        match stem.rsplit_once('/') {
            Some((folder, "mod" | "lib" | "main")) => folder.to_owned(),
            _ => stem.to_owned(),
        }
    }
}

impl Tree {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self { files: Vec::new(), entries: BTreeSet::new() };
        tree.read_folder(root, "")?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        tree.mark_test_files();
        Ok(tree)
    }

    /// The Rust files below a folder.
    pub(super) fn rust_below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a TextFile> {
        self.files.iter().filter(move |file| file.is_rust() && file.path.starts_with(folder))
    }

    fn read_folder(&mut self, folder: &Path, relative: &str) -> Result<()> {
        let context = || format!("read {}", folder.display());
        for entry in fs::read_dir(folder).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
            // A link's target is read where it lies, if it lies in the tree.
            let kind = entry.file_type().with_context(context)?;
            if kind.is_dir() {
                let is_hidden = name.starts_with('.') && !HIDDEN_KEPT.contains(&name.as_str());
                if is_hidden || SKIPPED.contains(&name.as_str()) {
                    continue;
                }
                self.read_folder(&entry.path(), &path)?;
                self.entries.insert(path);
            } else if kind.is_file() {
                let is_text = match name.rsplit_once('.') {
                    Some((_, extension)) => TEXT_EXTENSIONS.contains(&extension),
                    None => path.starts_with(".ci/"),
                };
                if is_text {
                    self.read_file(&entry.path(), &path)?;
                }
                self.entries.insert(path);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, file: &Path, path: &str) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let tokens = if path.ends_with(".rs") { lexer::tokens(&text) } else { Vec::new() };
        let paths = paths::paths(&tokens);
        self.files.push(TextFile { path: path.to_owned(), text, tokens, paths, is_test: false });
        Ok(())
    }

    /// A module file that its parent declares under `#[cfg(test)]` is test code, and so is all below it.
    fn mark_test_files(&mut self) {
        let mut modules = Vec::new();
        for file in self.files.iter().filter(|file| file.is_rust()) {
            for window in file.tokens.windows(3) {
                if window[0].is_test && window[0].is_word("mod") && window[2].is_mark(';') {
                    modules.extend(window[1].word().map(|name| format!("{}/{name}", file.children())));
                }
            }
        }
        for file in &mut self.files {
            let is_below = |module: &String| {
                let rest = file.path.strip_prefix(module.as_str());
                rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            };
            file.is_test = modules.iter().any(is_below);
        }
    }
}
