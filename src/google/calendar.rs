//! The Calendar API, as much of it as we use: one [`Call`] in, one [`Answer`] or classified failure out.
//!
//! A thin client on purpose: it builds requests, bounds what comes back and reads it, and never repeats one by itself.
//! Whether a failure may be repeated depends on what is known of the event, which [`crate::plan`] knows and this does
//! not. Three calls take two requests, because the second needs the answer to the first: [`Call::Restore`],
//! [`Call::Patch`] where guests are wanted, and [`Call::Find`] where there are several pages.
//!
//! <https://developers.google.com/workspace/calendar/api/v3/reference/events>

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use secrecy::zeroize::Zeroize;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

use super::error::{Class, GoogleError, classify};
use super::{Answer, Call, RemoteEvent, RemoteStatus, Wanted};
use crate::config::SendUpdates;
use crate::model::{EventId, SessionId, UnixMillis};
use crate::plan::Code;
use crate::telemetry::trace;

mod event;
mod guests;
mod request;

/// Longest time for one [`Call`], all its requests together: 20 s. Longer makes leases long, shorter turns slow answers
/// into ambiguous ones.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer that is read. An event with 200 guests is some 40 kB, a page of 50 of them below this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Events per page, and pages, of a search for one session. There is one such event, or none, unless something went
/// wrong.
const FIND_PAGE: &str = "50";
const FIND_PAGES_MAX: usize = 20;

/// The HTTP client for everything at Google: no redirects (a token must not follow one), timeouts, connections that are
/// kept and checked, HTTP/2 where the server offers it, and no compression (the answers are small). Build one and clone
/// it.
///
/// # Panics
///
/// When TLS cannot be set up at all: no certificates on this system.
pub fn http_client() -> reqwest::Client {
    // rustls knows no default provider when it is built without one; it stays when something has installed it before.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("a TLS provider is installed already");
    }
    reqwest::Client::builder()
        .user_agent(concat!("meet-projector/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(Duration::from_secs(5))
        .timeout(CALL_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build()
        .expect("TLS can be set up: there are root certificates and a provider")
}

/// Which event a call is about.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The calendar's id, `primary` or an address.
    pub calendar: &'a str,
    /// The event's id. Only derived ids exist, so no address can end in an empty one, whose 404 would pass for "gone".
    pub event_id: &'a EventId,
    /// The session, whose marker [`Call::Find`] looks for and [`Call::Restore`] insists on.
    pub session: &'a SessionId,
}

/// The events of calendars, as one teacher (whose token comes with each call) sees them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CalendarClient {
    http: reqwest::Client,
    root: Url,
    send_updates: SendUpdates,
    /// `Date` of the last answer that nobody asked for yet, in Unix milliseconds; [`NO_DATE`] without one.
    said_at: Arc<AtomicI64>,
}

/// No answer since the last look.
const NO_DATE: i64 = i64::MIN;

/// One request before it is sent.
struct Outgoing {
    method: Method,
    url: Url,
    condition: Option<(HeaderName, String)>,
    body: Option<Vec<u8>>,
}

impl Outgoing {
    fn get(url: Url) -> Self {
        Self { method: Method::GET, url, condition: None, body: None }
    }
}

/// What every request of one call has in common.
struct Session<'a> {
    http: &'a reqwest::Client,
    said_at: &'a AtomicI64,
    bearer: HeaderValue,
    deadline: Instant,
    operation: &'static str,
}

/// A success, body read.
struct Success {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl CalendarClient {
    /// `root` is `GOOGLE_CALENDAR_API_ROOT`, with or without a slash at its end.
    pub fn new(http: reqwest::Client, root: Url, send_updates: SendUpdates) -> Self {
        Self { http, root, send_updates, said_at: Arc::new(AtomicI64::new(NO_DATE)) }
    }

    /// What Google's clock said in an answer since the last look, in whole seconds: for comparing it with ours.
    pub fn take_date(&self) -> Option<UnixMillis> {
        let date = self.said_at.swap(NO_DATE, Ordering::Relaxed);
        (date != NO_DATE).then(|| UnixMillis::new(date))
    }

