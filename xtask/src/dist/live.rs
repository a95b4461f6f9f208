//! The package on a host that systemd runs: installed, started, asked, restarted and purged.

use crate::distribution::{self, Distribution};
use crate::process;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long the node may take to answer once it is started.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a node that has no way to tell us: a person would not notice it, and systemd is asked each time.
const POLL: Duration = Duration::from_millis(200);
/// How long one answer of the node's public door may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the ports that the system gives out by itself, and none that a node has by default.
const BIND: &str = "127.0.0.1:17001";

/// Where the node leaves the key of its first client, who is root.
const ROOTS_KEY: &str = "/root/.local/state/blixard";

/// Tries the package out where that is possible and harms nobody: on a Debian host that systemd runs and on which Blixard is
/// not installed. It says loudly why not, elsewhere.
pub(super) fn try_out(package: &Path) -> Result<()> {
    if let Some(why) = obstacle()? {
        println!("dist: NOT INSTALLED AND STARTED HERE: {why}; the checks above are all there is");
        return Ok(());
    }
    println!("dist: installing the package on this host, and purging it afterwards");
    let tried = install_and_start(package);
    let purged = root(&["apt-get", "purge", "--yes", "blixard"]);
    // The key that the node made for root; there was none before, or this would not have begun.
    let forgotten = root(&["rm", "-r", "-f", ROOTS_KEY]);
    tried?;
    purged?;
    forgotten?;
    ensure!(!Path::new("/var/lib/blixard").exists(), "a purge leaves /var/lib/blixard");
    println!("dist: installed, started, restarted and purged under systemd");
    Ok(())
}

fn obstacle() -> Result<Option<String>> {
    let is_debian = matches!(Distribution::of_this_machine(), Ok(Distribution::Debian | Distribution::Ubuntu));
    let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    Ok(if !is_debian {
        Some("this is neither Debian nor Ubuntu".to_owned())
    } else if init.trim() != "systemd" || !Path::new("/run/systemd/system").exists() {
        Some(format!("process 1 is {}, not systemd", init.trim()))
    } else if !distribution::can_be_root()? {
        Some("that takes root".to_owned())
    } else {
        let taken = ["/usr/bin/blixard", "/etc/blixard", "/var/lib/blixard", ROOTS_KEY];
        // Root looks: to others what lies below /root is not there, and it would be removed in the end.
        let is_there = |path: &&&str| root(&["test", "!", "-e", path]).is_err();
        taken.iter().find(is_there).map(|path| format!("there is {path} already"))
    })
}

fn root(words: &[&str]) -> Result<()> {
    distribution::as_root(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
}

fn install_and_start(package: &Path) -> Result<()> {
    let package = package.to_str().context("the package's path is not text")?;
    root(&["apt-get", "install", "--yes", "--no-install-recommends", package])?;
    let configuration = format!("id = 1\nbind = \"{BIND}\"\nhypervisor = \"fake\"\n");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), configuration)?;
    let path = file.path().to_str().context("a temporary path is not text")?;
    root(&["install", "-m", "0600", path, "/etc/blixard/blixard.toml"])?;
    // With Type=notify this returns when the node says that it is ready.
    root(&["systemctl", "start", "blixard"])?;
    answers().context("after the start")?;
    root(&["systemctl", "restart", "blixard"])?;
    answers().context("after the restart")
}

/// Waits until the node says at its public door that it is ready.
fn answers() -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = process::text(Command::new("systemctl").args(["is-active", "blixard"]));
        let is_ready = is_ready();
        if is_ready && state.is_ok_and(|state| state.trim() == "active") {
            return Ok(());
        }
        if Instant::now() > deadline {
            let _ = root(&["journalctl", "--no-pager", "--unit", "blixard", "--lines", "50"]);
            anyhow::bail!("the service does not answer");
        }
        std::thread::sleep(POLL);
    }
}

fn is_ready() -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut door = std::net::TcpStream::connect("127.0.0.1:18001")?;
        door.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        door.write_all(b"GET /readyz HTTP/1.1\r\nHost: blixard\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        door.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
