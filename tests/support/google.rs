//! A fake Google on a free loopback port, with teachers who have consented.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Once;
use std::time::Duration;

use meet_projector::clock::Clock;
use meet_projector::config::{GoogleConfig, SendUpdates};
use meet_projector::fake::{DEFAULT_SCOPES, FakeGoogle, NewAccount, Running};

/// A served fake and its accounts.
pub struct Google {
    /// The handle.
    pub fake: FakeGoogle,
    /// Where it is served.
    pub running: Running,
    /// The connected accounts, in the order in which they were made.
    pub teachers: Vec<Teacher>,
}

/// A connected account.
pub struct Teacher {
    /// Address, and id of the primary calendar.
    pub email: String,
    /// `sub` at Google.
    pub sub: String,
    /// A refresh token that works.
    pub refresh_token: String,
}

impl Google {
    /// Starts one with `teachers` accounts: `teacher-0@example.com`, …
    pub async fn start(clock: Clock, teachers: usize) -> Self {
        let fake = FakeGoogle::new(clock);
        let teachers = (0..teachers)
            .map(|n| {
                let teacher = Teacher {
                    email: format!("teacher-{n}@example.com"),
                    sub: format!("1000000000000000000{n:02}"),
                    refresh_token: format!("1//refresh-{n}"),
                };
                let account = NewAccount { sub: teacher.sub.clone(), ..NewAccount::new(&teacher.email) };
                fake.add_account(&account.connected(&teacher.refresh_token));
                teacher
            })
            .collect();
        let running = fake.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.expect("a loopback port is free");
        Self { fake, running, teachers }
    }

    /// Settings of a service that uses this Google: no rate limits, no guests, nobody is mailed.
    pub fn config(&self) -> GoogleConfig {
        let client = self.fake.settings();
        GoogleConfig {
            client_id: client.client_id,
            client_secret: client.client_secret.into(),
            encryption_key: "42".repeat(32).into(),
            encryption_keys_old: Vec::new(),
            scopes: DEFAULT_SCOPES.map(str::to_owned).to_vec(),
            auth_uri: self.running.auth_uri.clone(),
            token_uri: self.running.token_uri.clone(),
            revoke_uri: self.running.revoke_uri.clone(),
            calendar_api_root: self.running.calendar_api_root.clone(),
            max_in_flight: 32,
            rate_per_teacher: 0,
            rate_per_project: 0,
            attendees: false,
            send_updates: SendUpdates::None,
        }
    }
}

/// A client that follows no redirects. `timeout` ends a hanging request; it is not a limit on a correct answer.
pub fn http_client(timeout: Duration) -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error only says that another test of this process was first.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()
        .expect("a client without special settings")
}
