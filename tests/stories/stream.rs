//! What comes out of the stream: in any order, twice, in any shape, or not readable at all.

use futures_util::StreamExt as _;
use meet_projector::event::{SessionEvent, encode, subject};
use meet_projector::fake::Operation::Insert;
use meet_projector::fake::{Expected, ExpectedEvent};
use serde_json::{Value, json};

use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

stories! {
    on both databases:
        duplicates_change_nothing,
        any_order_ends_alike,
        what_happened_while_down_is_summed_up,
        what_cannot_be_read_blocks_nobody;
    on sqlite:
        four_shapes_are_read;
}

async fn duplicates_change_nothing(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let before = world.ready("s1", 1).await;
    let payload = encode(&lesson).to_string().into_bytes();
    // The same event again: once under another message id, which the stream lets through, once as another event.
    world.publish_raw(&subject(&lesson), &[("Nats-Msg-Id", "another")], payload).await;
    world.publish(&SessionEvent { event_id: "evt-again".to_owned(), ..lesson.clone() }).await;
    world.publish(&world.lesson("s2", 0)).await;
    world.ready("s2", 1).await;
    assert_eq!(world.document("s1").await, Some(before));
    assert_eq!(world.calls("s1"), [Insert]);
    assert!(world.store.dead_letters(10, None).await.unwrap().is_empty(), "a duplicate is no mistake");
}

/// Six changes of one session: scheduled, moved, given to another teacher, canceled, revived and moved, renamed.
fn life(world: &World, session: &str) -> Vec<SessionEvent> {
    let mut events = vec![world.lesson(session, 0)];
    for step in 0..5 {
        let last = &events[step];
        let next = match step {
            0 => last.moved(HOUR_MS),
            1 => last.taught_by(1),
            2 => last.canceled(),
            3 => last.moved(2 * HOUR_MS),
            _ => last.then(|details| "The last title".clone_into(&mut details.title)),
        };
        events.push(next);
    }
    events
}

async fn any_order_ends_alike(setup: Setup) {
    let world = World::start(setup).await;
    let orders = [[5, 4, 3, 2, 1, 0], [5, 0, 3, 1, 4, 2], [0, 5, 1, 2, 3, 4], [3, 0, 5, 4, 2, 1], [2, 4, 0, 1, 5, 3]];
    let mut expected = Vec::new();
    for (n, order) in orders.iter().enumerate() {
        let session = format!("s{n}");
        let events = life(&world, &session);
        for place in order {
            world.publish(&events[*place]).await;
        }
        let details = events[5].details.clone().unwrap();
        expected.push(Expected {
            session,
            live: Some(ExpectedEvent {
                account: world.email(1).to_owned(),
                starts_at_ms: details.starts_at.get(),
                ends_at_ms: details.ends_at.get(),
                title: Some(details.title),
                has_link: true,
            }),
        });
    }
    for Expected { session, .. } in &expected {
        world.ready(session, 6).await;
    }
    world.until_settled().await;
    assert_eq!(world.fake().check(&expected), Vec::<String>::new());
    // Where the newest came first, all that followed was history.
    assert_eq!((world.writes("s0"), world.writes("s1")), (vec![Insert], vec![Insert]));
}

async fn what_happened_while_down_is_summed_up(setup: Setup) {
    let mut world = World::prepare(setup).await;
    let short = world.lesson("short", 0);
    world.publish(&short).await;
    world.publish(&short.canceled()).await;
    let mut restless = world.lesson("restless", 0);
    world.publish(&restless).await;
    for _ in 0..10 {
        restless = restless.moved(HOUR_MS);
        world.publish(&restless).await;
    }
    let tangled = life(&world, "tangled");
    for place in [3, 5, 0, 2, 4, 1] {
        world.publish(&tangled[place]).await;
    }
    world.serve().await;
    world.ready("restless", 11).await;
    world.ready("tangled", 6).await;
    world.canceled("short", 2).await;
    assert_eq!(world.calls("short"), [], "scheduled and canceled again: nothing to do");
    assert_eq!(world.calls("restless"), [Insert], "ten reschedules are one time");
    assert_eq!(world.calls("tangled"), [Insert]);

    // And again: a restart finds everything as it should be.
    world.restart().await;
    world.publish(&world.lesson("after", 0)).await;
    world.ready("after", 1).await;
    assert_eq!(world.fake().counters().writes(), 3);
}

async fn four_shapes_are_read(setup: Setup) {
    let world = World::start(setup).await;
    let data = |session: &str| encode(&world.lesson(session, 0))["data"].clone();
    let subject = |session: &str| format!("bookings.session.{session}.scheduled");
    world.publish(&world.lesson("structured", 0)).await;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b-1"),
        ("ce-source", "/services/bookings"),
        ("ce-type", "bookings.SessionScheduled.v1"),
        ("Content-Type", "application/json"),
    ];
    world.publish_raw(&subject("binary"), &binary, data("binary").to_string().into_bytes()).await;
    let nest = json!({"pattern": subject("nest"), "data": data("nest")});
    world.publish_raw(&subject("nest"), &[], nest.to_string().into_bytes()).await;
    world.publish_raw(&subject("bare"), &[], data("bare").to_string().into_bytes()).await;
    for session in ["structured", "binary", "nest", "bare"] {
        let document = world.ready(session, 1).await;
        assert_eq!(document["kind"], "private");
        assert_eq!(world.calls(session), [Insert]);
    }
}

