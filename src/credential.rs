//! Sealing of tokens at rest, and the keys for it.
//!
//! A sealed value is `version (1 byte) ‖ key id (8) ‖ nonce (24) ‖ ciphertext and tag`, XChaCha20-Poly1305
//! (draft-irtf-cfrg-xchacha-03): with 24 random bytes a nonce does not repeat within any number of values that a
//! database can hold. Table, column, teacher and account are authenticated with it, so a value that is copied into
//! another row or column does not open there. The key id lets keys rotate while the service runs: new values are sealed
//! with the current key, old ones open with theirs.
//!
//! Deliberately absent: a key derivation from passwords. `GOOGLE_ENCRYPTION_KEY` is 32 random bytes.

use std::fmt;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use secrecy::zeroize::{Zeroize, Zeroizing};
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::model::{GoogleSub, TeacherId, digest};

pub mod census;
pub mod rotation;

/// The version byte of the form described above.
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;

/// Which key sealed a value: the first 8 bytes of a SHA-256 of it, so it tells nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a key cannot be used. The key itself is never part of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 characters.
    #[error("{name}: {found} characters instead of 64 hexadecimal digits (make one with: openssl rand -hex 32)")]
    Length {
        /// Which key: `GOOGLE_ENCRYPTION_KEY`, `GOOGLE_ENCRYPTION_KEYS_OLD[2]`.
        name: String,
        /// How many there were, without white space around.
        found: usize,
    },
    /// 64 characters, but not all of `0-9 a-f A-F`.
    #[error("{name}: character {position} of 64 is not a hexadecimal digit")]
    NotHexadecimal {
        /// As above.
        name: String,
        /// From 1.
        position: usize,
    },
}

/// Why a value could not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes for a nonce")]
pub struct SealError;

/// Why a sealed value does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than the shortest sealed value.
    #[error("the sealed {column} is cut off: {bytes} bytes")]
    Truncated {
        /// Of which column.
        column: &'static str,
        /// How many bytes there are.
        bytes: usize,
    },
    /// Sealed by a newer program.
    #[error("the sealed {column} has version {version}, this program knows {VERSION}")]
    Version {
        /// Of which column.
        column: &'static str,
        /// Its version byte.
        version: u8,
    },
    /// Sealed with a key that is not configured.
    #[error("the {column} is sealed with key {key}, which is neither GOOGLE_ENCRYPTION_KEY nor one of the old keys")]
    UnknownKey {
        /// Of which column.
        column: &'static str,
        /// The key that is missing.
        key: KeyId,
    },
    /// Changed since it was sealed, or sealed for another row.
    #[error("the sealed {column} does not open: it was changed, or it belongs to another teacher or account")]
    Forged {
        /// Of which column.
        column: &'static str,
    },
}

/// Where a sealed value lives: it opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot<'a> {
    /// The table.
    pub table: &'static str,
    /// The column.
    pub column: &'static str,
    /// The teacher of the row.
    pub teacher: &'a str,
    /// The Google account of the row; empty where none is known yet.
    pub account: &'a str,
}

impl<'a> Slot<'a> {
    /// `teacher_google_credential.refresh_token`.
    pub fn refresh_token(teacher: &'a TeacherId, account: &'a GoogleSub) -> Self {
        Self { column: "refresh_token", ..Self::access_token(teacher, account) }
    }

    /// `teacher_google_credential.access_token`.
    pub fn access_token(teacher: &'a TeacherId, account: &'a GoogleSub) -> Self {
        Self {
            table: "teacher_google_credential",
            column: "access_token",
            teacher: teacher.as_str(),
            account: &account.0,
        }
    }

    /// Every field with its length before it, so that no two slots share an encoding.
    fn associated_data(&self) -> Vec<u8> {
        let fields = [self.table, self.column, self.teacher, self.account];
        let mut bytes = Vec::with_capacity(fields.iter().map(|field| field.len() + 8).sum());
        for field in fields {
            bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
            bytes.extend_from_slice(field.as_bytes());
        }
        bytes
    }
}

/// One key; wiped from memory when dropped.
struct SealingKey {
    id: KeyId,
    bytes: SecretBox<[u8; 32]>,
}

