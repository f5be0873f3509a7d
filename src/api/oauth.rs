//! `GET /api/google/oauth/start`, `GET /api/google/oauth/callback` and `POST /api/google/disconnect/{teacherId}`: the HTTP
//! side of [`crate::connect`].
//!
//! Who may start and disconnect shows a bearer token, which no browser sends by itself: a page of somebody else's cannot
//! make a teacher's browser do either (no CSRF). The callback is open to everybody and bound by its state.
//!
//! The cookie: a start that the browser itself makes (a navigation, or a `fetch` of a page of the same site, told by
//! `Sec-Fetch-Site: same-origin`, which scripts cannot set) on the host of `WP_BASE_URL` gets one, and the callback is
//! refused without it. A start made by a server gets none, because it would not reach the browser; there the state is
//! bound to the teacher alone, and the server should open the address only for the person it was made for.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use url::{Url, form_urlencoded};

use super::ApiState;
use super::problem::Problem;
use super::query::{self, Parameters};
use crate::connect::start::{StartError, Started, flow_name};
use crate::connect::{Answer, Connect, Ended, FLOW_MS, Failure, Start};
use crate::model::{TeacherId, quoted};
use crate::store::{Actor, DisconnectOutcome, DisconnectPhase, Disconnection, TokenStatus};

mod page;

/// Before the teacher's id.
pub(super) const DISCONNECT_PREFIX: &str = "/api/google/disconnect/";

