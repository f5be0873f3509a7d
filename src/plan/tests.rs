//! The state machine against a small model of Google: whatever fails, is lost, comes late or is done by hand, it ends
//! in exactly one right event per live session and none per canceled one, and then in no calls at all.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::event::Details;
use crate::google::error::{Class, GoogleError};
use crate::google::{Answer, Call, RemoteConference, RemoteEvent, RemoteStatus, Wanted};
use crate::model::{Epoch, GoogleSub, Kind, SessionVersion, TimeZone};
use crate::projection::{Head, Session, Stamp, Status};
use crate::store::TokenStatus;

const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);
const DAY: i64 = 86_400_000;

fn teacher(name: &str) -> TeacherId {
    TeacherId::parse(name).unwrap()
}

fn session(version: i64, status: Status, teacher_id: &str, start_hours: i64) -> Session {
    let stamp = Stamp { epoch: Epoch(1), version: SessionVersion::new(version).unwrap(), sequence: version };
    let starts_at = NOW.plus(10 * DAY + start_hours * 3_600_000);
    let details = Details {
        kind: Kind::Private,
        title: "Piano".into(),
        description: None,
        starts_at,
        ends_at: starts_at.plus(3_600_000),
        time_zone: TimeZone::parse("Europe/Madrid").unwrap(),
        attendees: vec![],
        url: None,
    };
    Session {
        id: SessionId::parse("ses_1").unwrap(),
        head: Head { stamp, status, teacher: teacher(teacher_id), content_hash: version.to_string() },
        details: Some((stamp, details)),
    }
}

fn policy() -> Policy {
    Policy { environment: "test".into(), attendees: false, repairs_max: 2 }
}

fn connected(account: &str) -> Account {
    Account::Google {
        account: GoogleSub(format!("sub-{account}")),
        calendar: "primary".into(),
        status: TokenStatus::Connected,
        cool_down_until: None,
    }
}

/// What one request meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// 503, nothing done.
    Before,
    /// Done, but the answer is lost.
    After,
    /// The client gives up; Google does it so many seconds later.
    Late(i64),
    /// The process dies after the intent, before the request.
    CrashBefore,
    /// The process dies after Google did it.
    CrashAfter,
    /// The conference stays pending in this answer.
    Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Schedule { teacher: &'static str, start: i64 },
    Cancel,
    TeacherDeletes,
    TeacherMoves,
    Steps(u8),
}

#[derive(Debug)]
struct Late {
    at: UnixMillis,
    account: String,
    id: String,
    call: Call,
    wanted: Option<Wanted>,
    /// The ETag that a restore has read just before it writes.
    read: Option<String>,
}

#[derive(Debug, Default)]
struct Model {
    events: BTreeMap<(String, String), RemoteEvent>,
    counter: u64,
    /// Requests that Google takes at a later time.
    late: Vec<Late>,
    writes: Vec<String>,
}

