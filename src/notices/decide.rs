//! Whether there is something to tell about a cause, from what is seen and what was told. Pure.

use crate::model::UnixMillis;
use crate::store::notices::Told;

/// A cause that stays is told again after this time, and not sooner: a day.
pub const REMIND_MS: i64 = 24 * 3_600_000;
/// That a cause is still there is noted about this often.
const NOTE_EVERY_MS: i64 = 20_000;

/// How patient a cause is, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// It must be there for so long before it is told: what comes in together is told together, and what passes is not.
    pub settle_ms: i64,
    /// At least so long between two notices that say that more are affected.
    pub gap_ms: i64,
    /// It must be gone for so long before that is told; longer than other processes need to say that they see it.
    pub gone_ms: i64,
}

/// A cause as it is seen now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who or what is affected; a new one among them is news.
    pub members: Vec<String>,
    /// Whether it is worth a reminder.
    pub reminds: bool,
}

/// What to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// It has appeared.
    Appeared,
    /// More are affected.
    Grown,
    /// It is still there, a day later.
    Reminder,
    /// It is gone.
    Resolved,
}

/// What is to be kept, and told; `None` when there is nothing to keep.
pub fn decide(told: &Told, seen: Option<&Seen>, rule: &Rule, now: UnixMillis) -> Option<(Told, Option<Tell>)> {
    let Some(seen) = seen else { return gone(told, rule, now) };
    let mut next = told.clone();
    let opened_at = *next.opened_at.get_or_insert(now);
    // One that is well for a while and affected again is news.
    next.members.retain(|member| seen.members.contains(member));
    let is_gap_over = told.told_at.is_none_or(|told_at| now.since(told_at) >= rule.gap_ms);
    let is_grown = seen.members.iter().any(|member| !next.members.contains(member));
    let tell = if told.opening_told_at.is_none() {
        (now.since(opened_at) >= rule.settle_ms && is_gap_over).then_some(Tell::Appeared)
    } else if is_grown && is_gap_over {
        Some(Tell::Grown)
    } else {
        let is_old = told.told_at.is_some_and(|told_at| now.since(told_at) >= REMIND_MS);
        (seen.reminds && is_old).then_some(Tell::Reminder)
    };
    if tell.is_some() {
        next.opening_told_at.get_or_insert(now);
        next.told_at = Some(now);
        next.members.clone_from(&seen.members);
        next.members.sort();
    }
    let is_noted = told.seen_at.is_some_and(|seen_at| now.since(seen_at) < NOTE_EVERY_MS);
    if is_noted && next == *told {
        return None;
    }
    next.seen_at = Some(now);
    Some((next, tell))
}

fn gone(told: &Told, rule: &Rule, now: UnixMillis) -> Option<(Told, Option<Tell>)> {
    told.opened_at?;
    // Another process may see it still, and this one may be about to.
    if told.seen_at.is_some_and(|seen_at| now.since(seen_at) < rule.gone_ms) {
        return None;
    }
    let next = Told { revision: told.revision, told_at: told.told_at, ..Told::default() };
    Some((next, told.opening_told_at.map(|_| Tell::Resolved)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { settle_ms: 60_000, gap_ms: 3_600_000, gone_ms: 120_000 };
    const MINUTE_MS: i64 = 60_000;

    /// Looks every ten seconds from `from` to `to` (seconds), and says what was told when.
    fn watch(told: &mut Told, from: i64, to: i64, seen: Option<&[&str]>) -> Vec<(i64, Tell)> {
        let seen = seen.map(|members| Seen {
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            reminds: true,
        });
        let mut heard = Vec::new();
        for second in (from..to).step_by(10) {
            if let Some((next, tell)) = decide(told, seen.as_ref(), &RULE, UnixMillis::new(second * 1000)) {
                *told = next;
                heard.extend(tell.map(|tell| (second, tell)));
            }
        }
        heard
    }

    #[test]
    fn what_comes_together_is_told_once_and_what_passes_is_not_told() {
        let mut told = Told::default();
        assert_eq!(watch(&mut told, 0, 50, Some(&["a"])), []);
        assert_eq!(watch(&mut told, 50, 300, None), []);
        assert_eq!(told, Told::default());
        assert_eq!(watch(&mut told, 1_000, 1_030, Some(&["a"])), []);
        assert_eq!(watch(&mut told, 1_030, 4_000, Some(&["a", "b", "c"])), [(1_060, Tell::Appeared)]);
    }

    #[test]
    fn more_are_told_after_the_gap_fewer_are_not_and_a_day_reminds() {
        let mut told = Told::default();
        assert_eq!(watch(&mut told, 0, 100, Some(&["a", "b"])), [(60, Tell::Appeared)]);
        assert_eq!(watch(&mut told, 100, 3_000, Some(&["b"])), []);
        // `a` was well in between, so it is news; but not within the hour.
        assert_eq!(watch(&mut told, 3_000, 4_000, Some(&["a", "b"])), [(3_660, Tell::Grown)]);
        let day = REMIND_MS / 1000;
        let heard = watch(&mut told, 4_000, 3_660 + 2 * day + 100, Some(&["a", "b"]));
        assert_eq!(heard, [(3_660 + day, Tell::Reminder), (3_660 + 2 * day, Tell::Reminder)]);
    }

    #[test]
    fn the_end_is_told_once_if_the_beginning_was_and_a_new_beginning_waits_for_the_gap() {
        let mut told = Told::default();
        assert_eq!(watch(&mut told, 0, 100, Some(&[])), [(60, Tell::Appeared)]);
        assert_eq!(watch(&mut told, 100, 1_000, None), [(200, Tell::Resolved)]);
        assert_eq!(watch(&mut told, 1_000, 5_000, Some(&[])), [(3_660, Tell::Appeared)]);
    }

    #[test]
    fn what_another_process_sees_is_not_gone() {
        let mut told = Told::default();
        watch(&mut told, 0, 100, Some(&[]));
        for second in (100..1_000).step_by(10) {
            let now = UnixMillis::new(second * 1000);
            if let Some((next, tell)) = decide(&told, Some(&Seen::default()), &RULE, now) {
                assert_eq!(tell, None);
                told = next;
            }
            assert_eq!(decide(&told, None, &RULE, now), None);
        }
        let later = UnixMillis::new(1_000_000 + 2 * MINUTE_MS);
        assert_eq!(decide(&told, None, &RULE, later).unwrap().1, Some(Tell::Resolved));
    }

    #[test]
    fn a_clock_that_goes_back_tells_nothing_twice() {
        let mut told = Told::default();
        assert_eq!(watch(&mut told, 10_000, 10_100, Some(&["a"])), [(10_060, Tell::Appeared)]);
        assert_eq!(watch(&mut told, 0, 9_000, Some(&["a", "b"])), []);
    }
}