    /// Makes one call. `wanted` is needed for insert, patch and restore; with guests in it, guests count for
    /// [`RemoteEvent::owned_hash`], so pass it to get as well. `timeout` (at most [`CALL_TIMEOUT`]) is for all requests
    /// together.
    ///
    /// # Errors
    ///
    /// [`classify`] says how answers become errors; a timeout, a reset or a half answer is [`Class::Transient`], and
    /// ambiguous if it was a write. Besides: restore refuses an event that is not ours (`Permanent(Forbidden)`, reason
    /// `notOurs`) and returns one that is live as it is; patch with guests fails with [`Class::Stale`] or
    /// [`Class::Deleted`] where its look at the event already shows that.
    pub async fn call(
        &self,
        access_token: &SecretString,
        target: Target<'_>,
        call: &Call,
        wanted: Option<&Wanted>,
        timeout: Duration,
    ) -> Result<Answer, GoogleError> {
        let operation = call.operation();
        let bearer = bearer(access_token).ok_or_else(|| {
            GoogleError::unanswered(
                Class::Unauthorized,
                format!("{operation}: the access token has characters no header may have"),
            )
        })?;
        let deadline = Instant::now() + timeout.min(CALL_TIMEOUT);
        let session = Session { http: &self.http, said_at: &self.said_at, bearer, deadline, operation };
        let with_guests = wanted.is_some_and(|wanted| wanted.attendees.is_some());
        let needed = || {
            let message = format!("{operation}: nothing is wanted of this event");
            wanted.ok_or_else(|| GoogleError::unanswered(Class::Permanent(Code::InvalidRequest), message))
        };
        let event = |success: &Success, is_write: bool| {
            let event = event::parse_answer(&success.body, &success.headers, target.event_id, with_guests);
            event.map_err(|what| GoogleError::unreadable(operation, is_write, success.status, what))
        };

        match call {
            Call::Get { if_none_match } => {
                let condition = if_none_match.clone().map(|etag| (IF_NONE_MATCH, etag));
                let success = session.send(Outgoing { condition, ..Outgoing::get(self.event_url(target)?) }).await?;
                if success.status == 304 {
                    return Ok(Answer::NotModified);
                }
                Ok(Answer::Event(Box::new(event(&success, false)?)))
            }
            Call::Find => self.find(&session, target, with_guests).await.map(Answer::Found),
            Call::Insert { conference_request } => {
                let body = request::insert(target.event_id, needed()?, conference_request.as_deref());
                let url = with_query(self.events_url(target)?, self.send_updates);
                let success =
                    session.send(Outgoing { method: Method::POST, url, condition: None, body: Some(body) }).await?;
                Ok(Answer::Event(Box::new(event(&success, true)?)))
            }
            Call::Patch { etag } => {
                let wanted = needed()?;
                let mut send_updates = self.send_updates;
                let mut merged = None;
                if let Some(guests) = &wanted.attendees {
                    let seen = session.send(Outgoing::get(self.event_url(target)?)).await?;
                    let seen = event(&seen, false)?;
                    if seen.status == RemoteStatus::Cancelled {
                        return Err(GoogleError::unanswered(Class::Deleted, "patch: the event is deleted"));
                    }
                    if seen.etag != *etag {
                        return Err(GoogleError::unanswered(Class::Stale, "patch: the event has changed meanwhile"));
                    }
                    // Guests are told of a new time; a repair of anything else is none of their business.
                    if (seen.starts_at, seen.ends_at) == (Some(wanted.starts_at), Some(wanted.ends_at)) {
                        send_updates = SendUpdates::None;
                    }
                    merged = Some(guests::merge(&seen.resource, guests));
                }
                let body = request::patch(wanted, merged.as_ref());
                let url = with_query(self.event_url(target)?, send_updates);
                let success = session
                    .send(Outgoing {
                        method: Method::PATCH,
                        url,
                        condition: Some((IF_MATCH, etag.clone())),
                        body: Some(body),
                    })
                    .await?;
                Ok(Answer::Event(Box::new(event(&success, true)?)))
            }
            Call::AddConference { etag, conference_request } => {
                let body = request::add_conference(conference_request);
                let url = with_query(self.event_url(target)?, SendUpdates::None);
                let success = session
                    .send(Outgoing {
                        method: Method::PATCH,
                        url,
                        condition: Some((IF_MATCH, etag.clone())),
                        body: Some(body),
                    })
                    .await?;
                Ok(Answer::Event(Box::new(event(&success, true)?)))
            }
            Call::Restore => {
                let wanted = needed()?;
                let seen = session.send(Outgoing::get(self.event_url(target)?)).await?;
                let seen = event(&seen, false)?;
                if !is_ours(&seen, wanted) {
                    let refused = Class::Permanent(Code::Forbidden);
                    let error = GoogleError::unanswered(refused, "restore: the event does not carry our marker");
                    return Err(GoogleError { reason: Some("notOurs".into()), ..error });
                }
                if seen.status == RemoteStatus::Live {
                    return Ok(Answer::Event(Box::new(seen)));
                }
                let condition = (!seen.etag.is_empty()).then(|| (IF_MATCH, seen.etag.clone()));
                let body = request::restore(seen.resource, wanted);
                // A repair: nobody is mailed.
                let url = with_query(self.event_url(target)?, SendUpdates::None);
                let success = session.send(Outgoing { method: Method::PUT, url, condition, body: Some(body) }).await?;
                Ok(Answer::Event(Box::new(event(&success, true)?)))
            }
            Call::Delete => {
                let mut url = self.event_url(target)?;
                url.query_pairs_mut().append_pair("sendUpdates", self.send_updates.as_str());
                session.send(Outgoing { method: Method::DELETE, url, condition: None, body: None }).await?;
                Ok(Answer::Deleted)
            }
        }
    }

