//! `events.list`: filters and pages over a calendar, in the order of event ids.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::json;

use super::event_store::{Calendar, CalendarCall, Context, Stored, Success};
use super::refusal::Refusal;
use super::resource;
use crate::model::UnixMillis;

/// The parameters that are understood; others (`fields`, `orderBy`, `singleEvents`, …) change nothing.
#[derive(Debug)]
struct Filter {
    /// `privateExtendedProperty=key=value`; several must all hold.
    properties: Vec<(String, String)>,
    ical_uid: Option<String>,
    show_deleted: bool,
    /// Events that end after this.
    time_min: Option<i64>,
    /// Events that start before this.
    time_max: Option<i64>,
    max_results: usize,
    /// The id of the last event of the page before.
    page_token: Option<String>,
}

impl Filter {
    fn parse(call: &CalendarCall) -> Result<Self, Refusal> {
        let mut filter = Self {
            properties: Vec::new(),
            ical_uid: None,
            show_deleted: false,
            time_min: None,
            time_max: None,
            max_results: 250,
            page_token: None,
        };
        for (key, value) in call.parameters() {
            let invalid = || Refusal::invalid(format!("Invalid value for: {key}"));
            let moment = || UnixMillis::parse_rfc3339(&value).map(UnixMillis::get).map_err(|_| invalid());
            match &*key {
                "privateExtendedProperty" => {
                    let (name, wanted) = value.split_once('=').ok_or_else(invalid)?;
                    filter.properties.push((name.to_owned(), wanted.to_owned()));
                }
                "iCalUID" => filter.ical_uid = Some(value.into_owned()),
                "showDeleted" => filter.show_deleted = value == "true",
                "timeMin" => filter.time_min = Some(moment()?),
                "timeMax" => filter.time_max = Some(moment()?),
                "maxResults" => {
                    // More than 2,500 is cut, not refused.
                    let asked: usize = value.parse().ok().filter(|&asked| asked > 0).ok_or_else(invalid)?;
                    filter.max_results = asked.min(2_500);
                }
                "pageToken" => filter.page_token = Some(value.into_owned()),
                "syncToken" => return Err(Refusal::of(410, "fullSyncRequired")),
                _ => {}
            }
        }
        if filter.time_min.zip(filter.time_max).is_some_and(|(min, max)| min >= max) {
            return Err(Refusal::of(400, "timeRangeEmpty"));
        }
        Ok(filter)
    }

    fn holds(&self, stored: &Stored) -> bool {
        if stored.purged || stored.hidden_gets > 0 || !(stored.live || self.show_deleted) {
            return false;
        }
        if self.time_min.is_some_and(|min| stored.span.end <= min)
            || self.time_max.is_some_and(|max| stored.span.start >= max)
        {
            return false;
        }
        if self.properties.is_empty() && self.ical_uid.is_none() {
            return true;
        }
        // The session marker is kept beside the bytes; it rules out nearly everything without parsing.
        let by_session = self.properties.iter().find(|(name, _)| name == "mpSession");
        if by_session.is_some_and(|(_, session)| stored.session.as_deref() != Some(session.as_str())) {
            return false;
        }
        let event = resource::parse_stored(&stored.body);
        self.properties.iter().all(|(name, wanted)| resource::private_property(&event, name) == Some(wanted.as_str()))
            && self.ical_uid.as_ref().is_none_or(|uid| event.get("iCalUID").is_some_and(|found| found == uid))
    }
}

impl Calendar {
    pub(super) fn list(&self, call: &CalendarCall, ctx: &Context<'_>) -> Result<Success, Refusal> {
        use std::ops::Bound::{Excluded, Unbounded};
        let filter = Filter::parse(call)?;
        let from = filter.page_token.as_deref().map_or(Unbounded, Excluded);
        let mut matching = self.events.range::<str, _>((from, Unbounded)).filter(|(_, stored)| filter.holds(stored));
        let page: Vec<_> = matching.by_ref().take(filter.max_results).collect();
        let mut head = json!({
            "kind": "calendar#events",
            "summary": self.id,
            "timeZone": self.zone.name(),
            "updated": ctx.now.to_rfc3339(),
            "accessRole": "owner",
        });
        match page.last().filter(|_| matching.next().is_some()) {
            Some((id, _)) => head["nextPageToken"] = id.as_ref().into(),
            None => head["nextSyncToken"] = format!("sync-{}", ctx.now.get()).into(),
        }
        let mut body = head.to_string();
        body.pop();
        body.push_str(r#","items":["#);
        for (place, (_, stored)) in page.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(body, "{comma}{}", std::str::from_utf8(&stored.body).expect("JSON is UTF-8"))
                .expect("a String takes everything");
        }
        body.push_str("]}");
        Ok(Success { status: 200, body: Bytes::from(body) })
    }
}
