//! Connecting a teacher's Google account, from the consent screen to the disconnect.
//!
//! ```text
//! browser ─▶ start ─▶ Google's consent page ─▶ callback ─▶ exchange ─▶ credential, rows awake ─▶ the site's page
//!                     (state, PKCE)            (state used up)
//! ```
//!
//! [`start`](Connect::start) keeps a flow: the hash of a random state, the sealed PKCE verifier, where to go afterwards, and
//! the hash of a cookie where the start was made by the browser itself. [`callback`](Connect::callback) uses the state up
//! before anything else, so that of two callbacks at once one is refused, and stores a grant only after every check: a
//! connect that fails leaves the one before as it was. [`Disconnector`] takes a grant away.
//!
//! RFC 9700 (OAuth 2.0 security best current practice): one-time state and PKCE (2.1.1, 4.7), exact redirect URI (2.1), no
//! open redirector ([`ReturnUrls`], 4.11), nothing secret in the addresses we redirect to (4.2, 4.3), `iss` of the
//! answer checked (4.4). Deliberately absent: checking the signature of id tokens (see [`crate::google::oauth::id_token`]),
//! and a revocation of grants that lack the calendar: it would end everything the account granted to the project.

use std::sync::Arc;

use oauth2::RedirectUrl;
use tokio::sync::Notify;
use url::Url;

use crate::clock::Clock;
use crate::config::Config;
use crate::credential::{KeyRing, Slot};
use crate::google::access::AccessTokens;
use crate::google::calendar::http_client;
use crate::google::oauth::TokenEndpoint;
use crate::google::oauth::consent::ConsentPage;
use crate::model::{TeacherId, digest};
use crate::store::Store;

mod account;
mod callback;
pub mod disconnect;
pub mod failure;
pub mod return_to;
pub mod start;

pub use callback::{Answer, Connection, Ended};
pub use disconnect::Disconnector;
pub use failure::{Failure, FailureCode};
pub use return_to::{ReturnTo, ReturnUrls};
pub use start::{Start, Started};

/// The path of the callback under `WP_BASE_URL`.
pub const CALLBACK_PATH: &str = "/api/google/oauth/callback";

/// A state is accepted for ten minutes.
pub const FLOW_MS: i64 = 600_000;

/// What the flow works with; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connect(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    keys: Arc<KeyRing>,
    clock: Clock,
    client_id: String,
    page: ConsentPage,
    endpoint: TokenEndpoint,
    access: Arc<AccessTokens>,
    returns: ReturnUrls,
    /// Wakes the reconciler.
    wake: Arc<Notify>,
    disconnector: Disconnector,
}

/// Parts that the service shares with the flow.
#[derive(Debug)]
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The keys that seal tokens.
    pub keys: Arc<KeyRing>,
    /// The time.
    pub clock: Clock,
    /// Its breaker is the one of the token endpoint.
    pub access: Arc<AccessTokens>,
    /// Wakes the reconciler.
    pub wake: Arc<Notify>,
}

impl Connect {
    /// `None` without the Google section or `WP_BASE_URL`, which [`crate::config::Need::Serve`] makes sure of.
    pub fn new(config: &Config, parts: Parts) -> Option<Self> {
        let google = config.google.as_ref()?;
        let base = config.http.wp_base_url.as_ref()?;
        let redirect_uri = redirect_uri(base)?;
        let Parts { store, keys, clock, access, wake } = parts;
        let http = http_client();
        let endpoint =
            TokenEndpoint::new(http.clone(), &google.client_id, &google.client_secret, google.token_uri.clone());
        let disconnector =
            Disconnector::new(google, store.clone(), Arc::clone(&keys), clock.clone(), Arc::clone(&wake));
        Some(Self(Arc::new(Inner {
            store,
            keys,
            clock,
            client_id: google.client_id.clone(),
            page: ConsentPage::new(&google.client_id, google.auth_uri.clone(), redirect_uri, &google.scopes),
            endpoint,
            access,
            returns: ReturnUrls::new(base.clone(), config.http.return_urls.clone()),
            wake,
            disconnector,
        })))
    }

    /// What ends connections.
    pub fn disconnector(&self) -> &Disconnector {
        &self.0.disconnector
    }

    /// The address that Google sends browsers back to.
    pub fn redirect_uri(&self) -> &Url {
        self.0.page.redirect_uri()
    }

    /// The pages that a browser may be sent to afterwards.
    pub fn returns(&self) -> &ReturnUrls {
        &self.0.returns
    }
}

/// `${WP_BASE_URL}/api/google/oauth/callback`, to the letter as it is registered at Google.
pub fn redirect_uri(base: &Url) -> Option<Url> {
    let text = format!("{}{CALLBACK_PATH}", base.as_str().trim_end_matches('/'));
    RedirectUrl::new(text).ok().map(|uri| uri.url().clone())
}

/// What is kept of a state or of a browser's cookie: they are random, so a plain hash tells nothing.
pub(crate) fn hash(secret: &str) -> String {
    data_encoding::HEXLOWER.encode(&digest(&[b"mp/connect/1", secret.as_bytes()]))
}

/// Where a sealed verifier lives. The hash of its state takes the place of an account, of which none is known yet: a
/// verifier that is copied to another flow does not open there.
fn verifier_slot<'a>(teacher: &'a TeacherId, state_hash: &'a str) -> Slot<'a> {
    Slot { table: "oauth_flow", column: "verifier", teacher: teacher.as_str(), account: state_hash }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redirect_uri_is_exact() {
        for (base, uri) in [
            ("https://school.example.com", "https://school.example.com/api/google/oauth/callback"),
            ("https://school.example.com/", "https://school.example.com/api/google/oauth/callback"),
            ("https://example.com/school/", "https://example.com/school/api/google/oauth/callback"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/google/oauth/callback"),
        ] {
            assert_eq!(redirect_uri(&Url::parse(base).unwrap()).unwrap().as_str(), uri);
        }
    }
}
