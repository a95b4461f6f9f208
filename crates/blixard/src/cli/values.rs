//! Values as people write them on the command line: sizes, durations, labels and the like. Each error shows a right one.

use std::net::SocketAddr;
use std::time::Duration;

use blixard_core::{NodeId, RestartPolicy};
use blixard_node::api::Target;
use blixard_node::transport::Ticket;

/// The word for "no limit", wherever one can be lifted.
const UNLIMITED: &str = "unlimited";
/// The same for a rate, of which there is then none that holds.
const NO_RATE: &str = "none";
const KIB_PER_MIB: u64 = 1024;

/// How many nodes may join with a token; nothing for any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uses(pub(super) Option<u32>);

/// How long a token is good for; nothing for as long as nobody revokes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ttl(pub(super) Option<Duration>);

/// A rate in bytes a second; nothing for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) Option<u64>);

/// A label: `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) key: String,
    pub(super) value: String,
}

/// A node's number.
pub(super) fn node_id(text: &str) -> Result<NodeId, String> {
    match text.parse() {
        Ok(id @ 1..) => Ok(NodeId(id)),
        _ => Err("a node's number is 1 or higher".to_owned()),
    }
}

/// An address of this host with a port.
pub(super) fn bind(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected ADDRESS:PORT, such as 0.0.0.0:7001 or [::]:7001".to_owned())
}

/// Another node's host and port.
pub(super) fn peer(text: &str) -> Result<String, String> {
    match text.parse() {
        Ok(Target::HostPort(peer)) => Ok(peer),
        _ => Err("expected HOST:PORT of the other node's --bind, such as 10.0.0.1:7001".to_owned()),
    }
}

/// A ticket, without the white space that copying adds.
pub(super) fn ticket(text: &str) -> Result<String, String> {
    text.parse::<Ticket>().map(|ticket| ticket.to_string()).map_err(|error| error.to_string())
}

/// A relay's URL.
pub(super) fn relay(text: &str) -> Result<String, String> {
    let is_url = ["https://", "http://"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    if !is_url || text.contains([',', ' ']) {
        return Err("expected the URL of a relay, such as https://relay.example.org".to_owned());
    }
    Ok(text.to_owned())
}

/// A label.
pub(super) fn label(text: &str) -> Result<Label, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Label { key: key.to_owned(), value: value.to_owned() }),
        _ => Err("expected KEY=VALUE, such as zone=home".to_owned()),
    }
}

/// A label as a node's own setting, where a comma parts one from the next.
pub(super) fn node_label(text: &str) -> Result<Label, String> {
    if text.contains(',') {
        return Err("a comma is not possible here: repeat the flag for another label, or write it in the file".into());
    }
    label(text)
}

/// A duration.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| "expected a number with a unit, such as 500ms, 30s, 5m or 1h".to_owned())
}

/// How long a ticket is good for.
pub(super) fn ttl(text: &str) -> Result<Ttl, String> {
    if text == UNLIMITED {
        return Ok(Ttl(None));
    }
    match duration(text) {
        Ok(Duration::ZERO) => Err("it would be over at once: give it some time".to_owned()),
        Ok(ttl) => Ok(Ttl(Some(ttl))),
        Err(error) => Err(format!("{error}, or {UNLIMITED}")),
    }
}

/// How many nodes may join with a token.
pub(super) fn uses(text: &str) -> Result<Uses, String> {
    match text.parse() {
        _ if text == UNLIMITED => Ok(Uses(None)),
        Ok(0) => Ok(Uses(None)),
        Ok(uses) => Ok(Uses(Some(uses))),
        Err(_) => Err(format!("expected a number of nodes, or {UNLIMITED}")),
    }
}

/// An amount of memory or disk, in whole MiB.
pub(super) fn mebibytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a whole number with a unit, such as 512M, 10G or 1T (powers of 1024)".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit = unit.trim().to_ascii_lowercase();
    let mib = match unit.strip_suffix("ib").unwrap_or(&unit) {
        "k" if number.is_multiple_of(KIB_PER_MIB) => Some(number / KIB_PER_MIB),
        "k" => return Err("it must be a multiple of 1M".to_owned()),
        "m" => Some(number),
        "g" => number.checked_mul(1 << 10),
        "t" => number.checked_mul(1 << 20),
        _ => return Err(expected()),
    };
    match mib {
        Some(0) => Err("it must be at least 1M".to_owned()),
        Some(mib) => Ok(mib),
        None => Err("it is more than any host has".to_owned()),
    }
}