    /// All live events with our marker for the session. Exactly one constraint is sent: the documentation does not
    /// agree with itself on whether several mean *and* or *or*.
    async fn find(
        &self,
        session: &Session<'_>,
        target: Target<'_>,
        with_guests: bool,
    ) -> Result<Vec<RemoteEvent>, GoogleError> {
        let mut first = self.events_url(target)?;
        first
            .query_pairs_mut()
            .append_pair("privateExtendedProperty", &format!("mpSession={}", target.session))
            .append_pair("maxResults", FIND_PAGE)
            .append_pair("showDeleted", "false");
        let mut found = Vec::new();
        let mut page: Option<String> = None;
        for _ in 0..FIND_PAGES_MAX {
            let mut url = first.clone();
            if let Some(token) = &page {
                url.query_pairs_mut().append_pair("pageToken", token);
            }
            let success = session.send(Outgoing::get(url)).await?;
            let (events, next) = event::parse_page(&success.body, with_guests)
                .map_err(|what| GoogleError::unreadable(session.operation, false, success.status, what))?;
            // What a server filters by is its affair; an event that is not of this session must never pass for it.
            let of_session = |event: &RemoteEvent| {
                event.status == RemoteStatus::Live && event.marked_session.as_deref() == Some(target.session.as_str())
            };
            found.extend(events.into_iter().filter(of_session));
            page = next;
            if page.is_none() {
                return Ok(found);
            }
        }
        // An answer cut short would say "there is none", and a second event would be made.
        Err(GoogleError::unanswered(
            Class::Transient,
            format!("list: more than {FIND_PAGES_MAX} pages of events for one session"),
        ))
    }

    fn events_url(&self, target: Target<'_>) -> Result<Url, GoogleError> {
        self.url(target.calendar, None)
    }

    fn event_url(&self, target: Target<'_>) -> Result<Url, GoogleError> {
        self.url(target.calendar, Some(target.event_id))
    }

