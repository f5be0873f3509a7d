//! The process is killed at every step of every kind of work, and started again on the same database.

use meet_projector::clock::Clock;
use meet_projector::event::SessionEvent;
use meet_projector::fake::{Commit, Ending as Answer, Fault, Operation, Rule, TeacherAction};

use super::leaps::let_pass;
use super::school::{Ending, assert_results_are_whole, assert_right, ending, unfinished};
use super::stream::shorten_ack_wait;
use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// Where the process dies in a write, and what Google had done by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    BeforeTheIntent,
    BeforeTheCall,
    /// Google has carried it out.
    AfterTheCall,
    /// Google has not, and never will.
    AfterALostCall,
    /// Google will carry it out, long after the next process is done.
    AfterALateCall,
    AfterTheRecord,
}

const DEATHS: [Death; 6] = [
    Death::BeforeTheIntent,
    Death::BeforeTheCall,
    Death::AfterTheCall,
    Death::AfterALostCall,
    Death::AfterALateCall,
    Death::AfterTheRecord,
];

impl Death {
    fn place(self) -> &'static str {
        match self {
            Self::BeforeTheIntent => "before_intent",
            Self::BeforeTheCall => "after_intent",
            Self::AfterTheCall | Self::AfterALostCall | Self::AfterALateCall => "after_call",
            Self::AfterTheRecord => "after_record",
        }
    }

    fn fault(self) -> Option<Fault> {
        match self {
            Self::AfterALostCall => Some(Fault::drop_before()),
            Self::AfterALateCall => Some(Fault::new(Commit::OnRelease, Answer::Drop)),
            _ => None,
        }
    }
}

/// One kind of write.
struct Work {
    operation: Operation,
    /// Calls that the doomed process makes before it.
    calls_before: u64,
    /// Of these so many are of the same operation.
    same_before: u64,
    /// What Google has carried out in the end: inserts, patches, updates, deletes.
    committed: [u64; 4],
}

/// Lets the process die in one write of a session, starts it again, and looks at everything; then lets the days pass up
/// to the lesson. `prepare` makes what is there before: the events so far; `trigger` says what leads to the write.
async fn dies_in(
    work: &Work,
    prepare: impl Fn(&World) -> Vec<SessionEvent>,
    trigger: impl Fn(&World, &mut Vec<SessionEvent>),
) {
    for death in DEATHS {
        println!("{death:?} in {:?}", work.operation);
        let mut world = World::prepare(Setup::sqlite()).await;
        shorten_ack_wait(&world).await;
        let mut history = prepare(&world);
        for event in &history {
            world.publish(event).await;
        }
        if !history.is_empty() {
            let before = Serving::start(&world, None);
            finished(&world, &history, "before the crash").await;
            before.kill();
        }

        trigger(&world, &mut history);
        if let Some(fault) = death.fault() {
            world.fake().add_fault(Rule { skip: work.same_before, ..Rule::once(work.operation, fault) });
        }
        let crash_at = format!("{}:{}", death.place(), work.calls_before + 1);
        let mut doomed = Serving::start(&world, Some(&crash_at));
        world.publish(history.last().unwrap()).await;
        assert!(!doomed.ended().await.success(), "the process died at {crash_at}");

        let again = Serving::start(&world, None);
        let ending = finished(&world, &history, &format!("after {death:?}")).await;
        assert_right(&world, &ending).await;
        again.kill();

        // What was under way may land even now, and must not change anything for good.
        world.fake().release_late();
        world.clock = Clock::fixed(world.clock.now());
        world.serve().await;
        world.until_ready().await;
        let_pass(&world, world.clock.now().plus(60 * HOUR_MS)).await;
        assert_right(&world, &ending).await;
        assert_results_are_whole(&world).await;
        world.stop().await;
        let counters = world.fake().counters();
        let committed = [Operation::Insert, Operation::Patch, Operation::Update, Operation::Delete]
            .map(|operation| counters.committed_of(operation));
        assert_eq!(committed, work.committed, "{death:?} in {:?}", work.operation);
    }
}

