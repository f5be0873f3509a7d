//! `JWT_*`: keys are read and looked at here, so that a wrong one is met at the start and not by the first caller.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use url::Url;

use super::read::Reader;
use super::values::{readable_file, safe_url};
use crate::api::auth::{JWKS_BYTES_MAX, JwksSource, KeyError, PublicKey, keys_of_set};

/// `JWT_HS256_SECRET`. What everybody may know is no secret: whoever puts a public key there would make every holder of
/// that key a signer (RFC 8725 section 2.1).
pub(super) fn hs256_secret(from: &mut Reader) -> Option<SecretString> {
    from.parse("JWT_HS256_SECRET", |text| {
        (text.len() >= 32 && !text.contains("-----BEGIN ") && !text.contains("PUBLIC KEY")).then(|| text.into())
    })
}

/// `JWT_PUBLIC_KEY_FILE`
pub(super) fn public_keys(from: &mut Reader) -> Vec<PublicKey> {
    let name = "JWT_PUBLIC_KEY_FILE";
    let Some(path) = readable_file(from, name) else { return Vec::new() };
    checked(from, name, &path, |bytes| PublicKey::from_pem(&String::from_utf8_lossy(bytes))).unwrap_or_default()
}

/// `JWT_JWKS_URL`. What is behind a URL is not looked at here: it may be away while we start.
pub(super) fn jwks(from: &mut Reader) -> Option<JwksSource> {
    let name = "JWT_JWKS_URL";
    let source = from.parse(name, |text| {
        if let Some(url) = safe_url(text) {
            return Some(JwksSource::Url(url));
        }
        match Url::parse(text) {
            Ok(url) if url.scheme() == "file" => url.to_file_path().ok().map(JwksSource::File),
            Ok(_) => None,
            Err(_) => Some(JwksSource::File(PathBuf::from(text))),
        }
    })?;
    match &source {
        JwksSource::File(path) => checked(from, name, path, keys_of_set).map(|_| source),
        JwksSource::Url(_) => Some(source),
    }
}

/// What the file holds, or `None` and a mistake.
fn checked<T>(
    from: &mut Reader,
    name: &'static str,
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, KeyError>,
) -> Option<T> {
    let read = match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(format!("{} is not a file", path.display())),
        Ok(metadata) if metadata.len() > JWKS_BYTES_MAX as u64 => {
            Err(format!("{}: {}", path.display(), KeyError::TooLarge))
        }
        _ => std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display())),
    };
    let parsed = read.and_then(|bytes| parse(&bytes).map_err(|error| format!("{}: {error}", path.display())));
    match parsed {
        Ok(parsed) => Some(parsed),
        Err(problem) => {
            from.mistake(name, problem);
            None
        }
    }
}
