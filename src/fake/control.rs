//! `/_control`: everything the Rust handle can do, as JSON over HTTP, for tests in other languages and for people.

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State as Shared};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::NewAccount;
use super::chaos::Chaos;
use super::check::Expected;
use super::consent::{escape, page};
use super::deliver::Served;
use super::faults::{Operation, Rule};
use super::refusal::Refusal;
use super::resource::merge;
use super::teacher::TeacherAction;

/// Method, path, what it does: the page at `/_control`, in the order of the router below.
const ROUTES: [(&str, &str, &str); 18] = [
    ("GET", "/_control/state", "accounts, settings, counters, rules, random mix"),
    ("PATCH", "/_control/settings", "merge into the settings of the server"),
    ("POST", "/_control/accounts", "{email, name?, sub?, refreshToken?, scopes?, timeZone?} makes an account"),
    ("PATCH", "/_control/accounts/{email}", "merge into how Google treats this account"),
    ("POST", "/_control/accounts/{email}/revoke", "the person removes our access"),
    ("POST", "/_control/accounts/{email}/expire-tokens", "all access tokens end now"),
    ("POST", "/_control/accounts/{email}/empty-trash", "purge all deleted events"),
    ("POST", "/_control/accounts/{email}/events", "the person makes an event; body as for events.insert"),
    ("GET", "/_control/accounts/{email}/events/{id}", "the resource, without counting as a get"),
    (
        "POST",
        "/_control/accounts/{email}/events/{id}",
        "{action: delete | restore | purge | move {start,end} | edit {title?,description?} | replaceConference | \
         removeConference | merge {patch}}",
    ),
    ("GET", "/_control/events?session=&account=&live=true", "events as they stand"),
    (
        "POST",
        "/_control/faults",
        "{operations?, method?, account?, event?, probability?, skip?, times?, fault: {commit?: \
      never | now | {lateMs: N} | onRelease, ending?: answer | {refuse: {status, reason}} | drop | {hang: ms} | \
      halfBody, delayMs?}}",
    ),
    ("DELETE", "/_control/faults", "no more faults, the random mix neither; DELETE /_control/faults/{id} for one rule"),
    ("PUT", "/_control/chaos", "{seed, writeRate, readRate, tokenRate, slowMs?, lateMs?}"),
    ("POST", "/_control/late/release", "carry out all requests that wait for it"),
    ("GET", "/_control/requests?operation=&session=&account=&limit=100", "the newest recorded requests, oldest first"),
    ("POST", "/_control/check", "[{session, live: null | {account, startsAtMs, endsAtMs, title?, hasLink?}}]"),
    ("POST", "/_control/reset", "forget counters, recorded requests and violations; events and grants stay"),
];

pub(super) fn router() -> Router<Served> {
    Router::new()
        .route("/_control", get(index))
        .route("/_control/state", get(state))
        .route("/_control/settings", patch(settings))
        .route("/_control/accounts", post(add_account))
        .route("/_control/accounts/{email}", patch(configure))
        .route("/_control/accounts/{email}/{action}", post(account_action))
        .route("/_control/accounts/{email}/events/{id}", get(resource).post(teacher))
        .route("/_control/events", get(events))
        .route("/_control/faults", post(add_fault).delete(clear_faults))
        .route("/_control/faults/{id}", delete(remove_fault))
        .route("/_control/chaos", axum::routing::put(chaos))
        .route("/_control/late/release", post(release_late))
        .route("/_control/requests", get(requests))
        .route("/_control/check", post(check))
        .route("/_control/reset", post(reset))
}

type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;
type Sent<T> = Result<Json<T>, JsonRejection>;

fn problem(status: StatusCode, detail: impl Into<String>) -> (StatusCode, Json<Value>) {
    (status, Json(json!({"status": status.as_u16(), "detail": detail.into()})))
}

fn body<T>(sent: Sent<T>) -> Result<T, (StatusCode, Json<Value>)> {
    sent.map(|Json(value)| value).map_err(|rejection| problem(StatusCode::BAD_REQUEST, rejection.body_text()))
}

fn refused(refusal: &Refusal) -> (StatusCode, Json<Value>) {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    problem(status, format!("{} {}", refusal.reason, refusal.message))
}

fn json_of(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("these types have string keys only")
}

async fn index() -> Response<Body> {
    let row = |(method, path, what): &(&str, &str, &str)| {
        format!("<dt><code>{method} {}</code><dd>{}", escape(path), escape(what))
    };
    let rows = ROUTES.iter().map(row).collect::<Vec<_>>().concat();
    page(StatusCode::OK, &format!("<h1>The fake Google</h1><p>Control routes, JSON in and out.<dl>{rows}</dl>"))
}

async fn state(Shared(served): Shared<Served>) -> Json<Value> {
    let google = &served.google;
    let accounts = google.accounts();
    Json(google.with(|state| {
        json!({
            "root": served.root,
            "settings": state.settings,
            "accounts": accounts,
            "counters": state.recorder.counters,
            "violations": state.watch.violations,
            "faults": state.faults.rules(),
            "chaos": state.faults.chaos(),
            "chaosHits": state.faults.chaos_hits(),
            "late": state.late_count(),
        })
    }))
}

