//! The pull loop: requests, groups and the end of a session.
//!
//! A request for 512 messages stands at the server all the time; the next one is sent when less than half of it is still
//! to come, so that the network never waits for the database. Behind it stands one group in the making, one waiting and
//! one being committed; when the database is slow this chain fills up and no further request is sent.
//!
//! A group is passed on when it is full, when the server said that nothing more waits, or after [`LINGER`]. A single event
//! on a quiet stream therefore never waits, and under load groups grow by themselves while the one before is committed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use async_nats::{Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::commit::{Committer, Group, hand_back};
use super::reply::Delivery;
use super::{End, SessionError, Work, durable};
use crate::event::decode;
use crate::model::{Place, UnixMillis};
use crate::nats::Connection;
use crate::nats::direct::pairs;
use crate::nats::epoch::fingerprint;
use crate::nats::epoch::sight::{Standing, settle};
use crate::store::{EpochRecord, Incoming, RawMessage, Refused};
use crate::telemetry::trace::Processing;

/// Messages of one request.
const BATCH: usize = 512;

/// Messages of one group at most. What a transaction costs however small it is, some tenths of a millisecond, is nothing
/// for so many. Three groups and what requests may still bring stay below the consumer's `max_ack_pending` of 4,096.
const GROUP_MAX: usize = 1024;

/// A group of so many bytes is full: it bounds the memory, whatever the size of messages.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a group waits for messages of which the server said that they come.
const LINGER: Duration = Duration::from_millis(20);

/// A request that was neither filled nor ended this long after it expired was lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// Requests that fail in a row before the questions of a session are asked again.
const FAILURES_MAX: u32 = 3;

/// A message delivered this often is folded alone: should it be what kills the process, it takes no other with it.
const SUSPECT_DELIVERIES: u64 = 5;

/// How long each step of handing back may take when a session ends.
pub(super) const HAND_BACK: Duration = Duration::from_millis(500);

/// A gap that is this many looks old is worth asking whether the consumer lost a message.
const OLD_GAP: u32 = 20;

/// A request under way.
struct Pull {
    id: u64,
    remaining: usize,
    lost_at: Instant,
}

/// One session of pulling.
pub(super) struct Session<'a> {
    work: &'a Work,
    record: EpochRecord,
    inbox: String,
    next_subject: String,
    pulls: VecDeque<Pull>,
    pulls_sent: u64,
    failures: u32,
    pull_not_before: Instant,
    group: Group,
    /// Bytes of the group's payloads.
    group_bytes: usize,
    /// The group goes on as soon as there is room for it.
    ready: bool,
    linger_until: Instant,
    /// A suspect that waits for the group before it to go on.
    suspect: Option<(Incoming, Subject, Processing)>,
    lag: u64,
    redelivered: u64,
    /// Messages of the subscription so far, answers to requests included.
    received: u64,
}

impl<'a> Session<'a> {
    pub(super) fn new(work: &'a Work, record: EpochRecord) -> Self {
        let now = Instant::now();
        Self {
            inbox: work.connection.client.new_inbox(),
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", record.stream, record.consumer),
            work,
            record,
            pulls: VecDeque::new(),
            pulls_sent: 0,
            failures: 0,
            pull_not_before: now,
            group: Group::default(),
            group_bytes: 0,
            ready: false,
            linger_until: now,
            suspect: None,
            lag: 0,
            redelivered: 0,
            received: 0,
        }
    }

    /// Pulls until something ends it; then everything that is not committed is handed back.
    pub(super) async fn run(mut self) -> End {
        let connection = &self.work.connection;
        let subscribed = tokio::select! {
            subscribed = connection.client.subscribe(format!("{}.*", self.inbox)) => subscribed,
            () = self.work.context.cancel.cancelled() => return End::Cancelled,
        };
        let mut subscriber = match subscribed {
            Ok(subscriber) => subscriber,
            Err(error) => return End::ConsumerGone(error.to_string()),
        };
        let (groups, committer, abandon) = self.start_committer();
        let end = self.pull(&mut subscriber, &groups).await;
        abandon.cancel();
        drop(groups);
        let is_connected = !matches!(end, End::Reconnected) && connection.events.now().connected;
        self.hand_back(subscriber, is_connected).await;
        if let Err(error) = committer.await {
            tracing::error!(%error, "committing ended in a panic; what it held is delivered again");
        }
        end
    }

