//! Everything the fake knows, behind one lock that is never held across an await.

use bytes::Bytes;
use chrono_tz::Tz;

use super::conference::MeetCodes;
use super::event_store::{Calendar, CalendarCall, Context, Success};
use super::faults::{Commit, Ending, Fault, Faults, Operation, Subject};
use super::grants::Grants;
use super::record::{Effect, Recorded, Recorder, SessionWatch};
use super::refusal::Refusal;
use super::resource;
use super::settings::{AccountSettings, Quota, ServerSettings};
use crate::clock::Clock;

#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) email: std::sync::Arc<str>,
    pub(super) sub: String,
    pub(super) settings: AccountSettings,
    /// The first is the primary one.
    pub(super) calendars: Vec<Calendar>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) settings: ServerSettings,
    pub(super) accounts: Vec<Account>,
    pub(super) grants: Grants,
    pub(super) faults: Faults,
    pub(super) recorder: Recorder,
    pub(super) watch: SessionWatch,
    codes: MeetCodes,
    last_etag: i64,
    /// Accepted, answered, and not yet carried out.
    late: Vec<(u64, usize, CalendarCall)>,
}

/// What is to happen to a request that has arrived.
#[derive(Debug)]
pub(super) struct Ruling {
    pub(super) fault: Option<(String, Fault)>,
    pub(super) delay_ms: u64,
    pub(super) number: u64,
    received: std::time::Instant,
    at_ms: i64,
}

/// What the client of a request is to see.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) result: Result<Success, Refusal>,
    pub(super) ending: Ending,
    /// Number and delay of a late commit that has to be scheduled.
    pub(super) late: Option<(u64, u64)>,
}

