//! A Google in this process: Calendar API v3, OAuth with a consent page, and every way they fail.
//!
//! It is as exacting as the real one where that is known, and takes the harsher of two ways where it is not, so that a
//! service which converges here has no comfort to miss there. It knows nothing of the service it serves: tests and
//! `meet-projector dev` point the service's `GOOGLE_*` settings at [`Running`].
//!
//! * [`FakeGoogle`] is the handle: accounts, what teachers do ([`TeacherAction`]), faults ([`Rule`], [`Chaos`]), what
//!   was asked ([`Recorded`]) and whether it was right ([`FakeGoogle::check`]). `/_control` offers the same over HTTP.
//! * The rules of events are in `event_store`, `resource`, `listing` and `conference`; those of tokens in `grants`.
//!   They know no HTTP. `calendar`, `token`, `consent` and `control` do, `deliver` and `wire` break answers on their way.
//!
//! Left out: recurring events, guests' copies, push channels and sync tokens (`syncToken` is always answered with 410),
//! batch, quotas that are counted (they are switched on instead), partial responses (`fields` is ignored).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use crate::clock::Clock;

mod calendar;
mod chaos;
mod check;
mod conference;
mod consent;
mod control;
mod deliver;
mod event_store;
mod faults;
mod grants;
mod id_token;
mod listing;
mod record;
mod refusal;
mod resource;
mod settings;
mod state;
mod teacher;
mod token;
mod wire;

pub use chaos::Chaos;
pub use check::{Expected, ExpectedEvent};
pub use conference::ConferenceMode;
pub use event_store::Writes;
pub use faults::{Commit, Ending, Fault, Operation, Rule, RuleState};
pub use grants::TokenMode;
pub use id_token::IdTokenMode;
pub use record::{Counters, Effect, LiveCount, Recorded, Recording, SessionCount, Violation};
pub use refusal::Refusal;
pub use settings::{AccountSettings, Quota, ServerSettings};
pub use teacher::{EventView, TeacherAction};

/// The scopes an account grants unless told otherwise.
pub const DEFAULT_SCOPES: [&str; 3] = ["openid", "email", "https://www.googleapis.com/auth/calendar.events"];

/// A fake Google; clones share everything.
#[derive(Clone)]
pub struct FakeGoogle(Arc<Mutex<state::State>>);

impl fmt::Debug for FakeGoogle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeGoogle").finish_non_exhaustive()
    }
}

/// A Google account to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NewAccount {
    /// Its address, which is also the id of its primary calendar.
    pub email: String,
    /// The name on the consent page; empty takes the address.
    pub name: String,
    /// `sub`; empty takes `sub-<email>`.
    pub sub: String,
    /// A refresh token that is valid from the start, as after an earlier consent; empty makes none.
    pub refresh_token: String,
    /// What that token grants; empty takes [`DEFAULT_SCOPES`].
    pub scopes: Vec<String>,
    /// IANA zone of the calendar; empty or unknown takes Europe/Madrid, whose answers never look like what was sent.
    pub time_zone: String,
}

impl Default for NewAccount {
    fn default() -> Self {
        Self::new("")
    }
}

impl NewAccount {
    /// An account that has not consented to anything yet.
    pub fn new(email: impl Into<String>) -> Self {
        Self {
            email: email.into(),
            name: String::new(),
            sub: String::new(),
            refresh_token: String::new(),
            scopes: Vec::new(),
            time_zone: String::new(),
        }
    }

    /// With this refresh token for [`DEFAULT_SCOPES`].
    #[must_use]
    pub fn connected(self, refresh_token: impl Into<String>) -> Self {
        Self { refresh_token: refresh_token.into(), ..self }
    }
}

/// An account as it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountView {
    /// Its address.
    pub email: String,
    /// The name on the consent page.
    pub name: String,
    /// `sub`
    pub sub: String,
    /// How Google treats it.
    pub settings: AccountSettings,
    /// Refresh tokens that still work.
    pub refresh_tokens: usize,
    /// Events that are not deleted.
    pub live_events: usize,
}

