//! What people do in their own calendars, and what is to be seen there.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::FakeGoogle;
use super::conference;
use super::event_store::{Stored, Writes};
use super::refusal::Refusal;
use super::resource::{self, Object};
use super::state::State;
use crate::model::UnixMillis;

/// One action of a teacher on one event of the primary calendar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "action", deny_unknown_fields)]
pub enum TeacherAction {
    /// Deletes the event; it goes to the trash.
    Delete,
    /// Takes the deleted event out of the trash.
    Restore,
    /// Deletes it from the trash: a get is 404 from then on, and the id stays used.
    Purge,
    /// Moves it to another time.
    Move {
        /// RFC 3339.
        start: String,
        /// RFC 3339.
        end: String,
    },
    /// Changes texts; what is absent stays.
    Edit {
        /// `summary`
        #[serde(default)]
        title: Option<String>,
        /// `description`
        #[serde(default)]
        description: Option<String>,
    },
    /// Puts a conference of another provider in place of Google Meet.
    ReplaceConference,
    /// Takes the conference away.
    RemoveConference,
    /// Any other change, as a JSON merge patch of the resource.
    Merge {
        /// The patch.
        patch: Value,
    },
}

/// An event as it stands on a calendar.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// E-mail address of the account.
    pub account: String,
    /// Calendar id; the primary one has the e-mail address.
    pub calendar: String,
    /// Event id.
    pub id: String,
    /// Not deleted.
    pub is_live: bool,
    /// Emptied from the trash; everything below is then empty or old.
    pub is_purged: bool,
    /// `mpSession`.
    pub session: Option<String>,
    /// `summary`
    pub title: Option<String>,
    /// Start.
    #[serde(serialize_with = "rfc3339")]
    pub starts_at: UnixMillis,
    /// End.
    #[serde(serialize_with = "rfc3339")]
    pub ends_at: UnixMillis,
    /// `hangoutLink`
    pub meet_link: Option<String>,
    /// `etag`, quotes included.
    pub etag: String,
    /// How often it was written through the API.
    pub writes: Writes,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn rfc3339<S: serde::Serializer>(moment: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(moment)
}

impl EventView {
    fn of(account: &str, calendar: &str, id: &str, stored: &Stored) -> Self {
        let event = if stored.purged { Object::new() } else { resource::parse_stored(&stored.body) };
        let text = |field: &str| event.get(field).and_then(Value::as_str).map(str::to_owned);
        Self {
            account: account.to_owned(),
            calendar: calendar.to_owned(),
            id: id.to_owned(),
            is_live: stored.live,
            is_purged: stored.purged,
            session: stored.session.as_deref().map(str::to_owned),
            title: text("summary"),
            starts_at: UnixMillis::new(stored.span.start),
            ends_at: UnixMillis::new(stored.span.end),
            meet_link: text("hangoutLink"),
            etag: stored.etag.to_string(),
            writes: stored.writes,
        }
    }
}

impl State {
    pub(super) fn views(&self, wanted: impl Fn(&str, &Stored) -> bool) -> Vec<EventView> {
        let mut views = Vec::new();
        for account in &self.accounts {
            for calendar in &account.calendars {
                for (id, stored) in calendar.events.iter().filter(|(_, stored)| wanted(&account.email, stored)) {
                    views.push(EventView::of(&account.email, &calendar.id, id, stored));
                }
            }
        }
        views
    }

    pub(super) fn act(&mut self, email: &str, id: &str, action: &TeacherAction) -> Result<(), Refusal> {
        let account = self.account_number(email).ok_or_else(Refusal::not_found)?;
        self.on_calendar(account, "primary", |calendar, ctx| {
            if *action == TeacherAction::Purge {
                return if calendar.empty_trash(Some(id)) == 1 { Ok(()) } else { Err(Refusal::not_found()) };
            }
            let stored = calendar.known(id)?;
            if *action == TeacherAction::Delete {
                return stored.cancel(ctx).map(|_| ());
            }
            let changed = stored.change(ctx, |event, memory, _| {
                match action {
                    TeacherAction::Restore => {
                        event.insert("status".to_owned(), "confirmed".into());
                    }
                    TeacherAction::Move { start, end } => {
                        for (field, text) in [("start", start), ("end", end)] {
                            let time = json!({field: {"dateTime": text, "date": null}});
                            merge(event, &time)?;
                        }
                    }
                    TeacherAction::Edit { title, description } => {
                        for (field, text) in [("summary", title), ("description", description)] {
                            if let Some(text) = text {
                                event.insert(field.to_owned(), text.as_str().into());
                            }
                        }
                    }
                    TeacherAction::ReplaceConference => conference::replace_by_other(event, memory),
                    TeacherAction::RemoveConference => conference::remove(event, memory),
                    TeacherAction::Merge { patch } => merge(event, patch)?,
                    TeacherAction::Delete | TeacherAction::Purge => {}
                }
                Ok(())
            });
            changed.map(|_| ())
        })?
    }
}