/// Begins a consent: 302 to Google, or JSON where that is asked for.
pub(super) async fn start(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let principal = state.0.auth.principal(&parts.headers).await?;
    let parameters = Parameters::parse(parts.uri.query(), &["teacherId", "returnTo", "changeAccount"])?;
    let teacher = teacher(parameters.get("teacherId").unwrap_or_default())?;
    principal.require_teacher(&teacher)?;
    let connect = connect(&state)?;
    let is_json = wants_json(&parts.headers);
    let is_same_origin = parts.headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    let host = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let start = Start {
        teacher,
        return_to: parameters.get("returnTo").map(str::to_owned),
        change_account: flag(&parameters, "changeAccount")?,
        is_browser: (!is_json || is_same_origin) && is_host_of(connect.redirect_uri(), host, &parts.headers),
    };
    let started = connect.start(start).await.map_err(refused)?;
    let mut response = if is_json {
        let body = json!({
            "authorizationUrl": started.authorization_url.as_str(),
            "expiresAt": started.expires_at.to_rfc3339(),
        });
        let mut response = Response::new(Body::from(body.to_string()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    } else {
        redirect(&started.authorization_url)
    };
    if let Some(cookie) = cookie(connect.redirect_uri(), &started) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    guard(&mut response);
    Ok(response)
}

/// Ends a consent. Errors are told to a person, by the return page or by a page of ours.
pub(super) async fn callback(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    if parts.method != Method::GET {
        // HEAD comes from previews and scanners, and must not use the state up.
        return Err(Problem::of_status(StatusCode::METHOD_NOT_ALLOWED));
    }
    let connect = connect(&state)?;
    let answer = read_answer(connect.redirect_uri(), parts.uri.query().unwrap_or_default(), &parts.headers);
    let used = answer.state.as_deref().map(flow_name);
    let Ended { return_to, result } = connect.callback(answer).await;
    let mut response = match (&return_to, &result) {
        (Some(page), Ok(connection)) => {
            let mut parameters = vec![("google", "connected")];
            if connection.is_shared {
                parameters.push(("notice", "ACCOUNT_SHARED"));
            }
            redirect(&page.with(&parameters))
        }
        (Some(page), Err(failure)) => redirect(&page.with(&parameters_of(failure))),
        (None, Ok(connection)) => page::connected(connection),
        (None, Err(failure)) => page::failed(failure),
    };
    if let Some(flow) = used
        && return_to.is_some()
    {
        let gone = format!(
            "{}=; {}; Max-Age=0",
            cookie_name(connect.redirect_uri(), &flow),
            cookie_rules(connect.redirect_uri())
        );
        if let Ok(gone) = HeaderValue::from_str(&gone) {
            response.headers_mut().insert(header::SET_COOKIE, gone);
        }
    }
    guard(&mut response);
    Ok(response)
}

/// Ends a connection: 200 when done, 202 while events are being removed or Google does not take the revocation.
pub(super) async fn disconnect(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let principal = state.0.auth.principal(&parts.headers).await?;
    let segment = parts.uri.path().strip_prefix(DISCONNECT_PREFIX).unwrap_or_default();
    let teacher = teacher(&query::decode_segment(segment).unwrap_or_default())?;
    principal.require_teacher(&teacher)?;
    let parameters = Parameters::parse(parts.uri.query(), &["removeEvents"])?;
    let remove_events = flag(&parameters, "removeEvents")?;
    let seen = connect(&state)?
        .disconnector()
        .disconnect(&teacher, remove_events, &Actor::named(principal.name()), None)
        .await?;
    let seen = seen.ok_or_else(never_connected)?;
    let mut response = Response::new(Body::from(document(&seen).to_string()));
    if seen.phase != DisconnectPhase::Done {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A disconnect for readers; the command line prints the same.
pub(crate) fn document(seen: &Disconnection) -> serde_json::Value {
    let is_removing = seen.phase == DisconnectPhase::Removing;
    let revocation = match (seen.phase, seen.outcome) {
        (DisconnectPhase::Done, outcome) => outcome.map(|outcome| outcome.as_str().to_ascii_uppercase()),
        _ => Some("PENDING".to_owned()),
    };
    json!({
        "teacherId": seen.teacher.as_str(),
        "connected": seen.status == TokenStatus::Connected,
        "tokenStatus": seen.status.as_str(),
        "googleEmail": seen.email,
        "state": match seen.phase {
            DisconnectPhase::Removing => "REMOVING_EVENTS",
            DisconnectPhase::Revoking => "REVOKING",
            DisconnectPhase::Done => "DONE",
        },
        "eventsToRemove": if is_removing { seen.events } else { 0 },
        "eventsRemaining": if is_removing { 0 } else { seen.events },
        "revocation": revocation,
        "deadline": seen.deadline.map(crate::model::UnixMillis::to_rfc3339),
        "message": message(seen),
    })
}

fn message(seen: &Disconnection) -> String {
    let count = seen.events;
    let (events, are, stay) = if count == 1 { ("event", "is", "stays") } else { ("events", "are", "stay") };
    match (seen.phase, seen.outcome) {
        (DisconnectPhase::Removing, _) => format!(
            "{count} future {events} {are} being removed from the calendar; then the access is revoked at Google. Ask again \
             to see how far it is."
        ),
        (DisconnectPhase::Revoking, _) => format!(
            "The service has given up its access. Google has not confirmed the revocation yet; that goes on by itself. \
             {count} future {events} {stay} on the calendar."
        ),
        (DisconnectPhase::Done, outcome) => {
            let how = match outcome {
                Some(DisconnectOutcome::Revoked) => "The access is revoked at Google and wiped here.",
                Some(DisconnectOutcome::Shared) => {
                    "The access is wiped here. It is not revoked at Google, because another teacher uses the same account."
                }
                Some(DisconnectOutcome::GivenUp) => {
                    "The access is wiped here, but Google did not revoke it: the teacher can remove it at \
                     https://myaccount.google.com/connections."
                }
                Some(DisconnectOutcome::NoToken) | None => "There is no access.",
            };
            format!("{how} {count} future {events} {stay} on the calendar.")
        }
    }
}

fn connect(state: &ApiState) -> Result<&Connect, Problem> {
    state.0.connect.as_ref().ok_or_else(Problem::route_not_found)
}

fn teacher(text: &str) -> Result<TeacherId, Problem> {
    TeacherId::parse(text).map_err(|invalid| Problem::invalid_parameter(format!("teacherId: {invalid}")))
}

fn flag(parameters: &Parameters, name: &str) -> Result<bool, Problem> {
    match parameters.get(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Problem::invalid_parameter(format!("{name}: {} is not true or false", quoted(other)))),
    }
}

fn refused(error: StartError) -> Problem {
    match error {
        StartError::ReturnTo(why) => Problem {
            code: "RETURN_TO_NOT_ALLOWED",
            title: "The return page is not allowed",
            ..Problem::invalid_parameter(format!("returnTo: {why}"))
        },
        StartError::Seal(error) => Problem::internal(error.to_string()),
        StartError::Store(error) => error.into(),
    }
}

fn never_connected() -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        code: "TEACHER_NOT_CONNECTED",
        title: "The teacher never connected Google",
        ..Problem::invalid_parameter("there is nothing to disconnect")
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds =
        accepted.flat_map(|value| value.split(',')).map(|part| part.split(';').next().unwrap_or_default().trim());
    // A browser that navigates asks for HTML first, and lists what else it takes.
    kinds.take_while(|kind| *kind != "text/html").any(|kind| kind == "application/json")
}

/// Whether the request came to the host that Google sends browsers back to: only then does its cookie come back.
fn is_host_of(redirect_uri: &Url, authority: Option<String>, headers: &HeaderMap) -> bool {
    let wanted = redirect_uri[url::Position::BeforeHost..url::Position::AfterPort].to_ascii_lowercase();
    let default_port = if redirect_uri.scheme() == "https" { ":443" } else { ":80" };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // Behind a proxy that does not pass the host on, its header says what the browser asked for.
    [authority, text("host"), text("x-forwarded-host")].into_iter().flatten().any(|host| {
        let host = host.trim().to_ascii_lowercase();
        host.strip_suffix(default_port).unwrap_or(&host) == wanted
    })
}

/// `__Host-` keeps other subdomains from setting it; it needs https and the whole site as its path.
fn cookie_name(redirect_uri: &Url, flow: &str) -> String {
    let prefix = if redirect_uri.scheme() == "https" { "__Host-" } else { "" };
    format!("{prefix}mp_connect_{flow}")
}

fn cookie_rules(redirect_uri: &Url) -> &'static str {
    // Lax: the way back from Google is a navigation that another site began.
    if redirect_uri.scheme() == "https" {
        "Path=/; Secure; HttpOnly; SameSite=Lax"
    } else {
        "Path=/; HttpOnly; SameSite=Lax"
    }
}

fn cookie(redirect_uri: &Url, started: &Started) -> Option<HeaderValue> {
    let secret = started.browser_secret.as_ref()?.expose_secret();
    let (name, rules) = (cookie_name(redirect_uri, &started.flow), cookie_rules(redirect_uri));
    let mut value = HeaderValue::from_str(&format!("{name}={secret}; {rules}; Max-Age={}", FLOW_MS / 1000)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn read_answer(redirect_uri: &Url, query: &str, headers: &HeaderMap) -> Answer {
    let mut answer = Answer::default();
    // Google adds parameters of its own (scope, authuser, prompt, hd); of repeated ones the first counts.
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = value.into_owned();
        match &*name {
            "state" => drop(answer.state.get_or_insert(value)),
            "code" => drop(answer.code.get_or_insert_with(|| value.into())),
            "error" => drop(answer.error.get_or_insert(value)),
            "iss" => drop(answer.issuer.get_or_insert(value)),
            _ => {}
        }
    }
    if let Some(state) = &answer.state {
        let name = cookie_name(redirect_uri, &flow_name(state));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        answer.browser_secret = cookies
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(known, _)| *known == name)
            .map(|(_, value)| SecretString::from(value));
    }
    answer
}

fn parameters_of(failure: &Failure) -> Vec<(&'static str, &str)> {
    let mut parameters = vec![("google", "error"), ("code", failure.code.as_str())];
    if let Some((expected, chosen)) = &failure.accounts {
        parameters.extend([("expected", expected.as_str()), ("chosen", chosen.as_str())]);
    }
    parameters
}

fn redirect(to: &Url) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    let location = HeaderValue::from_str(to.as_str()).expect("a Url is printable ASCII");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// The address of this request holds a state or a code: no page after it is told, and nobody keeps the answer.
fn guard(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_browser_that_navigates_is_redirected() {
        let navigation = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, json) in [
            ("application/json", true),
            ("application/json, text/plain, */*", true),
            ("application/json;q=0.9", true),
            (navigation, false),
            ("text/html, application/json", false),
            ("*/*", false),
        ] {
            assert_eq!(wants_json(&headers(&[("accept", accept)])), json, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }

    #[test]
    fn a_cookie_is_set_only_where_it_comes_back() {
        let uri = Url::parse("https://school.example.com/api/google/oauth/callback").unwrap();
        let local = Url::parse("http://127.0.0.1:8080/api/google/oauth/callback").unwrap();
        for (uri, name, host, is_host) in [
            (&uri, "host", "school.example.com", true),
            (&uri, "host", "School.Example.com:443", true),
            (&uri, "x-forwarded-host", "school.example.com", true),
            (&uri, "host", "127.0.0.1:8080", false),
            (&uri, "host", "school.example.com:8443", false),
            (&uri, "host", "school.example.com.evil.example", false),
            (&local, "host", "127.0.0.1:8080", true),
            (&local, "host", "127.0.0.1", false),
        ] {
            assert_eq!(is_host_of(uri, None, &headers(&[(name, host)])), is_host, "{host}");
        }
    }

    #[test]
    fn the_cookie_of_the_flow_is_found_among_others() {
        let uri = Url::parse("https://school.example.com/api/google/oauth/callback").unwrap();
        let name = cookie_name(&uri, &flow_name("s"));
        assert!(name.starts_with("__Host-mp_connect_"), "{name}");
        let cookies = format!("wp=1; {name}=ours; __Host-mp_connect_0000=theirs");
        let answer = read_answer(&uri, "state=s&code=c&state=other&scope=x", &headers(&[("cookie", &cookies)]));
        assert_eq!(answer.state.as_deref(), Some("s"));
        assert_eq!(answer.browser_secret.unwrap().expose_secret(), "ours");
        assert_eq!(answer.code.unwrap().expose_secret(), "c");
        let without = read_answer(&uri, "state=t", &headers(&[("cookie", &cookies)]));
        assert!(without.browser_secret.is_none());
    }
}
