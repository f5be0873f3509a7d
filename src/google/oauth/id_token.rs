//! Whose grant it is: the claims of an id token.
//!
//! Its signature is not checked, because it comes straight from the token endpoint over TLS, which OpenID Connect Core
//! 1.0 section 3.1.3.7 (point 6) allows in place of the signature. All other points that concern us are. A nonce (point
//! 11) is not sent: PKCE binds the code to our request (RFC 9700 section 2.1.1).

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::model::{GoogleSub, UnixMillis};

/// Google's clock may differ from ours by this much.
const SKEW_S: i64 = 300;
/// An id token that was issued longer ago did not come of this exchange.
const AGE_MAX_S: i64 = 3_600;
/// A `sub` has at most this many ASCII characters (OpenID Connect Core 1.0 section 2).
const SUB_BYTES_MAX: usize = 255;

/// Both stand in Google's documentation.
pub const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// The account that consented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id, which never changes.
    pub account: GoogleSub,
    /// Its address, for people.
    pub email: Option<String>,
}

/// Which rule an id token breaks, without anything of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    /// There is none.
    #[error("the answer has no id token")]
    Missing,
    /// It is no JWT with the claims of an id token.
    #[error("the id token cannot be read")]
    Unreadable,
    /// `iss` is not Google.
    #[error("the id token was issued by somebody else (iss)")]
    Issuer,
    /// `aud` or `azp` is not our client.
    #[error("the id token is for another client (aud, azp)")]
    Audience,
    /// `exp` is over.
    #[error("the id token has expired (exp)")]
    Expired,
    /// `iat` is far from now.
    #[error("the id token was issued at another time (iat); is the clock right?")]
    IssuedAt,
    /// `sub` is empty or too long.
    #[error("the id token names nobody (sub)")]
    Subject,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    azp: Option<String>,
    exp: i64,
    iat: i64,
    sub: String,
    email: Option<String>,
}

/// Reads an id token that the token endpoint has just given.
pub fn identity(token: Option<&SecretString>, client_id: &str, now: UnixMillis) -> Result<Identity, IdTokenError> {
    let token = token.ok_or(IdTokenError::Missing)?.expose_secret();
    let mut parts = token.split('.');
    let (Some(_head), Some(payload), Some(_signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(IdTokenError::Unreadable);
    };
    let payload = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| IdTokenError::Unreadable)?;
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| IdTokenError::Unreadable)?;
    check(claims, client_id, now.get() / 1000)
}

fn check(claims: Claims, client_id: &str, now_s: i64) -> Result<Identity, IdTokenError> {
    if !ISSUERS.contains(&claims.iss.as_str()) {
        return Err(IdTokenError::Issuer);
    }
    let is_for_us = match &claims.aud {
        Audience::One(audience) => audience == client_id,
        // With several audiences only `azp` says for whom it was made.
        Audience::Several(audiences) => {
            audiences.iter().any(|audience| audience == client_id) && (audiences.len() == 1 || claims.azp.is_some())
        }
    };
    if !is_for_us || claims.azp.is_some_and(|party| party != client_id) {
        return Err(IdTokenError::Audience);
    }
    if claims.exp.saturating_add(SKEW_S) <= now_s {
        return Err(IdTokenError::Expired);
    }
    if claims.iat > now_s.saturating_add(SKEW_S) || claims.iat < now_s.saturating_sub(AGE_MAX_S) {
        return Err(IdTokenError::IssuedAt);
    }
    if claims.sub.is_empty() || claims.sub.len() > SUB_BYTES_MAX || !claims.sub.is_ascii() {
        return Err(IdTokenError::Subject);
    }
    let is_address =
        |text: &String| text.len() <= 254 && text.contains('@') && !text.chars().any(|c| c.is_control() || c == ' ');
    Ok(Identity { account: GoogleSub(claims.sub), email: claims.email.filter(is_address) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW_S: i64 = 1_790_000_000;

    fn read(change: &Value) -> Result<Identity, IdTokenError> {
        let mut claims = json!({"iss": "https://accounts.google.com", "aud": "us", "azp": "us", "exp": NOW_S + 3600,
            "iat": NOW_S, "sub": "117", "email": "ana@example.com"});
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let payload = data_encoding::BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
        let token = SecretString::from(format!("e30.{payload}.c2ln"));
        identity(Some(&token), "us", UnixMillis::new(NOW_S * 1000))
    }

    #[test]
    fn good_ones_name_the_account() {
        let ana = Identity { account: GoogleSub("117".to_owned()), email: Some("ana@example.com".to_owned()) };
        for good in [
            json!({}),
            json!({"iss": "accounts.google.com"}),
            json!({"aud": ["us"], "azp": null}),
            json!({"aud": ["them", "us"]}),
            json!({"iat": NOW_S + 200}),
            json!({"exp": NOW_S - 200}),
        ] {
            assert_eq!(read(&good), Ok(ana.clone()), "{good}");
        }
        assert_eq!(read(&json!({"email": null})).unwrap().email, None);
        assert_eq!(read(&json!({"email": "not an address"})).unwrap().email, None);
    }

    #[test]
    fn each_rule_has_its_error() {
        for (bad, error) in [
            (json!({"iss": "https://accounts.google.com.evil.example"}), IdTokenError::Issuer),
            (json!({"iss": "http://accounts.google.com"}), IdTokenError::Issuer),
            (json!({"aud": "them"}), IdTokenError::Audience),
            (json!({"aud": ["them"]}), IdTokenError::Audience),
            (json!({"aud": []}), IdTokenError::Audience),
            (json!({"aud": ["us", "them"], "azp": null}), IdTokenError::Audience),
            (json!({"azp": "them"}), IdTokenError::Audience),
            (json!({"exp": NOW_S - 300}), IdTokenError::Expired),
            (json!({"exp": i64::MIN}), IdTokenError::Expired),
            (json!({"iat": NOW_S + 301}), IdTokenError::IssuedAt),
            (json!({"iat": NOW_S - 3601}), IdTokenError::IssuedAt),
            (json!({"sub": ""}), IdTokenError::Subject),
            (json!({"sub": "1".repeat(256)}), IdTokenError::Subject),
            (json!({"sub": 117}), IdTokenError::Unreadable),
            (json!({"exp": "soon"}), IdTokenError::Unreadable),
            (json!({"aud": 3}), IdTokenError::Unreadable),
        ] {
            assert_eq!(read(&bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn what_is_no_jwt_is_unreadable() {
        for text in ["", "a", "a.b", "a.b.c.d", "e30.!!.c2ln", "e30.e30.c2ln"] {
            let token = SecretString::from(text);
            assert_eq!(identity(Some(&token), "us", UnixMillis::new(0)), Err(IdTokenError::Unreadable), "{text}");
        }
        assert_eq!(identity(None, "us", UnixMillis::new(0)), Err(IdTokenError::Missing));
    }
}
