//! A school's random life: sessions with their histories, and how they should end.

use std::collections::{BTreeMap, HashMap};

use meet_projector::event::SessionEvent;
use meet_projector::fake::{Expected, ExpectedEvent};
use meet_projector::model::{Epoch, Place, SessionId, UnixMillis};
use meet_projector::projection::{Outcome, Status, fold};
use meet_projector::retry::Jitter;
use serde_json::Value;

use crate::support::service::{HOUR_MS, Then as _, World, eventually};

/// Random choices that a seed repeats. Where requests interleave differently the same choices meet other moments, so a
/// seed brings a failure back often, not always.
pub(super) struct Dice(Jitter);

impl Dice {
    /// With `SEED` from the environment, else with `default`.
    pub(super) fn fixed(default: u64) -> Self {
        Self::seeded(from_environment().unwrap_or(default))
    }

    /// With `SEED` from the environment, else with one that was never used before.
    pub(super) fn fresh() -> Self {
        Self::seeded(from_environment().unwrap_or_else(|| getrandom::u64().unwrap() >> 32))
    }

    fn seeded(seed: u64) -> Self {
        // Shown by the runner when the test fails.
        println!("SEED={seed}");
        Self(Jitter::seeded(seed))
    }

    /// A number below `limit`.
    pub(super) fn below(&self, limit: usize) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "limits are small"
        )]
        let number = (self.0.next() * limit as f64) as usize;
        number.min(limit - 1)
    }

    /// `true` in so many of a hundred cases.
    pub(super) fn percent(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Any order.
    pub(super) fn shuffle<T>(&self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    pub(super) fn seed_of_faults(&self) -> u64 {
        self.below(1 << 30) as u64
    }
}

fn from_environment() -> Option<u64> {
    std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a whole number"))
}

/// One session's events, oldest first.
pub(super) type History = Vec<SessionEvent>;

/// Schedules a session and lets things happen to it: moves, another title, another teacher, a cancel, a revival.
pub(super) fn history(world: &World, dice: &Dice, session: &str, teachers: usize) -> History {
    let mut events = vec![world.lesson(session, dice.below(teachers))];
    for _ in 0..dice.below(4) {
        let last = events.last().expect("it begins with one");
        let next = match dice.below(10) {
            0..=3 => last.moved(HOUR_MS * (1 + i64::try_from(dice.below(40)).unwrap())),
            // Back to where it was two changes ago.
            4 if events.len() > 1 => {
                let before = events[events.len() - 2].details.clone().expect("every event here has details");
                last.then(|details| *details = before)
            }
            4..=6 => last.then(|details| details.title.push('!')),
            7 => last.taught_by(dice.below(teachers)),
            _ => last.canceled(),
        };
        events.push(next);
    }
    events
}

/// How a session should end.
pub(super) struct Ending {
    /// At Google.
    pub(super) expected: Expected,
    /// In its document.
    pub(super) version: i64,
}

impl Ending {
    /// Whether it takes place in the end.
    pub(super) fn is_live(&self) -> bool {
        self.expected.live.is_some()
    }

    /// The session.
    pub(super) fn session(&self) -> SessionId {
        SessionId::parse(self.expected.session.as_str()).unwrap()
    }
}

/// How these histories should end.
pub(super) fn endings(world: &World, histories: &[History]) -> Vec<Ending> {
    histories.iter().map(|history| ending(world, history)).collect()
}

/// How this history should end.
pub(super) fn ending(world: &World, history: &[SessionEvent]) -> Ending {
    let version = history.last().expect("a history is not empty").version.get();
    Ending { expected: expected(world, history), version }
}

fn expected(world: &World, history: &[SessionEvent]) -> Expected {
    let mut state = None;
    for (event, sequence) in history.iter().zip(1..) {
        let (session, outcome) = fold(state, event, Place { epoch: Epoch(1), sequence });
        assert_eq!(outcome, Outcome::Applied);
        state = Some(session);
    }
    let session = state.expect("a history is not empty");
    let (_, details) = session.details.as_ref().expect("it was scheduled");
    let teacher: usize = session.head.teacher.as_str().trim_start_matches("tch_").parse().unwrap();
    Expected {
        session: session.id.to_string(),
        live: (session.head.status == Status::Scheduled).then(|| ExpectedEvent {
            account: world.email(teacher).to_owned(),
            starts_at_ms: details.starts_at.get(),
            ends_at_ms: details.ends_at.get(),
            title: Some(details.title.clone()),
            has_link: true,
        }),
    }
}

/// Every event once or twice, in any order, with rubbish in between; returns how much rubbish.
pub(super) async fn publish_in_disorder(world: &World, dice: &Dice, histories: &[History]) -> i64 {
    let mut events: Vec<_> = histories.iter().flatten().cloned().collect();
    for nth in 0..events.len() {
        if dice.percent(10) {
            let mut again = events[nth].clone();
            // Another id, so that it is the service and not the server that notices.
            again.event_id.push_str("-again");
            events.push(again);
        }
    }
    dice.shuffle(&mut events);
    let mut rubbish = 0;
    for event in &events {
        world.publish(event).await;
        if dice.percent(1) {
            world.publish_raw("bookings.session.rubbish.scheduled", &[], b"{\"half\":".to_vec()).await;
            rubbish += 1;
        }
    }
    rubbish
}

/// The documents that do not say yet what is expected, with Google's agreement.
pub(super) async fn unfinished<'a>(world: &World, endings: impl IntoIterator<Item = &'a Ending>) -> Vec<String> {
    let mut unfinished = Vec::new();
    for ending in endings {
        unfinished.extend(lack(world, ending).await);
    }
    unfinished
}

