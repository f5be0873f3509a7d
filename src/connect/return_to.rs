//! Where a browser may be sent after a consent. Without this list the callback would be an open redirector (RFC 9700
//! section 4.11): an address of ours that leads to anybody's page. Pure.
//!
//! The rules, in the words of the README:
//! * scheme, host and port are those of an entry of `OAUTH_RETURN_URLS`;
//! * the path is that of the entry, or lies below it (`/account` allows `/account/google`, not `/accounting`);
//! * an entry with a query (`?page_id=42`) allows that one address;
//! * an address that begins with `/` is one of the site, `WP_BASE_URL`; it has to be allowed like every other.

use url::Url;

/// Addresses are kept and sent in a header.
const LENGTH_MAX: usize = 2_000;

/// What we add to an address; taken out of it before.
const OURS: [&str; 5] = ["google", "code", "notice", "expected", "chosen"];

/// An address that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnTo(Url);

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReturnRefused {
    /// It is written in a way that browsers and servers read differently, which honest pages do not need.
    #[error(
        "it must be an http or https address, or a path that begins with one slash, without user, fragment, \
             backslash, control characters or encoded slashes and dots in its path"
    )]
    Form,
    /// Not one of `OAUTH_RETURN_URLS`.
    #[error("it is not below one of OAUTH_RETURN_URLS")]
    NotAllowed,
}

/// The allow-list.
#[derive(Debug, Clone)]
pub struct ReturnUrls {
    base: Url,
    allowed: Vec<Url>,
}

impl ReturnUrls {
    /// `base` is `WP_BASE_URL`, `allowed` `OAUTH_RETURN_URLS`.
    pub fn new(base: Url, allowed: Vec<Url>) -> Self {
        Self { base, allowed }
    }

    /// Where to go when nobody said: the first entry.
    pub fn first(&self) -> Option<ReturnTo> {
        self.allowed.first().cloned().map(ReturnTo)
    }

    /// The address, if it is allowed.
    pub fn parse(&self, text: &str) -> Result<ReturnTo, ReturnRefused> {
        let url = self.read(text).ok_or(ReturnRefused::Form)?;
        if self.allowed.iter().any(|entry| is_below(&url, entry)) {
            Ok(ReturnTo(url))
        } else {
            Err(ReturnRefused::NotAllowed)
        }
    }

    fn read(&self, text: &str) -> Option<Url> {
        // Parsers drop tabs and newlines, and take a backslash for a slash: such an address means two things.
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '\\';
        if text.is_empty() || text.len() > LENGTH_MAX || !text.chars().all(is_plain) {
            return None;
        }
        let url = if text.starts_with('/') {
            // `//evil.example` is an address of another host.
            (!text.starts_with("//")).then(|| self.base.join(text).ok())??
        } else {
            let (scheme, rest) = text.split_once("://")?;
            // `https:/evil`, `https:evil` and `https:///evil` are read as `https://evil`.
            let has_authority = rest.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '[');
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let is_web = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
            if !is_web || !has_authority || authority.contains(['@', '%']) {
                return None;
            }
            Url::parse(text).ok()?
        };
        let path = text.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
        // Encoded slashes, dots and percent signs are undone by some servers and not by others.
        let is_ambiguous = ["%2f", "%5c", "%2e", "%25"].iter().any(|escape| path.contains(escape))
            || (0..0x20_u8).chain([0x7f]).any(|byte| path.contains(&format!("%{byte:02x}")));
        let is_whole = url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
        (is_whole && !is_ambiguous && url.has_host()).then_some(url)
    }
}

