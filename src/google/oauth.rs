//! The token endpoint, through the crate `oauth2` and our own HTTP client; [`consent`] is the page before it, [`id_token`]
//! says whose grant it was, [`revoke`] ends it.
//!
//! `oauth2` brings its own older reqwest unless it is given a client; `exchange` is that client. It turns
//! failures into a [`GoogleError`] itself, before `oauth2` sees them, because that crate drops the status and the headers
//! of an error, and keeps whole bodies in some of its own.
//!
//! <https://developers.google.com/identity/protocols/oauth2/web-server#offline>

use std::time::Duration;

use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthType, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet, ExtraTokenFields, HttpRequest,
    HttpResponse, PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError, StandardRevocableToken,
    StandardTokenResponse, TokenResponse, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;
use url::Url;

use super::error::{Class, GoogleError, classify_token};
use crate::telemetry::trace;

pub mod consent;
pub mod id_token;
pub mod revoke;

/// Longest time for one request to the token endpoint.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read: tokens have up to 2,048 bytes, an id token a few more.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Lifetime of an access token that comes without one, in seconds; Google's live an hour.
const EXPIRES_IN_DEFAULT_S: u64 = 3_600;
/// Lifetimes are cut to this, in seconds: a day.
const EXPIRES_IN_MAX_S: u64 = 86_400;

/// Scopes of which each lets us do everything with the events on the teacher's own calendar.
const CALENDAR_SCOPES: [&str; 3] = [
    "https://www.googleapis.com/auth/calendar.events",
    "https://www.googleapis.com/auth/calendar.events.owned",
    "https://www.googleapis.com/auth/calendar",
];

/// Whether granted scopes (space-separated) let us write events. People may leave the calendar box unticked while the
/// rest of the consent succeeds.
pub fn covers_calendar(scopes: &str) -> bool {
    scopes.split_ascii_whitespace().any(|scope| CALENDAR_SCOPES.contains(&scope))
}

/// Members beyond RFC 6749 that matter to us.
#[derive(Clone, Deserialize, Serialize)]
struct ExtraFields {
    /// Time-based grants: seconds until the refresh token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token_expires_in: Option<u64>,
    /// With scope `openid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
}

impl std::fmt::Debug for ExtraFields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtraFields").finish_non_exhaustive()
    }
}

impl ExtraTokenFields for ExtraFields {}

type GoogleTokenResponse = StandardTokenResponse<ExtraFields, BasicTokenType>;

/// `oauth2`'s client with Google's token response and only the token endpoint set.
type OauthClient = oauth2::Client<
    BasicErrorResponse,
    GoogleTokenResponse,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// Where access tokens come from. Cheap to clone.
#[derive(Clone)]
pub struct TokenEndpoint {
    http: reqwest::Client,
    client: OauthClient,
}

impl std::fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.client.token_uri().url().as_str();
        f.debug_struct("TokenEndpoint").field("address", &address).finish_non_exhaustive()
    }
}

/// What the token endpoint gave; the calendar scope is checked.
#[derive(Debug, Clone)]
pub struct TokenGrant {
    /// The access token.
    pub access_token: SecretString,
    /// Its lifetime in milliseconds from the answer, 1 s … 1 day; an hour where Google did not say.
    pub expires_in_ms: i64,
    /// A new refresh token: always after a consent, rarely after a refresh. Keep the old one where it is `None`.
    pub refresh_token: Option<SecretString>,
    /// For grants that end by themselves: lifetime of the refresh token in seconds.
    pub refresh_token_expires_in_s: Option<u64>,
    /// Granted scopes, space-separated; `None` means "as requested" (RFC 6749 §5.1).
    pub scopes: Option<String>,
    /// The id token of a consent, signature not checked.
    pub id_token: Option<SecretString>,
}

impl TokenEndpoint {
    /// `token_uri` is `GOOGLE_TOKEN_URI`; id and secret go into the body, as Google documents it.
    pub fn new(http: reqwest::Client, client_id: &str, client_secret: &SecretString, token_uri: Url) -> Self {
        let client = oauth2::Client::new(ClientId::new(client_id.to_owned()))
            .set_client_secret(ClientSecret::new(client_secret.expose_secret().to_owned()))
            .set_auth_type(AuthType::RequestBody)
            .set_token_uri(TokenUrl::from_url(token_uri));
        Self { http, client }
    }

