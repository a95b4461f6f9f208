//! Tells the service manager that this node lives: not that its process is there, but that the loops turn by which it does its
//! work. Where one stands still for as long as the service manager allows, that one ends the process and starts it anew;
//! guests do not notice.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{LOOPS, Metrics};

/// How often the loops are looked at in the time that the service manager allows: often enough that one slow look does no
/// harm.
const LOOKS: u32 = 4;

/// How far each loop was when the service manager was last told.
#[derive(Debug, Default)]
struct Turns {
    told: [u64; LOOPS.len()],
}

impl Turns {
    /// Whether every loop has turned since this last said so; otherwise the first that has not.
    fn all_moved(&mut self, now: [u64; LOOPS.len()]) -> Result<(), &'static str> {
        let still = LOOPS.iter().zip(self.told.iter().zip(now)).find(|(_, (told, now))| **told == *now);
        match still {
            Some((name, _)) => Err(name),
            None => {
                self.told = now;
                Ok(())
            }
        }
    }
}

/// Feeds the watchdog of the service manager, which waits for `limit` at most. Never returns.
pub(super) async fn feed(metrics: Arc<Metrics>, limit: Duration) {
    let mut turns = Turns::default();
    loop {
        tokio::time::sleep(limit / LOOKS).await;
        let now = LOOPS.map(|name| metrics.turns_of(name).get());
        if let Err(name) = turns.all_moved(now) {
            tracing::warn!(
                task = name,
                "no turn since the last look; the service manager is not told that all is well"
            );
        } else if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
            tracing::warn!(%error, "the service manager could not be told that all is well");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_stands_still_is_enough() {
        let mut turns = Turns::default();
        let (first, last) = (LOOPS[0], LOOPS[LOOPS.len() - 1]);
        assert_eq!(turns.all_moved([0; LOOPS.len()]), Err(first), "none has begun");
        assert_eq!(turns.all_moved([1; LOOPS.len()]), Ok(()));
        assert_eq!(turns.all_moved([1; LOOPS.len()]), Err(first));
        let mut but_one = [9; LOOPS.len()];
        but_one[LOOPS.len() - 1] = 1;
        assert_eq!(turns.all_moved(but_one), Err(last));
        but_one[LOOPS.len() - 1] = 2;
        assert_eq!(turns.all_moved(but_one), Ok(()), "what the others did meanwhile still counts");
    }
}