/// The fake being served. Dropping it stops the server; the events stay in the [`FakeGoogle`].
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// For `GOOGLE_CALENDAR_API_ROOT`.
    pub calendar_api_root: Url,
    /// For `GOOGLE_TOKEN_URI`.
    pub token_uri: Url,
    /// For `GOOGLE_AUTH_URI`.
    pub auth_uri: Url,
    /// For `GOOGLE_REVOKE_URI`.
    pub revoke_uri: Url,
    /// The page that lists the control routes.
    pub control_uri: Url,
    stop: DropGuard,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Stops accepting, lets answers under way finish and returns when the port is free again.
    pub async fn shutdown(self) -> io::Result<()> {
        drop(self.stop);
        self.task.await.map_err(io::Error::other)?
    }
}

impl FakeGoogle {
    /// Without accounts or events. Token expiry and the times of events follow `clock`; latencies, hangs and late
    /// commits take real time.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(state::State::new(clock))))
    }

    fn with<T>(&self, act: impl FnOnce(&mut state::State) -> T) -> T {
        // A panic under the lock is a fault of the fake and has been reported; the others may go on.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves on `addr`; port 0 takes a free one. The same fake can be served again after a shutdown, as after an
    /// outage.
    pub async fn serve(&self, addr: SocketAddr) -> io::Result<Running> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let url = |path: &str| Url::parse(&format!("http://{addr}{path}")).expect("an address and a path make a URL");
        let stopping = CancellationToken::new();
        let served = deliver::Served { google: self.clone(), stopping: stopping.clone(), root: url("/") };
        let router = Router::new()
            .route("/calendar/v3/calendars/{calendar}/events", calendar::collection())
            .route("/calendar/v3/calendars/{calendar}/events/{event}", calendar::member())
            .route("/token", post(token::token))
            .route("/revoke", post(token::revoke))
            .route("/o/oauth2/v2/auth", get(consent::show).post(consent::submit))
            .merge(control::router())
            .fallback(calendar::unknown)
            .with_state(served)
            .into_make_service_with_connect_info::<wire::Connection>();
        let http = axum::serve(wire::CuttableListener(listener), router)
            .with_graceful_shutdown(stopping.clone().cancelled_owned());
        Ok(Running {
            addr,
            calendar_api_root: url("/calendar/v3"),
            token_uri: url("/token"),
            auth_uri: url("/o/oauth2/v2/auth"),
            revoke_uri: url("/revoke"),
            control_uri: url("/_control"),
            stop: stopping.drop_guard(),
            task: tokio::spawn(async move { http.await }),
        })
    }

    /// Changes what holds for all accounts.
    pub fn configure(&self, change: impl FnOnce(&mut ServerSettings)) {
        self.with(|state| {
            change(&mut state.settings);
            state.recorder.recording = state.settings.recording;
        });
    }

    /// What holds for all accounts.
    pub fn settings(&self) -> ServerSettings {
        self.with(|state| state.settings.clone())
    }

    /// Makes an account, or gives a known one another refresh token. Answers the refresh token (empty: none).
    pub fn add_account(&self, account: &NewAccount) -> String {
        let or = |text: &str, default: String| if text.is_empty() { default } else { text.to_owned() };
        let name = or(&account.name, account.email.clone());
        let sub = or(&account.sub, format!("sub-{}", account.email));
        let zone = account.time_zone.parse().unwrap_or(chrono_tz::Europe::Madrid);
        let mut scopes = account.scopes.clone();
        if scopes.is_empty() {
            scopes = DEFAULT_SCOPES.map(str::to_owned).to_vec();
        }
        self.with(|state| {
            let number = state.add_account(&name, &account.email, &sub, zone);
            if !account.refresh_token.is_empty() {
                state.grants.add_refresh(number, account.refresh_token.clone(), &scopes);
            }
        });
        account.refresh_token.clone()
    }

    /// Gives the account a secondary calendar; does nothing for an unknown account.
    pub fn add_calendar(&self, email: &str, calendar: &str) {
        self.with(|state| {
            if let Some(number) = state.account_number(email) {
                let account = &mut state.accounts[number];
                let zone = account.calendars[0].zone;
                account.calendars.push(event_store::Calendar::new(calendar, zone));
            }
        });
    }

    /// All accounts.
    pub fn accounts(&self) -> Vec<AccountView> {
        self.with(|state| {
            let view = |(number, account): (usize, &state::Account)| AccountView {
                email: account.email.to_string(),
                name: account.name.clone(),
                sub: account.sub.clone(),
                settings: account.settings.clone(),
                refresh_tokens: state.grants.live_refresh_tokens(number),
                live_events: account
                    .calendars
                    .iter()
                    .map(|calendar| calendar.events.values().filter(|stored| stored.live).count())
                    .sum(),
            };
            state.accounts.iter().enumerate().map(view).collect()
        })
    }

    /// Changes how Google treats one account; does nothing for an unknown one.
    pub fn configure_account(&self, email: &str, change: impl FnOnce(&mut AccountSettings)) {
        self.with(|state| {
            if let Some(number) = state.account_number(email) {
                change(&mut state.accounts[number].settings);
            }
        });
    }

    /// The person removes our access: all tokens die.
    pub fn revoke_grant(&self, email: &str) {
        self.with(|state| {
            if let Some(number) = state.account_number(email) {
                state.grants.revoke_account(number);
            }
        });
    }

    /// All access tokens of the account end now; refresh tokens stay.
    pub fn expire_access_tokens(&self, email: &str) {
        self.with(|state| {
            if let Some(number) = state.account_number(email) {
                state.grants.expire_access(number);
            }
        });
    }

    /// An access token for the account, without the token endpoint. `None` for an unknown account.
    pub fn access_token(&self, email: &str, scopes: &[&str]) -> Option<String> {
        let scopes: Vec<_> = scopes.iter().map(|&scope| scope.to_owned()).collect();
        self.with(|state| {
            let number = state.account_number(email)?;
            let (now, seconds) = (state.clock.now(), state.settings.access_token_lifetime_s);
            Some(state.grants.add_access(number, &scopes, now, seconds))
        })
    }

    /// Adds a fault after those there are; answers its number.
    pub fn add_fault(&self, rule: Rule) -> u64 {
        self.with(|state| state.faults.add(rule))
    }

    /// Takes one rule away; false when there is none of that number.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.with(|state| state.faults.remove(id))
    }

    /// Takes all rules and the random mix away. What was accepted late stays.
    pub fn clear_faults(&self) {
        self.with(|state| state.faults.clear());
    }

    /// The rules, with how often each was met.
    pub fn faults(&self) -> Vec<RuleState> {
        self.with(|state| state.faults.rules().to_vec())
    }

    /// Turns the random mix on or off.
    pub fn set_chaos(&self, chaos: Option<Chaos>) {
        self.with(|state| state.faults.set_chaos(chaos));
    }

    /// Carries out every request that was accepted late; answers how many there were.
    pub fn release_late(&self) -> usize {
        self.with(|state| state.release_late(None))
    }

    /// The requests that are kept, oldest first.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.with(|state| state.recorder.requests().cloned().collect())
    }

    /// Totals since the start or the last reset.
    pub fn counters(&self) -> Counters {
        self.with(|state| state.recorder.counters.clone())
    }

    /// Inserts of an event beside a live one of the same session and account; the first thousand.
    pub fn violations(&self) -> Vec<Violation> {
        self.with(|state| state.watch.violations.clone())
    }

    /// Live events by session, now and at most so far; the marker is the private property `mpSession`.
    pub fn session_counts(&self) -> Vec<(Arc<str>, SessionCount)> {
        self.with(|state| {
            let counts = state.watch.sessions.iter();
            counts.map(|(session, count)| (Arc::clone(session), count.clone())).collect()
        })
    }

    /// Forgets counters, recorded requests and violations; events, grants and faults stay.
    pub fn reset_records(&self) {
        self.with(|state| {
            state.recorder.reset();
            state.watch.reset();
        });
    }
}
