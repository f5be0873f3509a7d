//! Which calls to Google a change of sessions means: asked of [`crate::plan`], so that a plan for people and what the
//! reconciler does are the same code.

use serde::Serialize;

use crate::google::Call;
use crate::model::UnixMillis;
use crate::plan::{self, Account, Code, MeetEvent, Phase, Policy, Sibling, Situation, Want};
use crate::projection::Session;
use crate::store::Credential;

/// Calls by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Calls {
    /// New events.
    pub insert: i64,
    /// Changes of events.
    pub patch: i64,
    /// Removals.
    pub delete: i64,
    /// Looks at events of which something is not known; a write may follow where what is found is not what is wanted.
    pub look: i64,
    /// Events that wait until their teacher connects Google.
    pub waiting: i64,
}

impl Calls {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.insert += other.insert;
        self.patch += other.patch;
        self.delete += other.delete;
        self.look += other.look;
        self.waiting += other.waiting;
    }

    /// Calls that write.
    pub fn writes(&self) -> i64 {
        self.insert + self.patch + self.delete
    }
}

impl std::fmt::Display for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { insert, patch, delete, look, waiting } = self;
        write!(f, "{} calls to Google that write ({insert} insert, {patch} patch, {delete} delete)", self.writes())?;
        if *look > 0 {
            write!(f, ", {look} that look first")?;
        }
        if *waiting > 0 {
            write!(f, ", {waiting} that wait until a teacher connects Google")?;
        }
        Ok(())
    }
}

/// The teacher's grant as the plan takes it.
pub fn account(credential: Option<&Credential>) -> Account {
    credential.map_or(Account::None, |credential| Account::Google {
        account: credential.account.clone(),
        calendar: credential.calendar.clone(),
        status: credential.status,
        cool_down_until: credential.cool_down_until,
    })
}

/// The calls that follow when a session becomes `after`; `rows` and `hash` are those it has now (none and `None` for a
/// session that is not known). `account_of` knows the teachers' grants.
pub fn calls<'a>(
    hash: Option<&str>,
    rows: &[MeetEvent],
    after: &Session,
    account_of: impl Fn(&MeetEvent) -> Option<&'a Credential>,
    policy: &Policy,
    now: UnixMillis,
) -> Calls {
    let mut calls = Calls::default();
    if hash == Some(after.desired_hash().as_str()) {
        return calls;
    }
    let changed = plan::assign(after, rows, now);
    let mut all = rows.to_vec();
    for row in &changed {
        match all.iter_mut().find(|known| known.ordinal == row.ordinal) {
            Some(known) => known.clone_from(row),
            None => all.push(row.clone()),
        }
    }
    for row in changed.iter().filter(|row| row.next_attempt_at.is_some()) {
        let siblings: Vec<_> = all.iter().filter(|other| other.ordinal != row.ordinal).map(sibling).collect();
        let account = account(account_of(row));
        let situation = Situation { session: after, row, siblings: &siblings, account: &account, policy, now };
        let planned = plan::plan(&situation);
        match planned.call {
            Some(Call::Insert { .. }) => calls.insert += 1,
            Some(Call::Patch { .. } | Call::AddConference { .. } | Call::Restore) => calls.patch += 1,
            Some(Call::Delete) => calls.delete += 1,
            Some(Call::Get { .. } | Call::Find) => calls.look += 1,
            None if planned.successor.is_some() => {
                // Another account: the old event goes and a new one is made.
                calls.insert += 1;
                calls.delete += 1;
            }
            None => match planned.row.failure.as_ref().map(|failure| failure.code) {
                Some(Code::CalendarLimited) if row.want == Want::Absent => calls.delete += 1,
                Some(Code::CalendarLimited) if row.phase == Phase::Live => calls.patch += 1,
                // Or it waits for the event before it, which one of the other rows removes.
                Some(Code::CalendarLimited | Code::PreviousEventNotRemoved) => calls.insert += 1,
                Some(Code::SessionEnded) | None => {}
                Some(_) => calls.waiting += 1,
            },
        }
    }
    calls
}

fn sibling(row: &MeetEvent) -> Sibling {
    Sibling {
        ordinal: row.ordinal,
        teacher: row.teacher.clone(),
        account: row.binding.as_ref().map(|binding| binding.account.clone()),
        generation: row.binding.as_ref().map(|binding| binding.generation),
        phase: row.phase,
        want: row.want,
    }
}
