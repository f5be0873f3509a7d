//! `/metrics`: every instrument is fed by something, the text is what Prometheus reads, and a scrape never hangs.

#![expect(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meet_projector::clock::Clock;
use meet_projector::fake::Operation::{Get, Insert, List, Patch};
use meet_projector::fake::{ConferenceMode, Fault, Quota, Rule};
use meet_projector::model::Epoch;
use meet_projector::run::{Kind, Run, State};
use meet_projector::telemetry::Metrics;

use crate::support::google::http_client;
use crate::support::service::{HOUR_MS, Setup, World, eventually};

const MINUTE_MS: i64 = 60_000;

/// One exposition: its text, and its samples.
struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(world: &World) -> Self {
        let address = world.service.as_ref().expect("the service runs").address;
        let answer = http_client(Duration::from_mins(1)).get(format!("http://{address}/metrics")).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                // An exemplar stands behind ` # `.
                let sample = line.split(" # ").next().unwrap();
                let (name, value) = sample.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
                (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
            })
            .collect();
        Self { text, samples }
    }

    /// A sample without our prefix; 0 where there is none.
    fn get(&self, name: &str) -> f64 {
        self.samples.get(&format!("meet_projector_{name}")).copied().unwrap_or(0.0)
    }

    /// The sum over all series of a metric.
    fn sum(&self, name: &str) -> f64 {
        let name = format!("meet_projector_{name}");
        let is_of =
            |series: &str| series.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.samples.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }
}

/// Scrapes until `wanted` holds: gauges of the database are read at most every few seconds.
async fn until(world: &World, what: &str, wanted: impl Fn(&Scrape) -> bool) -> Scrape {
    let mut seen = Scrape::of(world).await;
    eventually(&format!("the metrics say {what}"), async || {
        seen = Scrape::of(world).await;
        wanted(&seen)
    })
    .await;
    seen
}

