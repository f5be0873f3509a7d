//! Time that leaps to whatever is due next, for services whose clock stands still between.

use std::time::{Duration, Instant};

use meet_projector::model::{Epoch, UnixMillis};

use super::school::{Dice, Ending, lack};
use crate::support::service::{World, eventually};

const MINUTE_MS: i64 = 60_000;

/// What Google takes late it takes within this time: well before the last late look, 21 minutes after a delete.
const LATE_MAX_MS: i64 = 8 * MINUTE_MS;

/// More leaps than any run needs: a week in steps of a minute.
const LEAPS_MAX: usize = 10_000;

/// Leaps until every document says what is expected and Google agrees. What Google accepted late it carries out between
/// two leaps, at random.
pub(super) async fn settle(world: &World, dice: &Dice, endings: &[Ending]) {
    until_folded(world).await;
    let mut left: Vec<&Ending> = endings.iter().collect();
    let mut all_landed_at = world.clock.now();
    for _ in 0..LEAPS_MAX {
        until_idle(world).await;
        let mut unfinished = Vec::new();
        for ending in left {
            if lack(world, ending).await.is_some() {
                unfinished.push(ending);
            }
        }
        left = unfinished;
        if left.is_empty() {
            world.fake().release_late();
            return;
        }
        let now = world.clock.now();
        if now.since(all_landed_at) > LATE_MAX_MS || dice.percent(30) {
            world.fake().release_late();
            all_landed_at = now;
        }
        leap(world, MINUTE_MS).await;
    }
    panic!("{} sessions do not settle, such as {:?}", left.len(), lack(world, left[0]).await);
}

/// Leaps from one look at settled events to the next, until `until`.
pub(super) async fn let_pass(world: &World, until: UnixMillis) {
    for _ in 0..LEAPS_MAX {
        until_idle(world).await;
        match world.store.next_due().await.unwrap() {
            Some(due) if due < until => leap(world, 10 * MINUTE_MS).await,
            _ => return,
        }
    }
    panic!("at {} still not at {until}", world.clock.now());
}

/// To when the next row is due, and by `step_ms` at least, so that what is due soon after is done together.
async fn leap(world: &World, step_ms: i64) {
    let now = world.clock.now();
    let due = world.store.next_due().await.unwrap().unwrap_or(now);
    world.clock.set(due.max(now.plus(step_ms)));
    world.service.as_ref().expect("the service runs").wake.notify_one();
}

/// Waits until everything published so far was folded, by whichever process.
async fn until_folded(world: &World) {
    let last = world.connection.get_last("BOOKINGS", "bookings.>").await.unwrap().map_or(0, |last| last.sequence);
    eventually(&format!("sequence {last} is folded"), async || {
        world.store.position(Epoch(1)).await.unwrap().contiguous >= last
    })
    .await;
}

/// Waits until nothing is due at Google and no calendar is being worked on.
async fn until_idle(world: &World) {
    let begun = Instant::now();
    while world.store.counts(world.clock.now()).await.unwrap().busy > 0 {
        assert!(begun.elapsed() < Duration::from_mins(1), "waited in vain until nothing is due");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
