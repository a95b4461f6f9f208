//! A value that is watched, like tokio's, whose watchers are woken in the order in which they wait. Tokio's own wakes them in
//! an order that differs from run to run.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::life::lock;

struct Shared<T> {
    /// The value, its version, and how many senders there are.
    value: Mutex<(T, u64, usize)>,
    changed: Notify,
}

/// A value, and one watcher of it.
pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

/// The sending side.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: Mutex::new((value, 0, 1)), changed: Notify::new() }))
    }

    pub(crate) fn subscribe(&self) -> Receiver<T> {
        let seen = lock(&self.0.value).1;
        Receiver { shared: self.0.clone(), seen }
    }

    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut place = lock(&self.0.value);
        place.1 += 1;
        let before = std::mem::replace(&mut place.0, value);
        drop(place);
        self.0.changed.notify_waiters();
        before
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.0.value).2 += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        lock(&self.0.value).2 -= 1;
        self.0.changed.notify_waiters();
    }
}

/// The watching side.
#[derive(Clone)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A value as it was seen.
pub(crate) struct Ref<T>(T);

impl<T> Deref for Ref<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// All senders are gone.
#[derive(Debug)]
pub(crate) struct Closed;

impl<T: Clone> Receiver<T> {
    pub(crate) fn borrow_and_update(&mut self) -> Ref<T> {
        let value = lock(&self.shared.value);
        self.seen = value.1;
        Ref(value.0.clone())
    }

    pub(crate) fn has_changed(&self) -> Result<bool, Closed> {
        let value = lock(&self.shared.value);
        if value.2 == 0 { Err(Closed) } else { Ok(value.1 != self.seen) }
    }

    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let value = lock(&self.shared.value);
                if value.1 != self.seen {
                    self.seen = value.1;
                    return Ok(());
                }
                if value.2 == 0 {
                    return Err(Closed);
                }
            }
            changed.await;
        }
    }

    pub(crate) async fn wait_for(&mut self, is_so: impl Fn(&T) -> bool) -> Result<Ref<T>, Closed> {
        loop {
            let value = self.borrow_and_update();
            if is_so(&value) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }
}
