//! Several reconcilers and one token endpoint: exactly one refresh each time a token ends.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use meet_projector::clock::Clock;
use meet_projector::fake::{Fault, Operation, Recorded, Rule};
use meet_projector::service::{self, Service};
use meet_projector::shutdown::Shutdown;

use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

fn refreshes(world: &World) -> Vec<Recorded> {
    let recorded = world.fake().recorded().into_iter();
    recorded.filter(|call| call.operation == Operation::Refresh).collect()
}

/// Eight services in this process, whose clock leaps from hour to hour; every hour every teacher has work.
#[tokio::test(flavor = "multi_thread")]
async fn eight_reconcilers_refresh_once_an_hour() {
    let teachers = 4;
    let world = World::start(Setup::postgres().standing_still().teachers(teachers)).await;
    let mut others: Vec<Service> = Vec::new();
    for _ in 1..8 {
        others.push(service::start(world.config.clone(), world.clock.clone(), Shutdown::new()).await.unwrap());
    }
    let mut lessons: Vec<_> =
        (0..3 * teachers).map(|n| world.lesson(&format!("s{n}"), n % teachers).moved(240 * HOUR_MS)).collect();
    let (mut expected, mut lost) = (0, 0);
    for hour in 0..8 {
        if hour % 3 == 2 {
            // Google has made the token, and nobody learns of it.
            world.fake().add_fault(Rule::once(Operation::Refresh, Fault::drop_after()));
            lost += 1;
        }
        join_all(lessons.iter().map(|lesson| world.publish(lesson))).await;
        let version = lessons[0].version.get();
        // A lost answer is tried again a few seconds later, by a clock that moves as long as it has to, and not far.
        let mut moved_ms = 0;
        eventually("every lesson is up to date", async || {
            if moved_ms < 10 * 60_000 {
                world.clock.advance_ms(1_000);
                moved_ms += 1_000;
            }
            let mut are_ready = true;
            for lesson in &lessons {
                let document = world.document(lesson.session.as_str()).await;
                are_ready &= document.is_some_and(|document| {
                    document["meetStatus"] == "READY" && document["version"] == version && document["upToDate"] == true
                });
            }
            are_ready
        })
        .await;
        expected += teachers;
        let seen = refreshes(&world);
        let told: Vec<_> = seen.iter().map(|call| (&call.account, call.at_ms, &call.fault)).collect();
        assert_eq!(seen.len(), expected + lost, "in hour {hour}: {told:#?}");
        world.clock.advance_ms(HOUR_MS);
        lessons = lessons.iter().map(|lesson| lesson.moved(HOUR_MS)).collect();
    }
    world.assert_google_was_never_wrong();
    for other in others {
        other.stop().await;
    }
}

/// Two real processes and tokens that live six seconds: no teacher's token is renewed before two thirds of its life are
/// over, whoever asks, unless the answer was lost.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_refresh_once_a_life() {
    const LIFE_MS: i64 = 6_000;
    let teachers = 3;
    let world = World::prepare(Setup { clock: Clock::system(), ..Setup::postgres() }.teachers(teachers)).await;
    world.fake().configure(|settings| settings.access_token_lifetime_s = LIFE_MS / 1000);
    world.fake().add_fault(Rule { skip: 4, ..Rule::once(Operation::Refresh, Fault::drop_after()) });
    world.fake().add_fault(Rule { skip: 9, ..Rule::once(Operation::Refresh, Fault::drop_before()) });
    let processes = [Serving::start(&world, None), Serving::start(&world, None)];
    let mut lessons: Vec<_> = (0..4 * teachers).map(|n| world.lesson(&format!("s{n}"), n % teachers)).collect();
    let wanted = 5 * teachers + 2;
    let mut rounds = 0;
    while refreshes(&world).len() < wanted {
        join_all(lessons.iter().map(|lesson| world.publish(lesson))).await;
        lessons = lessons.iter().map(|lesson| lesson.moved(60_000)).collect();
        rounds += 1;
        assert!(rounds < 2_000, "{} refreshes", refreshes(&world).len());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let mut by_teacher: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
    for call in refreshes(&world) {
        by_teacher.entry(call.account.clone().unwrap().to_string()).or_default().push(call);
    }
    assert_eq!(by_teacher.len(), teachers);
    let mut faults = 0;
    for (account, calls) in &by_teacher {
        for pair in calls.windows(2) {
            faults += usize::from(pair[0].fault.is_some());
            let gap_ms = pair[1].at_ms - pair[0].at_ms;
            // A millisecond or two for two clocks that round.
            let is_due = gap_ms + 5 >= LIFE_MS * 2 / 3;
            assert!(is_due || pair[0].fault.is_some(), "{account}: again after {gap_ms} ms");
        }
    }
    assert!(faults > 0, "an answer was lost");
    drop(processes);
}