impl Model {
    fn commit(&mut self, account: &str, call: &Call, id: &str, wanted: Option<&Wanted>) -> Result<Answer, GoogleError> {
        self.counter += 1;
        let etag = format!("\"{}\"", self.counter);
        let link = MeetLink::parse(format!("https://meet.google.com/{}", self.counter)).unwrap();
        let key = (account.to_owned(), id.to_owned());
        let existing = self.events.get_mut(&key);
        let stale = |given: &str, event: &RemoteEvent| event.etag != given;
        let write = |event: &mut RemoteEvent, wanted: &Wanted| {
            event.starts_at = Some(wanted.starts_at);
            event.ends_at = Some(wanted.ends_at);
            event.marked_hash = Some(wanted.hash.clone());
            event.owned_hash = format!("{:?}", (wanted.starts_at, &wanted.title));
            event.etag.clone_from(&etag);
        };
        if call.is_write() {
            self.writes.push(format!("{} {}", call.operation(), &id[..4]));
        }
        match (call, existing) {
            (
                Call::Get { .. } | Call::Patch { .. } | Call::AddConference { .. } | Call::Restore | Call::Delete,
                None,
            ) => Err(refusal(Class::NotFound)),
            (Call::Get { if_none_match }, Some(event)) => {
                if event.conference == RemoteConference::Pending {
                    event.conference = RemoteConference::Meet(link);
                    event.etag = etag;
                }
                if if_none_match.as_deref() == Some(&event.etag) {
                    return Ok(Answer::NotModified);
                }
                Ok(Answer::Event(Box::new(event.clone())))
            }
            (Call::Find, _) => Ok(Answer::Found(
                self.events
                    .iter()
                    .filter(|((owner, _), event)| owner == account && event.status == RemoteStatus::Live)
                    .map(|(_, event)| event.clone())
                    .collect(),
            )),
            (Call::Insert { .. }, Some(_)) => Err(refusal(Class::Duplicate)),
            (Call::Insert { conference_request }, None) => {
                let alive = self.events.iter().filter(|((owner, _), event)| owner == account && is_live(event)).count();
                assert_eq!(alive, 0, "a second event beside a live one");
                let wanted = wanted.unwrap();
                let mut event = RemoteEvent {
                    id: id.to_owned(),
                    status: RemoteStatus::Live,
                    etag: String::new(),
                    ical_uid: None,
                    starts_at: None,
                    ends_at: None,
                    conference: match conference_request {
                        Some(_) => RemoteConference::Meet(link),
                        None => RemoteConference::None,
                    },
                    marked_session: Some(wanted.session.clone()),
                    marked_environment: Some(wanted.environment.clone()),
                    marked_hash: None,
                    owned_hash: String::new(),
                    resource: serde_json::Value::Null,
                };
                write(&mut event, wanted);
                self.events.insert(key, event.clone());
                Ok(Answer::Event(Box::new(event)))
            }
            (Call::Patch { etag: given } | Call::AddConference { etag: given, .. }, Some(event)) => {
                if event.status == RemoteStatus::Cancelled {
                    return Err(refusal(Class::Permanent(Code::Forbidden)));
                }
                if stale(given, event) {
                    return Err(refusal(Class::Stale));
                }
                if matches!(call, Call::Patch { .. }) {
                    write(event, wanted.unwrap());
                } else if event.conference == RemoteConference::None {
                    event.conference = RemoteConference::Meet(link);
                    event.etag = etag;
                }
                Ok(Answer::Event(Box::new(event.clone())))
            }
            (Call::Restore, Some(event)) => {
                if event.status == RemoteStatus::Cancelled {
                    event.status = RemoteStatus::Live;
                    write(event, wanted.unwrap());
                }
                Ok(Answer::Event(Box::new(event.clone())))
            }
            (Call::Delete, Some(event)) if event.status == RemoteStatus::Cancelled => Err(refusal(Class::Deleted)),
            (Call::Delete, Some(event)) => {
                event.status = RemoteStatus::Cancelled;
                event.etag = etag;
                Ok(Answer::Deleted)
            }
        }
    }

    fn etag(&self, account: &str, id: &str) -> Option<String> {
        self.events.get(&(account.to_owned(), id.to_owned())).map(|event| event.etag.clone())
    }

    fn live(&self) -> Vec<&RemoteEvent> {
        self.events.values().filter(|event| is_live(event)).collect()
    }
}

fn is_live(event: &RemoteEvent) -> bool {
    event.status == RemoteStatus::Live
}

fn refusal(class: Class) -> GoogleError {
    GoogleError {
        class,
        status: None,
        reason: None,
        retry_after_ms: None,
        is_ambiguous: false,
        message: format!("{class:?}"),
    }
}

/// One session with its rows, the model, and a clock that jumps to whatever is due.
struct World {
    google: Model,
    session: Session,
    rows: Vec<MeetEvent>,
    now: UnixMillis,
    /// Both teachers use one Google account.
    shares_account: bool,
}

impl World {
    fn new() -> Self {
        let session = session(1, Status::Scheduled, "t1", 0);
        let mut world = Self { google: Model::default(), session, rows: vec![], now: NOW, shares_account: false };
        world.fold(world.session.clone());
        world
    }

    fn fold(&mut self, session: Session) {
        let moved = self.rows.is_empty() || self.session.desired_hash() != session.desired_hash();
        self.session = session;
        if moved {
            for row in assign(&self.session, &self.rows, self.now) {
                self.put(row);
            }
        }
    }

    fn put(&mut self, row: MeetEvent) {
        match self.rows.iter_mut().find(|known| known.ordinal == row.ordinal) {
            Some(known) => *known = row,
            None => self.rows.push(row),
        }
    }

