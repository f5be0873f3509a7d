//! A school's random life: sessions with their histories, and how they should end.

use meet_projector::event::SessionEvent;
use meet_projector::fake::check::{Expected, ExpectedEvent};
use meet_projector::projection::{Outcome, fold};
use meet_projector::model::{Epoch, Place};
use meet_projector::projection::Status;
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

/// How a session should end at Google.
pub(super) fn expected(world: &World, history: &[SessionEvent]) -> Expected {
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

/// The documents say of every session what is expected, and that Google agrees.
pub(super) async fn unfinished(world: &World, expected: &[Expected]) -> Vec<String> {
    let mut unfinished = Vec::new();
    for chunk in expected.chunks(100) {
        let ids: Vec<_> =
            chunk.iter().map(|one| meet_projector::model::SessionId::parse(one.session.as_str()).unwrap()).collect();
        let documents = world.store.documents(&ids).await.unwrap();
        for one in chunk {
            let Some((_, stored)) = documents.iter().find(|(id, _)| id.as_str() == one.session) else {
                unfinished.push(format!("{}: unknown", one.session));
                continue;
            };
            let document: serde_json::Value = serde_json::from_str(&stored.json).unwrap();
            let status = if one.live.is_some() { "READY" } else { "CANCELED" };
            if document["meetStatus"] != status || document["upToDate"] != true {
                unfinished.push(stored.json.clone());
            }
        }
    }
    unfinished
}
