//! The token endpoint and the revocation endpoint: RFC 6749 §5 and
//! <https://developers.google.com/identity/protocols/oauth2/web-server>.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::{HeaderMap, Response, header};
use bytes::Bytes;
use serde_json::json;

use super::deliver::{Served, deliver, later};
use super::faults::{Commit, Ending, Operation, Subject};
use super::grants::{Issued, TokenMode};
use super::id_token::id_token;
use super::refusal::Refusal;
use super::state::{Outcome, Ruling, State};
use super::wire::Connection;

type Form = HashMap<String, String>;

fn form(body: &[u8]) -> Form {
    url::form_urlencoded::parse(body).into_owned().collect()
}

/// `POST /token`
pub(super) async fn token(
    Shared(served): Shared<Served>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut form = form(&body);
    if let Some((id, secret)) = basic(&headers) {
        form.insert("client_id".to_owned(), id);
        form.insert("client_secret".to_owned(), secret);
    }
    let is_exchange = form.get("grant_type").is_some_and(|grant| grant == "authorization_code");
    let operation = if is_exchange { Operation::Exchange } else { Operation::Refresh };
    call(&served, &connection, operation, form).await
}

/// `POST /revoke`, with the token in the body or in the query.
pub(super) async fn revoke(
    Shared(served): Shared<Served>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    axum::extract::RawQuery(query): axum::extract::RawQuery,
    body: Bytes,
) -> Response<Body> {
    let mut form = form(&body);
    form.extend(self::form(query.unwrap_or_default().as_bytes()));
    call(&served, &connection, Operation::Revoke, form).await
}