/// Waits until the session is as its history says.
async fn finished(world: &World, history: &[SessionEvent], when: &str) -> [Ending; 1] {
    let wanted = [ending(world, history)];
    eventually(&format!("the session is settled {when}"), async || unfinished(world, &wanted).await.is_empty()).await;
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_insert() {
    let work = Work { operation: Operation::Insert, calls_before: 0, same_before: 0, committed: [1, 0, 0, 0] };
    dies_in(&work, |_| Vec::new(), |world, history| history.push(world.lesson("s1", 0))).await;
}

fn scheduled(world: &World) -> Vec<SessionEvent> {
    vec![world.lesson("s1", 0)]
}

fn move_it(history: &mut Vec<SessionEvent>) {
    history.push(history.last().unwrap().moved(HOUR_MS));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_patch() {
    let work = Work { operation: Operation::Patch, calls_before: 0, same_before: 0, committed: [1, 1, 0, 0] };
    dies_in(&work, scheduled, |_, history| move_it(history)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_delete() {
    let work = Work { operation: Operation::Delete, calls_before: 0, same_before: 0, committed: [1, 0, 0, 1] };
    dies_in(&work, scheduled, |_, history| history.push(history.last().unwrap().canceled())).await;
}

fn by_hand(world: &World, action: &TeacherAction) {
    let id = world.fake().live_events()[0].id.clone();
    world.fake().teacher(world.email(0), &id, action).unwrap();
}

/// The teacher deletes the event and a reschedule finds that out: patch, look, restore with the new time.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_restore() {
    let work = Work { operation: Operation::Update, calls_before: 2, same_before: 0, committed: [1, 0, 1, 0] };
    let trigger = |world: &World, history: &mut Vec<SessionEvent>| {
        by_hand(world, &TeacherAction::Delete);
        move_it(history);
    };
    dies_in(&work, scheduled, trigger).await;
}

/// The teacher takes Meet off the event and a reschedule finds that out: patch with an old ETag, look, patch, conference.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_new_conference() {
    let work = Work { operation: Operation::Patch, calls_before: 3, same_before: 2, committed: [1, 2, 0, 0] };
    let trigger = |world: &World, history: &mut Vec<SessionEvent>| {
        by_hand(world, &TeacherAction::RemoveConference);
        move_it(history);
    };
    dies_in(&work, scheduled, trigger).await;
}

/// The new teacher's event is made or the old one removed, whichever comes first.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_change_of_teacher() {
    for operation in [Operation::Insert, Operation::Delete] {
        let work = Work { operation, calls_before: 0, same_before: 0, committed: [2, 0, 0, 1] };
        dies_in(&work, scheduled, |_, history| history.push(history.last().unwrap().taught_by(1))).await;
    }
}

/// An insert without an answer, and a cancel before anybody could look: what lands late does not outlive it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_outlives_an_insert_that_lands_late() {
    for (revived, committed) in [(false, [1, 1]), (true, [2, 1])] {
        let mut world = World::prepare(Setup::sqlite()).await;
        shorten_ack_wait(&world).await;
        let late = Fault::new(Commit::OnRelease, Answer::Drop);
        world.fake().add_fault(Rule::once(Operation::Insert, late));
        let mut history = scheduled(&world);
        let mut doomed = Serving::start(&world, Some("after_call:1"));
        world.publish(&history[0]).await;
        assert!(!doomed.ended().await.success());
        history.push(history[0].canceled());
        world.publish(&history[1]).await;

        world.clock = Clock::fixed(world.clock.now());
        world.serve().await;
        world.wait_for("s1", |document| document["version"] == 2).await;
        if revived {
            history.push(history[1].then(|_| {}));
            world.publish(&history[2]).await;
        }
        let ending = [ending(&world, &history)];
        if revived {
            // The revived lesson has its link at once: time stands still.
            world.ready("s1", 3).await;
        } else {
            let_pass(&world, world.clock.now().plus(2 * 60_000)).await;
            assert_eq!(world.document("s1").await.unwrap()["upToDate"], false, "it may still land");
        }
        world.fake().release_late();
        let_pass(&world, world.clock.now().plus(HOUR_MS)).await;
        assert_right(&world, &ending).await;
        let counters = world.fake().counters();
        assert_eq!([Operation::Insert, Operation::Delete].map(|one| counters.committed_of(one)), committed);
        assert_results_are_whole(&world).await;
        world.stop().await;
    }
}
