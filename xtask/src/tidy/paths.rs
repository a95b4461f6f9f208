//! Finds the paths (`a::b::c`) that a source file names, with the groups of `use` taken apart.

use super::lexer::{Kind, Token};

/// One path as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPath {
    /// Its parts. A glob is the part `*`.
    pub(super) parts: Vec<String>,
    /// The inline modules around it, outermost first: `super` counts from here.
    pub(super) inline_modules: Vec<String>,
    pub(super) line: usize,
    /// Only compiled for tests.
    pub(super) is_test: bool,
    /// Followed by `!`: the name of a macro that is called.
    pub(super) is_macro: bool,
}

impl NamedPath {
    /// Whether these parts follow one another somewhere in the path.
    pub(super) fn contains(&self, parts: &[&str]) -> bool {
        self.parts.windows(parts.len()).any(|window| window == parts)
    }

    pub(super) fn shown(&self) -> String {
        self.parts.join("::")
    }
}

/// All paths of a file in their order, single names included.
pub(super) fn paths(tokens: &[Token]) -> Vec<NamedPath> {
    let mut reader = Reader { tokens, at: 0, depth: 0, modules: Vec::new(), paths: Vec::new() };
    while reader.at < tokens.len() {
        reader.step();
    }
    reader.paths
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    /// Open braces.
    depth: usize,
    /// Inline modules, each with the number of open braces around its own.
    modules: Vec<(String, usize)>,
    paths: Vec<NamedPath>,
}

impl Reader<'_> {
    fn step(&mut self) {
        let token = &self.tokens[self.at];
        match &token.kind {
            Kind::Mark('{') => {
                self.depth += 1;
                self.at += 1;
            }
            Kind::Mark('}') => {
                self.depth = self.depth.saturating_sub(1);
                while self.modules.last().is_some_and(|(_, depth)| *depth >= self.depth) {
                    self.modules.pop();
                }
                self.at += 1;
            }
            Kind::Word(word) if word == "mod" => self.module(),
            Kind::Word(_) => self.path(Vec::new()),
            _ => self.at += 1,
        }
    }

    /// `mod name {` opens an inline module.
    fn module(&mut self) {
        let name = self.tokens.get(self.at + 1).and_then(Token::word);
        if let (Some(name), Some(true)) = (name, self.tokens.get(self.at + 2).map(|token| token.is_mark('{'))) {
            self.modules.push((name.to_owned(), self.depth));
        }
        self.at += 2;
    }

    /// Reads a path that goes on from `parts`. In a group, every member goes on from the same parts.
    fn path(&mut self, mut parts: Vec<String>) {
        loop {
            let Some(token) = self.tokens.get(self.at) else { return };
            match &token.kind {
                Kind::Word(word) => parts.push(word.clone()),
                Kind::Mark('*') => parts.push("*".to_owned()),
                Kind::Mark('{') => return self.group(&parts),
                // `::<` of a call with type arguments ends what is of interest; the arguments are read on their own.
                _ => return self.record(parts, token.line, token.is_test),
            }
            let (line, is_test) = (token.line, token.is_test);
            self.at += 1;
            if self.tokens.get(self.at).map(|token| &token.kind) != Some(&Kind::PathSeparator) {
                return self.record(parts, line, is_test);
            }
            self.at += 1;
        }
    }

    /// Reads `{a, b::c, d::{e, f}}` after `parts::`.
    fn group(&mut self, parts: &[String]) {
        self.at += 1;
        while let Some(token) = self.tokens.get(self.at) {
            match token.kind {
                Kind::Mark('}') => {
                    self.at += 1;
                    return;
                }
                Kind::Word(_) if token.is_word("as") => self.at += 2,
                Kind::Word(_) | Kind::Mark('*') => self.path(parts.to_vec()),
                _ => self.at += 1,
            }
        }
    }

    fn record(&mut self, mut parts: Vec<String>, line: usize, is_test: bool) {
        // `use a::{self}` names `a`.
        if parts.len() > 1 && parts.last().is_some_and(|part| part == "self") {
            parts.pop();
        }
        let mark = |at: usize, mark: char| self.tokens.get(at).is_some_and(|token: &Token| token.is_mark(mark));
        let is_macro = mark(self.at, '!') && !mark(self.at + 1, '=');
        let inline_modules = self.modules.iter().map(|(name, _)| name.clone()).collect();
        self.paths.push(NamedPath { parts, inline_modules, line, is_test, is_macro });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::lexer::tokens;
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        paths(&tokens(text)).iter().map(NamedPath::shown).collect()
    }

    #[test]
    fn groups_are_taken_apart() {
        let text = "use a::{b, c::{d, self, *}, e as f}; use crate::g::h;";
        assert_eq!(shown(text), ["use", "a::b", "a::c::d", "a::c", "a::c::*", "a::e", "use", "crate::g::h"]);
    }

    #[test]
    fn paths_are_found_in_expressions_and_types() {
        let text = "let x: a::B<c::D> = e::f::<g::H>(::i::j) + k * l;";
        let shown = shown(text);
        for path in ["a::B", "c::D", "e::f", "g::H", "i::j", "k", "l"] {
            assert!(shown.iter().any(|shown| shown == path), "{path} in {shown:?}");
        }
    }

    #[test]
    fn macros_are_told_from_comparisons() {
        let paths = paths(&tokens("println!(x); a != b; std::dbg!(c)"));
        let macros: Vec<String> = paths.iter().filter(|path| path.is_macro).map(NamedPath::shown).collect();
        assert_eq!(macros, ["println", "std::dbg"]);
    }

    #[test]
    fn inline_modules_are_known_by_their_braces() {
        let paths = paths(&tokens("mod a { x; mod b { fn f() { y } } z } w mod c; v"));
        let modules = |name: &str| paths.iter().find(|path| path.parts == [name]).unwrap().inline_modules.join("::");
        assert_eq!([modules("x"), modules("y"), modules("z"), modules("w"), modules("v")], ["a", "a::b", "a", "", ""]);
    }
}
