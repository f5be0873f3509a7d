//! One writer for all calendars: what they bring while a transaction runs goes into the next one together.

use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::model::TeacherId;
use crate::store::{RowWrite, Store, StoreError, Written};

/// Requests taken into one transaction at most: enough for every calendar worked on at once.
const GROUP_MAX: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

#[derive(Debug)]
enum Request {
    Begin(Box<RowWrite>, Reply<Written>),
    Record(Box<RowWrite>, Reply<Written>),
    Release((TeacherId, i64), Reply<()>),
}

/// A handle on the writer; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

impl Writer {
    pub(super) fn start(store: Store, clock: Clock) -> Self {
        let (requests, mut inbox) = mpsc::channel(GROUP_MAX);
        tokio::spawn(async move {
            let mut group = Vec::with_capacity(GROUP_MAX);
            while inbox.recv_many(&mut group, GROUP_MAX).await > 0 {
                commit(&store, &clock, &mut group).await;
            }
        });
        Self { requests }
    }

    /// Keeps an intent before its call.
    pub(super) async fn begin(&self, write: RowWrite) -> Result<Written, StoreError> {
        self.ask(|reply| Request::Begin(Box::new(write), reply)).await
    }

    /// Records a result.
    pub(super) async fn record(&self, write: RowWrite) -> Result<Written, StoreError> {
        self.ask(|reply| Request::Record(Box::new(write), reply)).await
    }

    /// Gives a calendar back.
    pub(super) async fn release(&self, teacher: TeacherId, token: i64) -> Result<(), StoreError> {
        self.ask(|reply| Request::Release((teacher, token), reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StoreError::Configuration("the reconciler's writer has stopped".into());
        self.requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

async fn commit(store: &Store, clock: &Clock, group: &mut Vec<Request>) {
    let (mut begins, mut begin_replies) = (Vec::new(), Vec::new());
    let (mut records, mut record_replies) = (Vec::new(), Vec::new());
    let (mut releases, mut release_replies) = (Vec::new(), Vec::new());
    for request in group.drain(..) {
        match request {
            Request::Begin(write, reply) => {
                begins.push(*write);
                begin_replies.push(reply);
            }
            Request::Record(write, reply) => {
                records.push(*write);
                record_replies.push(reply);
            }
            Request::Release(lease, reply) => {
                releases.push(lease);
                release_replies.push(reply);
            }
        }
    }
    if !begins.is_empty() {
        answer(store.begin(&begins, clock.now()).await, begin_replies);
    }
    if !records.is_empty() {
        answer(store.record(&records, clock.now()).await, record_replies);
    }
    if !releases.is_empty() {
        let released = store.release(&releases, clock.now()).await;
        answer(released.map(|()| vec![(); release_replies.len()]), release_replies);
    }
}

/// Tells every requester its part; a failed transaction failed for all of them.
fn answer<T>(outcome: Result<Vec<T>, StoreError>, replies: Vec<Reply<T>>) {
    // A requester that went away in the meantime does not want its answer.
    match outcome {
        Ok(values) => {
            for (value, reply) in values.into_iter().zip(replies) {
                reply.send(Ok(value)).ok();
            }
        }
        Err(error) => {
            let text = crate::telemetry::Chain(&error).to_string();
            let is_transient = error.is_transient();
            for reply in replies {
                reply.send(Err(share(&text, is_transient))).ok();
            }
        }
    }
}

fn share(text: &str, is_transient: bool) -> StoreError {
    let source = text.to_owned().into();
    if is_transient {
        StoreError::Unavailable { operation: "commit a group of results", source }
    } else {
        StoreError::Failed { operation: "commit a group of results", source }
    }
}
