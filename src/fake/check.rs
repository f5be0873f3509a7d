//! Does what is at Google agree with what should be, and did it at every instant before?

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::FakeGoogle;
use super::teacher::EventView;
use crate::model::UnixMillis;

/// What should be at Google for one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expected {
    /// `mpSession`.
    pub session: String,
    /// The one live event; `None` when there must be none.
    pub live: Option<ExpectedEvent>,
}

/// How the live event of a session should look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExpectedEvent {
    /// E-mail address of the account on whose calendar it is.
    pub account: String,
    /// Start, Unix milliseconds; compared by the second, as Google keeps it.
    pub starts_at_ms: i64,
    /// End, Unix milliseconds.
    pub ends_at_ms: i64,
    /// `summary`, where it matters.
    #[serde(default)]
    pub title: Option<String>,
    /// Whether there must be a Meet link.
    #[serde(default)]
    pub has_link: bool,
}

impl FakeGoogle {
    /// Every way in which the calendars differ from `expected` now, or broke a rule before: a session with two live
    /// events on one account at any instant, an insert beside a live event of the same session, a Meet link that two
    /// events share, a session at Google that is not in `expected`. Empty when all is well.
    pub fn check(&self, expected: &[Expected]) -> Vec<String> {
        let mut problems: Vec<String> = self
            .violations()
            .into_iter()
            .map(|violation| format!("at {}: {}", violation.at_ms, violation.message))
            .collect();
        for (session, count) in self.session_counts() {
            let most = count.most_on_one_account();
            if most > 1 {
                problems.push(format!("session {session} had {most} live events on one account at once"));
            }
        }
        let mut live: HashMap<String, Vec<EventView>> = HashMap::new();
        let mut links: BTreeMap<String, String> = BTreeMap::new();
        for event in self.live_events() {
            let Some(session) = event.session.clone() else { continue };
            if let Some(link) = &event.meet_link
                && let Some(other) = links.insert(link.clone(), event.id.clone())
            {
                problems.push(format!("events {other} and {} share the link {link}", event.id));
            }
            live.entry(session).or_default().push(event);
        }
        for Expected { session, live: wanted } in expected {
            let found = live.remove(session).unwrap_or_default();
            match (wanted, &found[..]) {
                (None, []) => {}
                (Some(wanted), [event]) => problems.extend(wanted.differences(session, event)),
                (Some(wanted), []) => {
                    problems.push(format!("session {session} has no live event, wanted one on {}", wanted.account));
                }
                (_, found) => {
                    let places: Vec<_> =
                        found.iter().map(|event| format!("{} on {}", event.id, event.account)).collect();
                    let count = usize::from(wanted.is_some());
                    let places = places.join(", ");
                    problems.push(format!("session {session} should have {count} live event(s), has {places}"));
                }
            }
        }
        let mut strangers: Vec<_> = live.keys().map(|session| format!("session {session} is not expected")).collect();
        strangers.sort();
        problems.extend(strangers);
        problems
    }
}

impl ExpectedEvent {
    fn differences(&self, session: &str, event: &EventView) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differs = |what: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
            differences.push(format!("session {session}: {what} is {found}, wanted {wanted}"));
        };
        if event.account != self.account {
            differs("account", &event.account, &self.account);
        }
        let wanted = [("start", event.starts_at, self.starts_at_ms), ("end", event.ends_at, self.ends_at_ms)];
        for (what, found, wanted) in wanted {
            if found.get().div_euclid(1000) != wanted.div_euclid(1000) {
                differs(what, &found, &UnixMillis::new(wanted));
            }
        }
        if self.title.is_some() && event.title != self.title {
            differs("title", &format!("{:?}", event.title), &format!("{:?}", self.title));
        }
        if self.has_link && event.meet_link.is_none() {
            differs("link", &"missing", &"there");
        }
        differences
    }
}
