//! Ports of the loopback interface that nobody uses.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;

/// Below the ports that Linux hands out by itself (from 32768 on), or a connection of another program could take the
/// port of a node between its end and its restart. The HTTP ports, 1000 higher, stay below, too.
const PORTS: Range<u16> = 20_000..31_000;
/// A node serves HTTP this far above its UDP port.
pub(super) const HTTP_PORT_OFFSET: u16 = 1000;

/// Hands out each port once.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
    taken: BTreeSet<u16>,
}

impl Ports {
    /// Begins at a place of this process's own, so that two clusters started at once do not try the same ports.
    pub(super) fn new() -> Self {
        let spread = std::process::id().wrapping_mul(37) % u32::from(PORTS.end - PORTS.start);
        let spread = u16::try_from(spread).expect("a remainder is smaller than its divisor");
        Self { next: PORTS.start + spread, taken: BTreeSet::new() }
    }

    /// A port that is free for UDP, with the one 1000 above free for TCP.
    pub(super) fn for_node(&mut self) -> Result<u16> {
        self.find(|port| {
            UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port + HTTP_PORT_OFFSET)).is_ok()
        })
    }

    /// A port that is free for TCP.
    pub(super) fn for_tcp(&mut self) -> Result<u16> {
        self.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    }

    fn find(&mut self, is_free: impl Fn(u16) -> bool) -> Result<u16> {
        for _ in PORTS {
            let port = self.next;
            self.next = if port + 1 == PORTS.end { PORTS.start } else { port + 1 };
            if !self.taken.contains(&port) && is_free(port) {
                self.taken.extend([port, port + HTTP_PORT_OFFSET]);
                return Ok(port);
            }
        }
        None.with_context(|| format!("no port from {} to {} of 127.0.0.1 is free", PORTS.start, PORTS.end - 1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice_or_while_in_use() {
        let mut ports = Ports::new();
        let first = ports.for_node().unwrap();
        let used =
            UdpSocket::bind((Ipv4Addr::LOCALHOST, first + 1)).or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let others: Vec<u16> = (0..50).map(|_| ports.for_node().unwrap()).collect();
        assert!(!others.contains(&first) && !others.contains(&used.local_addr().unwrap().port()));
        assert!(!others.contains(&(first + HTTP_PORT_OFFSET)));
        let mut all = others.clone();
        all.push(ports.for_tcp().unwrap());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), others.len() + 1);
    }
}
