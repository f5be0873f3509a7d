//! Google: reachable, our clock beside its clock, and the redirect URI. No credentials are sent.

use std::time::Duration;

use url::{Host, Url};

use super::{Check, Level, clock_check};
use crate::clock::Clock;
use crate::config::{Config, is_loopback};
use crate::google::calendar::http_client;
use crate::model::UnixMillis;

const AREA: &str = "google";

/// Any answer within this time counts.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Looks at it.
pub(super) async fn examine(config: &Config, clock: &Clock) -> Vec<Check> {
    let mut checks = Vec::new();
    match &config.google {
        None => checks.push(Check::skipped(AREA, "reachability", "the GOOGLE_ settings are not complete")),
        Some(google) => {
            let http = http_client();
            let (token, calendar) = tokio::join!(
                answers(&http, "token endpoint", &google.token_uri, clock),
                answers(&http, "Calendar API", &google.calendar_api_root, clock)
            );
            let ahead = token.1.or(calendar.1);
            checks.extend([token.0, calendar.0]);
            match ahead {
                // The header has whole seconds, so half of one is as near as it gets.
                Some(ahead_ms) => checks.push(clock_check(AREA, "Google's", ahead_ms - 500)),
                None => checks.push(Check::skipped(AREA, "clock", "no answer of Google told the time")),
            }
            if !google.client_id.ends_with(".apps.googleusercontent.com") && !is_loopback(&google.token_uri) {
                let fix = "copy the client id from the Google Cloud console, Credentials";
                let detail = "does not end in .apps.googleusercontent.com";
                checks.push(Check::new(Level::Warn, AREA, "GOOGLE_CLIENT_ID", detail, fix));
            }
        }
    }
    if let Some(site) = &config.http.wp_base_url {
        checks.push(redirect_uri(site));
    }
    checks
}

/// Whether the address gives any answer at all, and by how many milliseconds our clock is ahead of its `Date`.
async fn answers(http: &reqwest::Client, name: &str, url: &Url, clock: &Clock) -> (Check, Option<i64>) {
    match http.get(url.clone()).timeout(ANSWER_TIME).send().await {
        Ok(answer) => {
            let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
            let ahead = date.and_then(http_date).map(|date| clock.now().since(date));
            (Check::ok(AREA, name, format!("answers at {} (HTTP {})", origin(url), answer.status().as_u16())), ahead)
        }
        Err(error) => {
            let why = crate::telemetry::Chain(&error.without_url()).to_string();
            let fix = "let this machine reach it (DNS, firewall, proxy); meetings wait meanwhile, nothing is lost";
            (Check::new(Level::Unreachable, AREA, name, format!("no answer at {}: {why}", origin(url)), fix), None)
        }
    }
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The form that servers send, RFC 9110 section 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<UnixMillis> {
    chrono::DateTime::parse_from_rfc2822(text).ok().map(|date| UnixMillis::new(date.timestamp_millis()))
}

/// What Google accepts as a redirect URI: <https://developers.google.com/identity/protocols/oauth2/web-server#uri-validation>.
fn redirect_uri(site: &Url) -> Check {
    let uri = format!("{}/api/google/oauth/callback", site.as_str().trim_end_matches('/'));
    let problem = match site.host() {
        _ if is_loopback(site) => None,
        _ if site.scheme() != "https" => Some("Google accepts http only for this machine itself"),
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => Some("Google accepts no bare IP address"),
        Some(Host::Domain(name)) if !name.contains('.') => Some("Google accepts only names with a public ending"),
        Some(Host::Domain(name))
            if [".local", ".lan", ".internal", ".test", ".invalid"].iter().any(|end| name.ends_with(end)) =>
        {
            Some("Google accepts only names with a public ending")
        }
        _ => None,
    };
    match problem {
        Some(problem) => {
            let fix = "set WP_BASE_URL to the public https address of the site";
            Check::new(Level::Fail, AREA, "redirect URI", format!("{uri}: {problem}"), fix)
        }
        None => {
            Check::ok(AREA, "redirect URI", format!("{uri} (must stand in the Google Cloud console, letter by letter)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_uri_is_one_that_google_takes() {
        let level = |site: &str| redirect_uri(&Url::parse(site).unwrap()).level;
        for good in ["https://school.example.com", "http://localhost:8080/", "http://127.0.0.1:8080"] {
            assert_eq!(level(good), Level::Ok, "{good}");
        }
        for bad in ["http://school.example.com", "https://192.0.2.1", "https://intranet", "https://school.local"] {
            assert_eq!(level(bad), Level::Fail, "{bad}");
        }
    }

    #[test]
    fn clocks_are_compared() {
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date.to_string(), "1994-11-06T08:49:37Z");
        assert_eq!(clock_check(AREA, "x", 900).level, Level::Ok);
        assert_eq!(clock_check(AREA, "x", -5_000).level, Level::Warn);
        assert_eq!(clock_check(AREA, "x", 600_000).level, Level::Fail);
    }
}
