//! Faults: what the client sees, and what became of its request all the same.

use std::time::Duration;

use meet_projector::fake::{
    Chaos, Commit, Effect, Ending, Fault, Operation, Quota, Recording, Refusal, Rule, TokenMode,
};
use reqwest::Method;
use serde_json::json;

use super::{Client, ID, answer, lesson, refusal};
use crate::support::google::http_client;

impl Client {
    fn fault(&self, operation: Operation, fault: Fault) {
        self.google.fake.add_fault(Rule::once(operation, fault));
    }

    fn exists(&self) -> bool {
        self.google.fake.event(self.email(), ID).is_some()
    }

    /// Inserts and expects that no whole answer comes.
    async fn insert_in_vain(&self) {
        let request = self.request(Method::POST, "?conferenceDataVersion=1").json(&lesson(ID));
        match request.send().await {
            Err(_) => {}
            Ok(response) => assert!(response.bytes().await.is_err(), "a whole answer"),
        }
    }
}

#[tokio::test]
async fn an_error_before_the_commit_leaves_nothing_and_one_after_it_leaves_the_event() {
    let client = Client::start().await;
    client.fault(Operation::Insert, Fault::refuse(503, "backendError"));
    client.fault(Operation::Insert, Fault::refuse_after(503, "backendError"));
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (503, "backendError"));
    assert!(!client.exists());
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (503, "backendError"));
    assert!(client.exists());
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (409, "duplicate"));
    let effects: Vec<_> = client.google.fake.recorded().iter().map(|request| request.effect).collect();
    assert_eq!(effects, [Effect::None, Effect::Committed, Effect::None]);
}

#[tokio::test]
async fn connections_end_before_after_and_in_the_middle_of_an_answer() {
    for (fault, is_applied) in [
        (Fault::drop_before(), false),
        (Fault::drop_after(), true),
        (Fault::new(Commit::Now, Ending::HalfBody), true),
        (Fault::new(Commit::Now, Ending::Hang(0)), true),
    ] {
        let client = Client::start().await;
        client.fault(Operation::Insert, fault.clone());
        client.insert_in_vain().await;
        assert_eq!(client.exists(), is_applied, "{fault:?}");
        let recorded = client.google.fake.recorded();
        assert_eq!((recorded.len(), recorded[0].status), (1, 0), "the client did not repeat it by itself");
        assert_eq!(client.get("otherevent").await.0, 404, "the next connection works");
    }
}

#[tokio::test]
async fn a_hanging_request_has_taken_effect_when_the_client_gives_up() {
    let mut client = Client::start().await;
    client.http = http_client(Duration::from_millis(200));
    client.fault(Operation::Insert, Fault::new(Commit::Now, Ending::Hang(600_000)));
    let error = client.request(Method::POST, "").json(&lesson(ID)).send().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(client.exists());
}

#[tokio::test]
async fn a_slow_request_is_carried_out_although_its_client_has_gone() {
    let mut client = Client::start().await;
    client.http = http_client(Duration::from_millis(50));
    client.fault(Operation::Insert, Fault::slow(200));
    assert!(client.request(Method::POST, "").json(&lesson(ID)).send().await.is_err());
    while !client.exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_late_insert_comes_when_it_is_released_and_loses_against_a_retry() {
    let client = Client::start().await;
    let late = Fault::new(Commit::OnRelease, Ending::Refuse(Refusal::of(504, "gatewayTimeout")));
    client.fault(Operation::Insert, late.clone());
    assert_eq!(client.insert(&lesson(ID)).await.0, 504);
    assert_eq!(client.get(ID).await.0, 404);
    assert_eq!(client.google.fake.release_late(), 1);
    assert_eq!(client.get(ID).await.0, 200);
    assert_eq!(client.google.fake.counters().committed_of(Operation::Insert), 1);

    let other = lesson("anotherone");
    client.fault(Operation::Insert, late);
    client.insert(&other).await;
    let (_, retried) = client.insert(&other).await;
    assert_eq!(client.google.fake.release_late(), 1);
    assert_eq!(client.get("anotherone").await.1, retried);
}

#[tokio::test]
async fn a_late_patch_with_an_old_etag_is_refused_when_it_comes() {
    let client = Client::start().await;
    let (_, event) = client.insert(&lesson(ID)).await;
    client.fault(Operation::Patch, Fault::new(Commit::OnRelease, Ending::Drop));
    let patch = client
        .request(Method::PATCH, &format!("/{ID}"))
        .header("If-Match", event["etag"].as_str().unwrap())
        .json(&json!({"summary": "late"}));
    assert!(patch.send().await.is_err());
    client.patch(ID, &json!({"summary": "newer"})).await;
    client.google.fake.release_late();
    assert_eq!(client.get(ID).await.1["summary"], "newer");
}

#[tokio::test]
async fn a_late_request_comes_by_itself_after_its_time() {
    let client = Client::start().await;
    client.fault(Operation::Insert, Fault::new(Commit::LateMs(20), Ending::Drop));
    client.insert_in_vain().await;
    while !client.exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.google.fake.release_late(), 0);
}

#[tokio::test]
async fn a_new_event_can_be_invisible_for_some_reads() {
    let client = Client::start().await;
    client.google.fake.configure_account(client.email(), |settings| settings.hidden_gets = 2);
    client.insert(&lesson(ID)).await;
    assert_eq!(client.get(ID).await.0, 404);
    let by_session = "?privateExtendedProperty=mpSession%3Dses_1";
    assert_eq!(answer(client.request(Method::GET, by_session)).await.1["items"], json!([]));
    assert_eq!(client.get(ID).await.0, 404);
    assert_eq!(client.get(ID).await.0, 200);
}

