//! The events at Google against what the projection knows of them: one conditional GET for each event of ours that
//! should be there, and nothing else of any calendar. An event that did not change costs Google next to nothing (304).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{Finding, NAMED_MAX, Scope};
use crate::clock::Clock;
use crate::config::{Config, GoogleConfig};
use crate::credential::KeyRing;
use crate::google::access::AccessTokens;
use crate::google::breaker::Breaker;
use crate::google::calendar::{CalendarClient, http_client};
use crate::google::error::Class;
use crate::google::limits::Limits;
use crate::google::oauth::TokenEndpoint;
use crate::google::{Answer, Call, RemoteConference, RemoteEvent, RemoteStatus, Wanted};
use crate::model::{TeacherId, UnixMillis};
use crate::plan::{MeetEvent, Phase, Policy, Want, wanted};
use crate::projection::Session;
use crate::reconciler::Gateway;
use crate::run::progress::Progress;
use crate::run::{WorkError, patiently};
use crate::store::{Credential, RowKey, Store, TokenStatus};
use crate::telemetry::Metrics;

/// How long a look may wait for the rate limit.
const PATIENCE: Duration = Duration::from_mins(10);

/// What Google said.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GoogleReport {
    /// Events that were looked at.
    pub looked: i64,
    /// Unchanged since we last saw them, by Google's own word (304).
    pub unchanged: i64,
    /// Answered in full, and as wanted.
    pub agree: i64,
    /// Deleted by hand.
    pub deleted: i64,
    /// Changed by hand in a field of ours, or without a link.
    pub changed: i64,
    /// Not there at all.
    pub gone: i64,
    /// Not looked at, because the service is about to write them or waits for something.
    pub unsettled: i64,
    /// Not looked at, because their teacher is not connected or Google did not answer.
    pub unchecked: i64,
    /// Why, with how many.
    pub why: BTreeMap<String, i64>,
    /// The first of everything that differs.
    pub findings: Vec<Finding>,
    /// Rows that differ, for the reconciler.
    #[serde(skip)]
    pub differing: Vec<RowKey>,
    /// Somebody asked to stop before the end.
    pub is_stopped: bool,
}

impl GoogleReport {
    /// Whether everything that was looked at agrees.
    pub fn agrees(&self) -> bool {
        self.deleted + self.changed + self.gone == 0
    }

    /// Whether some of it could not be looked at.
    pub fn is_partial(&self) -> bool {
        self.is_stopped || self.unchecked > 0 || self.unsettled > 0
    }

    fn differs(&mut self, kind: &'static str, row: &MeetEvent, what: &str) {
        self.differing.push(RowKey {
            session: row.session.clone(),
            ordinal: row.ordinal,
            teacher: row.teacher.clone(),
        });
        if self.findings.len() < NAMED_MAX {
            self.findings.push(Finding {
                kind,
                session_id: Some(row.session.to_string()),
                sequence: None,
                what: what.to_owned(),
            });
        }
    }

    fn unchecked(&mut self, why: &str) {
        self.unchecked += 1;
        *self.why.entry(why.to_owned()).or_default() += 1;
    }
}

/// The way to Google, with the same limits as the service has.
pub fn gateway(config: &Config, google: &GoogleConfig, keys: KeyRing, store: &Store, clock: &Clock) -> Gateway {
    let http = http_client();
    let endpoint = TokenEndpoint::new(http.clone(), &google.client_id, &google.client_secret, google.token_uri.clone());
    let access = AccessTokens::new(store.clone(), endpoint, Arc::new(keys), clock.clone());
    tracing::debug!(environment = config.environment, "looking at Google");
    Gateway {
        calendar: CalendarClient::new(http, google.calendar_api_root.clone(), google.send_updates),
        access: Arc::new(access),
        limits: Limits::new(google.rate_per_teacher, google.rate_per_project, google.max_in_flight),
        breaker: Breaker::default(),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
    }
}

