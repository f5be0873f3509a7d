//! What a person has to know, told once: a line in the log, and a post to `OPS_WEBHOOK_URL`.
//!
//! A notice is about a *cause*, never about one session: forty lessons of a teacher whose grant died are one cause, and
//! so are three such teachers. What was told is in the database, so restarts and replicas neither repeat nor forget it:
//! [`watch()`] compares what is seen with what was told ([`decide()`]) and keeps the outcome by compare-and-set, so
//! that one process tells; [`deliver()`] posts the texts that wait in the database, at most one for each cause, until
//! the webhook takes them. The two run beside each other and beside everything else: a webhook that hangs holds up
//! nothing but itself.
//!
//! Deliberately absent: one message for each session, addresses of people, Meet links.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::google::breaker::Breaker;
use crate::model::UnixMillis;
use crate::retry::{Jitter, RetrySchedule};
use crate::store::notices::{Facts, Told};
use crate::store::{Store, StoreError};
use crate::telemetry::Chain;

pub mod decide;
mod text;
mod webhook;

use decide::{Rule, Tell, decide};
use text::Story;
pub use webhook::{Webhook, WebhookError};

/// How often is looked whether there is something to tell.
const WATCH_EVERY: Duration = Duration::from_secs(10);
/// How often is looked whether a text waits for the webhook.
const DELIVER_EVERY: Duration = Duration::from_secs(5);
/// A session that starts within this time should have its link.
const SOON_MS: i64 = 30 * 60_000;
/// A grant that ends within this time should be renewed by its teacher.
const ENDING_MS: i64 = 3 * 24 * 3_600_000;
/// Texts that are being posted are nobody else's for so long: six posts, one after the other, and some.
const POST_LEASE_MS: i64 = 2 * 60_000;
/// A text that the webhook did not take for so long is dropped; what is still true then is told anew.
const STALE_MS: i64 = 24 * 3_600_000;
/// Waits between posts of one text.
const POSTS: RetrySchedule = RetrySchedule { base_ms: 15_000, cap_ms: 30 * 60_000 };

/// What a notice may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Teachers have to connect.
    TeachersToConnect,
    /// Sessions start soon without a link.
    SessionsWithoutLink,
    /// There are dead letters.
    DeadLetters,
    /// Grants end by themselves before long.
    GrantsEnding,
    /// Google refuses our project at the Calendar API.
    CalendarBreaker,
    /// Google refuses our client at the token endpoint.
    TokenBreaker,
}

impl Cause {
    /// All causes with the word in the database and in the log.
    pub const WORDS: [(Self, &'static str); 6] = [
        (Self::TeachersToConnect, "teachers_to_connect"),
        (Self::SessionsWithoutLink, "sessions_without_link"),
        (Self::DeadLetters, "dead_letters"),
        (Self::GrantsEnding, "grants_ending"),
        (Self::CalendarBreaker, "calendar_breaker"),
        (Self::TokenBreaker, "token_breaker"),
    ];

    const fn rule(self) -> Rule {
        const MINUTE_MS: i64 = 60_000;
        match self {
            Self::TeachersToConnect | Self::DeadLetters => {
                Rule { settle_ms: MINUTE_MS, gap_ms: 60 * MINUTE_MS, gone_ms: MINUTE_MS }
            }
            Self::SessionsWithoutLink => Rule { settle_ms: MINUTE_MS, gap_ms: 10 * MINUTE_MS, gone_ms: MINUTE_MS },
            Self::GrantsEnding => Rule { settle_ms: 0, gap_ms: 24 * 60 * MINUTE_MS, gone_ms: MINUTE_MS },
            // Each process knows its own breakers, so what this one does not see, another one may.
            Self::CalendarBreaker | Self::TokenBreaker => {
                Rule { settle_ms: 0, gap_ms: 10 * MINUTE_MS, gone_ms: 2 * MINUTE_MS }
            }
        }
    }

    const fn resolved(self) -> &'static str {
        match self {
            Self::TeachersToConnect => "every teacher who has to be is connected",
            Self::SessionsWithoutLink => "no session near its start lacks a Meet link",
            Self::DeadLetters => "there are no open dead letters",
            Self::GrantsEnding => "no teacher's access ends within three days",
            Self::CalendarBreaker => "Google's Calendar API accepts this installation again",
            Self::TokenBreaker => "Google's token endpoint accepts this installation again",
        }
    }
}

/// What the notices work with.
#[derive(Debug)]
pub struct NoticeContext {
    /// Where facts are, and what was told.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Where notices go beside the log.
    pub webhook: Option<Webhook>,
    /// The breaker of the Calendar API.
    pub calendar_breaker: Breaker,
    /// The breaker of the token endpoint.
    pub token_breaker: Breaker,
    /// Whether the projection is that of today: before, nothing is said about sessions.
    pub caught_up: watch::Receiver<bool>,
    /// Spreads the posts.
    pub jitter: Jitter,
}

