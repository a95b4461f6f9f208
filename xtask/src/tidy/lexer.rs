//! Cuts Rust source into tokens, without comments and without what strings contain, so that rules see code only.
//!
//! This is no parser: it knows just enough of the language never to take a string or a comment for code, and to tell
//! code that is compiled for tests alone.

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or a keyword.
    Word(String),
    /// A number, as it is written.
    Number(String),
    /// `::`.
    PathSeparator,
    /// Any other character of punctuation.
    Mark(char),
    /// A string, byte string or character, whose contents are of no interest.
    Literal,
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Counted from 1.
    pub(super) line: usize,
    /// Within an item that has `#[cfg(test)]`.
    pub(super) is_test: bool,
}

impl Token {
    pub(super) fn is_mark(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        self.word() == Some(word)
    }

    pub(super) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// The tokens of a source file.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { rest: text, line: 1, tokens: Vec::new() };
    while lexer.step() {}
    mark_tests(&mut lexer.tokens);
    lexer.tokens
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    /// Takes one token, comment or space; false at the end.
    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        let line = self.line;
        let kind = if self.rest.starts_with("//") {
            self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
            None
        } else if self.rest.starts_with("/*") {
            self.take(block_comment_bytes(self.rest));
            None
        } else if let Some(bytes) = literal_bytes(self.rest) {
            self.take(bytes);
            Some(Kind::Literal)
        } else if first.is_ascii_digit() {
            let follows_dot = self.tokens.last().is_some_and(|token| token.is_mark('.'));
            let number = self.rest[..number_bytes(self.rest, follows_dot)].to_owned();
            self.take(number.len());
            Some(Kind::Number(number))
        } else if first == '_' || first.is_alphabetic() {
            let bytes = self.rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(self.rest.len());
            let word = self.rest[..bytes].to_owned();
            self.take(bytes);
            // r#name is the name; what is left of it follows as the next token.
            let is_raw_prefix = word == "r" && self.rest.starts_with('#') && !self.rest.starts_with("#[");
            if is_raw_prefix {
                self.take(1);
            }
            (!is_raw_prefix).then_some(Kind::Word(word))
        } else if self.rest.starts_with("::") {
            self.take(2);
            Some(Kind::PathSeparator)
        } else {
            self.take(first.len_utf8());
            (!first.is_whitespace()).then_some(Kind::Mark(first))
        };
        if let Some(kind) = kind {
            self.tokens.push(Token { kind, line, is_test: false });
        }
        true
    }

    fn take(&mut self, bytes: usize) {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
    }
}

/// Block comments nest.
fn block_comment_bytes(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// The length of the string or character at the start of the text, with its prefix; none when there is none. A
/// lifetime is none.
fn literal_bytes(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let rest = text.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            let after_hashes = rest.trim_start_matches('#');
            let is_raw = prefix.ends_with('r') && after_hashes.starts_with('"');
            let is_plain = !prefix.ends_with('r') && rest.starts_with('"');
            let is_character = matches!(*prefix, "" | "b") && rest.starts_with('\'');
            is_raw || is_plain || is_character
        })
    })?;
    let rest = &text[prefix.len()..];
    let bytes = if prefix.ends_with('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let body = &rest[hashes + 1..];
        hashes + 1 + body.find(&end).map_or(body.len(), |at| at + end.len())
    } else if rest.starts_with('"') {
        quoted_bytes(rest, '"')
    } else {
        character_bytes(rest)?
    };
    Some(prefix.len() + bytes)
}

