//! Schemathesis against the real program: what the document allows and forbids is sent to every route, with a fixed seed,
//! and every answer is held to it.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use crate::support::google::http_client;
use crate::support::process::Serving;
use crate::support::service::{Setup, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn the_program_keeps_to_its_document() {
    let world = World::prepare(Setup::sqlite()).await;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}");
    let _serving = Serving::start_with(&world, &[("HTTP_ADDR", &format!("127.0.0.1:{port}"))]);
    world.publish(&world.lesson("ses_8Kq2", 0)).await;
    let http = http_client(std::time::Duration::from_secs(5));
    eventually("the lesson has its link", async || {
        let asked = http.get(format!("{base}/api/google/meet/ses_8Kq2")).bearer_auth(&world.token).send().await;
        match asked {
            Ok(answer) => answer.text().await.unwrap_or_default().contains("\"READY\""),
            Err(_) => false,
        }
    })
    .await;
    let ci = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci");
    let document = format!("{base}/openapi.json");
    let config = format!("{ci}/schemathesis.toml");
    let header = format!("Authorization: Bearer {}", world.token);
    let run = tokio::task::spawn_blocking({
        let folder = world.folder.path().to_owned();
        move || {
            Command::new(format!("{ci}/schemathesis"))
                .args(["--config-file", &config, "run", &document, "-H", &header])
                .args(["--checks", "all", "--phases", "examples,coverage,fuzzing"])
                .args(["--max-examples", "25", "--seed", "1", "--no-color", "--continue-on-failure"])
                .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
                .env("PYTHONPATH", ci)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .current_dir(folder)
                .output()
                .unwrap()
        }
    });
    let output = run.await.unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Selected: 12/12") || said.contains("Selected: 13/13"), "every operation is tested:\n{said}");
}
