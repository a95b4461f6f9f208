//! What else brings a file from one host to many, for the bench of swarms: rsync, HTTP and BitTorrent.
//!
//! Each runs once, on the same hosts and links, with all receivers at the same time, and has to bring the file as it is.

use super::swarm::{FORMATION, POLL, Swarm};
use crate::process;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RSYNC_PORT: u16 = 873;
const HTTP_PORT: u16 = 8080;
const TRACKER_PORT: u16 = 6969;
/// Where every peer of BitTorrent listens.
const PEER_PORT: u16 = 6881;
/// Minutes for which a peer of BitTorrent that has the file goes on serving it: longer than any bench.
const SERVE_ON: &str = "--seed-time=100000";

/// A process that is killed when dropped.
pub(super) struct Ended(pub(super) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(mut command: Command) -> Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().map(Ended).with_context(|| format!("start `{}`", process::shown(&command)))
}

/// The programs of these names, or nothing, said aloud, if one is missing.
fn programs<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let found: Vec<PathBuf> = names.iter().filter_map(|name| process::find(name)).collect();
    if found.len() < N {
        println!("bench: not all of {} are on the PATH: measured without", names.join(", "));
    }
    found.try_into().ok()
}

/// How a client shows that it has the whole file.
#[derive(Clone, Copy)]
enum Whole {
    /// It ends.
    Ends,
    /// It leaves an empty file of the copy's name and `.done`, and goes on for the others.
    Marks,
}

