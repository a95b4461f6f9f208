//! `cargo xtask demo`: what Blixard does, shown for real in under a minute, and held to it.
//!
//! Three nodes on this machine form a cluster, an image spreads, a vm boots, nodes are killed, and everything ends as it
//! began. Each step is told when it has been checked; the first that is not as it should be ends the demo with the ends
//! of all logs. `story` has the steps, `teller` tells them, and [`crate::cluster`] runs the nodes and cleans up.

mod guest_vm;
mod story;
mod teller;

use crate::cluster::{self, Cluster, Profile};
use crate::interrupt::Interrupt;
use crate::{guest, setup};
use anyhow::{Context, Result};
use std::path::Path;
use teller::Teller;

/// Sets up what is missing, builds, and tells the whole story; with `keep`, only up to where there is something to play
/// with, and leaves that running.
pub fn run(keep: bool) -> Result<()> {
    setup::install_missing(setup::BOOT)?;
    println!("demo: building blixard and the guest");
    let binary = cluster::blixard(Profile::Dev).context("build blixard")?;
    guest::run(false, false)?;
    let interrupt = Interrupt::listen()?;
    let mut cluster = Cluster::new(&binary, &interrupt)?;
    let mut teller = Teller::new();
    println!("demo: three nodes on this machine, with everything they keep in {}", cluster.dir().display());
    let told = story::beginning(&mut cluster, &mut teller).and_then(|vm| {
        if keep {
            return Ok(Some(vm));
        }
        story::crashes(&mut cluster, &mut teller, &vm)?;
        story::end(&mut cluster, &mut teller, &vm)?;
        Ok(None)
    });
    match told {
        Ok(None) => teller.finish(),
        Ok(Some(vm)) => {
            story::invite(&cluster, &binary, &vm)?;
            cluster.leave();
        }
        Err(error) => {
            println!("demo: FAILED after {}", teller.elapsed());
            println!("{}", cluster.last_words());
            println!("demo: ending what was started");
            return Err(error.context("the demo is not as it should be"));
        }
    }
    Ok(())
}

/// Ends what an earlier demo left running in its folder, with all its vms and files.
pub fn end(dir: &Path) -> Result<()> {
    cluster::end_left(dir)?;
    println!("demo: ended, and removed {}", dir.display());
    Ok(())
}