/// The length of a quoted text up to its closing quote, past escapes.
fn quoted_bytes(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// The length of a character; none for a lifetime, which has no quote after its first character.
fn character_bytes(text: &str) -> Option<usize> {
    let mut characters = text.chars().skip(1);
    let first = characters.next()?;
    if first == '\\' {
        return Some(quoted_bytes(text, '\''));
    }
    (characters.next() == Some('\'')).then(|| 1 + first.len_utf8() + 1)
}

/// The length of a number. The dot belongs to it when a digit follows, as in `1.5`, but not in `1..2`, `1.max(2)`, nor
/// after another dot, as in the field of a field `x.0.1`.
fn number_bytes(text: &str, follows_dot: bool) -> usize {
    let is_part = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let end = |from: usize| text[from..].find(|c| !is_part(c)).map_or(text.len(), |at| from + at);
    let whole = end(0);
    let after_dot = text[whole..].strip_prefix('.').and_then(|rest| rest.chars().next());
    if !follows_dot && after_dot.is_some_and(|c| c.is_ascii_digit()) { end(whole + 1) } else { whole }
}

/// Marks the items that carry `#[cfg(test)]` or `#[test]`.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        if !(tokens[at].is_mark('#') && tokens.get(at + 1).is_some_and(|token| token.is_mark('['))) {
            at += 1;
            continue;
        }
        let end = closing(tokens, at + 1);
        if !is_test_attribute(&tokens[at + 2..end]) {
            at = end;
            continue;
        }
        let item_end = item_end(tokens, end + 1);
        for token in &mut tokens[at..item_end] {
            token.is_test = true;
        }
        at = item_end;
    }
}

fn is_test_attribute(attribute: &[Token]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token.is_word(word));
    let is_condition = attribute.first().is_some_and(|token| token.is_word("cfg"));
    (is_condition && has("test") && !has("not")) || (attribute.len() == 1 && has("test"))
}

/// The index of the mark that closes the bracket at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Mark('[' | '(' | '{') => depth += 1,
            Kind::Mark(']' | ')' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// One past the item that begins at `start`: past its block, or its semicolon when that comes first.
fn item_end(tokens: &[Token], start: usize) -> usize {
    let mut at = start;
    while let Some(token) = tokens.get(at) {
        match token.kind {
            Kind::Mark(';') => return at + 1,
            Kind::Mark('{') => return (closing(tokens, at) + 1).min(tokens.len()),
            Kind::Mark('[' | '(') => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).iter().filter_map(|token| token.word().map(str::to_owned)).collect()
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let text = r###"
            a // hidden
            /* hidden /* nested hidden */ hidden */ b
            "hidden \" hidden" c r#"hidden " hidden"# d b"hidden" e br"hidden\" f
            '"' g '\'' h '\u{1F600}' i
        "###;
        assert_eq!(words(text), ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    }

    #[test]
    fn lifetimes_do_not_open_a_string() {
        assert_eq!(words("fn f<'a>(x: &'a str) -> &'static str"), ["fn", "f", "a", "x", "a", "str", "static", "str"]);
    }

    #[test]
    fn raw_names_are_names() {
        assert_eq!(words("r#type bar r"), ["type", "bar", "r"]);
    }

    #[test]
    fn numbers_keep_their_dots_only_where_they_are_fractions() {
        let numbers = |text: &str| -> Vec<String> {
            let tokens = tokens(text).into_iter();
            tokens.filter_map(|token| if let Kind::Number(n) = token.kind { Some(n) } else { None }).collect()
        };
        assert_eq!(numbers("1.5 1..2 3.max(4) x.0.1 0x1f_u8"), ["1.5", "1", "2", "3", "4", "0", "1", "0x1f_u8"]);
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let tokens = tokens("a\n\"\n\n\"/*\n*/ b");
        assert_eq!(tokens.last().map(|token| token.line), Some(5));
    }

    #[test]
    fn test_items_are_marked_and_nothing_else() {
        let text = "a; #[cfg(test)] #[allow(x)] mod tests { fn t() { {} } } b; #[cfg(test)] use c; d; \
                    #[cfg(not(test))] fn e() {} #[test] fn f() { g } h";
        let marked: Vec<String> =
            tokens(text).iter().filter(|t| t.is_test).filter_map(|t| t.word().map(str::to_owned)).collect();
        for word in ["tests", "t", "c", "f", "g"] {
            assert!(marked.iter().any(|marked| marked == word), "{word}: {marked:?}");
        }
        for word in ["a", "b", "d", "e", "h"] {
            assert!(!marked.iter().any(|marked| marked == word), "{word}: {marked:?}");
        }
    }
}