/// A message that nobody can use, with the class it should get.
struct Broken {
    class: &'static str,
    subject: String,
    payload: Vec<u8>,
}

fn broken(world: &World) -> Vec<Broken> {
    let good = |session: &str| encode(&world.lesson(session, 0));
    let subject = |session: &str| format!("bookings.session.{session}.scheduled");
    let with = |session: &str, path: &str, value: Value| {
        let mut event = good(session);
        *event.pointer_mut(path).unwrap() = value;
        event.to_string().into_bytes()
    };
    let broken = |class, session: &str, payload| Broken { class, subject: subject(session), payload };
    let whole = good("cut").to_string();
    let deep = format!("{}\"x\":{}1{}}}", "{", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        broken("oversized", "big", with("big", "/data/description", "x".repeat(600_000).into())),
        broken("not_json", "cut", whole.as_bytes()[..whole.len() / 2].to_vec()),
        broken("not_utf8", "binary", vec![0xff, 0xfe, 0x00, 0x81, 0x9f, 0x92, 0x96]),
        broken("empty", "empty", Vec::new()),
        broken("too_deep", "deep", deep.into_bytes()),
        broken("wrong_type", "typed", with("typed", "/data/startsAt", json!(42))),
        broken("unknown_time_zone", "zone", with("zone", "/data/timeZone", json!("Europe/Atlantis"))),
        broken("ends_before_start", "ends", with("ends", "/data/endsAt", json!("2020-01-01T00:00:00Z"))),
        broken("session_mismatch", "mine", good("yours").to_string().into_bytes()),
        broken("change_mismatch", "change", with("change", "/type", json!("bookings.SessionCanceled.v1"))),
        Broken {
            class: "bad_subject",
            subject: "bookings.session.odd.postponed".to_owned(),
            payload: good("odd").to_string().into_bytes(),
        },
        // The same version with another title than the good event before it.
        broken("version_conflict", "good-0", with("good-0", "/data/title", json!("Another title"))),
    ]
}

async fn what_cannot_be_read_blocks_nobody(setup: Setup) {
    let world = World::start(setup).await;
    let advisories = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.BOOKINGS.*";
    let mut terminated = world.connection.client.subscribe(advisories).await.unwrap();
    world.connection.client.flush().await.unwrap();

    world.publish(&world.lesson("good-0", 0)).await;
    let broken = broken(&world);
    let mut sequences = Vec::new();
    for (n, Broken { subject, payload, .. }) in broken.iter().enumerate() {
        let headers = [("Content-Type", "application/cloudevents+json")];
        sequences.push(world.publish_raw(subject, &headers, payload.clone()).await);
        world.publish(&world.lesson(&format!("good-{}", n + 1), 0)).await;
    }
    for n in 0..=broken.len() {
        world.ready(&format!("good-{n}"), 1).await;
    }
    let good = world.document("good-0").await.unwrap();
    let event = world.fake().event(world.email(0), good["meetEventId"].as_str().unwrap()).unwrap();
    assert_eq!(event.title.as_deref(), Some("Piano good-0"), "of two contents of a version the first one stays");

    let mut letters = world.store.dead_letters(100, None).await.unwrap();
    letters.sort_by_key(|letter| letter.place.sequence);
    let found: Vec<_> = letters.iter().map(|letter| (letter.refused.class, letter.place.sequence)).collect();
    let wanted: Vec<_> = broken.iter().map(|broken| broken.class).zip(sequences.iter().copied()).collect();
    assert_eq!(found, wanted);
    for (letter, broken) in letters.iter().zip(&broken) {
        let raw = letter.raw.as_ref().unwrap();
        assert_eq!(raw.subject, broken.subject);
        assert!(raw.payload == broken.payload, "the payload of {} is another one", broken.class);
        assert!(letter.refused.reason.len() > 10, "{}", letter.refused.reason);
    }

    // The server was told that they are done with, each with its class.
    for (class, sequence) in wanted {
        let advisory = terminated.next().await.unwrap();
        let advisory: Value = serde_json::from_slice(&advisory.payload).unwrap();
        assert_eq!(advisory["stream_seq"], sequence, "{advisory}");
        assert!(advisory["reason"].as_str().unwrap().starts_with(class), "{advisory}");
    }
    eventually("nothing waits for an acknowledgement", async || {
        let durable = world.connection.consumer_info("BOOKINGS", "meet-projector-e1").await.unwrap().unwrap();
        durable.num_ack_pending == 0 && durable.num_pending == 0
    })
    .await;
}
