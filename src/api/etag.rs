//! Entity tags and `If-None-Match` (RFC 9110 sections 8.8.3 and 13.1.2).

use axum::http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};

/// The strong tag of a document: its revision, and a hash of its bytes, so that a database that was lost and rebuilt
/// never gives an old tag to a new content.
pub(super) fn of_document(revision: i64, json: &str) -> HeaderValue {
    let digest: [u8; 32] = Sha256::digest(json).into();
    quoted(&format!("{revision}-{}", data_encoding::HEXLOWER.encode(&digest[..8])))
}

/// The strong tag of any other body.
pub(super) fn of_body(body: &str) -> HeaderValue {
    let digest: [u8; 32] = Sha256::digest(body).into();
    quoted(&data_encoding::HEXLOWER.encode(&digest[..16]))
}

fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{tag}\"")).expect("digits, letters and a dash are visible ASCII")
}

/// Whether `If-None-Match` names this tag of a representation that exists, so that 304 is the answer.
pub(super) fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().any(|list| list == tag || names(list.as_bytes(), tag.as_bytes()))
}

/// Whether a list of entity tags, or `*`, names `tag` by weak comparison. What follows a malformed member is ignored:
/// at worst the whole body is sent once more.
fn names(mut list: &[u8], tag: &[u8]) -> bool {
    loop {
        list = skip(list, b" \t,");
        if list.first() == Some(&b'*') {
            return true;
        }
        let opaque = list.strip_prefix(b"W/").unwrap_or(list);
        // A tag may hold commas, so the member ends at its quote and not at the next comma.
        let Some(end) = opaque.strip_prefix(b"\"").and_then(|rest| rest.iter().position(|b| *b == b'"')) else {
            return false;
        };
        let (member, rest) = opaque.split_at(end + 2);
        if member == tag {
            return true;
        }
        list = rest;
    }
}

fn skip<'a>(mut list: &'a [u8], what: &[u8]) -> &'a [u8] {
    while let [first, rest @ ..] = list
        && what.contains(first)
    {
        list = rest;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_weak_tags_and_the_star_are_understood() {
        for list in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "\"x,y\" ,W/\"a\"", "*", " ,\"a\",", "\"\",\"a\""] {
            assert!(names(list.as_bytes(), b"\"a\""), "{list}");
        }
        for list in ["", "a", "\"A\"", "\"b\"", "\"a", "w/\"a\"", "\"b\" x \"a\"", "\"aa\"", "W/", ","] {
            assert!(!names(list.as_bytes(), b"\"a\""), "{list}");
        }
    }

    #[test]
    fn tags_follow_revision_and_content() {
        assert_eq!(of_document(3, "{}"), of_document(3, "{}"));
        assert_ne!(of_document(3, "{}"), of_document(4, "{}"));
        assert_ne!(of_document(3, "{}"), of_document(3, "{ }"));
    }
}