    /// Trades a refresh token for an access token.
    ///
    /// # Errors
    ///
    /// As [`classify_token`] says; [`Class::ScopeMissing`] when the answer lists its scopes and the calendar is not
    /// among them; [`Class::Transient`] for timeouts, resets and answers that cannot be read.
    pub async fn refresh(&self, refresh_token: &SecretString) -> Result<TokenGrant, GoogleError> {
        let refresh_token = RefreshToken::new(refresh_token.expose_secret().to_owned());
        // It owns what it needs: a future that borrows through a higher-ranked closure cannot be sent between threads.
        let (http, url) = (self.http.clone(), self.client.token_uri().url().clone());
        let exchange = move |request| exchange(http.clone(), url.clone(), request);
        let response = self.client.exchange_refresh_token(&refresh_token).request_async(&exchange).await;
        read(&response.map_err(into_google)?)
    }
}

/// [`GoogleError::reason`] of a code that was refused because the PKCE verifier does not belong to it.
pub const VERIFIER_REFUSED: &str = "invalid_code_verifier";

/// [`GoogleError::reason`] of a request that was not answered within ten seconds.
pub const TIMED_OUT: &str = "timeout";

impl TokenEndpoint {
    /// Trades the code of a consent for tokens. A code is good for one exchange: after any failure, a lost answer
    /// included, the person has to consent again.
    ///
    /// # Errors
    ///
    /// As [`TokenEndpoint::refresh`]; `ReconnectRequired` stands for `invalid_grant`: a code that is over, was used, is
    /// another client's or was asked for with another redirect URI, or ([`VERIFIER_REFUSED`]) another PKCE challenge.
    pub async fn exchange_code(
        &self,
        code: &SecretString,
        verifier: &SecretString,
        redirect_uri: Url,
    ) -> Result<TokenGrant, GoogleError> {
        let (http, url) = (self.http.clone(), self.client.token_uri().url().clone());
        let exchange = move |request| exchange(http.clone(), url.clone(), request);
        let response = self
            .client
            .clone()
            .set_redirect_uri(RedirectUrl::from_url(redirect_uri))
            .exchange_code(AuthorizationCode::new(code.expose_secret().to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.expose_secret().to_owned()))
            .request_async(&exchange)
            .await;
        read(&response.map_err(into_google)?)
    }
}

/// Whether the description of a refusal speaks of the PKCE verifier; it is read for nothing else.
fn is_about_verifier(body: &[u8]) -> bool {
    let described = serde_json::from_slice::<serde_json::Value>(body).ok();
    described.is_some_and(|body| body["error_description"].as_str().is_some_and(|text| text.contains("code verifier")))
}