    fn starts_at(&self) -> UnixMillis {
        self.session.details.as_ref().unwrap().1.starts_at
    }

    /// The next due row's step; `false` when nothing is due before `until`.
    fn step(&mut self, fault: Fault, until: UnixMillis) -> bool {
        let due = self.rows.iter().filter_map(|row| row.next_attempt_at.map(|at| (at, row.ordinal))).min();
        let Some((at, ordinal)) = due else { return false };
        if at >= until {
            return false;
        }
        self.now = self.now.max(at);
        let row = self.rows.iter().find(|row| row.ordinal == ordinal).unwrap().clone();
        let siblings: Vec<Sibling> = self
            .rows
            .iter()
            .filter(|other| other.ordinal != ordinal)
            .map(|other| Sibling {
                ordinal: other.ordinal,
                teacher: other.teacher.clone(),
                account: other.binding.as_ref().map(|binding| binding.account.clone()),
                generation: other.binding.as_ref().map(|binding| binding.generation),
                phase: other.phase,
                want: other.want,
            })
            .collect();
        let account = connected(if self.shares_account { "both" } else { row.teacher.as_str() });
        let policy = policy();
        let session = self.session.clone();
        let situation = Situation {
            session: &session,
            row: &row,
            siblings: &siblings,
            account: &account,
            policy: &policy,
            now: self.now,
        };
        let plan = plan(&situation);
        let Some(call) = plan.call else {
            let rests = plan.row.next_attempt_at.is_none_or(|next| next > self.now);
            assert!(rests || plan.successor.is_some(), "neither a call nor rest: {:?}", plan.row);
            self.record(plan.row, plan.successor);
            return true;
        };
        if call.is_write() {
            self.put(plan.row.clone());
        }
        let binding = plan.row.binding.clone().unwrap();
        let (owner, id) = (binding.account.0, binding.event_id.as_str().to_owned());
        let wanted = wanted(&session, &plan.row, &policy);
        self.land_late();
        let lost = || GoogleError { is_ambiguous: call.is_write(), ..refusal(Class::Transient) };
        let answer = match fault {
            Fault::Before => Err(refusal(Class::Transient)),
            Fault::Late(seconds) if call.is_write() => {
                let at = self.now.plus(seconds * 1_000);
                let read = self.google.etag(&owner, &id).filter(|_| call == Call::Restore);
                self.google.late.push(Late { at, account: owner, id, call: call.clone(), wanted, read });
                Err(lost())
            }
            Fault::CrashBefore => {
                // The lease runs out and somebody else finds the intent.
                self.now = self.now.plus(60_000);
                return true;
            }
            Fault::None | Fault::After | Fault::CrashAfter | Fault::Pending | Fault::Late(_) => {
                let done = self.google.commit(&owner, &call, &id, wanted.as_ref());
                match (fault, done) {
                    (Fault::CrashAfter, _) => {
                        self.now = self.now.plus(60_000);
                        return true;
                    }
                    (Fault::After, _) => Err(lost()),
                    (Fault::Pending, Ok(Answer::Event(mut event)))
                        if matches!(call, Call::Insert { .. } | Call::AddConference { .. }) =>
                    {
                        event.conference = RemoteConference::Pending;
                        self.google.events.insert((owner, id), (*event).clone());
                        Ok(Answer::Event(event))
                    }
                    (_, done) => done,
                }
            }
        };
        let situation = Situation { row: &plan.row, ..situation };
        let absorbed = absorb(&situation, &call, answer, &|attempt| 1_000 * attempt);
        self.record(absorbed.row, absorbed.successor);
        true
    }

    fn record(&mut self, row: MeetEvent, successor: Option<MeetEvent>) {
        let is_final = row.phase.is_final();
        self.put(row);
        if let Some(successor) = successor {
            self.put(successor);
        }
        if is_final {
            let now = self.now;
            for other in self.rows.iter_mut().filter(|other| other.want == Want::Present && !other.settled) {
                other.next_attempt_at = Some(now);
            }
        }
    }

