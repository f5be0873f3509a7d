//! Everything at once: two processes on one PostgreSQL, each with a clock of its own, are killed, paused, drained and cut
//! off from the database and from NATS, while three of ten requests to Google fail and tokens end early.
//!
//! `CHAOS_ROUNDS` says for how long (`make chaos`), `SEED` repeats a run.

use std::time::Duration;

use meet_projector::clock::Clock;
use meet_projector::fake::Chaos;
use secrecy::ExposeSecret as _;
use sqlx::{Connection as _, PgConnection};

use super::leaps::settle;
use super::school::{Dice, History, assert_results_are_whole, assert_right, endings, history};
use super::stream::shorten_ack_wait;
use crate::support::process::Serving;
use crate::support::service::{Setup, World};

const TEACHERS: usize = 6;
/// Sessions a round.
const SESSIONS: usize = 5;
/// Rounds in `make test`.
const ROUNDS: usize = 14;
/// How far a clock may be wrong, in milliseconds: more than a lease lasts.
const SKEW_MS: usize = 90_000;
/// What a killed process held is free after this time, by its clock.
const LEASE_AND_MORE_MS: i64 = 61_000;

#[tokio::test(flavor = "multi_thread")]
async fn in_the_same_order_in_every_run() {
    storm(&Dice::fixed(11)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_never_seen_before() {
    storm(&Dice::fresh()).await;
}

fn start(world: &World, dice: &Dice) -> Serving {
    let ahead = i64::try_from(dice.below(2 * SKEW_MS)).unwrap() - i64::try_from(SKEW_MS).unwrap();
    Serving::start_with(world, &[("CLOCK_AHEAD_MS", &ahead.to_string())])
}

/// A moment in the life of the processes.
async fn moment(dice: &Dice, up_to_ms: usize) {
    tokio::time::sleep(Duration::from_millis(dice.below(up_to_ms) as u64)).await;
}

async fn storm(dice: &Dice) {
    let rounds =
        std::env::var("CHAOS_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("CHAOS_ROUNDS is a whole number"));
    let mut world = World::prepare(Setup::postgres().teachers(TEACHERS)).await;
    shorten_ack_wait(&world).await;
    world.fake().configure(|settings| settings.latency_ms = 3);
    world.fake().set_chaos(Some(Chaos { slow_ms: 40, ..Chaos::new(dice.seed_of_faults(), 0.3) }));
    let histories: Vec<History> =
        (0..rounds * SESSIONS).map(|number| history(&world, dice, &format!("s{number}"), TEACHERS)).collect();
    let mut events: Vec<_> = histories.iter().flatten().cloned().collect();
    dice.shuffle(&mut events);
    let share = events.len().div_ceil(rounds);
    let mut processes = [start(&world, dice), start(&world, dice)];
    for (round, share) in events.chunks(share).enumerate() {
        for event in share {
            world.publish(event).await;
        }
        moment(dice, 300).await;
        let struck = dice.below(2);
        let what = strike(&mut world, &mut processes, struck, dice).await;
        println!("round {round}: {what}");
    }
    for process in processes {
        process.kill();
    }

    // Ahead of every clock so far, and of every lease.
    let skew_ms = i64::try_from(SKEW_MS).unwrap();
    world.clock = Clock::fixed(Clock::system().now().plus(skew_ms + LEASE_AND_MORE_MS));
    world.serve().await;
    let endings = endings(&world, &histories);
    settle(&world, dice, &endings).await;
    assert_right(&world, &endings).await;
    world.assert_google_was_never_wrong();
    assert_results_are_whole(&world).await;
    world.stop().await;
}

/// Does one bad thing and says which.
async fn strike(world: &mut World, processes: &mut [Serving; 2], struck: usize, dice: &Dice) -> String {
    match dice.below(10) {
        0..=2 => {
            let next = start(world, dice);
            std::mem::replace(&mut processes[struck], next).kill();
            format!("process {struck} was killed")
        }
        3 => {
            let next = start(world, dice);
            std::mem::replace(&mut processes[struck], next).drain().await;
            format!("process {struck} was drained, as in an upgrade")
        }
        4 => {
            processes[struck].pause();
            moment(dice, 600).await;
            processes[struck].resume();
            format!("process {struck} was paused")
        }
        5 | 6 => {
            world.nats.kill();
            moment(dice, 400).await;
            world.nats.run().await;
            world.reconnect().await;
            "NATS was killed and started again".to_owned()
        }
        7 => {
            let gate = world.gate.as_mut().expect("PostgreSQL is behind a gate");
            gate.shut();
            moment(dice, 400).await;
            gate.open();
            "PostgreSQL could not be reached".to_owned()
        }
        8 => {
            let mut admin = PgConnection::connect(world.config.database.0.expose_secret()).await.unwrap();
            let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                          WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let cut = sqlx::query(others).fetch_all(&mut admin).await.unwrap().len();
            admin.close().await.unwrap();
            format!("PostgreSQL ended {cut} connections")
        }
        _ => {
            for teacher in 0..TEACHERS {
                world.fake().expire_access_tokens(world.email(teacher));
            }
            "every access token ended".to_owned()
        }
    }
}
