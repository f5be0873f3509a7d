//! One calendar: its events and the rules by which Google changes them. No HTTP, no faults, no waiting.
//!
//! An event is kept as the very bytes a get answers, which makes reads one copy and keeps memory near the size of the
//! JSON; only changes parse it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono_tz::Tz;
use serde::Serialize;
use serde_json::{Value, json};

use super::conference::{self, ConferenceMemory, MeetCodes};
use super::faults::Operation;
use super::record::SessionWatch;
use super::refusal::Refusal;
use super::resource::{self, Object, Span};
use super::settings::AccountSettings;
use crate::model::UnixMillis;

/// A call to the Calendar API, taken apart; kept whole so that it can be carried out late.
#[derive(Debug, Clone)]
pub(super) struct CalendarCall {
    pub(super) operation: Operation,
    pub(super) method: &'static str,
    pub(super) token: Option<String>,
    pub(super) calendar: String,
    /// From the path, or, for an insert, from the body.
    pub(super) event: Option<String>,
    pub(super) query: String,
    pub(super) if_match: Option<String>,
    pub(super) if_none_match: Option<String>,
    pub(super) body: Bytes,
}

impl CalendarCall {
    pub(super) fn parameters(&self) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
        url::form_urlencoded::parse(self.query.as_bytes())
    }

    fn conference_version(&self) -> Result<u8, Refusal> {
        match self.parameters().find(|(key, _)| key == "conferenceDataVersion").as_ref().map(|(_, value)| &**value) {
            None | Some("0") => Ok(0),
            Some("1") => Ok(1),
            Some(_) => Err(Refusal::invalid("Invalid value for: conferenceDataVersion")),
        }
    }
}

/// A call that succeeded.
#[derive(Debug, Clone)]
pub(super) struct Success {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// How often an event was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// Inserts that made it: always 1, or 0 for one the teacher made.
    pub inserts: u32,
    /// Patches that were taken.
    pub patches: u32,
    /// Updates (PUT) that were taken.
    pub updates: u32,
    /// Deletes that were taken.
    pub deletes: u32,
    /// Those of the patches and updates that changed nothing.
    pub no_ops: u32,
}

/// What the rules need from around the calendar.
pub(super) struct Context<'a> {
    pub(super) now: UnixMillis,
    pub(super) account: usize,
    pub(super) email: &'a str,
    pub(super) zone: Tz,
    pub(super) settings: &'a AccountSettings,
    pub(super) codes: &'a mut MeetCodes,
    pub(super) last_etag: &'a mut i64,
    pub(super) watch: &'a mut SessionWatch,
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// The resource as Google answers it.
    pub(super) body: Bytes,
    /// With its quotes.
    pub(super) etag: Box<str>,
    pub(super) live: bool,
    /// Emptied from the trash: gone for reads, its id used for ever.
    pub(super) purged: bool,
    pub(super) sequence: i64,
    pub(super) span: Span,
    /// Private property `mpSession`.
    pub(super) session: Option<Arc<str>>,
    pub(super) writes: Writes,
    /// Reads that do not see it yet.
    pub(super) hidden_gets: u32,
    memory: ConferenceMemory,
}

#[derive(Debug)]
pub(super) struct Calendar {
    pub(super) id: String,
    pub(super) zone: Tz,
    pub(super) events: BTreeMap<Box<str>, Stored>,
}

impl Calendar {
    pub(super) fn new(id: impl Into<String>, zone: Tz) -> Self {
        Self { id: id.into(), zone, events: BTreeMap::new() }
    }

    pub(super) fn execute(&mut self, call: &CalendarCall, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let id = call.event.as_deref().unwrap_or_default();
        match call.operation {
            Operation::Insert => self.insert(call, ctx),
            Operation::Get => self.get(id, call.if_none_match.as_deref(), ctx),
            Operation::List => self.list(call, ctx),
            Operation::Patch => self.patch(id, call, ctx),
            Operation::Update => self.update(id, call, ctx),
            Operation::Delete => self.delete(id, call, ctx),
            Operation::Refresh | Operation::Exchange | Operation::Revoke => Err(Refusal::not_found()),
        }
    }