/// What the scenario below does not move, and who does.
const ELSEWHERE: [(&str, &str); 9] = [
    ("lag_messages", "consumer::health, in its own tests: waiting messages come and go within milliseconds"),
    ("lag", "as lag_messages"),
    ("redeliveries", "as lag_messages"),
    ("ingest_blocked", "as lag_messages"),
    ("paused", "as lag_messages"),
    ("run_silence", "the test of runs and clocks below"),
    ("run_remaining_events", "the test of runs and clocks below"),
    ("clock_ahead", "the test of runs and clocks below"),
    ("http_waits", "the test of long-polls in the API"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_instrument_is_fed() {
    let mut world = World::start(Setup { accounts: 4, connected: 3, ..Setup::sqlite() }.standing_still()).await;
    let mut moved: BTreeSet<String> = BTreeSet::new();
    let mut note = |scrape: &Scrape| {
        for (name, _) in Metrics::LIST {
            let values =
                ["", "_total", "_seconds", "_seconds_count"].map(|suffix| scrape.sum(&format!("{name}{suffix}")));
            if values.iter().any(|value| *value > 0.0) {
                moved.insert((*name).to_owned());
            }
        }
    };
    let start = Scrape::of(&world).await;
    assert!(start.get("google_requests_total{operation=\"insert\",outcome=\"ok\"}").abs() < 0.5, "it begins at zero");
    assert_eq!(start.get("build_info{version=\"0.1.0\"}"), 1.0);
    assert!(start.samples["process_start_time_seconds"] > 1.7e9);

    // A link, a failure that is tried again, an event that somebody moves and one that somebody deletes.
    world.fake().add_fault(Rule::once(Insert, Fault::refuse(503, "backendError")));
    let traced = format!("00-{:032x}-{:016x}-01", 0xabc, 0xdef);
    let lesson = meet_projector::event::SessionEvent { traceparent: Some(traced), ..world.lesson("s1", 0) };
    world.publish(&lesson).await;
    eventually("the lesson has its link", async || {
        world.clock.advance_ms(500);
        world.document("s1").await.is_some_and(|document| document["meetStatus"] == "READY")
    })
    .await;
    let linked = Scrape::of(&world).await;
    note(&linked);
    assert_eq!(linked.get("event_to_link_duration_seconds_count"), 1.0);
    let exemplar = format!(" # {{trace_id=\"{:032x}\"}} ", 0xabc);
    assert!(
        linked.text.lines().any(|line| line.contains("event_to_link") && line.contains(&exemplar)),
        "{}",
        linked.text
    );
    assert_eq!(linked.get("retries_total{reason=\"google_unavailable\"}"), 1.0);
    assert_eq!(linked.get("jobs_total{operation=\"insert\",outcome=\"failure\"}"), 1.0);
    assert_eq!(linked.get("jobs_total{operation=\"insert\",outcome=\"success\"}"), 1.0);
    assert_eq!(linked.get("google_request_duration_seconds_count{operation=\"insert\",outcome=\"transient\"}"), 1.0);
    assert_eq!(linked.get("token_refreshes_total{outcome=\"ok\"}"), 1.0);
    assert_eq!(linked.get("nats_connected"), 1.0);
    let id = world.document("s1").await.unwrap()["meetEventId"].as_str().unwrap().to_owned();
    world.fake().teacher_shifts(world.email(0), &id, 3 * HOUR_MS).unwrap();
    world.clock.advance_ms(2 * MINUTE_MS);
    let drift = until(&world, "that the move was put right", |s| s.get("drift_total{kind=\"changed\"}") > 0.5).await;
    assert_eq!(drift.get("event_to_link_duration_seconds_count"), 1.0, "a repair is no new link");

    // A calendar that Google limits, a message that cannot be read, a teacher who is not connected, a conference that takes
    // its time for a lesson that starts soon.
    world.fake().configure_account(world.email(1), |account| account.quota = Quota::Exceeded);
    world.publish(&world.lesson("s2", 1)).await;
    world.error("s2", "CALENDAR_LIMITED").await;
    world.publish_raw("bookings.session.bad.scheduled", &[], b"{".to_vec()).await;
    world.publish(&world.lesson("s3", 3)).await;
    world.error("s3", "TEACHER_NOT_CONNECTED").await;
    world.fake().configure_account(world.email(2), |account| account.conference = ConferenceMode::SuccessAfter(1_000));
    let now = world.clock.now();
    let soon = crate::support::service::lesson_at("s4", 2, now.plus(90 * MINUTE_MS));
    world.publish(&soon).await;
    world.wait_for("s4", |document| document["meetEventId"].is_string()).await;
    world.clock.advance_ms(10_000);
    let risky = until(&world, "that a lesson is at risk", |s| s.get("sessions_at_risk{window=\"2h\"}") > 0.5).await;
    note(&risky);
    for (series, value) in [
        ("sessions_at_risk{window=\"30m\"}", 0.0),
        ("sessions_at_risk{window=\"24h\"}", 1.0),
        ("dead_letters", 1.0),
        ("events_total{shape=\"unknown\",outcome=\"dead_letter\"}", 1.0),
        ("cool_downs_total", 1.0),
        ("calendars_cooling_down", 1.0),
        ("teacher_connections{state=\"CONNECTED\"}", 3.0),
        ("sessions{status=\"READY\"}", 1.0),
        ("database_up", 1.0),
        ("google_requests_total{operation=\"insert\",outcome=\"cool_down\"}", 1.0),
    ] {
        assert_eq!(risky.get(series), value, "{series} in\n{}", risky.text);
    }
    assert!(risky.get("oldest_pending_seconds") >= 10.0, "{}", risky.text);

    // Google takes its time: the row is due until its answer is recorded.
    world.fake().add_fault(Rule::once(Insert, Fault::slow(5_000)));
    world.publish(&world.lesson("s6", 0)).await;
    note(&until(&world, "that a row is due", |s| s.get("due") > 0.5).await);
    world.ready("s6", 1).await;

    // Google refuses the project; then NATS goes, and a result waits.
    let off = Fault::refuse(403, "accessNotConfigured");
    let rule = world.fake().add_fault(Rule { operations: vec![Insert, Get, Patch, List], ..Rule::new(off) });
    world.publish(&world.lesson("s5", 0)).await;
    world.error("s5", "CONFIG_ERROR").await;
    let open = Scrape::of(&world).await;
    assert_eq!(open.get("google_breaker_open{breaker=\"calendar\"}"), 1.0);
    assert_eq!(open.get("google_breaker_open{breaker=\"token\"}"), 0.0);
    note(&open);
    world.until_published("s5", |all| all.iter().any(|message| message.subject == "meet.session.s5.error")).await;
    world.nats.kill();
    world.fake().remove_fault(rule);
    eventually("the lesson has its link without NATS", async || {
        world.clock.advance_ms(MINUTE_MS);
        world.document("s5").await.is_some_and(|document| document["meetStatus"] == "READY")
    })
    .await;
    let waiting = until(&world, "that a result waits", |s| s.get("outbox_messages") > 0.5).await;
    assert_eq!(waiting.get("nats_connected"), 0.0);
    assert_eq!(waiting.get("google_breaker_open{breaker=\"calendar\"}"), 0.0);
    world.clock.advance_ms(MINUTE_MS);
    let older = until(&world, "how long it has waited", |s| s.get("outbox_oldest_seconds") >= 60.0).await;
    note(&older);

    let all: BTreeSet<String> = Metrics::LIST.iter().map(|(name, _)| (*name).to_owned()).collect();
    let elsewhere: BTreeSet<String> = ELSEWHERE.iter().map(|(name, _)| (*name).to_owned()).collect();
    let never: Vec<_> = all.difference(&moved).filter(|name| !elsewhere.contains(*name)).collect();
    assert!(never.is_empty(), "nothing feeds {never:?} in\n{}", older.text);
    let known: Vec<_> = elsewhere.difference(&all).collect();
    assert!(known.is_empty(), "{known:?} are no instruments any more");
    for text in [&linked.text, &risky.text, &older.text] {
        for id in ["s1", "s4", "tch_0", "example.com", "meet.google.com"] {
            assert!(!text.contains(id), "{id} in\n{text}");
        }
    }
    world.nats.run().await;
    world.stop().await;
}

/// A run whose process died, and a clock that is an hour fast.
async fn runs_and_clocks_are_watched(setup: Setup) {
    let clock = Clock::fixed(Clock::system().now().plus(HOUR_MS));
    let mut world = World::start(Setup { clock: clock.clone(), ..setup }).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    let quiet = until(&world, "that Google told the time", |s| s.get("clock_ahead_seconds") > 3_000.0).await;
    // The service's clock stands still and Google's goes on.
    assert!((3_000.0..3_605.0).contains(&quiet.get("clock_ahead_seconds")), "{}", quiet.text);
    assert_eq!(quiet.sum("run_silence_seconds"), 0.0);

    let mut run = Run::new(Kind::Replay, Epoch(1), serde_json::json!({}), 10, 1_000, clock.now());
    assert_eq!(world.store.begin_run(&run, clock.now()).await.unwrap(), None);
    clock.advance_ms(20 * MINUTE_MS);
    let stuck = until(&world, "that a run is open", |s| s.sum("run_silence_seconds") > 0.0).await;
    assert_eq!(stuck.get("run_silence_seconds{run=\"replay\"}"), 1_200.0, "{}", stuck.text);
    assert_eq!(stuck.get("run_remaining_events{run=\"replay\"}"), 990.0);
    run.state = State::Finished;
    world.store.end_run(&run, clock.now()).await.unwrap();
    until(&world, "that it has ended", |s| s.sum("run_silence_seconds") + s.sum("run_remaining_events") < 0.5).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_does_not_hang_with_the_database() {
    let mut world = World::start(Setup::postgres()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    until(&world, "that a session is ready", |s| s.get("sessions{status=\"READY\"}") > 0.5).await;
    world.gate.as_mut().unwrap().shut();
    let down = until(&world, "that the database is down", |s| s.get("database_up") < 0.5).await;
    assert_eq!(down.get("sessions{status=\"READY\"}"), 1.0, "gauges keep what was seen last");
    assert!(down.text.ends_with("# EOF\n"));
    world.gate.as_mut().unwrap().open();
    until(&world, "that the database is back", |s| s.get("database_up") > 0.5).await;
    world.stop().await;
}

/// Names in the form in which Prometheus keeps them: <https://prometheus.io/docs/practices/naming/>.
#[tokio::test(flavor = "multi_thread")]
async fn the_text_follows_the_rules() {
    let mut world = World::start(Setup::sqlite()).await;
    let scrape = Scrape::of(&world).await;
    let mut typed = BTreeMap::new();
    for line in scrape.text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(typed.insert(name, kind).is_none(), "{name} is there twice");
            assert!(name.starts_with("meet_projector_") || name == "process_start_time_seconds", "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()), "{name}");
        }
    }
    for (name, help) in Metrics::LIST {
        let is_there = typed.keys().any(|typed| {
            typed.strip_prefix("meet_projector_").is_some_and(|rest| rest == *name || rest == format!("{name}_seconds"))
        });
        let comes_later = ["http_requests", "http_request_duration", "sessions", "db_connections"].contains(name);
        assert!(is_there || comes_later, "{name} is not there from the start");
        assert!(!help.ends_with('.'), "the encoder adds the full stop: {help}");
    }
    for (name, kind) in typed {
        assert_eq!(kind == "histogram", name.ends_with("_duration_seconds"), "{name} is a {kind}");
    }
    world.stop().await;
}

stories! {
    on both databases: runs_and_clocks_are_watched;
}