    /// What Google takes long after its client gave up.
    fn land_late(&mut self) {
        let (landing, flying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.google.late).into_iter().partition(|late| late.at <= self.now);
        self.google.late = flying;
        for late in landing {
            if late.read.is_none() || late.read == self.google.etag(&late.account, &late.id) {
                self.google.commit(&late.account, &late.call, &late.id, late.wanted.as_ref()).ok();
            }
        }
    }

    /// Without faults, to the end. Every loop of the machine would show as too many steps.
    fn settle(&mut self) {
        self.settle_until(self.starts_at());
    }

    /// The same, as far as it goes before `until`.
    fn settle_until(&mut self, until: UnixMillis) {
        for _ in 0..200 {
            if self.step(Fault::None, until) {
                continue;
            }
            let Some(at) = self.google.late.iter().map(|late| late.at).filter(|at| *at < until).min() else { return };
            self.now = self.now.max(at);
            self.land_late();
        }
        panic!("does not come to rest: {:#?}", self.rows);
    }

    fn teacher_deletes(&mut self) {
        self.google.counter += 1;
        let etag = format!("\"{}\"", self.google.counter);
        if let Some(event) = self.google.events.values_mut().find(|event| is_live(event)) {
            event.etag = etag;
            event.status = RemoteStatus::Cancelled;
        }
    }

    fn check(&self) {
        let live = self.google.live();
        if self.session.head.status == Status::Canceled {
            assert!(live.is_empty(), "an event outlived its cancel: {live:#?}\n{:#?}", self.rows);
            return;
        }
        assert_eq!(live.len(), 1, "{live:#?}\n{:#?}", self.rows);
        let details = &self.session.details.as_ref().unwrap().1;
        assert_eq!(live[0].starts_at, Some(details.starts_at));
        let row = self.rows.iter().find(|row| row.want == Want::Present).unwrap();
        assert!(row.settled, "{row:#?}");
        let document = crate::status::document(&self.session, &self.rows, self.now);
        assert_eq!(document.meet_status, crate::status::MeetStatus::Ready);
    }
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Before),
        1 => Just(Fault::After),
        1 => (0..900_i64).prop_map(Fault::Late),
        1 => Just(Fault::CrashBefore),
        1 => Just(Fault::CrashAfter),
        1 => Just(Fault::Pending),
    ];
    proptest::collection::vec(fault, 0..40)
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        2 => (prop_oneof![Just("t1"), Just("t2")], 0..3_i64)
            .prop_map(|(teacher, start)| Action::Schedule { teacher, start }),
        1 => Just(Action::Cancel),
        1 => Just(Action::TeacherDeletes),
        1 => Just(Action::TeacherMoves),
        4 => (1..6_u8).prop_map(Action::Steps),
    ];
    proptest::collection::vec(action, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn it_ends_in_one_right_event_or_none(
        actions in actions(), faults in faults(), shares_account in proptest::bool::weighted(0.2))
    {
        let mut world = World { shares_account, ..World::new() };
        let mut faults = faults.into_iter();
        let mut version = 1;
        let mut by_hand = 0;
        for action in actions {
            match action {
                Action::Schedule { teacher, start } => {
                    version += 1;
                    world.fold(session(version, Status::Scheduled, teacher, start));
                }
                Action::Cancel => {
                    version += 1;
                    world.fold(session(version, Status::Canceled, "t1", 0));
                }
                // The budget of repairs is two a day; beyond it the machine rightly gives up.
                Action::TeacherDeletes | Action::TeacherMoves if by_hand == 2 => {}
                Action::TeacherDeletes | Action::TeacherMoves => {
                    world.google.counter += 1;
                    let etag = format!("\"{}\"", world.google.counter);
                    if let Some(event) = world.google.events.values_mut().find(|event| event.status == RemoteStatus::Live) {
                        by_hand += 1;
                        event.etag = etag;
                        if action == Action::TeacherDeletes {
                            event.status = RemoteStatus::Cancelled;
                        } else {
                            event.starts_at = Some(NOW);
                            event.owned_hash = "moved".into();
                        }
                    }
                }
                Action::Steps(steps) => {
                    for _ in 0..steps {
                        // The checks of the days to come are left for the end, so that they see what was done by hand.
                        world.step(faults.next().unwrap_or(Fault::None), NOW.plus(6 * 3_600_000));
                    }
                }
            }
        }
        world.settle();
        world.check();

        // Nothing differs any more, so nothing is written any more: not by another look, not by a replay.
        let writes = world.google.writes.len();
        for row in &mut world.rows {
            if !row.phase.is_final() {
                row.next_attempt_at = Some(world.now);
            }
        }
        world.settle();
        prop_assert_eq!(&world.google.writes[writes..], &[] as &[String]);
    }
}

