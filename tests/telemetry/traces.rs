//! One trace from the publisher to the result, on the real program with a collector of our own.

use meet_projector::event::{SessionEvent, encode, subject};
use meet_projector::fake::{Fault, Operation, Rule};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::collector::{Collector, Span};
use super::served::Served;
use crate::support::service::{Published, Setup, World, new_token};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PUBLISHER: &str = "00f067aa0ba902b7";

const PROCESS: &str = "process bookings.session.{sessionId}.{change}";
/// Of the batch.
const EVENTS: usize = 40;

const SEND: &str = "send meet.session.{sessionId}.{status}";
const INSERT: &str = "POST /calendars/{calendarId}/events";

async fn publish_traced(world: &World, event: &SessionEvent, traceparent: &str) {
    let headers = [("Nats-Msg-Id", event.event_id.as_str()), ("traceparent", traceparent)];
    world.publish_raw(&subject(event), &headers, encode(event).to_string().into_bytes()).await;
}

async fn ready(world: &World, session: &str) -> Vec<Published> {
    let subject = format!("meet.session.{session}.ready");
    world.until_published(&subject, |all| all.iter().any(|message| message.subject == subject)).await
}

fn traceparent(message: &Published) -> &str {
    let header = message.headers.iter().find(|(name, _)| name == "traceparent");
    &header.unwrap_or_else(|| panic!("no traceparent on {}", message.subject)).1
}

fn with_collector(collector: &Collector) -> [(&str, &str); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint), ("OTEL_SERVICE_NAME", "projector-under-test")]
}

