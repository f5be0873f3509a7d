//! `kill -9` of the service at random moments, and of the NATS server, while a school goes on booking.

use std::time::Duration;

use meet_projector::clock::Clock;

use super::leaps::settle;
use super::school::{Dice, History, assert_results_are_whole, assert_right, endings, history};
use super::stream::shorten_ack_wait;
use crate::support::process::Serving;
use crate::support::service::{Setup, World};

const TEACHERS: usize = 6;
const SESSIONS: usize = 60;
const KILLS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_moments_in_every_run() {
    killed_at_random(&Dice::fixed(9)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_moments_never_seen_before() {
    killed_at_random(&Dice::fresh()).await;
}

async fn killed_at_random(dice: &Dice) {
    let mut world = World::prepare(Setup::sqlite().teachers(TEACHERS)).await;
    shorten_ack_wait(&world).await;
    world.fake().configure(|settings| settings.latency_ms = 5);
    let histories: Vec<History> =
        (0..SESSIONS).map(|number| history(&world, dice, &format!("s{number}"), TEACHERS)).collect();
    let mut events: Vec<_> = histories.iter().flatten().cloned().collect();
    dice.shuffle(&mut events);
    let mut events = events.into_iter();
    let share = events.len().div_ceil(KILLS);
    for life in 0..KILLS {
        let serving = Serving::start(&world, None);
        // Some are published while it starts and some while it works; then a moment of its life chosen by the seed:
        // before it is up, in the middle of its work, or idle.
        let early = dice.below(share + 1);
        for nth in 0..share {
            if nth == early {
                tokio::time::sleep(Duration::from_millis(5 * dice.below(40) as u64)).await;
            }
            if let Some(event) = events.next() {
                world.publish(&event).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(5 * dice.below(60) as u64)).await;
        serving.kill();
        if life % 7 == 3 {
            world.nats.restart().await;
            world.reconnect().await;
        }
    }
    assert_eq!(events.len(), 0, "all are published");

    // A cancel after an insert of unknown outcome is looked after for a quarter of an hour.
    world.clock = Clock::fixed(world.clock.now());
    world.serve().await;
    let endings = endings(&world, &histories);
    settle(&world, dice, &endings).await;
    assert_right(&world, &endings).await;
    assert_results_are_whole(&world).await;
    world.stop().await;
}