#[tokio::test]
async fn an_account_can_be_limited_or_locked_out() {
    let client = Client::start().await;
    let configure = |change: fn(&mut meet_projector::fake::AccountSettings)| {
        client.google.fake.configure_account(client.email(), |settings| {
            *settings = meet_projector::fake::AccountSettings::default();
            change(settings);
        });
    };
    client.insert(&lesson(ID)).await;
    configure(|settings| settings.quota = Quota::Exceeded);
    let refused = client.delete(ID).await;
    assert_eq!(refusal(&refused), (403, "quotaExceeded"));
    assert_eq!(refused.1["error"]["errors"][0]["domain"], "usageLimits");
    assert_eq!(client.get(ID).await.0, 200, "reading goes on");
    configure(|settings| settings.quota = Quota::ExceededForGuests);
    assert_eq!(client.patch(ID, &json!({"summary": "x"})).await.0, 200);
    let guests = json!({"attendees": [{"email": "ana@example.com"}]});
    assert_eq!(refusal(&client.patch(ID, &guests).await), (403, "quotaExceeded"));
    configure(|settings| settings.is_rate_limited = true);
    assert_eq!(refusal(&client.get(ID).await), (403, "rateLimitExceeded"));
    configure(|settings| settings.is_unauthorized = true);
    assert_eq!(refusal(&client.get(ID).await), (401, "authError"));
}

#[tokio::test]
async fn rules_match_account_event_and_count() {
    let client = Client::start().await;
    let fake = &client.google.fake;
    let elsewhere = Rule {
        account: Some("teacher-1@example.com".to_owned()),
        ..Rule::on(Operation::Get, Fault::refuse(500, "backendError"))
    };
    fake.add_fault(elsewhere);
    let here = fake.add_fault(Rule {
        event: Some(ID.to_owned()),
        times: Some(2),
        skip: 1,
        ..Rule::on(Operation::Get, Fault::refuse(429, "rateLimitExceeded"))
    });
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.get(ID).await.0);
    }
    assert_eq!(statuses, [404, 429, 429, 404]);
    assert_eq!(client.get("otherevent").await.0, 404);
    let hits: Vec<_> = fake.faults().iter().map(|state| (state.seen, state.hits)).collect();
    assert_eq!(hits, [(0, 0), (3, 2)]);
    assert!(fake.remove_fault(here) && !fake.remove_fault(here));
}

#[tokio::test]
async fn retry_after_and_pages_of_a_proxy_come_as_told() {
    let client = Client::start().await;
    let slow_down = Refusal { retry_after_s: Some(7), ..Refusal::of(429, "rateLimitExceeded") };
    client.fault(Operation::Get, Fault::new(Commit::Never, Ending::Refuse(slow_down)));
    let response = client.request(Method::GET, &format!("/{ID}")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    client.fault(Operation::Get, Fault::new(Commit::Never, Ending::Refuse(Refusal::html_502())));
    let response = client.request(Method::GET, &format!("/{ID}")).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.text().await.unwrap().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn under_the_random_mix_retrying_with_the_same_id_makes_one_event() {
    let client = Client::start().await;
    let fake = &client.google.fake;
    let seed = 11;
    fake.set_chaos(Some(Chaos { slow_ms: 0, ..Chaos::new(seed, 0.5) }));
    for n in 0..40 {
        let mut event = lesson(&format!("event{n:02}"));
        event["extendedProperties"]["private"]["mpSession"] = format!("ses_{n}").into();
        loop {
            let request = client.request(Method::POST, "?conferenceDataVersion=1").json(&event);
            let Ok(response) = request.send().await else { continue };
            let status = response.status().as_u16();
            let body: Option<serde_json::Value> = response.json().await.ok();
            let duplicate = body.as_ref().is_some_and(|body| body["error"]["errors"][0]["reason"] == "duplicate");
            if duplicate || (status == 200 && body.is_some()) {
                break;
            }
        }
    }
    let counters = fake.counters();
    assert_eq!((fake.live_events().len(), counters.committed_of(Operation::Insert)), (40, 40), "seed {seed}");
    assert!(counters.faults > 10, "seed {seed}: {counters:?}");
    assert_eq!(fake.violations(), []);
}

#[tokio::test]
async fn a_server_that_is_down_comes_back_with_its_events_and_its_port() {
    let mut client = Client::start().await;
    client.insert(&lesson(ID)).await;
    let fake = client.google.fake.clone();
    fake.configure(|settings| settings.tokens = TokenMode::Hang);
    let addr = client.google.running.addr;
    let placeholder = fake.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let running = std::mem::replace(&mut client.google.running, placeholder);
    running.shutdown().await.unwrap();
    let old = format!("http://{addr}/calendar/v3/calendars/primary/events/{ID}");
    assert!(client.http.get(&old).bearer_auth(&client.token).send().await.is_err());
    client.google.running = fake.serve(addr).await.unwrap();
    assert_eq!(client.get(ID).await.0, 200);
}

#[tokio::test]
async fn recording_can_be_bounded_or_off_while_counters_go_on() {
    let client = Client::start().await;
    let fake = &client.google.fake;
    fake.configure(|settings| settings.recording = Recording { keep: 2, bodies: false });
    client.insert(&lesson(ID)).await;
    for _ in 0..3 {
        client.get(ID).await;
    }
    let recorded = fake.recorded();
    assert_eq!(recorded.iter().map(|request| request.number).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(recorded[0].session.as_deref(), Some("ses_1"));
    fake.configure(|settings| settings.recording = Recording { keep: 0, bodies: false });
    fake.reset_records();
    client.get(ID).await;
    assert_eq!((fake.recorded().len(), fake.counters().requests_of(Operation::Get)), (0, 1));
}
