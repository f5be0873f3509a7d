//! The revocation endpoint: RFC 7009, and
//! <https://developers.google.com/identity/protocols/oauth2/web-server#tokenrevoke>.

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::TIMEOUT;
use crate::google::error::{GoogleError, classify_token};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Where grants are ended.
#[derive(Debug, Clone)]
pub struct RevocationEndpoint {
    http: reqwest::Client,
    uri: Url,
}

impl RevocationEndpoint {
    /// `uri` is `GOOGLE_REVOKE_URI`.
    pub fn new(http: reqwest::Client, uri: Url) -> Self {
        Self { http, uri }
    }

    /// Ends everything that the account of this token has granted to our Google Cloud project. A token that Google does
    /// not know (any more) counts as revoked.
    ///
    /// # Errors
    ///
    /// As [`classify_token`] says; asking again does no harm.
    pub async fn revoke(&self, token: &SecretString) -> Result<(), GoogleError> {
        let no_answer = |error: reqwest::Error| GoogleError::no_answer("revoke", false, &error);
        let form = [("token", token.expose_secret())];
        let request = self.http.post(self.uri.clone()).timeout(TIMEOUT).form(&form);
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        if status == reqwest::StatusCode::OK {
            return Ok(());
        }
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        let error = classify_token(status.as_u16(), &headers, &body);
        let is_gone = status == reqwest::StatusCode::BAD_REQUEST && error.reason.as_deref() == Some("invalid_token");
        if is_gone { Ok(()) } else { Err(error) }
    }
}
