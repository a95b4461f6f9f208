//! How much of a node images may take.

use serde::{Deserialize, Serialize};

/// How much of the disk images may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CacheMax {
    /// As much as there is.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk that the data directory is on.
    Percent(u8),
}

impl std::str::FromStr for CacheMax {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "cache.max: expected a size as in 200GiB, a share of the disk as in 50%, or unlimited, found {text:?}"
            )
        };
        let text = text.trim();
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let shift = match unit {
            "%" => {
                return u8::try_from(number)
                    .ok()
                    .filter(|n| (1..=100).contains(n))
                    .map(Self::Percent)
                    .ok_or_else(wrong);
            }
            "MiB" | "M" => 20,
            "GiB" | "G" => 30,
            "TiB" | "T" => 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl TryFrom<String> for CacheMax {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CacheMax> for String {
    fn from(max: CacheMax) -> Self {
        match max {
            CacheMax::Unlimited => "unlimited".to_owned(),
            CacheMax::Bytes(bytes) => format!("{}MiB", bytes >> 20),
            CacheMax::Percent(percent) => format!("{percent}%"),
        }
    }
}

/// What images may take of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// How much of the disk.
    pub max: CacheMax,
}

impl Default for CacheConfig {
    fn default() -> Self {
        // The other half is for the disks of vms.
        Self { max: CacheMax::Percent(50) }
    }
}