/// Looks at each event that should be there, of sessions that are not over. Reads only; at most `rate` a second.
#[expect(clippy::too_many_arguments, reason = "each is one thing a look needs, and none belongs to another")]
pub async fn compare(
    gateway: &Gateway,
    store: &Store,
    scope: &Scope,
    policy: &Policy,
    rate: Option<u32>,
    clock: &Clock,
    progress: &mut Progress,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<GoogleReport, WorkError> {
    let mut report = GoogleReport::default();
    let total = store.session_count().await?;
    let mut seen = 0;
    let mut next_at = Instant::now();
    let mut after = None;
    while let Some(page) = scope.page(store, &mut after).await? {
        let teachers: HashSet<TeacherId> =
            page.iter().flat_map(|known| known.rows.iter().map(|row| row.teacher.clone())).collect();
        let grants: HashMap<_, _> = patiently(async || Ok(store.credentials_of(&teachers).await?)).await?;
        for known in &page {
            seen += 1;
            progress.at(seen, total);
            for row in known.rows.iter().filter(|row| should_be_there(&known.session, row, clock.now())) {
                if is_asked_to_stop() {
                    report.is_stopped = true;
                    return Ok(report);
                }
                if row.phase != Phase::Live || !row.settled || row.binding.is_none() {
                    report.unsettled += 1;
                    continue;
                }
                if let Some(rate) = rate {
                    tokio::time::sleep_until(next_at).await;
                    next_at = next_at.max(Instant::now()) + Duration::from_secs(1) / rate.max(1);
                }
                look(gateway, grants.get(&row.teacher), &known.session, row, policy, &mut report).await;
            }
        }
    }
    Ok(report)
}

fn should_be_there(session: &Session, row: &MeetEvent, now: UnixMillis) -> bool {
    let is_over = session.details.as_ref().is_none_or(|(_, details)| details.ends_at <= now);
    row.want == Want::Present && !row.phase.is_final() && !is_over
}

async fn look(
    gateway: &Gateway,
    grant: Option<&Credential>,
    session: &Session,
    row: &MeetEvent,
    policy: &Policy,
    report: &mut GoogleReport,
) {
    let Some(credential) = grant.filter(|grant| grant.status == TokenStatus::Connected) else {
        return report.unchecked("the teacher is not connected");
    };
    let (Some(binding), Some(wanted)) = (&row.binding, wanted(session, row, policy)) else {
        report.unsettled += 1;
        return;
    };
    if binding.account != credential.account {
        return report.unchecked("the event is on an account that is no longer connected");
    }
    let call = Call::Get { if_none_match: row.etag.clone() };
    let Some(admission) = gateway.admit(&row.teacher, &call, PATIENCE).await else {
        return report.unchecked("the rate limit leaves no room");
    };
    let answer = match admission {
        Err(error) => Err(error),
        Ok(_admission) => gateway.call(credential, binding, &row.session, &call, Some(&wanted), 0).await,
    };
    report.looked += 1;
    match answer {
        Ok(Answer::NotModified) => report.unchanged += 1,
        Ok(Answer::Event(event)) => judge(row, &wanted, &event, report),
        Ok(_) => report.unchecked("Google gave an answer to another question"),
        Err(error) => match error.class {
            Class::NotFound => {
                report.gone += 1;
                report.differs("gone", row, "Google does not know the event any more");
            }
            Class::Deleted => {
                report.deleted += 1;
                report.differs("deleted", row, "the event was deleted");
            }
            _ => {
                report.looked -= 1;
                report.unchecked("Google did not answer, or refused");
            }
        },
    }
}

fn judge(row: &MeetEvent, wanted: &Wanted, event: &RemoteEvent, report: &mut GoogleReport) {
    if event.status == RemoteStatus::Cancelled {
        report.deleted += 1;
        return report.differs("deleted", row, "the event was deleted");
    }
    let has_moved = event.starts_at != Some(wanted.starts_at) || event.ends_at != Some(wanted.ends_at);
    let is_other = row.accepted_hash.as_deref() != Some(&event.owned_hash);
    let has_link = matches!(&event.conference, RemoteConference::Meet(link) if row.link.as_ref() == Some(link));
    if has_moved {
        report.changed += 1;
        report.differs("moved", row, "the event has another time");
    } else if is_other {
        report.changed += 1;
        report.differs("changed", row, "a field of ours was changed");
    } else if !has_link {
        report.changed += 1;
        report.differs("changed", row, "the Meet link is another one, or gone");
    } else {
        report.agree += 1;
    }
}
