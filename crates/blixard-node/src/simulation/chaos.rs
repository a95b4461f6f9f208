//! Faults: what happens to hosts and networks, at random.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use super::network::Weather;
use super::node::{self, Beginning};
use super::world::{World, id};

/// Makes trouble until the world is calm.
pub(crate) async fn run(world: Arc<World>) {
    while !world.is_calm() {
        SimRuntime::sleep(world.dice.millis(100, 2_500)).await;
        let Some(number) = world.dice.pick(&world.numbers()).copied() else { continue };
        match world.dice.between(0, 11) {
            0 | 1 => crash_for_a_while(&world, number),
            // Power goes for several at once.
            2 => world
                .numbers()
                .into_iter()
                .filter(|_| world.dice.percent(40))
                .for_each(|n| crash_for_a_while(&world, n)),
            3 => pause_for_a_while(&world, number),
            4 => isolate(&world, number),
            5 | 6 => {
                let other = *world.dice.pick(&world.numbers()).unwrap_or(&number);
                cut(&world, number, other);
            }
            7 => {
                let weather = Weather {
                    loss_percent: world.dice.between(0, 25),
                    detour_percent: world.dice.between(0, 10),
                    micros_max: world.dice.between(200, 30_000),
                };
                world.network.set_weather(weather);
            }
            8 => hand_over(&world, number).await,
            _ => {
                world.judge(|oracle| oracle.note("the network heals"));
                world.network.heal();
                world.network.set_weather(Weather::FAIR);
            }
        }
    }
}

/// The power of most hosts goes at once, as that of a rack does.
pub(crate) fn blackout(world: &Arc<World>) {
    for number in world.numbers().into_iter().filter(|_| world.dice.percent(80)) {
        if world.with_place(number, |place| place.running.is_some() && place.is_member) {
            crash_with(world, number, true);
        }
    }
}

fn crash_for_a_while(world: &Arc<World>, number: u64) {
    if world.with_place(number, |place| place.running.is_none() || !place.is_member) {
        return;
    }
    crash_with(world, number, world.dice.percent(60));
}

fn crash_with(world: &Arc<World>, number: u64, power_lost: bool) {
    node::crash(world, number, power_lost);
    let (world, down) =
        (world.clone(), if world.dice.percent(35) { world.dice.millis(5, 150) } else { world.dice.millis(20, 5_000) });
    drop(SimRuntime::spawn(async move {
        SimRuntime::sleep(down).await;
        restart(&world, number);
    }));
}

/// Starts a member that is down.
pub(crate) fn restart(world: &Arc<World>, number: u64) {
    if world.with_place(number, |place| place.running.is_none() && place.is_member) {
        node::start(world, number, if number == 1 { Beginning::Found } else { Beginning::Join });
    }
}

fn pause_for_a_while(world: &Arc<World>, number: u64) {
    let Some((_, life)) = world.raft_of(number) else { return };
    life.pause();
    world.network.is_silent(&life);
    world.judge(|oracle| {
        oracle.tally.pauses += 1;
        oracle.note(&format!("node {number} is paused"));
    });
    let time = world.dice.millis(50, 5_000);
    drop(SimRuntime::spawn(async move {
        SimRuntime::sleep(time).await;
        life.resume();
    }));
}

fn cut(world: &Arc<World>, from: u64, to: u64) {
    world.judge(|oracle| {
        oracle.tally.cuts += 1;
        oracle.note(&format!("cut from {from} to {to}"));
    });
    world.network.cut(from, to);
}

fn isolate(world: &Arc<World>, number: u64) {
    for other in world.numbers().into_iter().filter(|other| *other != number) {
        cut(world, number, other);
        cut(world, other, number);
    }
}

/// The leadership is handed over, as before a planned stop.
async fn hand_over(world: &Arc<World>, to: u64) {
    for number in world.numbers() {
        let Some((raft, life)) = world.raft_of(number) else { continue };
        if raft.view().is_leader() && number != to && raft.view().voters.contains(&id(to)) {
            let handing = life.spawn(async move { raft.transfer_leadership(id(to)).await.is_ok() });
            let _ = SimRuntime::timeout(Duration::from_secs(1), handing).await;
        }
    }
}
