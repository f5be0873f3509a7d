//! Several processes on one PostgreSQL: one stalls or dies with a write under way, another takes its calendar over.

use meet_projector::clock::Clock;
use meet_projector::fake::{Chaos, Fault, Operation, Rule};
use meet_projector::service;
use meet_projector::shutdown::Shutdown;

use super::leaps::{let_pass, settle};
use super::school::{Dice, assert_results_are_whole, assert_right, ending, endings, history, publish_in_disorder};
use super::stream::shorten_ack_wait;
use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// Longer than a lease.
const LEASE_AND_MORE_MS: i64 = 61_000;

/// The first process is stopped in the middle of an insert for longer than its lease, and goes on afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_process_does_no_harm() {
    let mut world = World::prepare(Setup::postgres()).await;
    shorten_ack_wait(&world).await;
    let stalled = Serving::start(&world, None);
    let slow = world.fake().add_fault(Rule::once(Operation::Insert, Fault::slow(300)));
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let is_sent = |world: &World| world.fake().faults().iter().any(|state| state.id == slow && state.hits > 0);
    eventually("the insert is under way", async || is_sent(&world)).await;
    stalled.pause();

    world.clock = Clock::fixed(world.clock.now().plus(LEASE_AND_MORE_MS));
    world.serve().await;
    world.ready("s1", 1).await;
    stalled.resume();
    let moved = lesson.moved(HOUR_MS);
    world.publish(&moved).await;
    world.ready("s1", 2).await;
    let_pass(&world, world.clock.now().plus(HOUR_MS)).await;
    assert_right(&world, &[ending(&world, &[lesson, moved])]).await;
    let counters = world.fake().counters();
    let committed = [Operation::Insert, Operation::Patch, Operation::Delete].map(|one| counters.committed_of(one));
    assert_eq!(committed, [1, 1, 0]);
    assert_results_are_whole(&world).await;
    stalled.kill();
    world.stop().await;
}

/// The first process dies around an insert; its lease runs out, and the second one looks before it writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_is_taken_over() {
    for place in ["before_intent", "after_intent", "after_call", "after_record", "after_fold", "after_publish"] {
        let mut world = World::prepare(Setup::postgres()).await;
        shorten_ack_wait(&world).await;
        let mut doomed = Serving::start(&world, Some(&format!("{place}:1")));
        let lesson = world.lesson("s1", 0);
        world.publish(&lesson).await;
        assert!(!doomed.ended().await.success(), "the process reached {place} and died");
        world.clock = Clock::fixed(world.clock.now().plus(LEASE_AND_MORE_MS));
        world.serve().await;
        world.ready("s1", 1).await;
        let_pass(&world, world.clock.now().plus(HOUR_MS)).await;
        assert_right(&world, &[ending(&world, &[lesson])]).await;
        assert_eq!(world.fake().counters().committed_of(Operation::Insert), 1, "after a crash at {place}");
        assert_results_are_whole(&world).await;
        world.stop().await;
    }
}

/// Two processes share the work of a school while three of ten requests fail.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_school() {
    let dice = Dice::fresh();
    let teachers = 8;
    let mut world = World::start(Setup::postgres().standing_still().teachers(teachers)).await;
    let second = service::start(world.config.clone(), world.clock.clone(), Shutdown::new()).await.unwrap();
    world.fake().set_chaos(Some(Chaos { slow_ms: 20, ..Chaos::new(dice.seed_of_faults(), 0.3) }));
    let histories: Vec<_> = (0..150).map(|number| history(&world, &dice, &format!("s{number}"), teachers)).collect();
    publish_in_disorder(&world, &dice, &histories).await;
    let endings = endings(&world, &histories);
    settle(&world, &dice, &endings).await;
    assert_right(&world, &endings).await;
    assert_results_are_whole(&world).await;
    second.stop().await;
    world.stop().await;
}
