//! Tokens, consent, revocation.

use std::collections::HashMap;

use meet_projector::fake::TokenMode;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use super::{Answer, Client, ID, answer, refusal};

const SCOPES: &str = "openid email https://www.googleapis.com/auth/calendar.events";
const REDIRECT: &str = "https://shop.example.com/api/google/oauth/callback";
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters-long";

impl Client {
    async fn token_call(&self, fields: &[(&str, &str)]) -> Answer {
        let config = self.google.config();
        let mut form: HashMap<_, _> =
            HashMap::from([("client_id", &*config.client_id), ("client_secret", config.client_secret.expose_secret())]);
        form.extend(fields.iter().copied());
        answer(self.http.post(config.token_uri).form(&form)).await
    }

    async fn refresh(&self) -> Answer {
        let token = &self.google.teachers[0].refresh_token;
        self.token_call(&[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    fn consent_url(&self, extra: &[(&str, &str)]) -> Url {
        let mut url = self.google.running.auth_uri.clone();
        let challenge = data_encoding::BASE64URL_NOPAD.encode(&Sha256::digest(VERIFIER));
        url.query_pairs_mut()
            .append_pair("client_id", &self.google.fake.settings().client_id)
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("response_type", "code")
            .append_pair("scope", SCOPES)
            .append_pair("state", "state-1")
            .append_pair("access_type", "offline")
            .append_pair("prompt", "consent")
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .extend_pairs(extra);
        url
    }

    /// Where the consent page sends the browser: the query of the redirect.
    async fn consent(&self, extra: &[(&str, &str)]) -> HashMap<String, String> {
        let response = self.http.get(self.consent_url(extra)).send().await.expect("the page answers");
        redirect_of(&response)
    }

    async fn exchange(&self, code: &str, verifier: &str) -> Answer {
        self.token_call(&[
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", verifier),
        ])
        .await
    }

    async fn get_with(&self, token: &str) -> Answer {
        let root = &self.google.running.calendar_api_root;
        answer(self.http.get(format!("{root}/calendars/primary/events/{ID}")).bearer_auth(token)).await
    }
}

fn redirect_of(response: &reqwest::Response) -> HashMap<String, String> {
    assert_eq!(response.status(), 302);
    let location = response.headers()["location"].to_str().expect("an ASCII header");
    let location = Url::parse(location).expect("an absolute URL");
    assert!(location.as_str().starts_with(REDIRECT), "{location}");
    location.query_pairs().into_owned().collect()
}

fn error(answer: &Answer) -> (u16, &str) {
    (answer.0, answer.1["error"].as_str().unwrap_or("no error"))
}

#[tokio::test]
async fn a_refresh_gives_an_access_token_until_it_expires() {
    let client = Client::start().await;
    let (status, body) = client.refresh().await;
    assert_eq!(status, 200);
    assert_eq!((&body["expires_in"], &body["token_type"]), (&json!(3599), &json!("Bearer")));
    let scope = "openid https://www.googleapis.com/auth/userinfo.email https://www.googleapis.com/auth/calendar.events";
    assert_eq!((&body["scope"], body.get("refresh_token")), (&json!(scope), None));
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(refusal(&client.get_with(token).await), (404, "notFound"));
    client.clock.advance_ms(3_599_000);
    let expired = client.get_with(token).await;
    assert_eq!(refusal(&expired), (401, "authError"));
    assert_eq!(expired.1["error"]["message"], "Invalid Credentials");
    assert_eq!(refusal(&client.get_with("nonsense").await), (401, "authError"));
}

#[tokio::test]
async fn basic_authentication_works_and_a_wrong_secret_does_not() {
    let client = Client::start().await;
    let settings = client.google.fake.settings();
    let form = [("grant_type", "refresh_token"), ("refresh_token", &client.google.teachers[0].refresh_token)];
    let with = |secret: &str| {
        let request = client.http.post(client.google.running.token_uri.clone());
        answer(request.basic_auth(&settings.client_id, Some(secret)).form(&form))
    };
    assert_eq!(with(&settings.client_secret).await.0, 200);
    assert_eq!(error(&with("wrong").await), (401, "invalid_client"));
    let unknown = [("grant_type", "refresh_token"), ("refresh_token", "1//unknown")];
    assert_eq!(error(&client.token_call(&unknown).await), (400, "invalid_grant"));
}

#[tokio::test]
async fn the_token_endpoint_fails_as_told() {
    let client = Client::start().await;
    let cases = [
        (TokenMode::InvalidGrant, 400, "invalid_grant"),
        (TokenMode::InvalidRapt, 400, "invalid_grant"),
        (TokenMode::InvalidClient, 401, "invalid_client"),
        (TokenMode::AdminPolicyEnforced, 400, "admin_policy_enforced"),
        (TokenMode::Unavailable, 503, "temporarily_unavailable"),
    ];
    for (mode, status, reason) in cases {
        client.google.fake.configure_account(client.email(), |settings| settings.tokens = mode);
        let answer = client.refresh().await;
        assert_eq!(error(&answer), (status, reason), "{mode:?}");
        let subtype = answer.1.get("error_subtype").and_then(Value::as_str);
        assert_eq!(subtype, (mode == TokenMode::InvalidRapt).then_some("invalid_rapt"));
    }
    client.google.fake.configure_account(client.email(), |settings| settings.tokens = TokenMode::MissingScope);
    let (status, body) = client.refresh().await;
    assert_eq!((status, body["scope"].as_str().unwrap().contains("calendar")), (200, false));
    let token = body["access_token"].as_str().unwrap();
    let refused = client.get_with(token).await;
    assert_eq!(refusal(&refused), (403, "insufficientPermissions"));
    assert_eq!(refused.1["error"]["details"][0]["reason"], "ACCESS_TOKEN_SCOPE_INSUFFICIENT");
    client.google.fake.configure_account(client.email(), |settings| settings.tokens = TokenMode::Normal);
    assert_eq!(client.refresh().await.0, 200);
}

#[tokio::test]
async fn read_only_scopes_read_only() {
    let client = Client::start().await;
    let scope = "https://www.googleapis.com/auth/calendar.events.readonly";
    let token = client.google.fake.access_token(client.email(), &[scope]).unwrap();
    assert_eq!(refusal(&client.get_with(&token).await), (404, "notFound"));
    let root = &client.google.running.calendar_api_root;
    let delete = client.http.delete(format!("{root}/calendars/primary/events/{ID}")).bearer_auth(&token);
    assert_eq!(refusal(&answer(delete).await), (403, "insufficientPermissions"));
}

#[tokio::test]
async fn consent_gives_a_code_that_works_once_and_with_its_verifier() {
    let client = Client::start().await;
    let sent = client.consent(&[("auto", "allow"), ("login_hint", "teacher-1@example.com"), ("nonce", "n-1")]).await;
    assert_eq!((&*sent["state"], &*sent["scope"]), ("state-1", SCOPES));
    let (status, body) = client.exchange(&sent["code"], VERIFIER).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["refresh_token"].is_string());
    let claims = body["id_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value =
        serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes()).unwrap()).unwrap();
    assert_eq!(claims["sub"], client.google.teachers[1].sub);
    assert_eq!(claims["email"], "teacher-1@example.com");
    assert_eq!(claims["aud"], client.google.fake.settings().client_id);
    assert_eq!((&claims["iss"], &claims["nonce"]), (&json!("https://accounts.google.com"), &json!("n-1")));
    assert_eq!(error(&client.exchange(&sent["code"], VERIFIER).await), (400, "invalid_grant"));

    let sent = client.consent(&[("auto", "allow")]).await;
    assert_eq!(error(&client.exchange(&sent["code"], "another verifier").await), (400, "invalid_grant"));
    let sent = client.consent(&[("auto", "allow")]).await;
    client.clock.advance_ms(600_000);
    assert_eq!(error(&client.exchange(&sent["code"], VERIFIER).await), (400, "invalid_grant"));
}

#[tokio::test]
async fn without_asking_for_consent_again_there_is_no_second_refresh_token() {
    let client = Client::start().await;
    let sent = client.consent(&[("auto", "allow"), ("prompt", "none")]).await;
    let (_, body) = client.exchange(&sent["code"], VERIFIER).await;
    assert!(body["access_token"].is_string());
    assert_eq!(body.get("refresh_token"), None);
}

#[tokio::test]
async fn the_page_lets_people_choose_refuse_and_untick() {
    let client = Client::start().await;
    let page = client.http.get(client.consent_url(&[])).send().await.unwrap().text().await.unwrap();
    for text in ["teacher-0@example.com", "teacher-1@example.com", "calendar.events", "Cancel"] {
        assert!(page.contains(text), "{text} in {page}");
    }
    let post = async |fields: &[(&str, &str)]| {
        let mut form: Vec<_> = client.consent_url(&[]).query_pairs().into_owned().collect();
        form.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let response = client.http.post(client.google.running.auth_uri.clone()).form(&form).send().await.unwrap();
        redirect_of(&response)
    };
    let denied = post(&[("decision", "deny")]).await;
    assert_eq!((&*denied["error"], &*denied["state"]), ("access_denied", "state-1"));
    // The hidden field is there, the box is not ticked.
    let partly = post(&[("account", "teacher-1@example.com"), ("scopes", ""), ("decision", "allow")]).await;
    assert_eq!(partly["scope"], "openid email");
    let (status, body) = client.exchange(&partly["code"], VERIFIER).await;
    assert_eq!((status, body["scope"].as_str().unwrap().contains("calendar")), (200, false));
}

#[tokio::test]
async fn a_wrong_client_or_redirect_is_shown_and_never_redirected() {
    let client = Client::start().await;
    client.google.fake.configure(|settings| settings.redirect_uris = vec![REDIRECT.to_owned()]);
    let status = async |extra: &[(&str, &str)]| {
        client.http.get(client.consent_url(extra)).send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(&[]).await, 200);
    assert_eq!(status(&[("client_id", "another")]).await, 401);
    assert_eq!(status(&[("redirect_uri", "https://evil.example.com/")]).await, 400);
}

#[tokio::test]
async fn revoking_any_token_ends_the_whole_grant() {
    let client = Client::start().await;
    let (_, body) = client.refresh().await;
    let token = body["access_token"].as_str().unwrap();
    let revoke = || {
        let request = client.http.post(client.google.running.revoke_uri.clone());
        answer(request.form(&[("token", token)]))
    };
    assert_eq!(revoke().await, (200, json!({})));
    assert_eq!(refusal(&client.get_with(token).await), (401, "authError"));
    assert_eq!(error(&client.refresh().await), (400, "invalid_grant"));
    assert_eq!(error(&revoke().await), (400, "invalid_token"));
}