impl State {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            settings: ServerSettings::default(),
            accounts: Vec::new(),
            grants: Grants::default(),
            faults: Faults::default(),
            recorder: Recorder::default(),
            watch: SessionWatch::default(),
            codes: MeetCodes::default(),
            last_etag: 0,
            late: Vec::new(),
        }
    }

    pub(super) fn account_number(&self, email: &str) -> Option<usize> {
        self.accounts.iter().position(|account| &*account.email == email)
    }

    pub(super) fn add_account(&mut self, name: &str, email: &str, sub: &str, zone: Tz) -> usize {
        if let Some(known) = self.account_number(email) {
            return known;
        }
        self.accounts.push(Account {
            name: name.to_owned(),
            email: email.into(),
            sub: sub.to_owned(),
            settings: AccountSettings::default(),
            calendars: vec![Calendar::new(email, zone)],
        });
        self.accounts.len() - 1
    }

    /// First half of a Calendar call: what goes wrong, and how long it takes.
    pub(super) fn arrive(&mut self, call: &CalendarCall) -> Ruling {
        let account = call.token.as_deref().and_then(|token| self.grants.account_of(token));
        let account = account.map(|number| &self.accounts[number]);
        let fault = self.faults.decide(&Subject {
            operation: call.operation,
            method: call.method,
            account: account.map(|account| &*account.email),
            event: call.event.as_deref(),
        });
        let delay_ms = self.settings.latency_ms
            + account.map_or(0, |account| account.settings.latency_ms)
            + fault.as_ref().map_or(0, |(_, fault)| fault.delay_ms);
        self.ruling(fault, delay_ms)
    }

    pub(super) fn ruling(&mut self, fault: Option<(String, Fault)>, delay_ms: u64) -> Ruling {
        let number = self.recorder.next_number();
        Ruling { fault, delay_ms, number, received: std::time::Instant::now(), at_ms: self.clock.now().get() }
    }

    /// Second half: carries it out as the ruling says.
    pub(super) fn perform(&mut self, call: &CalendarCall, ruling: &Ruling) -> Outcome {
        let (commit, ending) = match &ruling.fault {
            None => (Commit::Now, Ending::Answer),
            Some((_, fault)) => (fault.commit, fault.ending.clone()),
        };
        let ending = if ending == Ending::Answer && commit != Commit::Now {
            Ending::Refuse(Refusal::of(503, "backendError"))
        } else {
            ending
        };
        let mut late = None;
        let (result, effect) = match commit {
            Commit::Now => {
                let result = self.authorize(call).and_then(|account| self.execute(account, call));
                let is_committed = result.is_ok() && call.operation.is_write();
                (result, if is_committed { Effect::Committed } else { Effect::None })
            }
            Commit::Never => (Err(Refusal::of(503, "backendError")), Effect::None),
            Commit::LateMs(_) | Commit::OnRelease => match self.authorize(call) {
                Ok(account) if call.operation.is_write() => {
                    self.late.push((ruling.number, account, call.clone()));
                    if let Commit::LateMs(delay_ms) = commit {
                        late = Some((ruling.number, delay_ms));
                    }
                    (Err(Refusal::of(503, "backendError")), Effect::Late)
                }
                _ => (Err(Refusal::of(503, "backendError")), Effect::None),
            },
        };
        let outcome = Outcome { result, ending, late };
        self.record(call, ruling, &outcome, effect);
        outcome
    }

    /// Carries out one late request, or all. Answers how many were there.
    pub(super) fn release_late(&mut self, only: Option<u64>) -> usize {
        let (due, rest) = std::mem::take(&mut self.late)
            .into_iter()
            .partition::<Vec<_>, _>(|(number, ..)| only.is_none_or(|only| only == *number));
        self.late = rest;
        for (_, account, call) in &due {
            // Its client is long gone: a refusal (say 409, because a retry came first) is nobody's to see.
            match self.execute(*account, call) {
                Ok(_) => tracing::debug!(operation = call.operation.as_str(), "late request carried out"),
                Err(refusal) => tracing::debug!(reason = refusal.reason, "late request refused"),
            }
        }
        due.len()
    }

    pub(super) fn late_count(&self) -> usize {
        self.late.len()
    }

    fn authorize(&self, call: &CalendarCall) -> Result<usize, Refusal> {
        let token = call.token.as_deref().ok_or_else(Refusal::unauthorized)?;
        let (account, can_read, can_write) =
            self.grants.access(token, self.clock.now()).ok_or_else(Refusal::unauthorized)?;
        if self.accounts[account].settings.is_unauthorized {
            return Err(Refusal::unauthorized());
        }
        let is_allowed = if call.operation.is_write() { can_write } else { can_read };
        if !is_allowed {
            return Err(Refusal::of(403, "insufficientPermissions"));
        }
        Ok(account)
    }

    fn execute(&mut self, number: usize, call: &CalendarCall) -> Result<Success, Refusal> {
        let settings = &self.accounts[number].settings;
        if settings.is_rate_limited {
            return Err(Refusal::of(403, "rateLimitExceeded"));
        }
        let names_guests = || resource::parse_object(&call.body).is_ok_and(|body| body.contains_key("attendees"));
        let is_limited = match settings.quota {
            Quota::Free => false,
            Quota::Exceeded => call.operation.is_write(),
            Quota::ExceededForGuests => call.operation.is_write() && names_guests(),
        };
        if is_limited {
            return Err(Refusal::of(403, "quotaExceeded"));
        }
        let result = self.on_calendar(number, &call.calendar, |calendar, ctx| {
            let no_ops = |calendar: &Calendar| {
                call.event.as_deref().and_then(|id| calendar.events.get(id)).map_or(0, |stored| stored.writes.no_ops)
            };
            let before = no_ops(calendar);
            let result = calendar.execute(call, ctx);
            (result, no_ops(calendar) > before)
        });
        let (result, is_no_op) = result?;
        self.recorder.counters.no_op_writes += u64::from(is_no_op);
        if result.is_ok() && call.operation.is_write() {
            self.recorder.committed(call.operation);
        }
        result
    }

    /// Runs `act` on one calendar of an account: `primary`, the e-mail address or another id.
    pub(super) fn on_calendar<T>(
        &mut self,
        number: usize,
        calendar: &str,
        act: impl FnOnce(&mut Calendar, &mut Context<'_>) -> T,
    ) -> Result<T, Refusal> {
        let account = &mut self.accounts[number];
        let place = if calendar == "primary" {
            Some(0)
        } else {
            account.calendars.iter().position(|known| known.id == calendar)
        };
        let calendar = &mut account.calendars[place.ok_or_else(Refusal::not_found)?];
        let mut ctx = Context {
            now: self.clock.now(),
            account: number,
            email: &account.email,
            zone: calendar.zone,
            settings: &account.settings,
            codes: &mut self.codes,
            last_etag: &mut self.last_etag,
            watch: &mut self.watch,
        };
        Ok(act(calendar, &mut ctx))
    }

    fn record(&mut self, call: &CalendarCall, ruling: &Ruling, outcome: &Outcome, effect: Effect) {
        let (status, reason) = outcome.seen();
        self.recorder.count(call.operation, status, ruling.fault.is_some());
        if !self.recorder.is_keeping() {
            return;
        }
        let number = call.token.as_deref().and_then(|token| self.grants.account_of(token));
        let account = number.map(|number| &self.accounts[number]);
        let stored = account
            .zip(call.event.as_deref())
            .and_then(|(account, id)| account.calendars.iter().find_map(|calendar| calendar.events.get(id)));
        let session = stored.and_then(|stored| stored.session.clone()).or_else(|| {
            // An insert without effect: the session is still worth knowing.
            let body = Some(&call.body).filter(|body| !body.is_empty())?;
            resource::private_property(&resource::parse_object(body).ok()?, "mpSession").map(Into::into)
        });
        let keeps_body = self.recorder.recording.bodies;
        let request = Recorded {
            number: ruling.number,
            at_ms: ruling.at_ms,
            received: ruling.received,
            method: call.method,
            operation: call.operation,
            account: account.map(|account| std::sync::Arc::clone(&account.email)),
            event: call.event.clone(),
            session,
            query: call.query.clone(),
            if_match: call.if_match.clone(),
            body: if keeps_body { String::from_utf8_lossy(&call.body).into_owned() } else { String::new() },
            status,
            reason,
            effect,
            fault: ruling.fault.as_ref().map(|(name, _)| name.clone()),
        };
        self.recorder.keep(request);
    }

    /// Records a call of the token or revocation endpoint.
    pub(super) fn record_oauth(&mut self, operation: Operation, ruling: &Ruling, account: Option<usize>, seen: Seen) {
        let (status, reason) = seen;
        self.recorder.count(operation, status, ruling.fault.is_some());
        if !self.recorder.is_keeping() {
            return;
        }
        self.recorder.keep(Recorded {
            number: ruling.number,
            at_ms: ruling.at_ms,
            received: ruling.received,
            method: "POST",
            operation,
            account: account.map(|number| std::sync::Arc::clone(&self.accounts[number].email)),
            event: None,
            session: None,
            query: String::new(),
            if_match: None,
            body: String::new(),
            status,
            reason,
            effect: Effect::None,
            fault: ruling.fault.as_ref().map(|(name, _)| name.clone()),
        });
    }
}

/// Status and reason as the client saw them; 0 where it saw nothing.
pub(super) type Seen = (u16, Option<String>);

impl Outcome {
    pub(super) fn new(result: Result<Bytes, Refusal>, ending: Ending) -> Self {
        Self { result: result.map(|body| Success { status: 200, body }), ending, late: None }
    }

    pub(super) fn seen(&self) -> Seen {
        match (&self.ending, &self.result) {
            (Ending::Drop | Ending::Hang(_) | Ending::HalfBody, _) => (0, None),
            (Ending::Refuse(refusal), _) | (Ending::Answer, Err(refusal)) => {
                (refusal.status, Some(refusal.reason.clone()))
            }
            (Ending::Answer, Ok(success)) => (success.status, None),
        }
    }
}