fn is_below(url: &Url, entry: &Url) -> bool {
    let same_origin = url.scheme() == entry.scheme()
        && url.host() == entry.host()
        && url.port_or_known_default() == entry.port_or_known_default();
    if !same_origin {
        return false;
    }
    if entry.query().is_some() {
        return url.path() == entry.path() && url.query() == entry.query();
    }
    let folder = entry.path().trim_end_matches('/');
    url.path() == entry.path()
        || url.path() == folder
        || url.path().strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl ReturnTo {
    /// The address as it was asked for.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// With what became of the consent. Parameters of these names that were there before go: the page must not be told
    /// two things.
    pub fn with(&self, parameters: &[(&str, &str)]) -> Url {
        let mut url = self.0.clone();
        let kept: Vec<(String, String)> =
            url.query_pairs().into_owned().filter(|(name, _)| !OURS.contains(&name.as_str())).collect();
        url.query_pairs_mut().clear().extend_pairs(kept).extend_pairs(parameters);
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(allowed: &[&str]) -> ReturnUrls {
        let url = |text: &str| Url::parse(text).unwrap();
        ReturnUrls::new(url("https://school.example.com"), allowed.iter().map(|text| url(text)).collect())
    }

    #[test]
    fn pages_below_an_entry_are_allowed() {
        let urls = urls(&[
            "https://school.example.com/account",
            "https://app.example.com:8443/",
            "https://x.example/?page_id=42",
        ]);
        for (good, read) in [
            ("https://school.example.com/account", "https://school.example.com/account"),
            ("https://school.example.com/account/", "https://school.example.com/account/"),
            (
                "https://school.example.com/account/google?tab=meet",
                "https://school.example.com/account/google?tab=meet",
            ),
            ("https://school.example.com:443/account", "https://school.example.com/account"),
            ("HTTPS://School.Example.com/account", "https://school.example.com/account"),
            ("/account/google", "https://school.example.com/account/google"),
            ("/account?x=%2F%2Fevil.example", "https://school.example.com/account?x=%2F%2Fevil.example"),
            ("https://app.example.com:8443/anything/else", "https://app.example.com:8443/anything/else"),
            ("https://x.example/?page_id=42", "https://x.example/?page_id=42"),
        ] {
            assert_eq!(urls.parse(good).as_ref().map(ReturnTo::as_str), Ok(read), "{good}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let urls = urls(&["https://school.example.com/account", "https://x.example/?page_id=42"]);
        for elsewhere in [
            "https://evil.example/account",
            "http://school.example.com/account",
            "https://school.example.com:8443/account",
            "https://school.example.com/accounting",
            "https://school.example.com/",
            "https://school.example.com/account/../admin",
            "https://school.example.com.evil.example/account",
            "https://evil.example/https://school.example.com/account",
            "https://sub.school.example.com/account",
            "https://school.example.com./account",
            "/",
            "/account/../admin",
            "/account/..",
            "https://x.example/",
            "https://x.example/?page_id=43",
            "https://x.example/?page_id=42&next=//evil.example",
        ] {
            assert_eq!(urls.parse(elsewhere), Err(ReturnRefused::NotAllowed), "{elsewhere}");
        }
        for tricky in [
            "",
            "account",
            "//evil.example/account",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "https:\\\\evil.example",
            "https:evil.example",
            "https:/evil.example",
            "https:///evil.example",
            "https://school.example.com@evil.example/account",
            "https://user:secret@school.example.com/account",
            "https://school.example.com%40evil.example/account",
            "https://school.example.com\\@evil.example/account",
            "https://school.example.com/account%2f..%2f..%2fevil",
            "https://school.example.com/account/%2e%2e/admin",
            "https://school.example.com/account/%252e%252e/admin",
            "https://school.example.com/account%5c..",
            "https://school.example.com/account%0d%0aset-cookie:x",
            "https://school.example.com/account#google=connected",
            "/account#x",
            "/ account",
            "/account\n",
            "/\t/evil.example",
            " https://school.example.com/account",
            "javascript://school.example.com/account",
            "javascript:alert(1)",
            "data:text/html,x",
            "ftp://school.example.com/account",
        ] {
            assert_eq!(urls.parse(tricky), Err(ReturnRefused::Form), "{tricky:?}");
        }
        let long = format!("/account/{}", "x".repeat(2_000));
        assert_eq!(urls.parse(&long), Err(ReturnRefused::Form));
    }

    #[test]
    fn the_result_is_added_once() {
        let urls = urls(&["https://school.example.com/account"]);
        let page = urls.parse("/account?tab=meet&google=error&code=OLD&notice=x").unwrap();
        assert_eq!(
            page.with(&[("google", "connected")]).as_str(),
            "https://school.example.com/account?tab=meet&google=connected"
        );
        assert_eq!(
            urls.first().unwrap().with(&[("google", "error"), ("code", "X")]).as_str(),
            "https://school.example.com/account?google=error&code=X"
        );
    }
}