/// Nothing that identifies a person or opens a door, and no id in a name.
fn assert_discreet(world: &World, spans: &[Span]) {
    let text = format!("{spans:?}");
    let link_or_token = ["meet.google.com", "ya29", "1//refresh", "Bearer", "@example.com", "Piano", "/sessions/"];
    for secret in link_or_token.iter().copied().chain([world.token.as_str()]) {
        assert!(!text.contains(secret), "{secret} is in a span:\n{text}");
    }
    for span in spans {
        assert!(!span.name.contains("s1") && !span.name.contains("tch_"), "an id in a name: {}", span.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_the_publisher_to_the_result() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    let mut served = Served::start(&world, &with_collector(&collector)).await;
    let event = world.lesson("s1", 0);
    publish_traced(&world, &event, &format!("00-{TRACE}-{PUBLISHER}-01")).await;
    let published = ready(&world, "s1").await;
    // What the end of the process flushes is part of the promise.
    served.stop().await;

    let process = collector.only(PROCESS);
    assert_eq!((process.trace.as_str(), process.parent.as_str()), (TRACE, PUBLISHER));
    assert_eq!((process.kind, process.service.as_str()), (SpanKind::Consumer, "projector-under-test"));
    for (name, value) in [
        ("messaging.system", "nats"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "BOOKINGS"),
        ("messaging.destination.template", "bookings.session.{sessionId}.{change}"),
        ("messaging.consumer.group.name", "meet-projector-e1"),
        ("messaging.message.id", event.event_id.as_str()),
        ("messaging.nats.stream.sequence", "1"),
        ("meet.session.id", "s1"),
        ("meet.outcome", "applied"),
    ] {
        assert_eq!(process.get(name), value, "{name} of {process:#?}");
    }
    for name in ["decode", "fold"] {
        let part = collector.only(name);
        assert_eq!((&part.trace, &part.parent), (&process.trace, &process.id), "{part:#?}");
        assert!(process.time.0 <= part.time.0 && part.time.1 <= process.time.1, "{part:#?} in {process:#?}");
    }

    let insert = collector.only(INSERT);
    assert_eq!((insert.kind, insert.trace.as_str()), (SpanKind::Client, TRACE));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("url.template", "/calendars/{calendarId}/events"),
        ("server.address", "127.0.0.1"),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", ""),
    ] {
        assert_eq!(insert.get(name), value, "{name} of {insert:#?}");
    }
    let rounds = collector.named("reconcile");
    let round = rounds.iter().find(|round| round.id == insert.parent).expect("the insert is part of a round");
    assert_eq!((&round.trace, &round.parent), (&process.trace, &process.id));
    assert_eq!((round.get("meet.operation"), round.get("meet.outcome")), ("insert", "success"));
    assert!(rounds.iter().any(|round| round.id == collector.only("POST /token").parent));

    // Each result goes out with the context of the span that sent it.
    let sent = collector.named(SEND);
    assert_eq!(sent.len(), published.len());
    for message in &published {
        let span = sent.iter().find(|span| format!("00-{TRACE}-{}-01", span.id) == traceparent(message));
        let span = span.unwrap_or_else(|| panic!("nobody sent {}", message.subject));
        assert_eq!((span.kind, &span.parent), (SpanKind::Producer, &process.id));
        assert_eq!(span.get("messaging.destination.name"), "MEET");
        assert_eq!(message.event["traceparent"].as_str().unwrap(), format!("00-{TRACE}-{}-01", process.id));
    }
    assert_discreet(&world, &collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_linked_to_its_events_and_they_to_it() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    for number in 0..EVENTS {
        let context = format!("00-{:032x}-{PUBLISHER}-01", number + 1);
        publish_traced(&world, &world.lesson(&format!("b{number}"), 0), &context).await;
    }
    let mut served = Served::start(&world, &with_collector(&collector)).await;
    let is_ready = |message: &&Published| message.event["data"]["meetStatus"] == "READY";
    world.until_published("all links", |all| all.iter().filter(is_ready).count() == EVENTS).await;
    served.stop().await;

    let processes = collector.named(PROCESS);
    assert_eq!(processes.len(), EVENTS);
    let of_many: Vec<_> = collector.named("fold").into_iter().filter(|fold| !fold.links.is_empty()).collect();
    assert!(!of_many.is_empty(), "forty events that wait together are folded in fewer transactions");
    for fold in of_many {
        assert_eq!(fold.parent, "", "a batch belongs to none of its traces alone");
        assert_eq!(fold.get("messaging.batch.message_count"), fold.links.len().to_string());
        for (trace, id) in &fold.links {
            let event =
                processes.iter().find(|event| (&event.trace, &event.id) == (trace, id)).expect("it is one of them");
            assert_eq!(event.links, [(fold.trace.clone(), fold.id.clone())]);
        }
    }
    for insert in collector.named(INSERT) {
        assert!(processes.iter().any(|event| event.trace == insert.trace), "each call is in the trace of its event");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_says_that_it_is_one() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    world.fake().add_fault(Rule::once(Operation::Insert, Fault::refuse(503, "backendError")));
    let mut served = Served::start(&world, &with_collector(&collector)).await;
    publish_traced(&world, &world.lesson("s1", 0), &format!("00-{TRACE}-{PUBLISHER}-01")).await;
    ready(&world, "s1").await;
    served.stop().await;

    let mut inserts = collector.named(INSERT);
    inserts.sort_by_key(|span| span.time.0);
    let [first, second] = inserts.as_slice() else { panic!("two inserts: {inserts:#?}") };
    assert_eq!((first.get("http.response.status_code"), first.get("error.type"), first.is_error), ("503", "503", true));
    assert_eq!((second.get("http.response.status_code"), second.is_error), ("200", false));
    assert_eq!((first.get("http.request.resend_count"), second.get("http.request.resend_count")), ("", "1"));
    let rounds = collector.named("reconcile");
    let round_of = |call: &Span| rounds.iter().find(|round| round.id == call.parent).unwrap();
    assert_eq!((round_of(first).get("meet.attempt"), round_of(second).get("meet.attempt")), ("1", "2"));
    assert_eq!((round_of(first).get("error.type"), round_of(first).is_error), ("transient", true));
    assert!(inserts.iter().all(|span| span.trace == TRACE));
    assert_discreet(&world, &collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_goes_on_with_the_trace_of_its_caller() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    let token = new_token(&world.store, &world.clock, meet_projector::store::Role::Reader).await;
    let mut served = Served::start(&world, &with_collector(&collector)).await;
    let http = crate::support::google::http_client(std::time::Duration::from_mins(1));
    let address = served.address().unwrap();
    for (path, status) in [("/api/google/meet/s1?wait=0", 404), ("/livez", 200)] {
        let request = http.get(format!("http://{address}{path}")).bearer_auth(&token);
        let answer = request.header("traceparent", format!("00-{TRACE}-{PUBLISHER}-01")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    served.stop().await;
    let span = collector.only("GET /api/google/meet/{sessionId}");
    assert_eq!((span.kind, span.trace.as_str(), span.parent.as_str()), (SpanKind::Server, TRACE, PUBLISHER));
    assert_eq!(
        (span.get("http.route"), span.get("http.response.status_code")),
        ("/api/google/meet/{sessionId}", "404")
    );
    assert!(!span.is_error, "a 404 is not our failure");
    // Results of the teachers that the world connected may be sent before the end.
    let mut names = collector.names();
    names.retain(|name| !name.starts_with("send meet.teacher."));
    assert_eq!(names, [span.name.as_str()], "health checks are not traced");
    assert!(!format!("{span:?}").contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_publisher_does_not_sample_is_not_exported() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    let mut served = Served::start(&world, &with_collector(&collector)).await;
    publish_traced(&world, &world.lesson("s1", 0), &format!("00-{TRACE}-{PUBLISHER}-00")).await;
    let published = ready(&world, "s1").await;
    served.stop().await;
    // What is told of teachers comes from no event of theirs, so the decision about it is ours.
    let others = |name: &String| name != "send meet.teacher.{teacherId}.{status}";
    assert_eq!(collector.names().into_iter().filter(others).collect::<Vec<_>>(), Vec::<String>::new());
    let passed_on = traceparent(published.last().unwrap());
    assert!(passed_on.starts_with(&format!("00-{TRACE}-")) && passed_on.ends_with("-00"), "{passed_on}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampler_decides_once_for_the_whole_way_of_an_event() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let mut served = Served::start(&world, &[with_collector(&collector).as_slice(), &sampler].concat()).await;
    // Without a publisher's context the decision is ours, and what follows keeps to it.
    world.publish(&world.lesson("s1", 0)).await;
    let published = ready(&world, "s1").await;
    assert!(traceparent(published.last().unwrap()).ends_with("-00"));
    publish_traced(&world, &world.lesson("s2", 0), &format!("00-{TRACE}-{PUBLISHER}-01")).await;
    ready(&world, "s2").await;
    served.stop().await;
    assert!(!collector.named(INSERT).is_empty());
    for span in collector.spans() {
        assert_eq!(span.trace, TRACE, "{span:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_nothing_but_spans() {
    let world = World::prepare(Setup::sqlite()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut some = [0; 16];
            if connection.read(&mut some).await.is_ok_and(|read| read > 0) {
                asked.send(()).unwrap();
            }
            held.push(connection);
        }
    });
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let mut served = Served::start(&world, &variables).await;
    world.publish(&world.lesson("s1", 0)).await;
    ready(&world, "s1").await;
    was_asked.recv().await.expect("spans were on their way");
    world.publish(&world.lesson("s2", 1)).await;
    ready(&world, "s2").await;
    // It gives up on the rest within a bound, well before systemd or Kubernetes lose their patience.
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_the_publishers_context_is_passed_on_as_it_is() {
    let mut world = World::prepare(Setup::sqlite()).await;
    world.serve().await;
    let context = format!("00-{TRACE}-{PUBLISHER}-01");
    publish_traced(&world, &world.lesson("s1", 0), &context).await;
    let published = ready(&world, "s1").await;
    assert_eq!(traceparent(published.last().unwrap()), context);
    world.stop().await;
}
