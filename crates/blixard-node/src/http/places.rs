//! How many connections to the door one caller may have: a share of all, so that none keeps the others out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Connections of one caller: a scraper and a joiner need one each.
const CONNECTIONS_A_CALLER_MAX: usize = 32;
/// Bits of an IPv6 address that tell callers apart: a host has the rest to itself.
const IPV6_PREFIX_BITS: u32 = 64;

/// Who is connected, and how often. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A caller's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Caller {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    from: IpAddr,
}

fn caller_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS))).into(),
        v4 => v4,
    }
}

impl Callers {
    /// Takes a place, if the caller has one left.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Caller> {
        let from = caller_of(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(from).or_default();
        if *count >= CONNECTIONS_A_CALLER_MAX {
            return None;
        }
        *count += 1;
        Some(Caller { open: self.open.clone(), from })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_its_share_and_no_more() {
        let callers = Callers::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let taken = |first: &str, again: &str| {
            let held: Vec<Caller> =
                (0..CONNECTIONS_A_CALLER_MAX).map(|_| callers.enter(address(first)).unwrap()).collect();
            let is_full = callers.enter(address(again)).is_none();
            drop(held);
            is_full
        };
        assert!(taken("192.0.2.1", "192.0.2.1") && taken("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(taken("2001:db8::1", "2001:db8::ffff"), "one host, many addresses");
        assert!(!taken("192.0.2.1", "192.0.2.2") && !taken("2001:db8::1", "2001:db8:0:1::1"));
        assert!(callers.open.lock().unwrap().is_empty());
    }
}