    fn insert(&mut self, call: &CalendarCall, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let version = call.conference_version()?;
        let sent = resource::parse_object(&call.body)?;
        let id = match sent.get("id") {
            None | Some(Value::Null) => uuid::Uuid::new_v4().simple().to_string(),
            Some(Value::String(id)) if resource::is_event_id(id) => id.clone(),
            Some(_) => return Err(Refusal::invalid("Invalid resource id value.")),
        };
        let asked = sent.get("conferenceData").filter(|_| version == 1).cloned();
        let tentative = sent.get("status").is_some_and(|status| status == "tentative");
        let mut event = Object::new();
        resource::merge(&mut event, resource::without_read_only(sent));
        let span = resource::settle(&mut event, ctx.zone)?;
        if self.events.contains_key(id.as_str()) {
            return Err(Refusal::of(409, "duplicate"));
        }
        let mut memory = ConferenceMemory::default();
        conference::apply(asked.as_ref(), &mut event, &mut memory, ctx.settings.conference, ctx.codes)?;
        let link = data_encoding::BASE64URL_NOPAD.encode(format!("{id} {}", ctx.email).as_bytes());
        let fixed = json!({
            "kind": "calendar#event",
            "id": id,
            "status": if tentative { "tentative" } else { "confirmed" },
            "htmlLink": format!("https://www.google.com/calendar/event?eid={link}"),
            "created": ctx.now.to_rfc3339(),
            "creator": {"email": ctx.email, "self": true},
            "organizer": {"email": ctx.email, "self": true},
            "iCalUID": format!("{id}@google.com"),
            "sequence": 0,
            "eventType": "default",
        });
        if let Value::Object(fixed) = fixed {
            event.extend(fixed);
        }
        let (body, etag) = seal(&mut event, ctx);
        let session = resource::private_property(&event, "mpSession").map(Arc::from);
        if let Some(session) = &session {
            ctx.watch.inserted(session, ctx.account, &id, ctx.now);
        }
        let stored = Stored {
            body: body.clone(),
            etag,
            live: true,
            purged: false,
            sequence: 0,
            span,
            session,
            writes: Writes { inserts: 1, ..Writes::default() },
            hidden_gets: ctx.settings.hidden_gets,
            memory,
        };
        self.events.insert(id.into(), stored);
        Ok(Success { status: 200, body })
    }

    fn get(&mut self, id: &str, if_none_match: Option<&str>, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let stored = self.known(id)?;
        if stored.hidden_gets > 0 {
            stored.hidden_gets -= 1;
            return Err(Refusal::not_found());
        }
        if stored.memory.count_get() {
            stored.change(ctx, |event, memory, ctx| {
                conference::decide(event, memory, ctx.codes);
                Ok(())
            })?;
        }
        if if_none_match == Some(&stored.etag) {
            return Ok(Success { status: 304, body: Bytes::new() });
        }
        Ok(Success { status: 200, body: stored.body.clone() })
    }

    /// What a person makes in the web interface: any id, no conference unless the resource has one.
    pub(super) fn make_by_hand(&mut self, resource: &Value, ctx: &mut Context<'_>) -> Result<String, Refusal> {
        let call = CalendarCall {
            operation: Operation::Insert,
            method: "POST",
            token: None,
            calendar: self.id.clone(),
            event: None,
            query: "conferenceDataVersion=1".to_owned(),
            if_match: None,
            if_none_match: None,
            body: Bytes::from(resource.to_string()),
        };
        let made = resource::parse_stored(&self.insert(&call, ctx)?.body);
        let id = made.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.known(&id)?.writes = Writes::default();
        Ok(id)
    }

    fn patch(&mut self, id: &str, call: &CalendarCall, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let version = call.conference_version()?;
        let sent = resource::parse_object(&call.body)?;
        let stored = self.known(id)?;
        stored.check(call.if_match.as_deref())?;
        stored.check_sequence(&sent)?;
        if !stored.live {
            // Whether a patch can undelete is not documented; the cautious answer is the one that blind updates get.
            return Err(Refusal::of(403, "forbidden"));
        }
        let changed = stored.change(ctx, |event, memory, ctx| {
            let asked = sent.get("conferenceData").filter(|_| version == 1);
            conference::apply(asked, event, memory, ctx.settings.conference, ctx.codes)?;
            if let Some(status) = sent.get("status").filter(|status| status.is_string()) {
                event.insert("status".to_owned(), status.clone());
            }
            resource::merge(event, resource::without_read_only(sent));
            Ok(())
        })?;
        stored.writes.patches += 1;
        stored.writes.no_ops += u32::from(!changed);
        Ok(Success { status: 200, body: stored.body.clone() })
    }

    fn update(&mut self, id: &str, call: &CalendarCall, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let version = call.conference_version()?;
        let sent = resource::parse_object(&call.body)?;
        let stored = self.known(id)?;
        stored.check(call.if_match.as_deref())?;
        let status = sent.get("status").and_then(Value::as_str).unwrap_or("confirmed").to_owned();
        if stored.live {
            stored.check_sequence(&sent)?;
        } else if sent.get("status").is_none_or(|status| status != "confirmed")
            || sent.get("sequence").and_then(Value::as_i64) != Some(stored.sequence)
        {
            // A deleted event comes back only as it was read: a freshly built body is refused.
            return Err(Refusal::of(403, "forbidden"));
        }
        let changed = stored.change(ctx, |event, memory, ctx| {
            let asked = sent.get("conferenceData").filter(|_| version == 1).cloned();
            let mut whole = resource::read_only_of(event);
            if version == 1 && asked.is_none() {
                // Google warns that a PUT that leaves the conference out may write it away.
                conference::remove(&mut whole, memory);
            }
            conference::apply(asked.as_ref(), &mut whole, memory, ctx.settings.conference, ctx.codes)?;
            whole.insert("status".to_owned(), status.into());
            resource::merge(&mut whole, resource::without_read_only(sent));
            *event = whole;
            Ok(())
        })?;
        stored.writes.updates += 1;
        stored.writes.no_ops += u32::from(!changed);
        Ok(Success { status: 200, body: stored.body.clone() })
    }

