//! Sessions per second from the stream to READY, with a Google that answers at once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use meet_projector::config::SendUpdates;
use meet_projector::fake::Recording;
use meet_projector::google::calendar::{CALL_TIMEOUT, CalendarClient, Target, http_client};
use meet_projector::google::{Call, Wanted};
use meet_projector::model::{EventId, GoogleSub, SessionId};
use secrecy::SecretString;

use crate::support::service::{Setup, World};
use crate::table::{Table, cpu_ms, median, real};

const SESSIONS: usize = 5_000;
const TEACHERS: usize = 200;

pub async fn run(table: &mut Table) {
    let (mut rates, mut cpu, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut world = World::prepare(Setup::sqlite().teachers(TEACHERS)).await;
        world.fake().configure(|settings| settings.recording = Recording { keep: 0, bodies: false });
        alone.push(bare(&world).await);
        join_all((0..SESSIONS).map(|n| {
            let lesson = world.lesson(&format!("s{n}"), n % TEACHERS);
            let world = &world;
            async move { world.publish(&lesson).await }
        }))
        .await;
        let (begun, cpu_before) = (Instant::now(), cpu_ms());
        world.serve().await;
        while world.store.counts(world.clock.now()).await.unwrap().ready < i64::try_from(SESSIONS).unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rates.push(real(SESSIONS) / begun.elapsed().as_secs_f64());
        cpu.push((cpu_ms() - cpu_before) / real(SESSIONS));
        world.stop().await;
    }
    let (rate, bare_rate) = (median(rates), median(alone));
    table.add(
        "events to READY, instant Google",
        format!("{rate:.0} sessions/s, {:.3} ms CPU each, the fake's share included", median(cpu)),
        format!("bare inserts of the same client {bare_rate:.0}/s: ratio {:.2}", rate / bare_rate),
        ">= 6,000/s, <= 0.25 ms",
    );
}

/// The client and the fake alone: inserts, 32 at a time, without a database, a plan or a stream.
async fn bare(world: &World) -> f64 {
    let google = world.config.google.as_ref().unwrap();
    let client = CalendarClient::new(http_client(), google.calendar_api_root.clone(), SendUpdates::None);
    let token: SecretString =
        world.fake().access_token(world.email(0), &meet_projector::fake::DEFAULT_SCOPES).unwrap().into();
    let account = GoogleSub("bare".to_owned());
    let begun = Instant::now();
    join_all((0..32_usize).map(|lane| {
        let (client, token, account) = (&client, &token, &account);
        async move {
            for nth in 0..100 {
                let session = SessionId::parse(format!("bare-{lane}-{nth}")).unwrap();
                let id = EventId::derive("bench", &session, account, 0);
                let starts_at = world.lesson("x", 0).details.unwrap().starts_at;
                let wanted = Wanted {
                    id: id.clone(),
                    session: session.to_string(),
                    environment: "bench".to_owned(),
                    generation: 0,
                    title: "Piano".to_owned(),
                    description: None,
                    starts_at,
                    ends_at: starts_at.plus(3_600_000),
                    time_zone: "Europe/Madrid",
                    url: None,
                    attendees: None,
                    hash: "x".to_owned(),
                };
                let call = Call::Insert { conference_request: Some(id.conference_request(0)) };
                let target = Target { calendar: "primary", event_id: &id, session: &session };
                client.call(token, target, &call, Some(&wanted), CALL_TIMEOUT).await.unwrap();
            }
        }
    }))
    .await;
    3_200.0 / begun.elapsed().as_secs_f64()
}