/// A rate at which content goes.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    if text == NO_RATE || text == UNLIMITED {
        return Ok(Rate(None));
    }
    let expected = || format!("expected a whole number with a unit, such as 500KiB/s, 20MiB/s or 1GiB/s, or {NO_RATE}");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("/s").unwrap_or(&unit);
    let shift = match unit.strip_suffix("ib").unwrap_or(unit) {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err(expected()),
    };
    let rate = number.checked_mul(1 << shift).ok_or("it is more than any network carries")?;
    if rate == 0 { Err(format!("nothing would ever arrive; {NO_RATE} lifts a limit")) } else { Ok(Rate(Some(rate))) }
}

/// What happens when a guest ends by itself.
pub(super) fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "always" => Ok(RestartPolicy::Always),
        "never" => Ok(RestartPolicy::Never),
        "on-failure" => Ok(RestartPolicy::default()),
        _ => text
            .strip_prefix("on-failure:")
            .and_then(|limit| limit.parse().ok())
            .filter(|limit| *limit > 0)
            .map(|limit| RestartPolicy::OnFailure { limit })
            .ok_or_else(|| "expected always, never, on-failure or on-failure:LIMIT, such as on-failure:3".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_mebibytes() {
        for (text, mib) in
            [("1M", 1), ("512m", 512), ("2048K", 2), ("10G", 10240), ("1GiB", 1024), ("3 MiB", 3), ("2T", 2 << 20)]
        {
            assert_eq!(mebibytes(text), Ok(mib), "{text}");
        }
        for text in [
            "",
            "512",
            "M",
            "1.5G",
            "-1M",
            "0M",
            "512K",
            "10GB",
            "1P",
            "10G5",
            "99999999999999999999M",
            "18446744073709551615T",
        ] {
            assert!(mebibytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "30", "-1s", "soon", "1x"] {
            assert!(duration(text).is_err_and(|error| error.contains("30s")), "{text}");
        }
        assert_eq!(ttl("1h"), Ok(Ttl(Some(Duration::from_secs(3600)))));
        assert_eq!(ttl("unlimited"), Ok(Ttl(None)));
        assert!(ttl("0s").is_err() && ttl("forever").is_err());
    }

    #[test]
    fn rates_are_bytes_in_a_second() {
        for (text, rate) in [("20MiB/s", 20 << 20), ("500KiB/s", 500 << 10), ("1g", 1 << 30), ("7 m/s", 7 << 20)] {
            assert_eq!(super::rate(text), Ok(Rate(Some(rate))), "{text}");
        }
        assert_eq!((rate("none"), rate("unlimited")), (Ok(Rate(None)), Ok(Rate(None))));
        for text in ["", "20", "20MB/s", "20Mbit/s", "0M", "-1M", "1.5M", "99999999999999G", "/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn uses_are_a_number_or_unlimited() {
        assert_eq!(uses("3"), Ok(Uses(Some(3))));
        assert_eq!((uses("0"), uses("unlimited")), (Ok(Uses(None)), Ok(Uses(None))));
        assert!(uses("-1").is_err() && uses("").is_err());
    }

    #[test]
    fn labels_have_a_key() {
        let pair = |key: &str, value: &str| Ok(Label { key: key.to_owned(), value: value.to_owned() });
        assert_eq!(label("zone=a"), pair("zone", "a"));
        assert_eq!(label("gpu="), pair("gpu", ""));
        assert_eq!(label("a=b=c"), pair("a", "b=c"));
        assert!(label("zone").is_err() && label("=a").is_err());
        assert_eq!(label("zones=a,b"), pair("zones", "a,b"));
        assert!(node_label("zones=a,b").is_err());
    }

    #[test]
    fn peers_are_hosts_with_ports() {
        assert_eq!(peer("localhost:7001").as_deref(), Ok("localhost:7001"));
        assert_eq!(peer("[::1]:7001").as_deref(), Ok("[::1]:7001"));
        for text in ["localhost", ":7001", "host:port", "./registry.json"] {
            assert!(peer(text).is_err(), "{text}");
        }
        assert!(bind("7001").is_err() && bind("localhost:7001").is_err() && bind("[::]:7001").is_ok());
        assert!(relay("https://relay.example.org").is_ok());
        assert!(relay("relay.example.org").is_err() && relay("https://").is_err() && relay("https://a,b").is_err());
        assert!(ticket("blixardabc").is_err_and(|error| error.contains("copy it again")));
        assert!(node_id("0").is_err() && node_id("one").is_err() && node_id("3") == Ok(NodeId(3)));
    }

    #[test]
    fn restart_policies_are_read() {
        assert_eq!(restart_policy("always"), Ok(RestartPolicy::Always));
        assert_eq!(restart_policy("never"), Ok(RestartPolicy::Never));
        assert_eq!(restart_policy("on-failure"), Ok(RestartPolicy::default()));
        assert_eq!(restart_policy("on-failure:3"), Ok(RestartPolicy::OnFailure { limit: 3 }));
        for text in ["on-failure:", "on-failure:0", "on-failure:x", "sometimes"] {
            assert!(restart_policy(text).is_err(), "{text}");
        }
    }
}
