//! What is done to a cluster, whichever kind it is.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use crate::{Member, Operation, Report, Target};

/// For connections, caches and the cluster's batching to settle before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// For a cluster to do what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const STEP: Duration = Duration::from_millis(5);
/// Writes that must have succeeded before the leader is killed: the cluster works, and connections are warm.
const WRITES_BEFORE_KILL: u64 = 100;

/// Runs `clients` loops of one request after the other.
pub(crate) async fn load(
    target: &Target,
    operation: Operation,
    clients: usize,
    connections: usize,
    seconds: f64,
) -> anyhow::Result<Report> {
    ensure!(target.members() == 1, "load goes to one member: the leader");
    let mut members = Vec::new();
    for _ in 0..connections.max(1) {
        members.push(target.connect(0).await?);
    }
    members[0].do_one(Operation::Write, 0).await.context("make the first write")?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs_f64(seconds);
    let loops: Vec<_> = (0..clients)
        .map(|client| {
            let member = members[client % members.len()].clone();
            tokio::spawn(one_client(member, operation, client as u64, begin, end))
        })
        .collect();
    let mut times = Vec::new();
    let mut failures = 0;
    for one in loops {
        let (own, failed) = one.await.context("a client's loop ended early")?;
        times.extend(own);
        failures += failed;
    }
    times.sort_unstable();
    ensure!(!times.is_empty(), "nothing was answered in time, and {failures} requests failed");
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    Ok(Report::Load { per_second: times.len() as f64 / seconds, p50_ms: at(0.5), p99_ms: at(0.99), failures })
}

async fn one_client(
    member: Member,
    operation: Operation,
    client: u64,
    begin: Instant,
    end: Instant,
) -> (Vec<Duration>, u64) {
    let (mut times, mut failures) = (Vec::new(), 0);
    for round in 0.. {
        let started = Instant::now();
        if started >= end {
            break;
        }
        let result = member.do_one(operation, client + round * 1000).await;
        let now = Instant::now();
        // What was under way at either end of the time is not counted, so that a backlog does not pass for speed.
        if started >= begin && now <= end {
            match result {
                Ok(()) => times.push(now - started),
                Err(_) => failures += 1,
            }
        }
    }
    (times, failures)
}

/// Writes in short steps through all members in turn, kills, and goes on until a write begun after the kill is answered.
pub(crate) async fn failover(target: &Target, pid: i32) -> anyhow::Result<Report> {
    let mut members = Vec::new();
    for member in 0..target.members() {
        members.push(target.connect(member).await?);
    }
    let (answers, mut answered) = mpsc::unbounded_channel::<(Instant, anyhow::Result<()>)>();
    let last_error = Arc::new(Mutex::new(String::new()));
    let mut killed: Option<Instant> = None;
    let mut succeeded = 0;
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let (member, answers) = (members[number % members.len()].clone(), answers.clone());
        tokio::spawn(async move {
            let started = Instant::now();
            let result = member.do_one(Operation::Write, number as u64).await;
            // Fails when the task is over.
            let _ = answers.send((started, result));
        });
        let next = tokio::time::sleep(STEP);
        tokio::pin!(next);
        loop {
            let (started, result) = tokio::select! {
                () = &mut next => break,
                Some(answer) = answered.recv() => answer,
            };
            match (result, killed) {
                (Ok(()), None) => succeeded += 1,
                (Ok(()), Some(killed)) if started > killed => {
                    return Ok(Report::Failover { ms: killed.elapsed().as_secs_f64() * 1000.0 });
                }
                (Ok(()), Some(_)) => {}
                (Err(error), _) => *last_error.lock().expect("no holder of this lock panics") = format!("{error:#}"),
            }
        }
        if killed.is_none() && succeeded >= WRITES_BEFORE_KILL {
            kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill process {pid}"))?;
            killed = Some(Instant::now());
        }
        if Instant::now() > deadline {
            let error = last_error.lock().expect("no holder of this lock panics");
            bail!(
                "no write within {PATIENCE:?}, kill {}; last: {error}",
                if killed.is_some() { "done" } else { "not done" }
            );
        }
    }
    unreachable!("the loop above has no end")
}

/// Tries each member until a write through it is committed, and Blixard's leader until it counts all of them as voters.
pub(crate) async fn formation(target: &Target) -> anyhow::Result<Report> {
    let deadline = Instant::now() + PATIENCE;
    let mut problem = anyhow::anyhow!("nothing was tried");
    for member in 0..target.members() {
        let mut connected = None;
        loop {
            ensure!(Instant::now() < deadline, "member {member} did not come about within {PATIENCE:?}: {problem:#}");
            match join(target, member, &mut connected).await {
                Ok(()) => break,
                Err(error) => problem = error,
            }
            tokio::time::sleep(STEP).await;
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
    Ok(Report::Formation { at_unix_ms: now.as_secs_f64() * 1000.0 })
}

async fn join(target: &Target, member: usize, connected: &mut Option<Member>) -> anyhow::Result<()> {
    let connection = match connected {
        Some(connection) => connection,
        None => connected.insert(target.connect(member).await?),
    };
    if let Member::Blixard(node) = connection {
        let all = target.members();
        let (voters, reachable) = node.voters().await?;
        ensure!(voters == all && reachable == Some(all), "there are {voters} voters, {reachable:?} of them reachable");
    }
    tokio::time::timeout(PATIENCE, connection.do_one(Operation::Write, member as u64)).await.context("write")?
}
