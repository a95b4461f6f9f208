//! Documents: what names them and their keys, and the secret that lets members write.
//!
//! What is in a document is no part of the state: it is kept and spread without a quorum. The state has only the secret, from
//! which every member derives the same documents, so that nobody has to be asked where one is or whether it may be written.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{DOCUMENT_KEY_BYTES_MAX, GUEST_PATH_BYTES_MAX};
use crate::vm::name_type;
use crate::{BlobHash, NameError};

name_type!(
    /// The name of a document: lower-case letters, digits, `.`, `_` and `-`, at most 63.
    DocumentName, "a document name", 63, |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
);

impl DocumentName {
    /// The document in which a cluster publishes images.
    pub fn catalog() -> Self {
        "catalog".parse().expect("the name keeps to its own rules")
    }

    /// The document that every cluster has from its beginning.
    pub fn config() -> Self {
        "config".parse().expect("the name keeps to its own rules")
    }
}

/// What a value in a document is found by: one or more parts with `/` between them, as in `web/nginx.conf`.
///
/// Each part is a file name that leads nowhere else, so that a document can be written out as a folder of files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DocumentKey(String);

impl DocumentKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A key in a form that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a key: use 1 to {DOCUMENT_KEY_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', with '/' between parts, \
     each of which begins with a letter, a digit or '_'"
)]
pub struct DocumentKeyError(String);

impl FromStr for DocumentKey {
    type Err = DocumentKeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_part =
            |part: &str| part.starts_with(is_first) && part.chars().all(|c| is_first(c) || matches!(c, '.' | '-'));
        if text.len() <= DOCUMENT_KEY_BYTES_MAX && text.split('/').all(is_part) {
            return Ok(Self(text.to_owned()));
        }
        Err(DocumentKeyError(text.chars().take(80).collect()))
    }
}

impl JsonSchema for DocumentKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DocumentKey".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let part = "[A-Za-z0-9_][A-Za-z0-9._-]*";
        let pattern = format!("^{part}(/{part})*$");
        schemars::json_schema!({ "type": "string", "pattern": pattern, "maxLength": DOCUMENT_KEY_BYTES_MAX })
    }
}

impl<'de> Deserialize<'de> for DocumentKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An absolute path in a guest, of letters, digits, `.`, `_`, `-`, `@` and `+`, that goes nowhere but down.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct GuestPath(String);

impl GuestPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A path in a form that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a path in a guest: begin with '/' and use at most {GUEST_PATH_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_', '-', \
     '@' and '+', and no part of only dots"
)]
pub struct GuestPathError(String);

impl FromStr for GuestPath {
    type Err = GuestPathError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
        let is_part = |part: &str| part.chars().all(is_allowed) && part.chars().any(|c| c != '.');
        let parts = text.strip_prefix('/').filter(|_| text.len() <= GUEST_PATH_BYTES_MAX);
        if parts.is_some_and(|parts| parts.split('/').all(is_part)) {
            return Ok(Self(text.to_owned()));
        }
        Err(GuestPathError(text.chars().take(80).collect()))
    }
}

impl JsonSchema for GuestPath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GuestPath".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let pattern = r"^(/[A-Za-z0-9_.@+-]*[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]*)+$";
        schemars::json_schema!({ "type": "string", "pattern": pattern, "maxLength": GUEST_PATH_BYTES_MAX })
    }
}

impl<'de> Deserialize<'de> for GuestPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A file in a guest that has the value of a key: on the command line `/etc/app.conf=doc:config/app.conf`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
pub struct ConfigSource {
    /// Where cloud-init writes it.
    pub path: GuestPath,
    /// The document.
    pub document: DocumentName,
    /// The key.
    pub key: DocumentKey,
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=doc:{}/{}", self.path, self.document, self.key)
    }
}

/// Text that names no file with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigSourceError {
    /// It has another form.
    #[error("{0:?} is not PATH=doc:DOCUMENT/KEY, as in /etc/app.conf=doc:config/app.conf")]
    Form(String),
    /// Its path is none.
    #[error(transparent)]
    Path(#[from] GuestPathError),
    /// Its document has no such name.
    #[error(transparent)]
    Document(#[from] NameError),
    /// Its key is none.
    #[error(transparent)]
    Key(#[from] DocumentKeyError),
}

impl FromStr for ConfigSource {
    type Err = ConfigSourceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ConfigSourceError::Form(text.chars().take(80).collect());
        let (path, place) = text.split_once("=doc:").ok_or_else(form)?;
        let (document, key) = place.split_once('/').ok_or_else(form)?;
        Ok(Self { path: path.parse()?, document: document.parse()?, key: key.parse()? })
    }
}

/// A file that cloud-init writes when a vm boots for the first time, with the value that it had when the vm was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Where it goes, and where it is from.
    pub source: ConfigSource,
    /// The hash of the value, by which to tell whether it has changed since.
    pub hash: BlobHash,
    /// The value.
    pub content: Vec<u8>,
}

/// What the members share and nobody else may learn: from it come the keys by which documents are found and written.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentsSecret(pub [u8; 32]);

impl fmt::Debug for DocumentsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It must not come into a log by way of a state or a command that is shown whole.
        f.write_str("DocumentsSecret(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_path_that_leads_nowhere_else() {
        for key in ["a", "app.conf", "web/nginx.conf", "_x/Y-1/z..", &"a".repeat(255)] {
            assert_eq!(key.parse::<DocumentKey>().unwrap().as_str(), key);
        }
        let long = "a".repeat(256);
        for key in
            ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "./a", "-a", "a b", "a\0", "a\n", "ä", "a\\b", &long]
        {
            let refused = key.parse::<DocumentKey>().unwrap_err().to_string();
            assert!(refused.contains("is not a key"), "{refused}");
        }
    }

    #[test]
    fn a_file_in_a_guest_names_its_path_and_its_value() {
        let source: ConfigSource = "/etc/app/app.conf=doc:config/web/app.conf".parse().unwrap();
        assert_eq!((source.path.as_str(), source.key.as_str()), ("/etc/app/app.conf", "web/app.conf"));
        assert_eq!(source.to_string().parse::<ConfigSource>().unwrap(), source);
        let long = format!("/{}=doc:config/a", "a".repeat(255));
        for text in [
            "",
            "/etc/a",
            "/etc/a=config/a",
            "etc/a=doc:config/a",
            "/a/../b=doc:config/a",
            "/a//b=doc:config/a",
            "/a/=doc:config/a",
            "/=doc:config/a",
            "/a b=doc:config/a",
            "/a=doc:config",
            "/a=doc:Config/a",
            "/a=doc:config/../a",
            &long,
        ] {
            assert!(text.parse::<ConfigSource>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert_eq!(format!("{:?}", DocumentsSecret([7; 32])), "DocumentsSecret(..)");
    }
}
