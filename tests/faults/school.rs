//! A school's random life: sessions with their histories, and how they should end.

use meet_projector::event::SessionEvent;
use meet_projector::fake::{Expected, ExpectedEvent};
use meet_projector::model::{Epoch, Place, SessionId};
use meet_projector::projection::Status;
use meet_projector::projection::{Outcome, fold};
use meet_projector::retry::Jitter;

use crate::support::service::{HOUR_MS, Then as _, World};

/// Random choices that a seed repeats.
pub(super) struct Dice(Jitter);

impl Dice {
    /// With `SEED` from the environment, else with `default`; says which.
    pub(super) fn roll(default: u64) -> Self {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
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

/// One session's events, oldest first.
pub(super) type History = Vec<SessionEvent>;

/// Schedules a session and lets things happen to it: moves, another teacher, a cancel, a revival.
pub(super) fn history(world: &World, dice: &Dice, session: &str, teachers: usize) -> History {
    let mut events = vec![world.lesson(session, dice.below(teachers))];
    for _ in 0..dice.below(4) {
        let last = events.last().expect("it begins with one");
        let next = match dice.below(10) {
            0..=4 => last.moved(HOUR_MS * (1 + i64::try_from(dice.below(40)).unwrap())),
            5 | 6 => last.then(|details| details.title.push('!')),
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
}

/// What is wrong at Google, now or at any instant before.
pub(super) fn wrong(world: &World, endings: &[Ending]) -> Vec<String> {
    world.fake().check(&endings.iter().map(|ending| ending.expected.clone()).collect::<Vec<_>>())
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

/// The documents that do not say yet what is expected, with Google's agreement.
pub(super) async fn unfinished<'a>(world: &World, endings: impl IntoIterator<Item = &'a Ending>) -> Vec<String> {
    let mut unfinished = Vec::new();
    for ending in endings {
        let id = SessionId::parse(ending.expected.session.as_str()).unwrap();
        let Some(stored) = world.store.document(&id).await.unwrap() else {
            unfinished.push(format!("{id} is unknown"));
            continue;
        };
        let document: serde_json::Value = serde_json::from_str(&stored.json).unwrap();
        let status = if ending.is_live() { "READY" } else { "CANCELED" };
        let agrees = document["meetStatus"] == status && document["version"] == ending.version;
        if !agrees || document["upToDate"] != true {
            unfinished.push(stored.json);
        }
    }
    unfinished
}
