//! The consent page: choose an account, tick scopes, allow or deny.
//!
//! `?auto=allow` (or `deny`, or an error's word such as `org_internal`) answers at once, for clients without a browser;
//! `login_hint` or `account` names the account, else it is the first one; `scopes=` limits what is granted. Errors that concern the client itself are shown
//! here and never redirected (RFC 6749 §4.1.2.1).

use std::collections::HashMap;
use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::{RawQuery, State as Shared};
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use url::Url;

use super::deliver::Served;
use super::grants::{Code, is_calendar_scope};
use super::state::State;

/// What Google answers instead of a choice, with the words of the buttons that bring it about.
const OTHER_ANSWERS: [(&str, &str); 4] = [
    ("admin_policy_enforced", "My administrator blocks this app"),
    ("org_internal", "The app is of another organisation"),
    ("redirect_uri_mismatch", "The redirect address is not registered"),
    ("server_error", "Google has a fault"),
];

/// The parameters of the request, in which a form may repeat `scopes`.
struct Asked {
    fields: HashMap<String, String>,
    /// Ticked scopes; `None` where there was no choice yet.
    ticked: Option<Vec<String>>,
    redirect_uri: Url,
}

impl Asked {
    fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn scopes(&self) -> Vec<String> {
        self.get("scope").unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
    }

    fn parse(text: &[u8], state: &State) -> Result<Self, (StatusCode, String)> {
        let bad = |code: &str, text: &str| (StatusCode::BAD_REQUEST, format!("Error 400: {code}. {text}"));
        let mut fields = HashMap::new();
        let mut ticked = None;
        for (key, value) in url::form_urlencoded::parse(text) {
            if key == "scopes" {
                let list: &mut Vec<String> = ticked.get_or_insert_default();
                list.extend(value.split_ascii_whitespace().map(str::to_owned));
            } else {
                fields.insert(key.into_owned(), value.into_owned());
            }
        }
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        if field("client_id") != state.settings.client_id {
            let text = "Error 401: invalid_client. The OAuth client was not found.";
            return Err((StatusCode::UNAUTHORIZED, text.to_owned()));
        }
        if field("response_type") != "code" {
            return Err(bad("unsupported_response_type", "response_type must be code."));
        }
        if field("scope").is_empty() {
            return Err(bad("invalid_scope", "Missing required parameter: scope."));
        }
        let method = field("code_challenge_method");
        if !field("code_challenge").is_empty() && method != "S256" {
            return Err(bad("invalid_request", "Only code_challenge_method=S256 is taken here."));
        }
        let known = &state.settings.redirect_uris;
        let redirect = field("redirect_uri").to_owned();
        if !known.is_empty() && !known.contains(&redirect) {
            return Err(bad("redirect_uri_mismatch", "The redirect_uri is not registered."));
        }
        let redirect_uri = Url::parse(&redirect)
            .ok()
            .filter(|uri| matches!(uri.scheme(), "http" | "https") && uri.fragment().is_none())
            .ok_or_else(|| bad("invalid_request", "Missing or invalid parameter: redirect_uri."))?;
        Ok(Self { fields, ticked, redirect_uri })
    }