    fn start_committer(&self) -> (mpsc::Sender<Group>, JoinHandle<()>, CancellationToken) {
        let (sender, receiver) = mpsc::channel(1);
        let abandon = CancellationToken::new();
        let committer = Committer {
            context: self.work.context.clone(),
            connection: self.work.connection.clone(),
            record: self.record.clone(),
            abandon: abandon.clone(),
        };
        (sender, tokio::spawn(committer.run(receiver)), abandon)
    }

    async fn pull(&mut self, subscriber: &mut Subscriber, groups: &mpsc::Sender<Group>) -> End {
        let work = self.work;
        let cancel = &work.context.cancel;
        let mut paused = work.context.paused.clone();
        let mut connectivity = work.connection.events.subscribe();
        let connects = connectivity.borrow_and_update().connects;
        let record = self.record.clone();
        let watch = watch(work, &record);
        tokio::pin!(watch);
        loop {
            // While the server is away the library takes some thousand messages and then keeps the next one waiting.
            let topped_up = tokio::select! {
                topped_up = self.top_up() => topped_up,
                () = cancel.cancelled() => return End::Cancelled,
                () = connectivity.wait_for(|state| state.connects != connects).map(drop) => return End::Reconnected,
            };
            if let Err(end) = topped_up {
                return end;
            }
            while self.has_room() {
                match subscriber.next().now_or_never() {
                    Some(Some(message)) => {
                        if let Err(end) = self.take(message) {
                            return end;
                        }
                    }
                    Some(None) => return End::Reconnected,
                    None => break,
                }
            }
            let next_pull = self.pulls.front().map_or(self.pull_not_before, |pull| pull.lost_at);
            let lingers = !self.group.incoming.is_empty() && !self.ready;
            tokio::select! {
                biased;
                () = cancel.cancelled() => return End::Cancelled,
                () = connectivity.wait_for(|state| state.connects != connects).map(drop) => return End::Reconnected,
                true = paused.wait_for(|paused| *paused).map(|paused| paused.is_ok()) => return End::Paused,
                message = subscriber.next(), if self.has_room() => match message {
                    Some(message) => if let Err(end) = self.take(message) {
                        return end;
                    },
                    None => return End::Reconnected,
                },
                permit = groups.reserve(), if self.ready => match permit {
                    Ok(permit) => permit.send(self.next_group()),
                    Err(_) => return End::ConsumerGone("the committing task ended".into()),
                },
                () = sleep_until(self.linger_until), if lingers => self.ready = true,
                () = sleep_until(next_pull) => self.drop_lost_pulls(),
                end = &mut watch => return end,
            }
        }
    }

    /// Whether another message may be read: never more than one group and one suspect are in the making.
    fn has_room(&self) -> bool {
        !self.is_full() && self.suspect.is_none() && !self.group.is_suspect
    }

    fn is_full(&self) -> bool {
        self.group.incoming.len() >= GROUP_MAX || self.group_bytes >= GROUP_BYTES_MAX
    }