/// The document, when it does not say yet what is expected, with Google's agreement.
pub(super) async fn lack(world: &World, ending: &Ending) -> Option<String> {
    let id = ending.session();
    let Some(stored) = world.store.document(&id).await.unwrap() else { return Some(format!("{id} is unknown")) };
    let document: Value = serde_json::from_str(&stored.json).unwrap();
    let status = if ending.is_live() { "READY" } else { "CANCELED" };
    let right = document["meetStatus"] == status && document["version"] == ending.version;
    (!right || document["upToDate"] != true).then_some(stored.json)
}

/// Everything is as it should be, at Google and in the documents, and was so at every instant before.
pub(super) async fn assert_right(world: &World, endings: &[Ending]) {
    assert_eq!(unfinished(world, endings).await, Vec::<String>::new());
    let expected: Vec<_> = endings.iter().map(|ending| ending.expected.clone()).collect();
    assert_eq!(world.fake().check(&expected), Vec::<String>::new());
    assert_eq!(world.fake().counters().no_op_writes, 0, "a write that changes nothing");

    let events: HashMap<_, _> =
        world.fake().live_events().into_iter().filter_map(|event| Some((event.session.clone()?, event))).collect();
    for ending in endings.iter().filter(|ending| ending.is_live()) {
        let stored = world.store.document(&ending.session()).await.unwrap().unwrap();
        let document: Value = serde_json::from_str(&stored.json).unwrap();
        let event = &events[&ending.expected.session];
        assert_eq!(document["meetLink"].as_str(), event.meet_link.as_deref(), "{document}");
        assert_eq!(document["meetEventId"], event.id.as_str());
    }
}

/// Every change of a document is on stream `MEET` at least once, those of a session in order, up to the document as it
/// is.
pub(super) async fn assert_results_are_whole(world: &World) {
    eventually("all results are published", async || world.store.counts(world.clock.now()).await.unwrap().outbox == 0)
        .await;
    let mut told: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for published in world.published().await {
        let data = published.event["data"].clone();
        let id = published.event["id"].as_str().unwrap().to_owned();
        let story = told.entry(data["sessionId"].as_str().unwrap().to_owned()).or_default();
        // The same one may come again, until it is known to be there; after the next it may not.
        if story.last().is_none_or(|(last, _)| *last != id) {
            assert!(story.iter().all(|(earlier, _)| *earlier != id), "told again after a newer one: {data}");
            story.push((id, data));
        }
    }
    for (session, story) in told {
        let id = SessionId::parse(session.as_str()).unwrap();
        let stored = world.store.document(&id).await.unwrap().unwrap();
        assert_eq!(story.len(), usize::try_from(stored.revision).unwrap(), "changes of {session}: {story:#?}");
        let document: Value = serde_json::from_str(&stored.json).unwrap();
        assert_eq!(story.last().unwrap().1, document, "the last result of {session}");
        let at = |data: &Value| UnixMillis::parse_rfc3339(data["updatedAt"].as_str().unwrap()).unwrap();
        assert!(story.is_sorted_by_key(|(_, data)| at(data)), "out of order: {story:#?}");
    }
}
