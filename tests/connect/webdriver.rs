//! A real browser, driven over W3C WebDriver: plain HTTP, so no client library is needed.
//!
//! <https://www.w3.org/TR/webdriver2/>

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::google::http_client;

/// One window of a headless Chromium; closed when dropped.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// A window as wide as a small phone. It reaches nothing but this machine.
    pub async fn open() -> Self {
        let found = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/chromium")).output().unwrap();
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(found.status.success(), "this test needs a browser:\n{said}");
        let paths = String::from_utf8(found.stdout).unwrap();
        let (browser, driver) = paths.trim().split_once('\n').unwrap();

        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{driver}: {error}"));
        let mut said = String::new();
        let port = BufReader::new(driver.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .inspect(|line| said.push_str(line))
            .find_map(|line| Some(line.strip_prefix("ChromeDriver was started successfully on port ")?.to_owned()))
            .unwrap_or_else(|| panic!("chromedriver did not start: {said}"));
        let root = format!("http://127.0.0.1:{}/session", port.trim_end_matches('.'));
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless=new",
            // Chromium refuses its sandbox to root; it sees only pages of this test.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
            "--window-size=375,700",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"binary": browser, "args": arguments}}}});
        let mut this = Self { http: http_client(Duration::from_mins(1)), session: root, driver, _profile: profile };
        let opened = this.call(Method::POST, "", &wanted).await;
        this.session = format!("{}/{}", this.session, opened["sessionId"].as_str().unwrap());
        this
    }

    /// Navigates, and waits until the page is there.
    pub async fn go(&self, url: &str) {
        self.call(Method::POST, "/url", &json!({"url": url})).await;
    }

    /// Where it is.
    pub async fn url(&self) -> url::Url {
        self.call(Method::GET, "/url", &Value::Null).await.as_str().unwrap().parse().unwrap()
    }

    /// Clicks the first element that a CSS selector finds; a navigation that follows is waited for.
    pub async fn click(&self, selector: &str) {
        let found = self.call(Method::POST, "/element", &json!({"using": "css selector", "value": selector})).await;
        let element = found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.call(Method::POST, &format!("/element/{element}/click"), &json!({})).await;
    }

    /// What a person reads on the page.
    pub async fn text(&self) -> String {
        self.run("return document.body.innerText").await.as_str().unwrap().to_owned()
    }

    /// Runs a script of the test in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.call(Method::POST, "/execute/sync", &json!({"script": script, "args": []})).await
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let mut request = self.http.request(method, format!("{}{path}", self.session));
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let (status, mut json) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert!(status.is_success(), "{path}: {json}");
        json["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // `DELETE /session` needs an async call; SIGTERM makes the driver close its browser, too.
        Command::new("kill").arg(self.driver.id().to_string()).status().ok();
        self.driver.wait().ok();
    }
}