/// Sends one request of `oauth2`'s with our client. Anything but 200 is an error here already.
async fn exchange(http: reqwest::Client, url: Url, request: HttpRequest) -> Result<HttpResponse, GoogleError> {
    let (parts, body) = request.into_parts();
    let span = trace::http_client(&parts.method, url.host_str(), url.port_or_known_default(), "/token");
    let builder = http.request(parts.method, url).timeout(TIMEOUT).headers(parts.headers).body(body);
    // A lost answer costs nothing: the old refresh token stays good.
    let no_answer = |error: reqwest::Error| GoogleError {
        reason: error.is_timeout().then(|| TIMED_OUT.to_owned()),
        ..GoogleError::no_answer("token", false, &error)
    };
    let sent = builder.send().instrument(span.clone()).await;
    trace::answered(&span, sent.as_ref().ok().map(|response| response.status().as_u16()), "no_answer");
    let mut response = sent.map_err(no_answer)?;
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(GoogleError::unreadable("token", false, status.as_u16(), "with more than 64 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    if status != reqwest::StatusCode::OK {
        let mut error = classify_token(status.as_u16(), &headers, &body);
        if error.class == Class::ReconnectRequired && is_about_verifier(&body) {
            error.reason = Some(VERIFIER_REFUSED.to_owned());
        }
        return Err(error);
    }
    let mut response = HttpResponse::new(body);
    *response.headers_mut() = headers;
    Ok(response)
}

/// The failures of `oauth2`. Its own texts are not used: one of them holds the body, tokens included.
fn into_google(error: RequestTokenError<GoogleError, BasicErrorResponse>) -> GoogleError {
    match error {
        RequestTokenError::Request(error) => error,
        RequestTokenError::Parse(..) | RequestTokenError::ServerResponse(_) => {
            GoogleError::unreadable("token", false, 200, "the answer is no token response")
        }
        RequestTokenError::Other(_) => GoogleError::unreadable("token", false, 200, "the answer is empty"),
    }
}

/// Checks a token response: a usable token and the calendar among the scopes.
fn read(response: &GoogleTokenResponse) -> Result<TokenGrant, GoogleError> {
    let access_token = response.access_token().secret();
    if access_token.is_empty() {
        return Err(GoogleError::unreadable("token", false, 200, "the access token is empty"));
    }
    let scopes = response.scopes().map(|scopes| {
        let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        scopes.join(" ")
    });
    if scopes.as_deref().is_some_and(|scopes| !covers_calendar(scopes)) {
        let error = GoogleError::unanswered(Class::ScopeMissing, "token: the grant does not cover the calendar");
        return Err(GoogleError { status: Some(200), ..error });
    }
    let lifetime_s = response.expires_in().map_or(EXPIRES_IN_DEFAULT_S, |lifetime| lifetime.as_secs());
    let expires_in_ms = i64::try_from(lifetime_s.clamp(1, EXPIRES_IN_MAX_S) * 1000).unwrap_or(i64::MAX);
    let extra = response.extra_fields();
    Ok(TokenGrant {
        access_token: SecretString::from(access_token.as_str()),
        expires_in_ms,
        refresh_token: response
            .refresh_token()
            .filter(|token| !token.secret().is_empty())
            .map(|token| SecretString::from(token.secret().as_str())),
        refresh_token_expires_in_s: extra.refresh_token_expires_in,
        scopes,
        id_token: extra.id_token.as_deref().map(SecretString::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(json: &str) -> Result<TokenGrant, GoogleError> {
        read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn any_of_three_scopes_covers_the_calendar() {
        for covers in [
            "openid https://www.googleapis.com/auth/calendar.events",
            "https://www.googleapis.com/auth/calendar.events.owned email",
            "https://www.googleapis.com/auth/calendar",
        ] {
            assert!(covers_calendar(covers), "{covers}");
        }
        for lacks in [
            "",
            "openid email",
            "https://www.googleapis.com/auth/calendar.readonly",
            "https://www.googleapis.com/auth/calendar.events.readonly",
            "xhttps://www.googleapis.com/auth/calendar",
        ] {
            assert!(!covers_calendar(lacks), "{lacks}");
        }
    }

    #[test]
    fn lifetimes_have_sane_bounds() {
        let lifetime = |member: &str| {
            response(&format!(r#"{{"access_token":"a","token_type":"Bearer"{member}}}"#)).unwrap().expires_in_ms
        };
        assert_eq!(lifetime(""), 3_600_000);
        assert_eq!(lifetime(r#","expires_in":3920"#), 3_920_000);
        assert_eq!(lifetime(r#","expires_in":0"#), 1_000);
        assert_eq!(lifetime(&format!(r#","expires_in":{}"#, u64::MAX)), 86_400_000);
    }

    #[test]
    fn a_response_without_the_calendar_or_a_token_is_refused() {
        let missing = response(r#"{"access_token":"ya29.MARKER","token_type":"Bearer","scope":"openid email"}"#);
        let error = missing.unwrap_err();
        assert_eq!(error.class, Class::ScopeMissing);
        assert!(!format!("{error:?} {error}").contains("MARKER"));
        let empty = response(r#"{"access_token":"","token_type":"Bearer"}"#).unwrap_err();
        assert_eq!(empty.class, Class::Transient);
    }

    #[test]
    fn nothing_shows_a_token() {
        let grant = response(
            r#"{"access_token":"ya29.MARKER","token_type":"bearer","refresh_token":"1//MARKER","id_token":"MARKER.x.y",
                "refresh_token_expires_in":604799,"scope":"https://www.googleapis.com/auth/calendar.events openid"}"#,
        )
        .unwrap();
        assert!(!format!("{grant:?}").contains("MARKER"));
        assert_eq!(grant.refresh_token_expires_in_s, Some(604_799));
        assert_eq!(grant.refresh_token.unwrap().expose_secret(), "1//MARKER");
        let extra: ExtraFields = serde_json::from_str(r#"{"id_token":"MARKER"}"#).unwrap();
        assert!(!format!("{extra:?}").contains("MARKER"));
    }
}
