//! The way to Google's consent page: authorization request with a fresh state and a fresh PKCE challenge.
//!
//! RFC 6749 section 4.1.1, RFC 7636, RFC 9700 section 2.1;
//! <https://developers.google.com/identity/protocols/oauth2/web-server#creatingclient>

use oauth2::basic::BasicClient;
use oauth2::{AuthUrl, ClientId, CsrfToken, EndpointNotSet, EndpointSet, PkceCodeChallenge, RedirectUrl, Scope};
use secrecy::SecretString;
use url::Url;

/// Random bytes of a state: 256 bit.
const STATE_BYTES: u32 = 32;

/// What tells whose grant it is; asked for even where `GOOGLE_SCOPES` forgets it.
const IDENTITY: [&str; 2] = ["openid", "email"];

type Client = BasicClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet>;

/// Where consents are asked for.
#[derive(Debug, Clone)]
pub struct ConsentPage {
    client: Client,
    redirect_uri: Url,
    scopes: Vec<Scope>,
}

/// A consent to be asked for. State and verifier belong to it alone.
#[derive(Debug)]
pub struct Consent {
    /// Where the browser goes; holds the state.
    pub url: Url,
    /// Comes back with the answer.
    pub state: SecretString,
    /// PKCE verifier; shown at the exchange of the code and to nobody before.
    pub verifier: SecretString,
}

impl ConsentPage {
    /// `auth_uri` is `GOOGLE_AUTH_URI`, `redirect_uri` the one that is registered with the client, to the letter.
    pub fn new(client_id: &str, auth_uri: Url, redirect_uri: Url, scopes: &[String]) -> Self {
        let client = BasicClient::new(ClientId::new(client_id.to_owned()))
            .set_auth_uri(AuthUrl::from_url(auth_uri))
            .set_redirect_uri(RedirectUrl::from_url(redirect_uri.clone()));
        let missing = IDENTITY.into_iter().filter(|known| !scopes.iter().any(|scope| scope == known));
        let scopes = missing.map(str::to_owned).chain(scopes.iter().cloned()).map(Scope::new).collect();
        Self { client, redirect_uri, scopes }
    }

    /// The redirect URI, which the exchange of the code repeats.
    pub fn redirect_uri(&self) -> &Url {
        &self.redirect_uri
    }

    /// What is asked for, space-separated.
    pub fn scopes(&self) -> String {
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.as_str()).collect();
        scopes.join(" ")
    }

    /// A new consent. `login_hint` is the address of the account that is expected; `choose_account` has Google show
    /// all of the person's accounts.
    ///
    /// `access_type=offline` and `prompt=consent` make sure of a refresh token: without the latter Google gives one with
    /// the first consent only. `include_granted_scopes` stays off: it would bring back earlier, incomplete grants.
    pub fn open(&self, login_hint: Option<&str>, choose_account: bool) -> Consent {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let mut request = self
            .client
            .authorize_url(|| CsrfToken::new_random_len(STATE_BYTES))
            .add_scopes(self.scopes.iter().cloned())
            .add_extra_param("access_type", "offline")
            .add_extra_param("prompt", if choose_account { "consent select_account" } else { "consent" })
            .set_pkce_challenge(challenge);
        if let Some(address) = login_hint {
            request = request.add_extra_param("login_hint", address);
        }
        let (url, state) = request.url();
        Consent { url, state: state.into_secret().into(), verifier: verifier.into_secret().into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use secrecy::ExposeSecret as _;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn page(scopes: &[&str]) -> ConsentPage {
        let url = |text| Url::parse(text).unwrap();
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let redirect = url("https://school.example.com/api/google/oauth/callback");
        ConsentPage::new("client", url("https://accounts.google.com/o/oauth2/v2/auth"), redirect, &scopes)
    }

    #[test]
    fn a_request_has_what_google_and_rfc_9700_ask_for() {
        let calendar = "https://www.googleapis.com/auth/calendar.events";
        let consent = page(&["openid", "email", calendar]).open(Some("ana@example.com"), false);
        let query: HashMap<_, _> = consent.url.query_pairs().into_owned().collect();
        let expected = [
            ("response_type", "code"),
            ("client_id", "client"),
            ("redirect_uri", "https://school.example.com/api/google/oauth/callback"),
            ("access_type", "offline"),
            ("prompt", "consent"),
            ("login_hint", "ana@example.com"),
            ("code_challenge_method", "S256"),
            ("scope", &format!("openid email {calendar}")),
            ("state", consent.state.expose_secret()),
        ];
        for (name, value) in expected {
            assert_eq!(query.get(name).map(String::as_str), Some(value), "{name}");
        }
        let challenge = data_encoding::BASE64URL_NOPAD.encode(&Sha256::digest(consent.verifier.expose_secret()));
        assert_eq!(query["code_challenge"], challenge);
        assert_eq!(query.len(), expected.len() + 1, "and nothing else: {query:?}");
        let state = data_encoding::BASE64URL_NOPAD.decode(query["state"].as_bytes()).unwrap();
        assert!(state.len() >= 16, "at least 128 bit");
    }

    #[test]
    fn identity_is_asked_for_even_where_the_settings_forget_it() {
        let consent = page(&["https://www.googleapis.com/auth/calendar"]).open(None, true);
        let query: HashMap<_, _> = consent.url.query_pairs().into_owned().collect();
        assert_eq!(query["scope"], "openid email https://www.googleapis.com/auth/calendar");
        assert_eq!(query["prompt"], "consent select_account");
        assert_eq!(query.get("login_hint"), None);
    }

    #[test]
    fn nothing_is_used_twice() {
        let page = page(&["openid"]);
        let (one, two) = (page.open(None, false), page.open(None, false));
        assert_ne!(one.state.expose_secret(), two.state.expose_secret());
        assert_ne!(one.verifier.expose_secret(), two.verifier.expose_secret());
    }
}
