//! The JSON as serde reads it: everything optional, because a missing field gets a better sentence from `rules`, and
//! texts borrowed from the payload wherever they hold no escapes.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Unexpected, Visitor};

use super::fault::{Fault, class, too_deep};
use super::{DEPTH_MAX, PAYLOAD_BYTES_MAX};
use crate::model::SessionVersion;

/// A structured CloudEvent.
#[derive(serde::Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(borrow)]
    pub(super) specversion: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) source: Option<Text<'a>>,
    #[serde(borrow, rename = "type")]
    pub(super) type_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) subject: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) time: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) traceparent: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) data: Option<Object<Data<'a>>>,
    pub(super) data_base64: Option<IgnoredAny>,
}

/// The session after the change.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Data<'a> {
    #[serde(borrow)]
    pub(super) session_id: Option<Text<'a>>,
    pub(super) version: Option<Version>,
    #[serde(borrow)]
    pub(super) kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) teacher_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) title: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) description: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) starts_at: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) ends_at: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) time_zone: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) attendees: Option<Vec<Object<Person<'a>>>>,
    #[serde(borrow)]
    pub(super) url: Option<Text<'a>>,
}

/// Somebody invited.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Person<'a> {
    #[serde(borrow)]
    pub(super) email: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) display_name: Option<Text<'a>>,
}

/// Nest's wrapper around an envelope or the data.
#[derive(serde::Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct Nested<T> {
    pub(super) data: Option<Object<T>>,
}

/// A JSON string, borrowed where it can be. (`Option<Cow<str>>` would always copy: serde borrows only a plain `Cow`.)
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A version, range-checked here so that a number no `i64` holds gets the same sentence as `0`. `2.0` is a whole number
/// (JSON Schema 2020-12 §6.1.1 says so too).
pub(super) struct Version(pub(super) SessionVersion);

const VERSION: &str = "a whole number from 1 to 9007199254740991";

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VersionVisitor;
        impl Visitor<'_> for VersionVisitor {
            type Value = Version;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(VERSION)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Version, E> {
                let invalid = |_| E::invalid_value(Unexpected::Signed(number), &VERSION);
                SessionVersion::new(number).map(Version).map_err(invalid)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Version, E> {
                let invalid = || E::invalid_value(Unexpected::Unsigned(number), &VERSION);
                let version = i64::try_from(number).ok().and_then(|number| SessionVersion::new(number).ok());
                version.map(Version).ok_or_else(invalid)
            }

            #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53, so the cast is exact")]
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Version, E> {
                let is_exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
                let version = is_exact.then(|| SessionVersion::new(number as i64).ok()).flatten();
                version.map(Version).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &VERSION))
            }
        }
        deserializer.deserialize_any(VersionVisitor)
    }
}

/// A JSON object only. What serde derives would take an array of the fields in their order as well.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// The keys by which shapes are told apart; `D` looks into `data`. Takes any JSON value.
#[derive(Default)]
pub(super) struct Keys<D = KeysInside> {
    pub(super) is_object: bool,
    pub(super) has_specversion: bool,
    pub(super) has_session_id: bool,
    pub(super) has_pattern: bool,
    pub(super) has_data: bool,
    pub(super) count: usize,
    pub(super) inner: D,
}

/// The keys of the object in `data`.
pub(super) type KeysInside = Keys<IgnoredAny>;

impl<'de, D: Deserialize<'de> + Default> Deserialize<'de> for Keys<D> {
    fn deserialize<De: Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
        struct KeysVisitor<D>(PhantomData<D>);
        impl<'de, D: Deserialize<'de> + Default> Visitor<'de> for KeysVisitor<D> {
            type Value = Keys<D>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut keys = Keys { is_object: true, ..Keys::default() };
                while let Some(Text(key)) = map.next_key()? {
                    keys.count += 1;
                    if key == "data" {
                        keys.has_data = true;
                        keys.inner = map.next_value()?;
                        continue;
                    }
                    match &*key {
                        "specversion" => keys.has_specversion = true,
                        "sessionId" => keys.has_session_id = true,
                        "pattern" => keys.has_pattern = true,
                        _ => {}
                    }
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(keys)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Keys::default())
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(Keys::default())
            }
        }
        deserializer.deserialize_any(KeysVisitor(PhantomData))
    }
}

/// The payload as text, if its size and depth allow reading it.
pub(super) fn text(payload: &[u8]) -> Result<&str, Fault> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        let reason = format!(
            "the payload has {} bytes, but at most {PAYLOAD_BYTES_MAX} are read; send a shorter description or \
             fewer extra fields",
            payload.len()
        );
        return Err(Fault::new(class::OVERSIZED, reason));
    }
    let text = std::str::from_utf8(payload).map_err(|error| {
        let reason = format!(
            "the payload stops being UTF-8 at byte {}; send JSON text, neither compressed nor binary",
            error.valid_up_to()
        );
        Fault::new(class::NOT_UTF8, reason)
    })?;
    if text.trim_ascii().is_empty() {
        let reason = "the payload is empty; send the event as JSON".to_owned();
        return Err(Fault::new(class::EMPTY, reason));
    }
    // Counting is quick, and nothing with so few brackets can be deeper; serde_json does not count in ignored fields.
    let brackets = payload.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if brackets > DEPTH_MAX && depth(payload) > DEPTH_MAX {
        return Err(too_deep());
    }
    Ok(text)
}

/// How deep JSON is nested; for other bytes some number.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Parses an object; only when that fails it is parsed again for the path.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Fault> {
    match serde_json::from_str::<Object<T>>(json) {
        Ok(Object(value)) => Ok(value),
        Err(error) => Err(explain::<Object<T>>(json, &error)),
    }
}

/// Looks at the keys only, whatever the value is.
pub(super) fn parse_keys(json: &str) -> Result<Keys, Fault> {
    serde_json::from_str(json).map_err(|error| explain::<Keys>(json, &error))
}

#[cold]
fn explain<'a, T: Deserialize<'a>>(json: &'a str, error: &serde_json::Error) -> Fault {
    // A field of the wrong type is no news in a text that is not JSON at all.
    if error.is_data()
        && let Err(error) = serde_json::from_str::<IgnoredAny>(json)
    {
        return Fault::json(".", &error, json.len());
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(traced) => Fault::json(&traced.path().to_string(), traced.inner(), json.len()),
        // The value itself was fine: something follows it.
        Ok(_) => Fault::json(".", error, json.len()),
    }
}