impl SealingKey {
    fn parse(name: &str, text: &SecretString) -> Result<Self, KeyError> {
        let name = || name.to_owned();
        let digits = text.expose_secret().trim().as_bytes();
        if digits.len() != 64 {
            return Err(KeyError::Length { name: name(), found: text.expose_secret().trim().chars().count() });
        }
        if let Some(index) = digits.iter().position(|digit| !digit.is_ascii_hexdigit()) {
            return Err(KeyError::NotHexadecimal { name: name(), position: index + 1 });
        }
        let bytes = SecretBox::init_with_mut(|bytes: &mut [u8; 32]| {
            data_encoding::HEXLOWER_PERMISSIVE.decode_mut(digits, bytes).expect("64 hexadecimal digits are 32 bytes");
        });
        let digest = digest(&[b"mp/key/1", bytes.expose_secret()]);
        let (id, _) = digest.split_first_chunk().expect("a SHA-256 has more bytes than a key id");
        Ok(Self { id: KeyId(*id), bytes })
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        let mut key = Key::from(*self.bytes.expose_secret());
        let cipher = XChaCha20Poly1305::new(&key);
        key.as_mut_slice().zeroize();
        cipher
    }
}

/// The keys: one that seals, and older ones that still open. Cheap to clone; clones share the keys, which are in memory
/// once.
#[derive(Clone)]
pub struct KeyRing(Arc<Keys>);

struct Keys {
    current: SealingKey,
    old: Vec<SealingKey>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let old: Vec<KeyId> = self.0.old.iter().map(|key| key.id).collect();
        f.debug_struct("KeyRing").field("current", &self.0.current.id).field("old", &old).finish()
    }
}

impl KeyRing {
    /// From `GOOGLE_ENCRYPTION_KEY` and `GOOGLE_ENCRYPTION_KEYS_OLD`: 64 hexadecimal digits each, white space around
    /// them ignored. An old key that equals the current one, or another old one, is harmless.
    pub fn new(current: &SecretString, old: &[SecretString]) -> Result<Self, KeyError> {
        let current = SealingKey::parse("GOOGLE_ENCRYPTION_KEY", current)?;
        let parse = |(index, text)| SealingKey::parse(&format!("GOOGLE_ENCRYPTION_KEYS_OLD[{}]", index + 1), text);
        let old = old.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Keys { current, old })))
    }

    /// The key that seals.
    pub fn current(&self) -> KeyId {
        self.0.current.id
    }

    /// Seals `secret` for `slot` with the current key and a fresh nonce.
    pub fn seal(&self, slot: Slot<'_>, secret: &SecretString) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError)?;
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &slot.associated_data() };
        let ciphertext = self
            .0
            .current
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .expect("XChaCha20-Poly1305 takes up to 256 GiB");
        let mut sealed = Vec::with_capacity(HEADER_BYTES + ciphertext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&self.0.current.id.0);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    /// Opens what [`KeyRing::seal`] made for the same slot, with whichever key it was.
    pub fn open(&self, slot: Slot<'_>, sealed: &[u8]) -> Result<SecretString, OpenError> {
        let column = slot.column;
        let key_id = key_of(column, sealed)?;
        let key = std::iter::once(&self.0.current)
            .chain(&self.0.old)
            .find(|key| key.id == key_id)
            .ok_or(OpenError::UnknownKey { column, key: key_id })?;
        let (header, ciphertext) = sealed.split_at(HEADER_BYTES);
        let nonce: [u8; NONCE_BYTES] = header[1 + KEY_ID_BYTES..].try_into().expect("the header ends with the nonce");
        let payload = Payload { msg: ciphertext, aad: &slot.associated_data() };
        let plain = key.cipher().decrypt(&XNonce::from(nonce), payload).map_err(|_| OpenError::Forged { column })?;
        let plain = Zeroizing::new(plain);
        let text = std::str::from_utf8(&plain).map_err(|_| OpenError::Forged { column })?;
        Ok(SecretString::from(text))
    }

    /// Whether a value is sealed with the current key, so that a rotation may pass it over.
    pub fn is_current(&self, slot: Slot<'_>, sealed: &[u8]) -> Result<bool, OpenError> {
        Ok(key_of(slot.column, sealed)? == self.0.current.id)
    }
}