    /// Back to the client with these parameters, and `state`.
    fn redirect(&self, parameters: &[(&str, &str)]) -> Response<Body> {
        let mut location = self.redirect_uri.clone();
        {
            let mut query = location.query_pairs_mut();
            query.extend_pairs(parameters);
            if let Some(state) = self.get("state") {
                query.append_pair("state", state);
            }
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::FOUND;
        if let Ok(location) = HeaderValue::from_str(location.as_str()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    fn decide(&self, decision: &str, state: &mut State) -> Response<Body> {
        if decision != "allow" {
            let other = OTHER_ANSWERS.iter().find(|(error, _)| *error == decision);
            return self.redirect(&[("error", other.map_or("access_denied", |(error, _)| error))]);
        }
        let named = self.get("account").or_else(|| self.get("login_hint"));
        let account = match named {
            None => 0,
            Some(named) => state
                .accounts
                .iter()
                .position(|account| *account.email == *named || account.sub == named)
                .unwrap_or(usize::MAX),
        };
        if account >= state.accounts.len() {
            return page(StatusCode::BAD_REQUEST, "<h1>Couldn't find this Google Account</h1>");
        }
        // Who signs in is told anyway; only the rest can be refused box by box.
        let granted: Vec<_> = self
            .scopes()
            .into_iter()
            .filter(|scope| {
                !is_calendar_scope(scope) || self.ticked.as_ref().is_none_or(|ticked| ticked.contains(scope))
            })
            .collect();
        let asks_again = self.get("prompt").is_some_and(|prompt| prompt.split(' ').any(|word| word == "consent"));
        let is_offline = self.get("access_type") == Some("offline");
        let scope = granted.join(" ");
        let code = state.grants.add_code(Code {
            account,
            scopes: granted,
            redirect_uri: self.get("redirect_uri").unwrap_or_default().to_owned(),
            challenge: self.get("code_challenge").map(str::to_owned),
            nonce: self.get("nonce").map(str::to_owned),
            is_offline: is_offline && (asks_again || !state.grants.has_consented(account)),
            expires_at: state.clock.now().plus(600_000),
        });
        self.redirect(&[("iss", "https://accounts.google.com"), ("code", &code), ("scope", &scope)])
    }

    fn form(&self, state: &State) -> Response<Body> {
        let mut html = String::from("<h1>Sign in with (a fake) Google</h1><form method=post>");
        let mut add = |text: std::fmt::Arguments<'_>| html.write_fmt(text).expect("a String takes everything");
        for (name, value) in &self.fields {
            add(format_args!("<input type=hidden name=\"{}\" value=\"{}\">", escape(name), escape(value)));
        }
        add(format_args!("<fieldset><legend>Choose an account</legend>"));
        let hint = self.get("login_hint");
        for (place, account) in state.accounts.iter().enumerate() {
            let is_chosen = hint.map_or(place == 0, |hint| hint == &*account.email || hint == account.sub);
            let (email, checked) = (escape(&account.email), if is_chosen { " checked" } else { "" });
            let name = escape(&account.name);
            add(format_args!(
                "<label><input type=radio name=account value=\"{email}\"{checked} required> \
                 {name} ({email})</label><br>"
            ));
        }
        add(format_args!("</fieldset><fieldset><legend>The app wants to</legend>"));
        // Present even when nothing is ticked, so that "none" differs from "not asked".
        add(format_args!("<input type=hidden name=scopes value=\"\">"));
        for scope in self.scopes() {
            let scope = escape(&scope);
            add(format_args!("<label><input type=checkbox name=scopes value=\"{scope}\" checked> {scope}</label><br>"));
        }
        add(format_args!(
            "</fieldset><button name=decision value=allow>Continue</button> \
             <button name=decision value=deny formnovalidate>Cancel</button>\
             <details><summary>What else Google may answer</summary>"
        ));
        for (error, words) in OTHER_ANSWERS {
            add(format_args!("<button name=decision value={error} formnovalidate>{words}</button> "));
        }
        add(format_args!("</details></form>"));
        page(StatusCode::OK, &html)
    }
}

/// `GET /o/oauth2/v2/auth`
pub(super) async fn show(Shared(served): Shared<Served>, RawQuery(query): RawQuery) -> Response<Body> {
    let query = query.unwrap_or_default();
    served.google.with(|state| match Asked::parse(query.as_bytes(), state) {
        Err((status, text)) => page(status, &format!("<h1>Access blocked</h1><p>{}</p>", escape(&text))),
        Ok(asked) => match asked.get("auto") {
            Some(auto) => asked.decide(auto, state),
            None => asked.form(state),
        },
    })
}

/// `POST /o/oauth2/v2/auth`: the form comes back with the parameters and the decision.
pub(super) async fn submit(Shared(served): Shared<Served>, body: Bytes) -> Response<Body> {
    served.google.with(|state| match Asked::parse(&body, state) {
        Err((status, text)) => page(status, &format!("<h1>Access blocked</h1><p>{}</p>", escape(&text))),
        Ok(asked) => asked.decide(asked.get("decision").unwrap_or("deny"), state),
    })
}

pub(super) fn page(status: StatusCode, html: &str) -> Response<Body> {
    let html = format!(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Fake Google</title>\
         <style>body{{font:16px/1.5 system-ui;max-width:42rem;margin:3rem auto;padding:0 1rem}}</style><body>{html}"
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=UTF-8"));
    response
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
