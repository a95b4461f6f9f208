//! `cargo xtask dist`: a package for Debian and its relatives, and every check of it that this machine allows.
//!
//! It is put together by `dpkg-deb`, the program that the distribution's own packages are made with: nothing has to be
//! downloaded for it, and what goes into the package is written down in `package.rs` and `packaging/`.

mod check;
mod live;
mod package;

use crate::cluster::{self, Profile};
use crate::{setup, workspace_root};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// What users download is packed well; what only the checks look at, quickly: that is minutes of difference.
const SMALL: [&str; 2] = ["-Zxz", "-z6"];
const QUICK: [&str; 2] = ["-Zgzip", "-z1"];

/// Builds the package into `target/dist` and checks it. With `is_dev` it holds the build that tests use, which takes minutes
/// less to make.
pub fn run(is_dev: bool) -> Result<()> {
    setup::install_missing(setup::PACKAGE)?;
    let binary = cluster::blixard(if is_dev { Profile::Dev } else { Profile::Release })?;
    let dir = folder()?;
    let package = package::build(&binary, &dir, if is_dev { QUICK } else { SMALL })?;
    println!("dist: {} ({} KiB)", package.display(), fs::metadata(&package)?.len() >> 10);
    check::contents(&package)?;
    check::scripts(&workspace_root().join("packaging/deb"))?;
    check::life(&package, &dir.join("scratch"))?;
    check::unit(&workspace_root().join("packaging/blixard.service"), &binary, &dir)?;
    check::lint(&package)?;
    live::try_out(&package)
}

/// A fresh folder for what is built here.
fn folder() -> Result<PathBuf> {
    let dir = workspace_root().join("target/dist");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}