    fn delete(&mut self, id: &str, call: &CalendarCall, ctx: &mut Context<'_>) -> Result<Success, Refusal> {
        let stored = self.known(id)?;
        if !stored.live {
            return Err(Refusal::of(410, "deleted"));
        }
        stored.check(call.if_match.as_deref())?;
        stored.cancel(ctx)?;
        stored.writes.deletes += 1;
        Ok(Success { status: 204, body: Bytes::new() })
    }

    /// The event with this id unless it was purged.
    pub(super) fn known(&mut self, id: &str) -> Result<&mut Stored, Refusal> {
        self.events.get_mut(id).filter(|stored| !stored.purged).ok_or_else(Refusal::not_found)
    }

    /// Empties the trash: all deleted events, or the one named. Answers how many went.
    pub(super) fn empty_trash(&mut self, only: Option<&str>) -> usize {
        let mut gone = 0;
        for (id, stored) in &mut self.events {
            if !stored.live && !stored.purged && only.is_none_or(|only| only == &**id) {
                stored.purged = true;
                stored.body = Bytes::new();
                gone += 1;
            }
        }
        gone
    }
}

impl Stored {
    fn check(&self, if_match: Option<&str>) -> Result<(), Refusal> {
        match if_match {
            Some(etag) if etag != "*" && etag != &*self.etag => Err(Refusal::condition_not_met()),
            _ => Ok(()),
        }
    }

    fn check_sequence(&self, sent: &Object) -> Result<(), Refusal> {
        if sent.get("sequence").and_then(Value::as_i64).is_some_and(|sequence| sequence < self.sequence) {
            return Err(Refusal::invalid(
                "Invalid sequence value. The specified sequence number is below the current sequence number of the \
                 resource. Re-fetch the resource and use its sequence number on the following request.",
            ));
        }
        Ok(())
    }

    /// Deletes it: the resource stays, `status` becomes `cancelled`.
    pub(super) fn cancel(&mut self, ctx: &mut Context<'_>) -> Result<bool, Refusal> {
        self.change(ctx, |event, _, _| {
            event.insert("status".to_owned(), "cancelled".into());
            Ok(())
        })
    }

    /// The only way in which an existing event changes. Answers whether anything did; if not, the ETag stays.
    pub(super) fn change(
        &mut self,
        ctx: &mut Context<'_>,
        edit: impl FnOnce(&mut Object, &mut ConferenceMemory, &mut Context<'_>) -> Result<(), Refusal>,
    ) -> Result<bool, Refusal> {
        let mut event = resource::parse_stored(&self.body);
        let mut memory = self.memory.clone();
        edit(&mut event, &mut memory, ctx)?;
        let span = resource::settle(&mut event, ctx.zone)?;
        self.memory = memory;
        // Maps are sorted, so equal resources print as equal bytes.
        if serde_json::to_vec(&event).is_ok_and(|bytes| bytes == self.body) {
            return Ok(false);
        }
        if span != self.span {
            self.sequence += 1;
            self.span = span;
        }
        event.insert("sequence".to_owned(), self.sequence.into());
        (self.body, self.etag) = seal(&mut event, ctx);
        let session: Option<Arc<str>> = resource::private_property(&event, "mpSession").map(Arc::from);
        let live = event.get("status").is_none_or(|status| status != "cancelled");
        if (live, &session) != (self.live, &self.session) {
            if let Some(session) = self.session.as_ref().filter(|_| self.live) {
                ctx.watch.ended(session, ctx.account);
            }
            if let Some(session) = session.as_ref().filter(|_| live) {
                ctx.watch.began(session, ctx.account);
            }
        }
        (self.live, self.session) = (live, session);
        Ok(true)
    }
}

/// Stamps the changed resource and prints it.
fn seal(event: &mut Object, ctx: &mut Context<'_>) -> (Bytes, Box<str>) {
    // Google's ETags look like twice the microseconds of `updated`; here they also never repeat.
    *ctx.last_etag = (*ctx.last_etag + 2).max(ctx.now.get().saturating_mul(2000));
    let etag = format!("\"{}\"", ctx.last_etag);
    event.insert("etag".to_owned(), etag.as_str().into());
    event.insert("updated".to_owned(), ctx.now.to_rfc3339().into());
    let body = serde_json::to_vec(event).expect("a map with string keys prints");
    (Bytes::from(body.into_boxed_slice()), etag.into_boxed_str())
}