/// Client id and secret of HTTP basic authentication (RFC 6749 §2.3.1: form-encoded first).
fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let encoded = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(data_encoding::BASE64.decode(encoded.as_bytes()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |text: &str| {
        let pair = format!("x={text}");
        url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

async fn call(served: &Served, connection: &Connection, operation: Operation, form: Form) -> Response<Body> {
    let (account, ruling) = served.google.with(|state| state.arrive_oauth(operation, &form));
    let delay_ms = ruling.delay_ms;
    let act = move |state: &mut State| state.perform_oauth(operation, &form, account, &ruling);
    let outcome = if delay_ms == 0 { served.google.with(act) } else { later(&served.google, delay_ms, act).await };
    deliver(served, connection, outcome, Refusal::oauth_response).await
}

fn field<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    form.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

impl State {
    fn arrive_oauth(&mut self, operation: Operation, form: &Form) -> (Option<usize>, Ruling) {
        let account = match operation {
            Operation::Refresh => field(form, "refresh_token").and_then(|token| self.grants.account_of_refresh(token)),
            Operation::Exchange => field(form, "code").and_then(|code| self.grants.account_of_code(code)),
            _ => field(form, "token")
                .and_then(|token| self.grants.account_of_refresh(token).or_else(|| self.grants.account_of(token))),
        };
        let fault = self.faults.decide(&Subject {
            operation,
            method: "POST",
            account: account.map(|number| &*self.accounts[number].email),
            event: None,
        });
        let delay_ms = self.settings.token_latency_ms + fault.as_ref().map_or(0, |(_, fault)| fault.delay_ms);
        (account, self.ruling(fault, delay_ms))
    }

    fn perform_oauth(&mut self, operation: Operation, form: &Form, account: Option<usize>, ruling: &Ruling) -> Outcome {
        let own = account.map_or(TokenMode::Normal, |number| self.accounts[number].settings.tokens);
        let mode = if self.settings.tokens == TokenMode::Normal { own } else { self.settings.tokens };
        let (commit, mut ending) = match &ruling.fault {
            None => (Commit::Now, Ending::Answer),
            Some((_, fault)) => (fault.commit, fault.ending.clone()),
        };
        if mode == TokenMode::Hang && operation != Operation::Revoke {
            ending = Ending::Hang(600_000);
        }
        // Late grants are of no use to anybody: what does not take effect now never does.
        let result = if commit == Commit::Now {
            match operation {
                Operation::Revoke => self.revoke_token(form),
                _ => self.check_client(form).and_then(|()| mode.refusal().map_or(Ok(()), Err)).and_then(|()| {
                    if operation == Operation::Exchange { self.exchange(form, mode) } else { self.refresh(form, mode) }
                }),
            }
        } else {
            Err(Refusal::of(503, "temporarily_unavailable"))
        };
        let outcome = Outcome::new(result, ending);
        self.record_oauth(operation, ruling, account, outcome.seen());
        outcome
    }

    fn check_client(&self, form: &Form) -> Result<(), Refusal> {
        if field(form, "client_id") != Some(&self.settings.client_id) {
            return Err(Refusal::of(401, "invalid_client"));
        }
        if field(form, "client_secret") != Some(&self.settings.client_secret) {
            return Err(Refusal::new(401, "invalid_client", "Unauthorized"));
        }
        Ok(())
    }

    fn refresh(&mut self, form: &Form, mode: TokenMode) -> Result<Bytes, Refusal> {
        if field(form, "grant_type") != Some("refresh_token") {
            return Err(Refusal::new(400, "unsupported_grant_type", "Invalid grant_type"));
        }
        let token = field(form, "refresh_token")
            .ok_or_else(|| Refusal::new(400, "invalid_request", "Missing required parameter: refresh_token"))?;
        let seconds = self.settings.access_token_lifetime_s;
        let issued = self.grants.refresh(token, self.clock.now(), seconds, mode)?;
        Ok(token_body(&issued, seconds, None))
    }

    fn exchange(&mut self, form: &Form, mode: TokenMode) -> Result<Bytes, Refusal> {
        let need = |name: &str| {
            field(form, name)
                .ok_or_else(|| Refusal::new(400, "invalid_request", format!("Missing required parameter: {name}")))
        };
        let (code, redirect_uri) = (need("code")?, need("redirect_uri")?);
        let (now, seconds) = (self.clock.now(), self.settings.access_token_lifetime_s);
        let verifier = field(form, "code_verifier");
        let (code, issued) = self.grants.exchange(code, redirect_uri, verifier, now, seconds, mode)?;
        let account = &self.accounts[code.account];
        let id_token = issued.scopes.iter().any(|scope| scope == "openid").then(|| {
            let now_s = now.get() / 1000;
            let mut claims = json!({
                "iss": "https://accounts.google.com",
                "azp": self.settings.client_id,
                "aud": self.settings.client_id,
                "sub": account.sub,
                "iat": now_s,
                "exp": now_s + 3_600,
            });
            if issued.scopes.iter().any(|scope| scope.ends_with("userinfo.email")) {
                claims["email"] = (*account.email).into();
                claims["email_verified"] = true.into();
            }
            if let Some(nonce) = code.nonce {
                claims["nonce"] = nonce.into();
            }
            let is_there = self.settings.id_token.spoil(&mut claims, now_s);
            is_there.then(|| id_token(&claims, &self.settings.client_secret))
        });
        Ok(token_body(&issued, seconds, id_token.flatten()))
    }

    fn revoke_token(&mut self, form: &Form) -> Result<Bytes, Refusal> {
        let account = field(form, "token")
            .and_then(|token| self.grants.account_of_refresh(token).or_else(|| self.grants.account_of(token)))
            .ok_or_else(|| Refusal::new(400, "invalid_token", "Token expired or revoked"))?;
        self.grants.revoke_account(account);
        Ok(Bytes::from_static(b"{}"))
    }
}

fn token_body(issued: &Issued, seconds: i64, id_token: Option<String>) -> Bytes {
    let mut body = json!({
        "access_token": issued.access_token,
        "expires_in": seconds,
        "scope": issued.scopes.join(" "),
        "token_type": "Bearer",
    });
    if let Some(token) = &issued.refresh_token {
        body["refresh_token"] = token.as_str().into();
    }
    if let Some(token) = id_token {
        body["id_token"] = token.into();
    }
    Bytes::from(body.to_string())
}