/// `sent` merged into `current`, with the error of the type that reads it.
fn merged<T: Serialize + for<'de> Deserialize<'de>>(current: &T, sent: Value) -> Result<T, (StatusCode, Json<Value>)> {
    let (Value::Object(mut whole), Value::Object(sent)) = (json_of(current), sent) else {
        return Err(problem(StatusCode::BAD_REQUEST, "the body must be an object"));
    };
    // A tagged value such as {"successAfter":2} replaces, it does not merge into another tag.
    for (field, value) in sent {
        if field == "recording" {
            merge(&mut whole, [(field, value)].into_iter().collect());
        } else {
            whole.insert(field, value);
        }
    }
    serde_json::from_value(Value::Object(whole)).map_err(|error| problem(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn settings(Shared(served): Shared<Served>, sent: Sent<Value>) -> Answer {
    let sent = body(sent)?;
    let new = merged(&served.google.with(|state| state.settings.clone()), sent)?;
    served.google.configure(|settings| *settings = new.clone());
    Ok(Json(json_of(&new)))
}

async fn add_account(Shared(served): Shared<Served>, sent: Sent<NewAccount>) -> Answer {
    let token = served.google.add_account(&body(sent)?);
    Ok(Json(json!({"refreshToken": token})))
}

async fn configure(Shared(served): Shared<Served>, Path(email): Path<String>, sent: Sent<Value>) -> Answer {
    let sent = body(sent)?;
    let google = &served.google;
    let current = google.with(|state| {
        let number = state.account_number(&email)?;
        Some(state.accounts[number].settings.clone())
    });
    let current = current.ok_or_else(|| problem(StatusCode::NOT_FOUND, "no such account"))?;
    let new = merged(&current, sent)?;
    google.configure_account(&email, |settings| *settings = new.clone());
    Ok(Json(json_of(&new)))
}

async fn account_action(
    Shared(served): Shared<Served>,
    Path((email, action)): Path<(String, String)>,
    sent: bytes::Bytes,
) -> Answer {
    let google = &served.google;
    if google.with(|state| state.account_number(&email)).is_none() {
        return Err(problem(StatusCode::NOT_FOUND, "no such account"));
    }
    match action.as_str() {
        "revoke" => google.revoke_grant(&email),
        "expire-tokens" => google.expire_access_tokens(&email),
        "empty-trash" => return Ok(Json(json!({"purged": google.empty_trash(&email)}))),
        "events" => {
            let resource = serde_json::from_slice(&sent)
                .map_err(|error| problem(StatusCode::BAD_REQUEST, format!("not JSON: {error}")))?;
            let id = google.teacher_makes(&email, &resource).map_err(|refusal| refused(&refusal))?;
            return Ok(Json(json!({"id": id})));
        }
        _ => return Err(problem(StatusCode::NOT_FOUND, "revoke, expire-tokens, empty-trash or events")),
    }
    Ok(Json(json!({})))
}

async fn resource(Shared(served): Shared<Served>, Path((email, id)): Path<(String, String)>) -> Answer {
    served.google.resource(&email, &id).map(Json).ok_or_else(|| problem(StatusCode::NOT_FOUND, "no such event"))
}

async fn teacher(
    Shared(served): Shared<Served>,
    Path((email, id)): Path<(String, String)>,
    sent: Sent<TeacherAction>,
) -> Answer {
    served.google.teacher(&email, &id, &body(sent)?).map_err(|refusal| refused(&refusal))?;
    Ok(Json(served.google.event(&email, &id).map_or(Value::Null, |event| json_of(&event))))
}

#[derive(Deserialize)]
#[serde(default)]
struct Wanted {
    session: Option<String>,
    account: Option<String>,
    operation: Option<Operation>,
    live: bool,
    limit: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { session: None, account: None, operation: None, live: false, limit: 100 }
    }
}

async fn events(Shared(served): Shared<Served>, Query(wanted): Query<Wanted>) -> Json<Value> {
    let events = served.google.with(|state| {
        state.views(|account, stored| {
            (stored.live || !wanted.live)
                && wanted.account.as_deref().is_none_or(|wanted| wanted == account)
                && wanted.session.as_deref().is_none_or(|wanted| stored.session.as_deref() == Some(wanted))
        })
    });
    Json(json!({ "items": events }))
}

async fn add_fault(Shared(served): Shared<Served>, sent: Sent<Rule>) -> Answer {
    Ok(Json(json!({"id": served.google.add_fault(body(sent)?)})))
}

async fn clear_faults(Shared(served): Shared<Served>) -> Json<Value> {
    served.google.clear_faults();
    Json(json!({}))
}

async fn remove_fault(Shared(served): Shared<Served>, Path(id): Path<u64>) -> Answer {
    if served.google.remove_fault(id) {
        return Ok(Json(json!({})));
    }
    Err(problem(StatusCode::NOT_FOUND, "no such rule"))
}

async fn chaos(Shared(served): Shared<Served>, sent: Sent<Chaos>) -> Answer {
    let chaos = body(sent)?;
    served.google.set_chaos(Some(chaos));
    Ok(Json(json_of(&chaos)))
}

async fn release_late(Shared(served): Shared<Served>) -> Json<Value> {
    Json(json!({"released": served.google.release_late()}))
}

async fn requests(Shared(served): Shared<Served>, Query(wanted): Query<Wanted>) -> impl IntoResponse {
    let items = served.google.with(|state| {
        let matching = state.recorder.requests().rev().filter(|request| {
            wanted.operation.is_none_or(|operation| operation == request.operation)
                && wanted.account.as_deref().is_none_or(|account| request.account.as_deref() == Some(account))
                && wanted.session.as_deref().is_none_or(|session| request.session.as_deref() == Some(session))
        });
        let mut items: Vec<_> = matching.take(wanted.limit).map(json_of).collect();
        items.reverse();
        items
    });
    Json(json!({ "items": items }))
}

async fn check(Shared(served): Shared<Served>, sent: Sent<Vec<Expected>>) -> Answer {
    Ok(Json(json!({"problems": served.google.check(&body(sent)?)})))
}

async fn reset(Shared(served): Shared<Served>) -> Json<Value> {
    served.google.reset_records();
    Json(json!({}))
}
