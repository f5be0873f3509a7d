//! What systemd is told, by the real program, on a socket of the test; and `healthcheck`.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use super::served::Served;
use crate::support::service::{Setup, World};

/// Receives one datagram; the patience only ends what would hang.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).expect("systemd was told nothing for a minute");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn until_told(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        all.push(told(socket));
        if all.last().unwrap().lines().any(|line| line == wanted) {
            return all;
        }
    }
}

fn listen(world: &World) -> (UnixDatagram, String) {
    let path = world.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    (socket, path.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_ready_alive_and_stopping() {
    let world = World::prepare(Setup::sqlite()).await;
    let (socket, path) = listen(&world);
    let variables = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "40000")];
    let mut served = Served::start(&world, &variables).await;
    let before = until_told(&socket, "READY=1");
    assert_eq!(before[0], "STATUS=waiting for the database");
    assert!(before.iter().all(|state| !state.contains("WATCHDOG")), "no sign of life before it is ready: {before:?}");
    until_told(&socket, "WATCHDOG=1");
    until_told(&socket, "WATCHDOG=1");
    served.terminate();
    until_told(&socket, "STOPPING=1");
    served.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_watchdog_nothing_more_is_said_than_ready_and_stopping() {
    let world = World::prepare(Setup::sqlite()).await;
    let (socket, path) = listen(&world);
    let mut served = Served::start(&world, &[("NOTIFY_SOCKET", path.as_str())]).await;
    until_told(&socket, "READY=1");
    served.terminate();
    assert!(told(&socket).starts_with("STOPPING=1"));
    served.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_before_the_database_is_there() {
    let mut world = World::prepare(Setup::postgres()).await;
    world.gate.as_mut().unwrap().shut();
    let (socket, path) = listen(&world);
    let variables = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "40000")];
    let mut served = Served::start(&world, &variables).await;
    assert_eq!(told(&socket), "STATUS=waiting for the database");
    world.gate.as_mut().unwrap().open();
    assert!(told(&socket).starts_with("READY=1"), "the next that it says");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_answers_for_the_service_on_this_machine() {
    let world = World::prepare(Setup::sqlite()).await;
    let mut served = Served::start(&world, &[]).await;
    let address = served.address().unwrap();
    let ask = |arguments: &[&str], variable: &str, address: &str| {
        let asked = Command::new(env!("CARGO_BIN_EXE_meet-projector"))
            .arg("healthcheck")
            .args(arguments)
            .env_clear()
            .env(variable, address)
            .output()
            .unwrap();
        let text = String::from_utf8([asked.stdout, asked.stderr].concat()).unwrap();
        (asked.status.code(), text)
    };
    assert_eq!(ask(&[], "HTTP_ADDR", &address), (Some(0), "live\n".to_owned()));
    crate::support::service::eventually("it is ready", async || ask(&["--ready"], "ADMIN_ADDR", &address).0 == Some(0))
        .await;
    let (code, text) = ask(&["--ready", "--output", "json"], "HTTP_ADDR", &address);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &answer["ok"], &answer["answer"]["status"]), (Some(0), &true.into(), &"ready".into()));
    world.store.close().await;
    served.stop().await;
    let (code, text) = ask(&[], "HTTP_ADDR", &address);
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("HTTP_ADDR"), "it says what to look at: {text}");
    assert_eq!(ask(&[], "HTTP_ADDR", "nonsense").0, Some(3));
}