fn merge(event: &mut Object, patch: &Value) -> Result<(), Refusal> {
    match patch {
        Value::Object(patch) => {
            resource::merge(event, patch.clone());
            Ok(())
        }
        _ => Err(Refusal::invalid("The patch must be an object.")),
    }
}

impl FakeGoogle {
    /// Does in the teacher's primary calendar what a person would do there.
    ///
    /// # Errors
    ///
    /// The refusal that the web interface would run into: an unknown account or event, a time that is none.
    pub fn teacher(&self, email: &str, event: &str, action: &TeacherAction) -> Result<(), Refusal> {
        self.with(|state| state.act(email, event, action))
    }

    /// Makes an event in the primary calendar as the teacher would by hand, and answers its id. `resource` is the body
    /// of an insert; only start and end are required.
    pub fn teacher_makes(&self, email: &str, resource: &Value) -> Result<String, Refusal> {
        self.with(|state| {
            let account = state.account_number(email).ok_or_else(Refusal::not_found)?;
            state.on_calendar(account, "primary", |calendar, ctx| calendar.make_by_hand(resource, ctx))?
        })
    }

    /// Moves the event to start `by_ms` later (or earlier) and keeps its length.
    pub fn teacher_shifts(&self, email: &str, event: &str, by_ms: i64) -> Result<(), Refusal> {
        let view = self.event(email, event).ok_or_else(Refusal::not_found)?;
        let text = |moment: UnixMillis| {
            DateTime::<Utc>::from_timestamp_millis(moment.plus(by_ms).get())
                .unwrap_or_default()
                .to_rfc3339_opts(SecondsFormat::Secs, true)
        };
        self.teacher(email, event, &TeacherAction::Move { start: text(view.starts_at), end: text(view.ends_at) })
    }

    /// Empties the trash of the account; answers how many events went.
    pub fn empty_trash(&self, email: &str) -> usize {
        self.with(|state| {
            let account = state.account_number(email)?;
            Some(state.accounts[account].calendars.iter_mut().map(|calendar| calendar.empty_trash(None)).sum())
        })
        .unwrap_or_default()
    }

    /// An event of any calendar of the account, deleted ones too.
    pub fn event(&self, email: &str, id: &str) -> Option<EventView> {
        self.with(|state| {
            let account = state.accounts.get(state.account_number(email)?)?;
            account.calendars.iter().find_map(|calendar| {
                calendar.events.get(id).map(|stored| EventView::of(email, &calendar.id, id, stored))
            })
        })
    }

    /// The whole resource of an event, as a get would answer it but without counting as one.
    pub fn resource(&self, email: &str, id: &str) -> Option<Value> {
        self.with(|state| {
            let account = state.accounts.get(state.account_number(email)?)?;
            let stored = account.calendars.iter().find_map(|calendar| calendar.events.get(id))?;
            (!stored.purged).then(|| Value::Object(resource::parse_stored(&stored.body)))
        })
    }

    /// All events, deleted and purged ones too, by account and id.
    pub fn events(&self) -> Vec<EventView> {
        self.with(|state| state.views(|_, _| true))
    }

    /// All events that are not deleted.
    pub fn live_events(&self) -> Vec<EventView> {
        self.with(|state| state.views(|_, stored| stored.live))
    }

    /// All events whose `mpSession` is `session`, on all accounts, deleted ones too.
    pub fn events_of_session(&self, session: &str) -> Vec<EventView> {
        self.with(|state| state.views(|_, stored| stored.session.as_deref() == Some(session)))
    }
}
