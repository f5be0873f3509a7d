//! How the fake behaves while nothing is injected: for everybody, and for one account.

use serde::{Deserialize, Serialize};

use super::conference::ConferenceMode;
use super::grants::TokenMode;
use super::id_token::IdTokenMode;
use super::record::Recording;

/// What holds for all accounts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServerSettings {
    /// The OAuth client that is registered.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Redirect URIs that are registered; empty accepts any.
    pub redirect_uris: Vec<String>,
    /// `expires_in` of access tokens, seconds.
    pub access_token_lifetime_s: i64,
    /// Every Calendar call takes this many milliseconds.
    pub latency_ms: u64,
    /// Every token call takes this many milliseconds.
    pub token_latency_ms: u64,
    /// How the token endpoint behaves for everybody; an account's own mode counts while this is normal.
    pub tokens: TokenMode,
    /// What is wrong with id tokens.
    pub id_token: IdTokenMode,
    /// How much is kept of the requests.
    pub recording: Recording,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            client_id: "fake-client.apps.googleusercontent.com".to_owned(),
            client_secret: "fake-client-secret".to_owned(),
            redirect_uris: Vec::new(),
            access_token_lifetime_s: 3_599,
            latency_ms: 0,
            token_latency_ms: 0,
            tokens: TokenMode::Normal,
            id_token: IdTokenMode::Normal,
            recording: Recording::default(),
        }
    }
}

/// Which writes meet `403 quotaExceeded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Quota {
    /// None.
    #[default]
    Free,
    /// All.
    Exceeded,
    /// Those that name guests.
    ExceededForGuests,
}

/// How Google treats one account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccountSettings {
    /// How conferences are made.
    pub conference: ConferenceMode,
    /// Which writes meet `403 quotaExceeded`.
    pub quota: Quota,
    /// Every call is `403 rateLimitExceeded`.
    pub is_rate_limited: bool,
    /// Every access token is `401 authError`.
    pub is_unauthorized: bool,
    /// So many reads do not see a new event.
    pub hidden_gets: u32,
    /// Added to every Calendar call, milliseconds.
    pub latency_ms: u64,
    /// How the token endpoint behaves.
    pub tokens: TokenMode,
}

impl Default for AccountSettings {
    fn default() -> Self {
        Self {
            conference: ConferenceMode::Instant,
            quota: Quota::Free,
            is_rate_limited: false,
            is_unauthorized: false,
            hidden_gets: 0,
            latency_ms: 0,
            tokens: TokenMode::Normal,
        }
    }
}