impl Swarm<'_> {
    /// The time that rsync takes to all receivers, if it is installed.
    pub(super) fn rsync(&self, file: &Path, patience: Duration) -> Result<Option<Duration>> {
        let Some([rsync]) = programs(["rsync"]) else { return Ok(None) };
        let dir = self.dir.path();
        let config = dir.join("rsyncd.conf");
        let text = format!("use chroot = no\nuid = root\ngid = root\n[bulk]\npath = {}\n", dir.display());
        fs::write(&config, text).context("write the configuration of rsync")?;
        let address = self.lab.address(1).to_string();
        let mut daemon = self.lab.command(1, &rsync);
        daemon.args(["--daemon", "--no-detach", "--address", &address, "--config"]).arg(&config);
        let _daemon = self.serve(daemon, RSYNC_PORT)?;
        let get = |host: usize, copy: &Path| {
            let mut command = self.lab.command(host, &rsync);
            command.args(["--whole-file", &format!("rsync://{address}/bulk/{}", name(file))]).arg(copy);
            command
        };
        self.receive(file, get, Whole::Ends, patience).map(Some)
    }

    /// The time that plain HTTP takes to all receivers, if nginx and curl are installed.
    pub(super) fn http(&self, file: &Path, patience: Duration) -> Result<Option<Duration>> {
        let Some([nginx, curl]) = programs(["nginx", "curl"]) else { return Ok(None) };
        let dir = self.dir.path();
        let config = dir.join("nginx.conf");
        let place = self.place(1, HTTP_PORT);
        let text = format!(
            "user root;\ndaemon off;\nmaster_process off;\npid {0}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; sendfile \
             on; server {{ listen {place}; root {0}; }} }}\n",
            dir.display()
        );
        fs::write(&config, text).context("write the configuration of nginx")?;
        let mut daemon = self.lab.command(1, &nginx);
        daemon.args(["-e", "stderr", "-c"]).arg(&config);
        let _daemon = self.serve(daemon, HTTP_PORT)?;
        let get = |host: usize, copy: &Path| {
            let mut command = self.lab.command(host, &curl);
            let url = format!("http://{place}/{}", name(file));
            command.args(["--silent", "--fail", &url, "--output"]).arg(copy);
            command
        };
        self.receive(file, get, Whole::Ends, patience).map(Some)
    }

    /// The time that BitTorrent takes to all receivers, if aria2, opentracker and mktorrent are installed. Who has the file
    /// goes on serving it until all have it.
    pub(super) fn bittorrent(&self, file: &Path, patience: Duration) -> Result<Option<Duration>> {
        let Some([aria2, opentracker, mktorrent]) = programs(["aria2c", "opentracker", "mktorrent"]) else {
            return Ok(None);
        };
        let dir = self.dir.path();
        let (torrent, hook) = (dir.join("bulk.torrent"), dir.join("mark.sh"));
        let tracker = self.place(1, TRACKER_PORT);
        let announce = format!("http://{tracker}/announce");
        process::output(Command::new(mktorrent).args(["-a", &announce, "-o"]).arg(&torrent).arg(file))?;
        fs::write(&hook, "#!/bin/sh\n: > \"$3.done\"\n").context("write the mark of the end")?;
        process::output(Command::new("chmod").arg("755").arg(&hook))?;

        // Debian's tracker serves only what it is told of, and goes into a folder of its own as somebody who is not root.
        let shown = process::text(Command::new(&aria2).arg("--show-files").arg(&torrent))?;
        let hash =
            shown.lines().find_map(|line| line.strip_prefix("Info Hash: ")).context("find the torrent's hash")?;
        let folder = dir.join("tracker");
        fs::create_dir(&folder).context("make a folder for the tracker")?;
        fs::write(folder.join("torrents"), format!("{hash}\n")).context("write the tracker's list")?;
        let mut daemon = self.lab.command(1, &opentracker);
        let (address, port) = (tracker.ip().to_string(), TRACKER_PORT.to_string());
        daemon.args(["-i", &address, "-p", &port, "-P", &port, "-w", "torrents", "-d"]).arg(&folder);
        daemon.stderr(Stdio::null());
        let _tracker = self.serve(daemon, TRACKER_PORT)?;
        let peer = |host: usize, copy: &Path| {
            let mut command = self.lab.command(host, &aria2);
            command.args(["--no-conf", "--quiet", "--enable-dht=false", "--disable-ipv6", "--file-allocation=none"]);
            command.args([&format!("--listen-port={PEER_PORT}"), "--seed-ratio=0", SERVE_ON]);
            command.arg("--on-bt-download-complete").arg(&hook);
            command.arg("--dir").arg(copy.parent().unwrap_or(copy)).arg("--index-out").arg(format!("1={}", name(copy)));
            command.arg(&torrent);
            command
        };
        let mut source = peer(1, file);
        source.arg("--check-integrity=true");
        let _source = self.serve(source, PEER_PORT)?;
        self.receive(file, peer, Whole::Marks, patience).map(Some)
    }

    /// Starts a server on the first host, and waits until the others reach it.
    fn serve(&self, daemon: Command, port: u16) -> Result<Ended> {
        let daemon = spawn(daemon)?;
        self.wait("the comparator's server", FORMATION, |swarm| {
            let place = swarm.place(1, port);
            let probe = format!("exec 3<>/dev/tcp/{}/{}", place.ip(), place.port());
            process::output(swarm.lab.command(2, Path::new("bash")).args(["-c", &probe])).map(drop)
        })?;
        Ok(daemon)
    }

    /// Runs a client on every host but the first, all at once, and gives the time of the slowest.
    fn receive(
        &self,
        file: &Path,
        client: impl Fn(usize, &Path) -> Command,
        whole: Whole,
        patience: Duration,
    ) -> Result<Duration> {
        let copies: Vec<PathBuf> =
            (2..=self.receivers + 1).map(|host| self.dir.path().join(format!("copy-{host}"))).collect();
        let started = Instant::now();
        let mut clients =
            copies.iter().zip(2..).map(|(copy, host)| spawn(client(host, copy))).collect::<Result<Vec<Ended>>>()?;
        for (client, copy) in clients.iter_mut().zip(&copies) {
            let mark = copy.with_extension("done");
            loop {
                let status = client.0.try_wait().context("look after a comparator's client")?;
                match (whole, status) {
                    (Whole::Ends, Some(status)) if status.success() => break,
                    (Whole::Marks, None) if mark.exists() => break,
                    (_, Some(status)) => anyhow::bail!("a comparator's client ended with {status}"),
                    (_, None) => {}
                }
                self.interrupt.check()?;
                ensure!(started.elapsed() < patience, "a comparator took longer than {patience:?}");
                std::thread::sleep(POLL / 10);
            }
        }
        let took = started.elapsed();
        drop(clients);
        for copy in &copies {
            process::output(Command::new("cmp").arg("--silent").arg(file).arg(copy))
                .context("look at a comparator's copy")?;
            fs::remove_file(copy).context("remove a copy")?;
        }
        Ok(took)
    }
}

fn name(file: &Path) -> std::borrow::Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}
