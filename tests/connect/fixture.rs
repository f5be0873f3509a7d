//! A school whose service answers under its own `WP_BASE_URL`, and visitors who keep cookies as browsers do.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::time::Duration;

use meet_projector::config::{Config, Need};
use meet_projector::fake::{Operation, TokenMode};
use meet_projector::store::{Credential, Role};
use reqwest::header::{ACCEPT, COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use url::Url;

use crate::support::google::http_client;
use crate::support::service::{Setup, World, new_token, teacher_id};

/// Where visitors are sent afterwards, unless a test says otherwise.
pub const RETURN_PAGE: &str = "https://school.example.com/account/google";

pub struct School {
    pub world: World,
    /// Scheme, host and port of the service.
    pub base: String,
    http: reqwest::Client,
}

/// What a visitor sees at the end.
#[derive(Debug)]
pub struct Landing {
    pub status: StatusCode,
    /// Where the redirect leads.
    pub location: Option<Url>,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl School {
    /// With one allowed return page.
    pub async fn open(setup: Setup) -> Self {
        Self::open_with(setup, &[("OAUTH_RETURN_URLS", "https://school.example.com/account")]).await
    }

    pub async fn open_with(setup: Setup, settings: &[(&str, &str)]) -> Self {
        let mut world = World::prepare(setup).await;
        let port = free_port();
        let base = format!("http://127.0.0.1:{port}");
        world.environment.insert("HTTP_ADDR".into(), format!("127.0.0.1:{port}"));
        world.environment.insert("WP_BASE_URL".into(), base.clone());
        for (name, value) in settings {
            world.environment.insert((*name).into(), (*value).into());
        }
        world.config = Config::load(&world.environment, Need::Serve).unwrap();
        let callback = format!("{base}/api/google/oauth/callback");
        world.fake().configure(|fake| fake.redirect_uris = vec![callback]);
        world.serve().await;
        world.until_ready().await;
        Self { world, base, http: http_client(Duration::from_mins(1)) }
    }

    /// A token of that role.
    pub async fn token(&self, role: Role) -> String {
        new_token(&self.world.store, &self.world.clock, role).await
    }

    /// An answer in JSON.
    pub async fn call(&self, method: Method, path: &str, token: Option<&str>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).header(ACCEPT, "application/json");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    pub async fn disconnect(&self, teacher: usize, query: &str) -> (StatusCode, Value) {
        let path = format!("/api/google/disconnect/{}{query}", teacher_id(teacher));
        self.call(Method::POST, &path, Some(&self.world.token)).await
    }

    /// A start made by a server: the address of the consent page.
    pub async fn start(&self, teacher: usize, more: &str) -> Url {
        let path = format!("/api/google/oauth/start?teacherId={}{more}", teacher_id(teacher));
        let (status, json) = self.call(Method::GET, &path, Some(&self.world.token)).await;
        assert_eq!(status, StatusCode::OK, "{json}");
        json["authorizationUrl"].as_str().unwrap().parse().unwrap()
    }

    pub fn visitor(&self) -> Visitor<'_> {
        Visitor { school: self, cookies: Mutex::default() }
    }

    pub async fn credential(&self, teacher: usize) -> Option<Credential> {
        self.world.store.credential(&teacher_id(teacher)).await.unwrap()
    }

    pub fn tokens(&self, teacher: usize, mode: TokenMode) {
        self.world.fake().configure_account(self.world.email(teacher), |account| account.tokens = mode);
    }

    /// Requests of this operation so far.
    pub fn requests(&self, operation: Operation) -> u64 {
        self.world.fake().counters().requests.get(&operation).copied().unwrap_or(0)
    }
}

/// A browser without a screen: keeps cookies and follows nothing by itself.
pub struct Visitor<'a> {
    school: &'a School,
    cookies: Mutex<BTreeMap<String, String>>,
}

impl Visitor<'_> {
    /// Navigates, with the API token where one is needed (as a site that passes the start on adds it).
    pub async fn go(&self, url: &str, token: Option<&str>) -> Landing {
        let mut request = self.school.http.get(url).header(ACCEPT, "text/html,application/xhtml+xml,*/*;q=0.8");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let cookies: Vec<String> =
            self.cookies.lock().unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        if url.starts_with(&self.school.base) && !cookies.is_empty() {
            request = request.header(COOKIE, cookies.join("; "));
        }
        let answer = request.send().await.unwrap();
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let (pair, rules) = cookie.to_str().unwrap().split_once(';').unwrap();
            assert!(rules.contains("HttpOnly") && rules.contains("SameSite=Lax"), "{rules}");
            let (name, value) = pair.split_once('=').unwrap();
            let mut cookies = self.cookies.lock().unwrap();
            if rules.contains("Max-Age=0") {
                cookies.remove(name);
            } else {
                cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let location = answer.headers().get(LOCATION).map(|to| to.to_str().unwrap().parse().unwrap());
        let (status, headers) = (answer.status(), answer.headers().clone());
        Landing { status, location, headers, body: answer.text().await.unwrap() }
    }

    /// A start made by the browser itself: the address of the consent page.
    pub async fn start(&self, teacher: usize, more: &str) -> Url {
        let url = format!("{}/api/google/oauth/start?teacherId={}{more}", self.school.base, teacher_id(teacher));
        let landing = self.go(&url, Some(&self.school.world.token)).await;
        assert_eq!(landing.status, StatusCode::FOUND, "{landing:?}");
        landing.location.unwrap()
    }

    /// Answers the consent page; where Google sends the browser.
    pub async fn consent(&self, page: &Url, answers: &[(&str, &str)]) -> Url {
        let mut page = page.clone();
        page.query_pairs_mut().extend_pairs(answers);
        let landing = self.go(page.as_str(), None).await;
        landing.location.unwrap_or_else(|| panic!("Google shows a page: {}", landing.body))
    }

    /// From the start to the end, with these answers at Google.
    pub async fn connect(&self, teacher: usize, more: &str, answers: &[(&str, &str)]) -> Landing {
        let page = self.start(teacher, more).await;
        let callback = self.consent(&page, answers).await;
        self.go(callback.as_str(), None).await
    }

    pub fn cookies(&self) -> usize {
        self.cookies.lock().unwrap().len()
    }
}

impl Landing {
    /// `connected`, or the code of the failure, from the redirect or from the page.
    #[track_caller]
    pub fn outcome(&self) -> String {
        assert_eq!(self.headers["cache-control"], "no-store");
        assert_eq!(self.headers["referrer-policy"], "no-referrer");
        if let Some(location) = &self.location {
            assert_eq!(self.status, StatusCode::FOUND);
            let query: BTreeMap<String, String> = location.query_pairs().into_owned().collect();
            assert!(!query.contains_key("state") && !query.contains_key("iss"), "{location}");
            assert!(!location.as_str().contains("4%2F0") && !location.as_str().contains("ya29"), "{location}");
            return match query["google"].as_str() {
                "error" => query["code"].clone(),
                other => other.to_owned(),
            };
        }
        assert_eq!(self.headers["content-type"], "text/html; charset=utf-8", "{self:?}");
        assert!(self.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert!(self.body.contains("<html lang=\"en\">") && !self.body.contains("<script"), "{}", self.body);
        if let Some((_, rest)) = self.body.split_once("Code for your school: ") {
            return rest.split('<').next().unwrap().to_owned();
        }
        assert!(self.body.contains("is connected") && self.status == StatusCode::OK, "{self:?}");
        "connected".to_owned()
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
