//! How many connections may be open at once: of one key, and of all strangers or clients together.
//!
//! Only what is scarce is counted. Strangers can make any number of keys, so they share a fixed number of places; members
//! and clients are known by theirs, so one of them that runs wild takes nothing from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use blixard_core::EndpointId;

use super::Protocol;

/// The code with which a connection is closed for which there is no place.
pub const BUSY: u32 = 429;

/// Connections of all strangers for one protocol. Each says what it wants within seconds, or has to go; who fetches what is shared
/// stays for as long as that takes.
const STRANGERS_MAX: usize = 256;
/// Connections of one stranger's key for one protocol. A joiner has one; one that was restarted may have left another.
const CONNECTIONS_A_STRANGER_MAX: usize = 4;
/// Connections of all clients: each command of the command line has one while it runs.
const CLIENTS_MAX: usize = 1024;
/// Connections of one client: what a script runs at the same time. Some 10 MB of answers may wait on each for a reader that
/// takes nothing.
const CONNECTIONS_A_CLIENT_MAX: usize = 32;
/// Connections of one member for one protocol. It needs one; those of a process that died linger until they time out.
const CONNECTIONS_A_MEMBER_MAX: usize = 64;

/// The places that are taken. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    taken: Arc<Mutex<HashMap<(Protocol, EndpointId), usize>>>,
}

/// A place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<Mutex<HashMap<(Protocol, EndpointId), usize>>>,
    of: (Protocol, EndpointId),
}

impl Places {
    /// Takes a place for a connection, or says why there is none.
    pub(super) fn take(&self, protocol: Protocol, key: EndpointId, is_member: bool) -> Result<Place, &'static str> {
        let (a_key_max, all_max) = match protocol {
            Protocol::Join if is_member => (CONNECTIONS_A_MEMBER_MAX, usize::MAX),
            Protocol::Join | Protocol::Share | Protocol::SharedDocuments | Protocol::Published => {
                (CONNECTIONS_A_STRANGER_MAX, STRANGERS_MAX)
            }
            Protocol::Api => (CONNECTIONS_A_CLIENT_MAX, CLIENTS_MAX),
            Protocol::Raft | Protocol::Peer | Protocol::Blobs | Protocol::Documents | Protocol::Values => {
                (CONNECTIONS_A_MEMBER_MAX, usize::MAX)
            }
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of = (protocol, key);
        if taken.get(&of).is_some_and(|count| *count >= a_key_max) {
            return Err("this key has too many connections open: close some");
        }
        let all = || taken.iter().filter(|((other, _), _)| *other == protocol).map(|(_, count)| count).sum::<usize>();
        if all_max < usize::MAX && all() >= all_max {
            return Err("too many connections are open at this node: try again, or ask another one");
        }
        *taken.entry(of).or_default() += 1;
        Ok(Place { taken: self.taken.clone(), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(number: usize) -> EndpointId {
        let mut key = EndpointId([0; 32]);
        key.0[..8].copy_from_slice(&(number as u64).to_be_bytes());
        key
    }

    #[test]
    fn strangers_fill_their_own_places_only() {
        let places = Places::default();
        let strangers: Vec<Place> =
            (0..STRANGERS_MAX).map(|n| places.take(Protocol::Join, key(n), false).unwrap()).collect();
        assert!(places.take(Protocol::Join, key(9_999), false).unwrap_err().contains("at this node"));
        let _member = places.take(Protocol::Join, key(10_000), true).unwrap();
        let _client = places.take(Protocol::Api, key(0), false).unwrap();
        drop(strangers);
        assert!(places.take(Protocol::Join, key(9_999), false).is_ok());
    }

    #[test]
    fn one_key_takes_no_place_of_another() {
        let places = Places::default();
        for (protocol, max) in [
            (Protocol::Join, 4),
            (Protocol::Share, 4),
            (Protocol::Api, 32),
            (Protocol::Raft, 64),
            (Protocol::Peer, 64),
            (Protocol::Blobs, 64),
            (Protocol::Documents, 64),
            (Protocol::Values, 64),
        ] {
            let held: Vec<Place> = (0..max).map(|_| places.take(protocol, key(1), false).unwrap()).collect();
            assert!(places.take(protocol, key(1), false).unwrap_err().contains("this key"), "{protocol:?}");
            assert!(places.take(protocol, key(2), false).is_ok());
            drop(held);
            assert!(places.take(protocol, key(1), false).is_ok());
        }
        assert!(places.taken.lock().unwrap().is_empty(), "nothing is kept of those who have gone");
    }
}