/// Watches and delivers until cancelled; every failure is waited out.
pub async fn run(context: NoticeContext, cancel: CancellationToken) {
    let watching = every(WATCH_EVERY, &cancel, || async { watch(&context).await.map(drop) });
    let delivering = every(DELIVER_EVERY, &cancel, || async { deliver(&context).await.map(drop) });
    tokio::join!(watching, delivering);
}

async fn every<F>(pause: Duration, cancel: &CancellationToken, step: impl Fn() -> F)
where
    F: Future<Output = Result<(), StoreError>>,
{
    let mut is_failing = false;
    loop {
        tokio::select! {
            done = step() => match done {
                Ok(()) => is_failing = false,
                Err(error) => {
                    if !is_failing {
                        warn!(error = %Chain(&error), "notices wait for the database");
                    }
                    is_failing = true;
                }
            },
            () = cancel.cancelled() => break,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => break,
        }
    }
}

/// Looks once, and says what this process told; public for tests.
pub async fn watch(context: &NoticeContext) -> Result<Vec<(Cause, Tell, String)>, StoreError> {
    let now = context.clock.now();
    let (facts, told) = context.store.notice_facts(now, now.plus(SOON_MS), now.plus(ENDING_MS)).await?;
    let is_caught_up = *context.caught_up.borrow();
    let mut heard = Vec::new();
    for (cause, word) in Cause::WORDS {
        let of_sessions = matches!(cause, Cause::TeachersToConnect | Cause::SessionsWithoutLink);
        if of_sessions && !is_caught_up {
            continue;
        }
        let known = told.iter().find(|(known, _)| known == word).map_or_else(Told::default, |(_, told)| told.clone());
        let story = story(context, cause, &facts);
        let Some((next, tell)) = decide(&known, story.as_ref().map(|story| &story.seen), &cause.rule(), now) else {
            continue;
        };
        let text = tell.map(|tell| text::notice(tell, story.as_ref(), cause.resolved()));
        let outgoing = text.as_deref().filter(|_| context.webhook.is_some());
        if !context.store.keep_notice(word, &next, outgoing, now).await? {
            // Another process was faster, and tells it.
            continue;
        }
        if let (Some(tell), Some(text)) = (tell, text) {
            if tell == Tell::Resolved {
                info!(cause = word, "{text}");
            } else {
                warn!(cause = word, "{text}");
            }
            heard.push((cause, tell, text));
        }
    }
    Ok(heard)
}

fn story(context: &NoticeContext, cause: Cause, facts: &Facts) -> Option<Story> {
    match cause {
        Cause::TeachersToConnect => text::unconnected(&facts.unconnected),
        Cause::SessionsWithoutLink => text::without_link(&facts.without_link),
        Cause::DeadLetters => text::dead_letters(facts.dead_letters, &facts.newest_dead_letters),
        Cause::GrantsEnding => text::ending(&facts.ending),
        Cause::CalendarBreaker => text::breaker("its Calendar API", context.calendar_breaker.open().as_ref()),
        Cause::TokenBreaker => text::breaker("its token endpoint", context.token_breaker.open().as_ref()),
    }
}

/// Posts what waits, once, and says how many texts were taken; public for tests.
pub async fn deliver(context: &NoticeContext) -> Result<usize, StoreError> {
    let Some(webhook) = &context.webhook else { return Ok(0) };
    let store = &context.store;
    let mut taken = 0;
    for outgoing in store.take_outgoing(context.clock.now(), POST_LEASE_MS).await? {
        let age_ms = context.clock.now().since(outgoing.written_at);
        if age_ms > STALE_MS {
            warn!(cause = outgoing.cause, "the webhook did not take a notice for a day; it is dropped");
            store.end_outgoing(&outgoing).await?;
            continue;
        }
        match webhook.post(&outgoing.text).await {
            Ok(()) => {
                taken += 1;
                store.end_outgoing(&outgoing).await?;
            }
            Err(error) => {
                if outgoing.attempts == 1 {
                    warn!(cause = outgoing.cause, reason = %error, "the webhook did not take a notice; trying again");
                }
                // At least half of the ceiling: a webhook that fails at once is not to be hammered.
                let random = 0.5 + context.jitter.next() / 2.0;
                let wait_ms = POSTS.delay_ms(outgoing.attempts, random, error.retry_after_ms);
                let at: UnixMillis = context.clock.now().plus(wait_ms);
                store.postpone_outgoing(&outgoing, at).await?;
            }
        }
    }
    Ok(taken)
}
