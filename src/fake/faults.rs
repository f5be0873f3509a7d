//! Faults: what goes wrong, when, how often.
//!
//! A fault is two independent choices. [`Commit`] says whether and when the request takes effect at Google, [`Ending`]
//! what the client gets to see; the dangerous ones are those where the two disagree. Rules are asked in the order in
//! which they were added and the first that applies wins; then the random mix, if there is one.
//!
//! Chances are not drawn from one running generator: each is a hash of seed, operation, account, event and how often
//! that combination was seen. So the same seed treats the same event the same way however requests interleave.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::chaos::Chaos;
use super::refusal::Refusal;

/// What a request asks for; the words of rules, counters and recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// `events.insert`
    Insert,
    /// `events.get`
    Get,
    /// `events.list`
    List,
    /// `events.patch`
    Patch,
    /// `events.update`
    Update,
    /// `events.delete`
    Delete,
    /// Token endpoint, `grant_type=refresh_token`.
    Refresh,
    /// Token endpoint, `grant_type=authorization_code`.
    Exchange,
    /// Revocation endpoint.
    Revoke,
}

impl Operation {
    /// The word in rules, counters and recordings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Refresh => "refresh",
            Self::Exchange => "exchange",
            Self::Revoke => "revoke",
        }
    }

    /// Whether it changes a calendar.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Insert | Self::Patch | Self::Update | Self::Delete)
    }

    /// Whether it goes to the token or revocation endpoint.
    pub const fn is_oauth(self) -> bool {
        matches!(self, Self::Refresh | Self::Exchange | Self::Revoke)
    }
}

/// Whether and when a faulty request takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Commit {
    /// Never.
    Never,
    /// Before the client is answered.
    #[default]
    Now,
    /// This many milliseconds (of real time) after the client was answered.
    LateMs(u64),
    /// When the test says so: [`super::FakeGoogle::release_late`].
    OnRelease,
}

/// What the client of a faulty request sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ending {
    /// The true answer. Not to be had where nothing takes effect in time: then it is a 503.
    #[default]
    Answer,
    /// This error.
    Refuse(Refusal),
    /// The connection ends without a byte.
    Drop,
    /// Silence for this many milliseconds, then the connection ends.
    Hang(u64),
    /// Half of the body that `Content-Length` promised, then the connection ends.
    HalfBody,
}

/// One way in which a request goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Whether and when the request takes effect.
    pub commit: Commit,
    /// What the client sees.
    pub ending: Ending,
    /// Milliseconds to wait before anything happens.
    pub delay_ms: u64,
}

impl Fault {
    /// This fault, applied or not as `commit` says.
    pub fn new(commit: Commit, ending: Ending) -> Self {
        Self { commit, ending, delay_ms: 0 }
    }

    /// An error answer; nothing took effect.
    pub fn refuse(status: u16, reason: &str) -> Self {
        Self::new(Commit::Never, Ending::Refuse(Refusal::of(status, reason)))
    }

    /// An error answer although the request took effect.
    pub fn refuse_after(status: u16, reason: &str) -> Self {
        Self::new(Commit::Now, Ending::Refuse(Refusal::of(status, reason)))
    }

    /// The connection ends; nothing took effect.
    pub fn drop_before() -> Self {
        Self::new(Commit::Never, Ending::Drop)
    }

    /// The connection ends after the request took effect.
    pub fn drop_after() -> Self {
        Self::new(Commit::Now, Ending::Drop)
    }

    /// The true answer, `delay_ms` later.
    pub fn slow(delay_ms: u64) -> Self {
        Self { delay_ms, ..Self::default() }
    }
}

/// When a fault applies. An empty or absent condition always holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Rule {
    /// Only these operations.
    pub operations: Vec<Operation>,
    /// Only this HTTP method, in capitals.
    pub method: Option<String>,
    /// Only the account with this e-mail address.
    pub account: Option<String>,
    /// Only this event id.
    pub event: Option<String>,
    /// 0 to 1.
    pub probability: f64,
    /// This many matching requests are let through first.
    pub skip: u64,
    /// Applies so often and then no more; `None` is for ever.
    pub times: Option<u64>,
    /// What happens.
    pub fault: Fault,
}

impl Default for Rule {
    fn default() -> Self {
        Self::new(Fault::default())
    }
}

impl Rule {
    /// `fault` on every request.
    pub fn new(fault: Fault) -> Self {
        Self {
            operations: Vec::new(),
            method: None,
            account: None,
            event: None,
            probability: 1.0,
            skip: 0,
            times: None,
            fault,
        }
    }

    /// `fault` on the next request of this operation, once.
    pub fn once(operation: Operation, fault: Fault) -> Self {
        Self { operations: vec![operation], times: Some(1), ..Self::new(fault) }
    }

    /// `fault` on every request of this operation.
    pub fn on(operation: Operation, fault: Fault) -> Self {
        Self { operations: vec![operation], ..Self::new(fault) }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        (self.operations.is_empty() || self.operations.contains(&subject.operation))
            && self.method.as_deref().is_none_or(|method| method == subject.method)
            && self.account.as_deref().is_none_or(|account| Some(account) == subject.account)
            && self.event.as_deref().is_none_or(|event| Some(event) == subject.event)
    }
}

