//! Three nats-servers that form one cluster, with streams that keep three copies.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use meet_projector::config::NatsConfig;
use meet_projector::nats::definitions::{Definitions, apply};
use meet_projector::nats::{Connection, connect};
use serde_json::Value;

use super::nats::{NatsServer, eventually, free_port};

/// A cluster elects its leaders anew within seconds; no correct run comes near this.
const PATIENCE: Duration = Duration::from_mins(1);

/// Three servers of their own.
pub struct Cluster {
    /// `n0`, `n1` and `n2`; each may be killed and run again.
    pub servers: Vec<NatsServer>,
}

impl Cluster {
    /// Three servers and, on them, streams and consumer as defined, with three copies.
    pub async fn start() -> (Self, Connection) {
        let ports = [free_port(), free_port(), free_port()];
        let routes: Vec<_> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let start = ports.iter().enumerate().map(|(number, port)| {
            let config = format!(
                "server_name: n{number}\ncluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}] }}\n",
                routes.join(", ")
            );
            async move { NatsServer::start_with(Some(&config), &[]).await }
        });
        let this = Self { servers: join_all(start).await };
        let connection = this.connect().await;
        let config = this.config();
        let definitions = Definitions::load(None, &config, Some(3)).unwrap();
        // Until the three have found one another and elected who decides.
        eventually("the cluster takes the streams", async || apply(&connection, &config, &definitions).await.is_ok())
            .await;
        (this, connection)
    }

    /// Settings of a client that knows all three.
    pub fn config(&self) -> NatsConfig {
        let urls: Vec<_> = self.servers.iter().map(|server| format!("nats://{}", server.address())).collect();
        NatsConfig { url: urls.join(",").into(), ..self.servers[0].config() }
    }

    /// A connection that finds another server when its own dies.
    pub async fn connect(&self) -> Connection {
        let begun = Instant::now();
        loop {
            match connect(&self.config(), "test").await {
                Ok(connection) => return connection,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    /// Which server leads `BOOKINGS`, once one does.
    pub async fn leader(&self, connection: &Connection) -> usize {
        let mut leader = None;
        eventually("the stream has a leader", async || {
            let info = connection.api::<Value>("asking who leads", "$JS.API.STREAM.INFO.BOOKINGS", None).await;
            let name = info.ok().and_then(|info| Some(info["cluster"]["leader"].as_str()?.to_owned()));
            leader = name.and_then(|name| name.strip_prefix('n')?.parse().ok());
            leader.is_some()
        })
        .await;
        leader.expect("it was awaited")
    }

    /// Has the leader of the stream, or of the durable, give way to another server.
    pub async fn step_down(connection: &Connection, what: &str) {
        let subject = format!("$JS.API.{what}");
        eventually("the leader steps down", async || {
            connection.api::<Value>("stepping down", &subject, None).await.is_ok_and(|told| told["success"] == true)
        })
        .await;
    }
}