    /// `<root>/calendars/<calendar>/events[/<event>]`, each part percent-encoded.
    fn url(&self, calendar: &str, event: Option<&EventId>) -> Result<Url, GoogleError> {
        // The URL standard drops "." and ".." even where they are pushed as segments.
        if matches!(calendar, "" | "." | "..") {
            let message = "the calendar id is empty or no id";
            return Err(GoogleError::unanswered(Class::Permanent(Code::CalendarNotFound), message));
        }
        let mut url = self.root.clone();
        let Ok(mut path) = url.path_segments_mut() else {
            let message = "GOOGLE_CALENDAR_API_ROOT is not an http(s) address";
            return Err(GoogleError::unanswered(Class::Misconfigured, message));
        };
        path.pop_if_empty().extend(["calendars", calendar, "events"]);
        if let Some(event) = event {
            path.push(event.as_str());
        }
        drop(path);
        Ok(url)
    }
}

impl Session<'_> {
    /// Sends one request and reads its answer within the deadline; 2xx, and 304 to a condition, are successes.
    async fn send(&self, outgoing: Outgoing) -> Result<Success, GoogleError> {
        let Outgoing { method, url, condition, body } = outgoing;
        let is_write = method != Method::GET;
        let is_delete = method == Method::DELETE;
        let is_conditional_get = matches!(&condition, Some((name, _)) if name == IF_NONE_MATCH);
        let template = if url.path().ends_with("/events") {
            "/calendars/{calendarId}/events"
        } else {
            "/calendars/{calendarId}/events/{eventId}"
        };
        let span = trace::http_client(&method, url.host_str(), url.port_or_known_default(), template);
        let mut request = self
            .http
            .request(method, url)
            .timeout(self.deadline.saturating_duration_since(Instant::now()))
            .header(AUTHORIZATION, self.bearer.clone());
        if let Some((name, etag)) = condition {
            request = request.header(name, etag);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body);
        }
        let no_answer = |error: &reqwest::Error| GoogleError::no_answer(self.operation, is_write, error);
        let sent = request.send().instrument(span.clone()).await;
        trace::answered(&span, sent.as_ref().ok().map(|response| response.status().as_u16()), "no_answer");
        let mut response = sent.map_err(|error| no_answer(&error))?;
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        if let Some(date) = date(&headers) {
            self.said_at.store(date, Ordering::Relaxed);
        }
        match status {
            304 if is_conditional_get => Ok(Success { status, headers, body: Vec::new() }),
            // A delete that succeeded says nothing more, so nothing more can be wrong with it.
            200..=299 if is_delete => Ok(Success { status, headers, body: Vec::new() }),
            200..=299 => match read(&mut response).await {
                Ok(Some(body)) => Ok(Success { status, headers, body }),
                Ok(None) => Err(GoogleError::unreadable(self.operation, is_write, status, "with more than 1 MiB")),
                Err(_) => Err(GoogleError::unreadable(self.operation, is_write, status, "the answer broke off")),
            },
            // Where the reason is lost the status has to do.
            _ => {
                let body = read(&mut response).await.ok().flatten().unwrap_or_default();
                let error = classify(self.operation, status, &headers, &body);
                let is_ambiguous = error.is_ambiguous && is_write;
                Err(error.ambiguous(is_ambiguous))
            }
        }
    }
}

/// `Date` (RFC 9110 section 6.6.1) in Unix milliseconds.
fn date(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(DATE)?.to_str().ok()?;
    chrono::DateTime::parse_from_rfc2822(text).ok().map(|date| date.timestamp_millis())
}

/// The body, up to 1 MiB; `None` when there is more.
async fn read(response: &mut reqwest::Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let announced = response.content_length().unwrap_or(0);
    let mut body = Vec::with_capacity(usize::try_from(announced).unwrap_or(usize::MAX).min(64 << 10));
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// `Bearer <token>`, marked so that no layer prints it.
fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let mut text = ["Bearer ", token.expose_secret()].concat();
    let value = HeaderValue::from_str(&text);
    text.zeroize();
    let mut value = value.ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The parameters of every write but delete: without `conferenceDataVersion=1` Google drops conference data silently,
/// and asks for it on all modifications.
fn with_query(mut url: Url, send_updates: SendUpdates) -> Url {
    url.query_pairs_mut().append_pair("conferenceDataVersion", "1").append_pair("sendUpdates", send_updates.as_str());
    url
}

/// Whether the event carries the marker of this session and this environment.
fn is_ours(event: &RemoteEvent, wanted: &Wanted) -> bool {
    event.marked_session.as_deref() == Some(&wanted.session)
        && event.marked_environment.as_deref() == Some(&wanted.environment)
}