/// A rule as it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleState {
    /// Its number, from 1.
    pub id: u64,
    /// The rule.
    pub rule: Rule,
    /// Matching requests so far, the skipped ones too.
    pub seen: u64,
    /// How often it was applied.
    pub hits: u64,
}

/// The request a decision is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) operation: Operation,
    pub(super) method: &'a str,
    pub(super) account: Option<&'a str>,
    pub(super) event: Option<&'a str>,
}

/// All rules, the random mix, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<RuleState>,
    last_rule: u64,
    chaos: Option<Chaos>,
    chaos_hits: BTreeMap<&'static str, u64>,
    occurrences: HashMap<u64, u64>,
}

impl Faults {
    pub(super) fn add(&mut self, rule: Rule) -> u64 {
        self.last_rule += 1;
        self.rules.push(RuleState { id: self.last_rule, rule, seen: 0, hits: 0 });
        self.last_rule
    }

    pub(super) fn remove(&mut self, id: u64) -> bool {
        let before = self.rules.len();
        self.rules.retain(|state| state.id != id);
        self.rules.len() < before
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
        self.set_chaos(None);
    }

    pub(super) fn set_chaos(&mut self, chaos: Option<Chaos>) {
        self.chaos = chaos;
        self.occurrences = HashMap::new();
    }

    pub(super) fn chaos(&self) -> Option<Chaos> {
        self.chaos
    }

    pub(super) fn rules(&self) -> &[RuleState] {
        &self.rules
    }

    pub(super) fn chaos_hits(&self) -> &BTreeMap<&'static str, u64> {
        &self.chaos_hits
    }

    /// The fault for this request, if any, with its name for the recording.
    pub(super) fn decide(&mut self, subject: &Subject<'_>) -> Option<(String, Fault)> {
        for state in &mut self.rules {
            let spent = state.rule.times.is_some_and(|times| state.hits >= times);
            if spent || !state.rule.matches(subject) {
                continue;
            }
            state.seen += 1;
            let lucky = state.rule.probability < 1.0
                && unit(hash(&(state.id, state.seen, subject.operation.as_str(), subject.event)))
                    >= state.rule.probability;
            if state.seen <= state.rule.skip || lucky {
                continue;
            }
            state.hits += 1;
            return Some((format!("rule {}", state.id), state.rule.fault.clone()));
        }
        let chaos = self.chaos?;
        let rate = chaos.rate(subject.operation);
        if rate <= 0.0 {
            return None;
        }
        let key = hash(&(chaos.seed, subject.operation.as_str(), subject.account, subject.event));
        let nth = self.occurrences.entry(key).and_modify(|nth| *nth += 1).or_insert(0);
        let draw = mix(key ^ mix(*nth));
        if unit(draw) >= rate {
            return None;
        }
        let (name, fault) = chaos.pick(subject.operation, mix(draw) >> 16);
        *self.chaos_hits.entry(name).or_insert(0) += 1;
        Some((name.to_owned(), fault))
    }
}

/// One step of splitmix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of the seed.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(value: &impl Hash) -> u64 {
    // Its keys are constant, so the value is the same in every run of one build.
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(event: &str) -> Subject<'_> {
        Subject { operation: Operation::Insert, method: "POST", account: Some("a@example.com"), event: Some(event) }
    }

    #[test]
    fn rules_skip_count_and_end() {
        let mut faults = Faults::default();
        faults.add(Rule { skip: 1, ..Rule::once(Operation::Insert, Fault::drop_after()) });
        assert_eq!(faults.decide(&insert("a")), None);
        assert_eq!(faults.decide(&insert("a")).map(|(_, fault)| fault), Some(Fault::drop_after()));
        assert_eq!(faults.decide(&insert("a")), None);
        assert_eq!((faults.rules()[0].seen, faults.rules()[0].hits), (2, 1));
    }

    #[test]
    fn the_random_mix_does_not_depend_on_the_order_of_events() {
        let draws = |order: &[&str]| {
            let mut faults = Faults::default();
            faults.set_chaos(Some(Chaos::new(7, 0.5)));
            let mut seen: Vec<_> =
                order.iter().map(|event| (event.to_string(), faults.decide(&insert(event)))).collect();
            seen.sort_by(|a, b| a.0.cmp(&b.0));
            seen
        };
        assert_eq!(draws(&["a", "b", "c", "d", "e"]), draws(&["e", "d", "c", "b", "a"]));
    }

    #[test]
    fn the_random_mix_keeps_its_rate_and_holds_every_kind() {
        let mut faults = Faults::default();
        faults.set_chaos(Some(Chaos { late_ms: 1, ..Chaos::new(1, 0.3) }));
        let hits = (0..10_000).filter(|n| faults.decide(&insert(&n.to_string())).is_some()).count();
        assert!((2_700..3_300).contains(&hits), "{hits} of 10,000");
        assert_eq!(faults.chaos_hits().len(), 13, "{:?}", faults.chaos_hits());
    }
}
