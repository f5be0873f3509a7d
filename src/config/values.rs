//! What the text of a variable may be. Each function gives `None` for what is not allowed; the words for it stand in
//! the list of variables.

use std::net::IpAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use url::{Host, Url};

use super::read::Reader;

/// <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>, those that need no extension.
pub(super) const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Every part between commas, or `None` if one is wrong or there is none. Spaces around a part and a comma at the end
/// are allowed.
pub(super) fn each<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(parse).collect::<Option<Vec<T>>>().filter(|parsed| !parsed.is_empty())
}

pub(super) fn readable_file(from: &mut Reader, name: &'static str) -> Option<PathBuf> {
    let path = PathBuf::from(from.text(name)?);
    match std::fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => Some(path),
        Ok(_) => {
            from.mistake(name, format!("{} is not a file", path.display()));
            None
        }
        Err(error) => {
            from.mistake(name, format!("{} cannot be read: {error}", path.display()));
            None
        }
    }
}

pub(super) fn web_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host() && url.fragment().is_none()).then_some(url)
}

/// An https URL, or an http one that does not leave this machine: tokens and codes travel over it.
pub(super) fn safe_url(text: &str) -> Option<Url> {
    web_url(text).filter(|url| url.scheme() == "https" || is_loopback(url))
}

/// Whether the host is this machine (RFC 6761 section 6.3 for the names).
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

pub(super) fn is_database_url(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix("sqlite:") {
        // Every connection to `:memory:` would see a database of its own.
        let file = rest.trim_start_matches("//").split('?').next().unwrap_or_default();
        return !file.is_empty() && !file.contains(":memory:") && !rest.contains("mode=memory");
    }
    let postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    postgres && Url::parse(text).is_ok()
}

pub(super) fn nats_url(text: &str) -> Option<String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
    let url = Url::parse(&full).ok()?;
    (matches!(url.scheme(), "nats" | "tls") && url.has_host()).then_some(full)
}

/// Names of streams and consumers: nats-server `isValidName`, and what its file store can make a directory of.
pub(super) fn nats_name(text: &str, max: usize) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_graphic() && !br".*>/\".contains(&b);
    ((1..=max).contains(&text.len()) && text.bytes().all(allowed)).then(|| text.to_owned())
}

pub(super) fn subject_filter(text: &str) -> Option<String> {
    let tokens: Vec<&str> = text.split('.').collect();
    let (prefix, last) = tokens.split_at_checked(tokens.len().checked_sub(2)?)?;
    let literal =
        |token: &&str| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>');
    (!prefix.is_empty() && prefix.iter().all(literal) && last == ["*", "*"]).then(|| text.to_owned())
}

pub(super) fn encryption_key(text: &str) -> Option<SecretString> {
    (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.into())
}

pub(super) fn scopes(text: &str) -> Option<Vec<String>> {
    let scopes: Vec<String> = text.split([' ', ',']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect();
    let writes_events = |scope: &String| {
        let name = scope.strip_prefix("https://www.googleapis.com/auth/").unwrap_or_default();
        matches!(name, "calendar" | "calendar.events" | "calendar.events.owned")
    };
    scopes.iter().any(writes_events).then_some(scopes)
}