    /// Sends the next request when less than half of one is still to come.
    async fn top_up(&mut self) -> Result<(), End> {
        let outstanding: usize = self.pulls.iter().map(|pull| pull.remaining).sum();
        if outstanding >= BATCH / 2 || Instant::now() < self.pull_not_before || !self.has_room() {
            return Ok(());
        }
        if self.failures >= FAILURES_MAX {
            return Err(End::ConsumerGone(format!("{FAILURES_MAX} requests in a row had no answer")));
        }
        self.pulls_sent += 1;
        let expires = self.work.context.pace.expires;
        let body = format!(r#"{{"batch":{BATCH},"expires":{}}}"#, expires.as_nanos());
        let inbox = format!("{}.{}", self.inbox, self.pulls_sent);
        let client = &self.work.connection.client;
        let sent = client.publish_with_reply(self.next_subject.clone(), inbox, Bytes::from(body)).await;
        sent.map_err(|error| End::ConsumerGone(error.to_string()))?;
        let lost_at = Instant::now() + expires + LOST_AFTER;
        self.pulls.push_back(Pull { id: self.pulls_sent, remaining: BATCH, lost_at });
        Ok(())
    }

    fn drop_lost_pulls(&mut self) {
        let now = Instant::now();
        while self.pulls.front().is_some_and(|pull| pull.lost_at <= now) {
            self.pulls.pop_front();
            self.failed();
        }
    }

    /// The next request waits a little longer after each failure.
    fn failed(&mut self) {
        self.failures += 1;
        self.pull_not_before = Instant::now() + Duration::from_millis(100) * self.failures;
    }

    /// An event, or what became of a request.
    fn take(&mut self, message: Message) -> Result<(), End> {
        self.received += 1;
        if message.status.is_some() {
            return self.take_status(&message);
        }
        let delivery = message.reply.as_ref().and_then(|reply| Delivery::parse(reply));
        let (Some(delivery), Some(reply)) = (delivery, message.reply.clone()) else {
            tracing::debug!(subject = %message.subject, "ignoring a message that is no delivery");
            return Ok(());
        };
        self.failures = 0;
        if let Some(pull) = self.pulls.front_mut() {
            pull.remaining -= 1;
            if pull.remaining == 0 {
                self.pulls.pop_front();
            }
        }
        self.lag = delivery.pending;
        self.redelivered += u64::from(delivery.deliveries > 1);
        let span = Processing::begin();
        let mut incoming = read(message, delivery, &self.record);
        span.decoded(&mut incoming, &self.record, &self.work.context.nats.subjects);
        if delivery.deliveries >= SUSPECT_DELIVERIES {
            self.ready = true;
            if !self.group.incoming.is_empty() {
                self.suspect = Some((incoming, reply, span));
                return Ok(());
            }
            self.group.is_suspect = true;
        } else if self.group.incoming.is_empty() {
            self.linger_until = Instant::now() + LINGER;
        }
        self.push(incoming, reply, span);
        self.ready |= delivery.pending == 0 || self.is_full();
        Ok(())
    }

    /// <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-37.md#status-messages>
    fn take_status(&mut self, message: &Message) -> Result<(), End> {
        let code = message.status.map_or(0, |status| status.as_u16());
        let text = message.description.as_deref().unwrap_or_default();
        if code == 100 {
            return Ok(());
        }
        let id = message.subject.rsplit('.').next().and_then(|id| id.parse::<u64>().ok());
        self.pulls.retain(|pull| Some(pull.id) != id);
        let lower = text.to_ascii_lowercase();
        match code {
            // Expired or done: the ordinary end of a request.
            404 | 408 => self.failures = 0,
            409 if lower.contains("batch completed") => self.failures = 0,
            409 if lower.contains("deleted") || lower.contains("push based") => {
                return Err(End::ConsumerGone(text.to_owned()));
            }
            // A new leader, a server that shuts down, too many requests waiting, nobody there, a bad request.
            _ => {
                tracing::debug!(code, text, "a request for events was refused");
                self.failed();
            }
        }
        Ok(())
    }

    fn push(&mut self, incoming: Incoming, reply: Subject, span: Processing) {
        self.group_bytes += incoming.raw.payload.len();
        self.group.incoming.push(incoming);
        self.group.replies.push(reply);
        self.group.spans.push(span);
    }

    /// The group in the making; the suspect, if one waits, becomes the next one.
    fn next_group(&mut self) -> Group {
        let group = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        self.ready = false;
        if let Some((incoming, reply, span)) = self.suspect.take() {
            self.push(incoming, reply, span);
            self.group.is_suspect = true;
            self.ready = true;
        }
        self.work.context.health.received(self.lag, std::mem::take(&mut self.redelivered), &group.incoming);
        group
    }

    /// Stops the delivery, and hands back what was delivered and is in nobody's hands.
    ///
    /// What was under way when one says "no more" must not be lost, or it would come again only after `ack_wait`. The
    /// library's `drain()` may forget a subscription before the server has heard of it; and what is handed back while a
    /// request stands comes straight back. So the subscription is told to end after as many messages as could still come,
    /// and filled up with marks of our own: the server stops delivering at exactly the message at which we stop listening.
    async fn hand_back(self, mut subscriber: Subscriber, is_connected: bool) {
        let connection = &self.work.connection;
        let mut replies = self.group.replies;
        replies.extend(self.suspect.map(|(_, reply, _)| reply));
        let coming = self.pulls.iter().map(|pull| pull.remaining + 1).sum::<usize>() + 1;
        let ended = if is_connected {
            let mark = format!("{}.end", self.inbox);
            timeout(HAND_BACK, end_after(connection, &mut subscriber, self.received + coming as u64, coming, mark))
                .await
        } else {
            // The server forgot our requests with the connection; what it had sent is all that is there.
            let unsubscribed = async { subscriber.unsubscribe().await.map_err(|error| error.to_string()) };
            timeout(HAND_BACK, unsubscribed).await
        };
        if !matches!(ended, Ok(Ok(()))) {
            tracing::debug!(?ended, "the connection is gone; what was under way comes again after ack_wait");
        }
        let rest = timeout(HAND_BACK, async {
            while let Some(message) = subscriber.next().await {
                let reply = message.reply.filter(|reply| Delivery::parse(reply).is_some());
                replies.extend(reply);
            }
        });
        if rest.await.is_err() {
            tracing::debug!("the server is gone; what was under way comes again after ack_wait");
        }
        hand_back(connection, &replies).await;
    }
}

/// Ends the subscription after `total` messages of its life, and sends it `marks` of them.
async fn end_after(
    connection: &Connection,
    subscriber: &mut Subscriber,
    total: u64,
    marks: usize,
    subject: String,
) -> Result<(), String> {
    subscriber.unsubscribe_after(total).await.map_err(|error| error.to_string())?;
    for _ in 0..marks {
        connection.client.publish(subject.clone(), Bytes::new()).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Everything the fold needs to know of a delivered message.
fn read(message: Message, delivery: Delivery, record: &EpochRecord) -> Incoming {
    let headers = message.headers.as_ref().map(|headers| pairs(headers, false)).unwrap_or_default();
    let message_id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
    let fingerprint = fingerprint(
        &message.subject,
        message_id.map(async_nats::HeaderValue::as_str),
        delivery.stored_at_ns,
        &message.payload,
    );
    let place = Place { epoch: record.epoch, sequence: delivery.sequence };
    let view = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    // One message must not stop the others, not even by a mistake of ours.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(&message.subject, view, &message.payload, place)));
    let decoded = decoded.unwrap_or_else(|_| {
        let reason = "reading this event failed in the program itself: please report it with its payload".to_owned();
        Err(Refused { class: "decoder_failed", reason, session: None })
    });
    Incoming {
        sequence: delivery.sequence,
        stored_at: UnixMillis::new(delivery.stored_at_ns.div_euclid(1_000_000)),
        fingerprint,
        raw: RawMessage { subject: message.subject.to_string(), headers, payload: message.payload },
        decoded,
    }
}

/// What nobody tells us: whether the stream is still the one it was, and whether something was left out. Returns only
/// when the session has to end.
async fn watch(work: &Work, record: &EpochRecord) -> End {
    let pace = work.context.pace;
    let mut next_check = Instant::now() + pace.check;
    let mut gap_looks = 0;
    loop {
        tokio::time::sleep(pace.gap.min(pace.check)).await;
        let position = work.context.health.snapshot();
        gap_looks = if position.contiguous < position.highest { gap_looks + 1 } else { 0 };
        let is_due = Instant::now() >= next_check;
        let looked = if is_due || gap_looks > 0 && gap_looks % OLD_GAP == 0 {
            next_check = Instant::now() + pace.check;
            look(work, record).await
        } else if gap_looks > 0 {
            durable::close_gaps(work, record).await.map(|(position, _)| {
                work.context.health.position(&position);
                None
            })
        } else {
            Ok(None)
        };
        match looked {
            Ok(None) => {}
            Ok(Some(end)) => return end,
            // Requests for events fail too when this lasts; that ends the session with more to say.
            Err(error) => tracing::debug!(error = %crate::telemetry::Chain(&error), "could not look at the stream"),
        }
    }
}

async fn look(work: &Work, record: &EpochRecord) -> Result<Option<End>, SessionError> {
    let context = &work.context;
    match settle(&work.connection, &context.nats, &context.store, context.clock.now()).await? {
        Standing::Open(now) if now.epoch == record.epoch => {}
        Standing::Open(_) => return Ok(Some(End::EpochMoved)),
        Standing::Blocked(ambiguity) => {
            return Ok(Some(End::Blocked(format!("{}. {}", ambiguity.seen, ambiguity.advice))));
        }
    }
    let hole = durable::find_hole(work, record).await?;
    let position = context.store.position(record.epoch).await?;
    context.health.position(&position);
    Ok(hole.map(End::Hole))
}