/// The key id of a sealed value, after a look at its length and version.
fn key_of(column: &'static str, sealed: &[u8]) -> Result<KeyId, OpenError> {
    let truncated = OpenError::Truncated { column, bytes: sealed.len() };
    match sealed.split_first() {
        None => Err(truncated),
        Some((version, _)) if *version != VERSION => Err(OpenError::Version { column, version: *version }),
        Some(_) if sealed.len() < HEADER_BYTES + TAG_BYTES => Err(truncated),
        Some((_, rest)) => rest.first_chunk().map(|id| KeyId(*id)).ok_or(truncated),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const B: &str = "F0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFFf0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";

    fn ring(current: &str, old: &[&str]) -> KeyRing {
        let old: Vec<SecretString> = old.iter().map(|key| SecretString::from(*key)).collect();
        KeyRing::new(&SecretString::from(current), &old).unwrap()
    }

    fn slot(teacher: &'static str) -> Slot<'static> {
        Slot { table: "teacher_google_credential", column: "refresh_token", teacher, account: "1234567890" }
    }

    #[test]
    fn keys_rotate_and_a_missing_one_is_named() {
        let sealed = ring(A, &[]).seal(slot("t"), &SecretString::from("1//MARKER")).unwrap();
        assert_eq!(ring(A, &[]).open(slot("t"), &sealed).unwrap().expose_secret(), "1//MARKER");
        let rotated = ring(B, &[A]);
        assert_eq!(rotated.open(slot("t"), &sealed).unwrap().expose_secret(), "1//MARKER");
        assert_eq!(rotated.is_current(slot("t"), &sealed), Ok(false));
        assert_eq!(ring(A, &[B]).is_current(slot("t"), &sealed), Ok(true));
        let error = ring(B, &[]).open(slot("t"), &sealed).unwrap_err();
        assert_eq!(error, OpenError::UnknownKey { column: "refresh_token", key: ring(A, &[]).current() });
        assert!(error.to_string().contains(&ring(A, &[]).current().to_string()), "{error}");
    }

    #[test]
    fn mistakes_in_keys_are_named_without_showing_the_key() {
        let current = |text: &str| KeyRing::new(&SecretString::from(text), &[]).unwrap_err().to_string();
        insta::assert_snapshot!(current("abc"), @"GOOGLE_ENCRYPTION_KEY: 3 characters instead of 64 hexadecimal digits (make one with: openssl rand -hex 32)");
        insta::assert_snapshot!(current(&format!("{}g", &A[..63])), @"GOOGLE_ENCRYPTION_KEY: character 64 of 64 is not a hexadecimal digit");
        let old = [SecretString::from(B), SecretString::from("é")];
        let error = KeyRing::new(&SecretString::from(format!(" {A}\n")), &old).unwrap_err();
        assert!(error.to_string().starts_with("GOOGLE_ENCRYPTION_KEYS_OLD[2]: 1 characters"), "{error}");
    }

    #[test]
    fn nothing_shows_a_key() {
        let ring = ring(A, &[B]);
        let shown = format!("{ring:?}").to_lowercase();
        assert!(!shown.contains("00010203") && !shown.contains("f0f1f2f3"), "{shown}");
    }

    #[test]
    fn equal_secrets_are_sealed_differently() {
        let ring = ring(A, &[]);
        let secret = SecretString::from("same");
        assert_ne!(ring.seal(slot("t"), &secret), ring.seal(slot("t"), &secret));
    }

    /// A value that was sealed once must open for ever. This one was made by another implementation of
    /// draft-irtf-cfrg-xchacha-03, with nonce 100, 101, … 123.
    #[test]
    fn the_form_of_version_1_does_not_change() {
        let sealed = concat!(
            "015ce2d4f30124ab28",
            "6465666768696a6b6c6d6e6f707172737475767778797a7b",
            "4d5cd6db9a5efda2e15fef1fc319d8bb243445fe96673c6c75f480816b78e6e9",
        );
        let sealed = data_encoding::HEXLOWER.decode(sealed.as_bytes()).unwrap();
        assert_eq!(ring(A, &[]).open(slot("t"), &sealed).unwrap().expose_secret(), "1//kept for ever");
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(secret in ".*") {
            let ring = ring(A, &[]);
            let sealed = ring.seal(slot("t"), &SecretString::from(secret.as_str())).unwrap();
            let opened = ring.open(slot("t"), &sealed).unwrap();
            prop_assert_eq!(opened.expose_secret(), &secret);
        }

        #[test]
        fn any_flipped_bit_and_any_cut_is_noticed(
            secret in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let ring = ring(A, &[B]);
            let sealed = ring.seal(slot("t"), &SecretString::from(secret.as_str())).unwrap();
            let at = at.index(sealed.len());
            let mut flipped = sealed.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(ring.open(slot("t"), &flipped).is_err());
            prop_assert!(ring.open(slot("t"), &sealed[..at]).is_err());
            let mut longer = sealed;
            longer.push(0);
            let error = ring.open(slot("t"), &longer).unwrap_err();
            prop_assert_eq!(error, OpenError::Forged { column: "refresh_token" });
        }

        #[test]
        fn a_wrong_key_is_named_and_a_forged_key_id_does_not_help(
            secret in ".{0,40}", one in "[0-9a-f]{64}", other in "[0-9a-f]{64}",
        ) {
            prop_assume!(one != other);
            let (ours, theirs) = (ring(&one, &[]), ring(&other, &[]));
            let sealed = ours.seal(slot("t"), &SecretString::from(secret.as_str())).unwrap();
            let error = theirs.open(slot("t"), &sealed).unwrap_err();
            prop_assert_eq!(&error, &OpenError::UnknownKey { column: "refresh_token", key: ours.current() });
            prop_assert!(error.to_string().contains(&ours.current().to_string()));
            let mut forged = sealed;
            forged[1..=KEY_ID_BYTES].copy_from_slice(&theirs.current().0);
            let error = theirs.open(slot("t"), &forged).unwrap_err();
            prop_assert_eq!(error, OpenError::Forged { column: "refresh_token" });
        }

        #[test]
        fn another_table_column_teacher_or_account_is_refused(
            secret in ".{0,40}", teacher in "[a-z]{1,8}", account in "[0-9]{1,8}", more in "[a-z0-9]{1,3}",
        ) {
            let ring = ring(A, &[]);
            let home = Slot { table: "oauth_flow", column: "verifier", teacher: &teacher, account: &account };
            let sealed = ring.seal(home, &SecretString::from(secret.as_str())).unwrap();
            let (longer_teacher, longer_account) = (format!("{teacher}{more}"), format!("{account}{more}"));
            for elsewhere in [
                Slot { table: "teacher_google_credential", ..home },
                Slot { column: "refresh_token", ..home },
                Slot { teacher: &longer_teacher, ..home },
                Slot { account: &longer_account, ..home },
                Slot { account: "", ..home },
            ] {
                let error = ring.open(elsewhere, &sealed).unwrap_err();
                prop_assert_eq!(error, OpenError::Forged { column: elsewhere.column });
            }
        }

        #[test]
        fn arbitrary_bytes_never_open_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ring(A, &[B]).open(slot("t"), &bytes).is_err());
        }

        #[test]
        fn a_value_opens_only_in_its_own_slot(
            fields in proptest::collection::vec("[a-c]{0,3}", 4), other in proptest::collection::vec("[a-c]{0,3}", 4),
        ) {
            let ring = ring(A, &[]);
            let tables = ["t", "teacher"];
            let slot_of = |fields: &'_ [String]| -> (usize, usize) { (fields[0].len() % 2, fields[1].len() % 2) };
            let make = |fields: &[String]| {
                let (table, column) = slot_of(fields);
                (tables[table], tables[column], fields[2].clone(), fields[3].clone())
            };
            let (one, two) = (make(&fields), make(&other));
            let slot = |of: &(&'static str, &'static str, String, String)| -> Vec<u8> {
                Slot { table: of.0, column: of.1, teacher: &of.2, account: &of.3 }.associated_data()
            };
            prop_assert_eq!(slot(&one) == slot(&two), one == two);
            let here = Slot { table: one.0, column: one.1, teacher: &one.2, account: &one.3 };
            let there = Slot { table: two.0, column: two.1, teacher: &two.2, account: &two.3 };
            let sealed = ring.seal(here, &SecretString::from("1//MARKER")).unwrap();
            prop_assert_eq!(ring.open(there, &sealed).is_ok(), one == two);
        }
    }
}
