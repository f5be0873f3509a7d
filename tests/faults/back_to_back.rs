//! Events of one session that follow each other at once.

use super::school::{Dice, assert_results_are_whole, assert_right, ending, unfinished};
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// A thousand sessions whose events are published without a pause, while the service works on them: none wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_whose_events_follow_at_once() {
    let dice = Dice::fixed(634);
    let world = World::start(Setup::sqlite().teachers(40)).await;
    world.fake().configure(|settings| settings.latency_ms = 2);
    let mut endings = Vec::new();
    for number in 0..1_000 {
        let first = world.lesson(&format!("s{number}"), dice.below(40));
        let mut history = vec![first];
        for _ in 0..2 {
            history.push(history.last().unwrap().moved(HOUR_MS));
        }
        if dice.percent(30) {
            history.push(history.last().unwrap().canceled());
        }
        for event in &history {
            world.publish(event).await;
        }
        endings.push(ending(&world, &history));
    }
    eventually("all is settled", async || unfinished(&world, &endings).await.is_empty()).await;
    assert_right(&world, &endings).await;
    assert_results_are_whole(&world).await;
}