#[test]
fn ten_reschedules_before_a_call_end_in_one_insert() {
    let mut world = World::new();
    for version in 2..12 {
        world.fold(session(version, Status::Scheduled, "t1", version));
    }
    world.settle();
    world.check();
    assert_eq!(world.google.writes.len(), 1);
}

#[test]
fn scheduled_and_canceled_before_a_call_ends_in_no_call() {
    let mut world = World::new();
    world.fold(session(2, Status::Canceled, "t1", 0));
    world.settle();
    assert_eq!(world.google.counter, 0);
    world.fold(session(3, Status::Scheduled, "t1", 0));
    world.settle();
    world.check();
    assert_eq!(world.rows.len(), 1, "an id that was never used is used now");
}

#[test]
fn a_reschedule_is_one_patch_and_keeps_id_and_link() {
    let mut world = World::new();
    world.settle();
    let before = (world.rows[0].binding.clone(), world.rows[0].link.clone());
    world.fold(session(2, Status::Scheduled, "t1", 5));
    world.settle();
    world.check();
    assert_eq!(before, (world.rows[0].binding.clone(), world.rows[0].link.clone()));
    assert_eq!(world.google.writes.len(), 2, "{:?}", world.google.writes);
}

#[test]
fn a_revived_session_gets_a_new_id_after_the_old_event_is_gone() {
    let mut world = World::new();
    world.settle();
    world.fold(session(2, Status::Canceled, "t1", 0));
    world.fold(session(3, Status::Scheduled, "t1", 0));
    world.settle();
    world.check();
    let operations: Vec<&str> = world.google.writes.iter().map(|write| write.split(' ').next().unwrap()).collect();
    assert_eq!(operations, ["insert", "delete", "insert"]);
}

#[test]
fn a_restore_that_lands_late_does_not_outlive_a_cancel() {
    let mut world = World::new();
    world.settle_until(NOW.plus(1));
    world.teacher_deletes();
    world.rows[0].next_attempt_at = Some(world.now);
    // It is looked at, and then for another event of the session.
    world.step(Fault::None, NOW.plus(DAY));
    world.step(Fault::None, NOW.plus(DAY));
    world.step(Fault::Late(90), NOW.plus(DAY));
    world.fold(session(2, Status::Canceled, "t1", 0));
    world.settle();
    world.check();
    assert_eq!(world.google.writes.iter().filter(|write| write.starts_with("restore")).count(), 1);
}

#[test]
fn a_patch_that_lands_after_its_reschedule_was_taken_back_is_put_right_and_nobody_is_blamed() {
    let mut world = World::new();
    world.settle_until(NOW.plus(1));
    for version in [2, 4, 6] {
        world.fold(session(version, Status::Scheduled, "t1", 5));
        world.step(Fault::Late(30), NOW.plus(DAY));
        world.fold(session(version + 1, Status::Scheduled, "t1", 0));
        world.settle_until(world.now.plus(1));
    }
    // The check that follows a write comes within 75 seconds.
    world.settle_until(world.now.plus(3 * 60_000));
    world.check();
    assert_eq!(world.rows[0].repairs, 0);
}

#[test]
fn a_revived_session_does_not_wait_until_an_unclear_insert_can_no_longer_land() {
    // The lost insert lands before, after, or long after the revival, or never.
    for late in [0, 1, 100, 2_000, 100_000] {
        let mut world = World::new();
        world.step(Fault::Late(late), NOW.plus(DAY));
        world.fold(session(2, Status::Canceled, "t1", 0));
        world.settle_until(NOW.plus(90_000));
        world.fold(session(3, Status::Scheduled, "t1", 0));
        let revived_at = world.now;
        world.settle_until(revived_at.plus(60_000));
        let row = world.rows.iter().find(|row| row.want == Want::Present).unwrap();
        assert!(row.settled && row.link.is_some(), "landing after {late} s: {row:#?}");
        world.settle();
        world.check();
    }
}
