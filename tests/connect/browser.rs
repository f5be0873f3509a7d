//! A teacher with a real browser: the school's site, Google's consent page, and back. Site and Google are of different
//! sites (`localhost` and `127.0.0.1`), so that cookies have to hold what they promise.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, Uri, header};
use axum::routing::get;
use meet_projector::store::TokenStatus;
use reqwest::header::HeaderName;
use tokio::net::TcpListener;

use super::fixture::School;
use super::webdriver::Browser;
use crate::support::google::http_client;
use crate::support::service::{Setup, eventually};

/// What the school's site does, as a plugin of WordPress would: passes two paths on to the service, and adds the API token
/// to the one for which it knows its visitor.
struct Site {
    service: String,
    host: String,
    token: String,
    http: reqwest::Client,
}

async fn pass_on(State(site): State<Arc<Site>>, uri: Uri, request: Request<Body>) -> Response<Body> {
    let path = uri.path_and_query().unwrap().as_str();
    let is_start = path.starts_with("/connect");
    let to = if is_start { path.replacen("/connect", "/api/google/oauth/start", 1) } else { path.to_owned() };
    let mut asked = site.http.get(format!("{}{to}", site.service)).header("X-Forwarded-Host", &site.host);
    for name in [header::ACCEPT, header::COOKIE] {
        if let Some(value) = request.headers().get(&name) {
            asked = asked.header(name.as_str(), value.as_bytes());
        }
    }
    if is_start {
        asked = asked.bearer_auth(&site.token);
    }
    let answer = asked.send().await.unwrap();
    let status = answer.status().as_u16();
    let headers: HeaderMap = answer.headers().clone();
    let mut response = Response::new(Body::from(answer.bytes().await.unwrap()));
    *response.status_mut() = status.try_into().unwrap();
    let passed: [HeaderName; 5] = [
        header::LOCATION,
        header::SET_COOKIE,
        header::CONTENT_TYPE,
        header::CONTENT_SECURITY_POLICY,
        header::REFERRER_POLICY,
    ];
    for name in passed {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

async fn account() -> Response<Body> {
    let html = "<!DOCTYPE html><title>My account</title><h1>My account</h1>\
                <a id=connect href='/connect?teacherId=tch_0&returnTo=/account'>Connect Google Calendar</a>";
    let mut response = Response::new(Body::from(html));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/html"));
    response
}

/// A school whose site is what browsers see; the address of its account page.
async fn school_with_site(setup: Setup) -> (School, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let host = format!("localhost:{}", listener.local_addr().unwrap().port());
    let page = format!("http://{host}/account");
    let school =
        School::open_with(setup, &[("WP_BASE_URL", &format!("http://{host}")), ("OAUTH_RETURN_URLS", &page)]).await;
    let callback = format!("http://{host}/api/google/oauth/callback");
    school.world.fake().configure(|fake| fake.redirect_uris = vec![callback]);
    let http = http_client(std::time::Duration::from_mins(1));
    let site = Site { service: school.base.clone(), host, token: school.world.token.clone(), http };
    let router = Router::new()
        .route("/account", get(account))
        .route("/connect", get(pass_on))
        .route("/api/google/oauth/callback", get(pass_on))
        .with_state(Arc::new(site));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (school, page)
}

/// From the account page to Google's.
async fn to_google(browser: &Browser, page: &str) {
    browser.go(page).await;
    browser.click("#connect").await;
    eventually("Google asks for the account", async || browser.text().await.contains("Choose an account")).await;
    assert_eq!(browser.url().await.host_str(), Some("127.0.0.1"));
}

/// Where the browser is once it is back at the school: a click returns before the redirects are through.
async fn back_at(browser: &Browser, page: &str) -> String {
    let mut seen = browser.url().await;
    eventually("the browser is back", async || {
        seen = browser.url().await;
        seen.as_str().starts_with(page)
    })
    .await;
    seen.into()
}

const CONTINUE: &str = "button[value=allow]";

#[tokio::test(flavor = "multi_thread")]
async fn teachers_connect_deny_forget_the_box_and_choose_another_account() {
    let (school, page) = school_with_site(Setup::sqlite().connected(0)).await;
    let browser = Browser::open().await;

    to_google(&browser, &page).await;
    browser.click("button[value=deny]").await;
    assert_eq!(back_at(&browser, &page).await, format!("{page}?google=error&code=ACCESS_DENIED"));

    to_google(&browser, &page).await;
    browser.click("input[type=checkbox][value*=calendar]").await;
    browser.click(CONTINUE).await;
    assert_eq!(back_at(&browser, &page).await, format!("{page}?google=error&code=SCOPE_MISSING"));
    assert!(school.credential(0).await.is_none());

    school.world.publish(&school.world.lesson("s1", 0)).await;
    school.world.error("s1", "TEACHER_NOT_CONNECTED").await;
    to_google(&browser, &page).await;
    browser.click(CONTINUE).await;
    assert_eq!(back_at(&browser, &page).await, format!("{page}?google=connected"));
    school.world.ready("s1", 1).await;
    let cookies = browser.run("return document.cookie").await;
    assert_eq!(cookies, "", "no script sees the cookie, and it is gone");

    to_google(&browser, &page).await;
    browser.click(&format!("input[type=radio][value='{}']", school.world.email(1))).await;
    browser.click(CONTINUE).await;
    let landed = back_at(&browser, &page).await;
    assert!(landed.starts_with(&format!("{page}?google=error&code=ACCOUNT_MISMATCH&")), "{landed}");
    let kept = school.credential(0).await.unwrap();
    assert_eq!((kept.status, kept.email.as_deref()), (TokenStatus::Connected, Some(school.world.email(0))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_who_comes_too_late_reads_why_on_a_phone() {
    let (school, page) = school_with_site(Setup::sqlite().connected(0).standing_still()).await;
    let browser = Browser::open().await;
    to_google(&browser, &page).await;
    school.world.clock.advance_ms(600_000);
    browser.click(CONTINUE).await;
    eventually("the page of the service", async || browser.text().await.contains("STATE_EXPIRED")).await;
    let text = browser.text().await;
    assert!(text.contains("More than ten minutes passed") && text.contains("STATE_EXPIRED"), "{text}");
    let layout = browser
        .run(
            "const style = getComputedStyle(document.body); \
             return [document.documentElement.lang, document.documentElement.scrollWidth <= window.innerWidth, \
             parseFloat(style.fontSize) >= 16, style.paddingLeft]",
        )
        .await;
    // The padding proves that the policy let the page's own style through.
    assert_eq!(layout, serde_json::json!(["en", true, true, "20px"]), "{layout}");
    assert!(school.credential(0).await.is_none());

    // Back and forward bring nothing back either.
    browser.run("history.back()").await;
    to_google(&browser, &page).await;
    browser.click(CONTINUE).await;
    assert_eq!(back_at(&browser, &page).await, format!("{page}?google=connected"));
}
