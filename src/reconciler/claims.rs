//! Which calendars may be claimed: as many as there are free places, once the past is known.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::step::{self, Step};
use crate::model::{TeacherId, UnixMillis};
use crate::store::{Claim, RowWrite, TeacherLease};

/// A place among the calendars that are worked on at once; free again when it is dropped.
pub(super) type Place = OwnedSemaphorePermit;

/// A calendar to be worked on.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) lease: TeacherLease,
    /// Its first step, whose intent is kept already; none where the first row needs no call or has to wait for one.
    pub(super) first: Option<Step>,
    pub(super) place: Place,
}

/// What the writer needs to claim.
#[derive(Debug)]
pub(super) struct Claims {
    context: Arc<Context>,
    caught_up: watch::Receiver<bool>,
    cancel: CancellationToken,
    places: Arc<Semaphore>,
    claimed: mpsc::UnboundedSender<Claimed>,
}

impl Claims {
    pub(super) fn new(
        context: Arc<Context>,
        caught_up: watch::Receiver<bool>,
        cancel: CancellationToken,
        claimed: mpsc::UnboundedSender<Claimed>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(context.calendars_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { context, caught_up, cancel, places, claimed }
    }

    /// As much as there is room for now; nothing while the past is not known, and nothing any more at the end.
    pub(super) fn wanted(&self) -> Option<Claim> {
        let free = self.places.available_permits();
        (free > 0 && *self.caught_up.borrow() && !self.cancel.is_cancelled()).then(|| super::claim_of(free))
    }

    /// Prepares the first step of a calendar in `opened` and says what has to be kept before its call.
    pub(super) fn open(
        &self,
        opened: &mut HashMap<TeacherId, Step>,
        lease: &TeacherLease,
        now: UnixMillis,
    ) -> Option<RowWrite> {
        let step = step::first(&self.context, lease, now)?;
        let intent = step.intent(lease, lease.jobs.first()?);
        opened.insert(lease.teacher.clone(), step);
        intent
    }

    /// Hands claimed calendars to the loop, each with its place.
    pub(super) fn hand_over(&self, leases: Vec<TeacherLease>, mut opened: HashMap<TeacherId, Step>) {
        for lease in leases {
            // Only the writer takes places, and it claimed no more calendars than were free.
            let place =
                Arc::clone(&self.places).try_acquire_owned().expect("no more was claimed than there is room for");
            let first = opened.remove(&lease.teacher);
            // Where the loop is gone the process ends, and the lease runs out.
            self.claimed.send(Claimed { lease, first, place }).ok();
        }
    }
}
