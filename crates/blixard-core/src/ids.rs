//! Identifiers. Each is its own type, so that one cannot be passed where another is meant.
//!
//! In JSON and on the command line an identifier is text; in the log and in snapshots it is its plain bytes.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An identifier in a form that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    what: &'static str,
    digits: usize,
    text: String,
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The first ten hexadecimal digits: enough for people to tell two apart.
            pub fn short(&self) -> String {
                self.to_string().chars().take(10).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let refuse = || ParseIdError { what: $what, digits: $len * 2, text: text.chars().take(80).collect() };
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| refuse())?;
                bytes.try_into().map(Self).map_err(|_| refuse())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let pattern = format!("^[0-9a-fA-F]{{{}}}$", $len * 2);
                schemars::json_schema!({ "type": "string", "pattern": pattern })
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; $len]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

bytes_id!(
    /// A node's or a client's public key, which is also its address on the network.
    EndpointId, 32, "an endpoint id"
);
bytes_id!(
    /// The public key that identifies a cluster, made when its first node starts.
    ClusterId, 32, "a cluster id"
);
bytes_id!(
    /// The BLAKE3 hash that names a blob.
    BlobHash, 32, "a blob hash"
);
bytes_id!(
    /// The BLAKE3 hash of an image's manifest. A vm pins its image by it.
    ImageId, 32, "an image id"
);
bytes_id!(
    /// The BLAKE3 hash of a join token's secret. The secret itself is never part of the state.
    SecretHash, 32, "a secret's hash"
);
bytes_id!(
    /// Names a join token without giving its secret away.
    TokenId, 8, "a token id"
);
bytes_id!(
    /// Names what a node shares with whoever has its ticket, without giving the ticket's secret away.
    ShareId, 8, "a share id"
);
bytes_id!(
    /// A vm, for as long as it exists; its name may be given to another one later.
    VmId, 16, "a vm id"
);
bytes_id!(
    /// One request of one user: a command that arrives twice under the same id is carried out once.
    RequestId, 16, "a request id"
);
bytes_id!(
    /// The first half of the BLAKE3 hash of what a request asks for, of what, and by whom.
    ContentHash, 16, "a content hash"
);

/// The small number a node was given by its operator (`--id 1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Wall-clock time in milliseconds since the Unix epoch, read once by the node that accepted a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, JsonSchema, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// This time and `ms` milliseconds more, capped at the largest time.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this time; 0 when `earlier` is later.
    pub fn since_ms(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
