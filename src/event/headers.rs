//! What counts among the headers of a message.

use std::borrow::Cow;

use super::fault::{Fault, class};

/// The headers that say something about an event. Values of `ce-*` are still percent-encoded.
#[derive(Default)]
pub(super) struct Headers<'h> {
    pub(super) content_type: Option<&'h str>,
    pub(super) message_id: Option<&'h str>,
    pub(super) traceparent: Option<&'h str>,
    pub(super) ce_specversion: Option<&'h str>,
    pub(super) ce_id: Option<&'h str>,
    pub(super) ce_source: Option<&'h str>,
    pub(super) ce_type: Option<&'h str>,
    pub(super) ce_subject: Option<&'h str>,
    pub(super) ce_time: Option<&'h str>,
    pub(super) ce_traceparent: Option<&'h str>,
}

impl<'h> Headers<'h> {
    pub(super) fn pick(pairs: impl IntoIterator<Item = (&'h str, &'h str)>) -> Result<Self, Fault> {
        let mut headers = Self::default();
        for (name, value) in pairs {
            let Some((slot, canonical)) = headers.slot(name) else { continue };
            match slot {
                None => *slot = Some(value),
                // Which of two comes first is not kept by every client, so taking one would be chance.
                Some(known) if *known != value => {
                    let reason = format!("header {canonical} is there twice with different values; send it once");
                    return Err(Fault::new(class::DUPLICATE_FIELD, reason));
                }
                Some(_) => {}
            }
        }
        Ok(headers)
    }

    fn slot(&mut self, name: &str) -> Option<(&mut Option<&'h str>, &'static str)> {
        let slots = [
            (&mut self.content_type, "Content-Type"),
            (&mut self.message_id, "Nats-Msg-Id"),
            (&mut self.traceparent, "traceparent"),
            (&mut self.ce_specversion, "ce-specversion"),
            (&mut self.ce_id, "ce-id"),
            (&mut self.ce_source, "ce-source"),
            (&mut self.ce_type, "ce-type"),
            (&mut self.ce_subject, "ce-subject"),
            (&mut self.ce_time, "ce-time"),
            (&mut self.ce_traceparent, "ce-traceparent"),
        ];
        slots.into_iter().find(|(_, canonical)| canonical.eq_ignore_ascii_case(name))
    }

    /// `Content-Type: application/cloudevents…`, compared without case (CloudEvents NATS binding §3).
    pub(super) fn is_structured(&self) -> bool {
        const PREFIX: &str = "application/cloudevents";
        self.content_type
            .and_then(|value| value.trim_start().get(..PREFIX.len()))
            .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    pub(super) fn is_binary(&self) -> bool {
        self.ce_specversion.is_some()
    }
}

/// The headers of async-nats as [`super::decode`] takes them.
pub fn pairs(map: Option<&async_nats::HeaderMap>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter()
        .flat_map(async_nats::HeaderMap::iter)
        .flat_map(|(name, values)| values.iter().map(move |value| (name.as_ref(), value.as_str())))
}

/// A header value without its percent-encoding; `None` when what comes out is not UTF-8. A `%` that starts no pair of
/// hex digits stands for itself.
pub(super) fn percent_decoded(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains('%') {
        return Some(Cow::Borrowed(value));
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'%'
            && let (Some(high), Some(low)) = (hex(bytes.get(at + 1)), hex(bytes.get(at + 2)))
            && let Ok(value) = u8::try_from(high * 16 + low)
        {
            decoded.push(value);
            at += 3;
        } else {
            decoded.push(*byte);
            at += 1;
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// W3C Trace Context §3.2: `version-traceid-parentid-flags` in lower-case hex, neither id all zeros. Later versions may
/// append fields.
pub(super) fn is_traceparent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| *b == b'0');
    let length_fits = match bytes.len() {
        55 => true,
        56..=255 => !bytes.starts_with(b"00") && bytes[55] == b'-' && bytes.is_ascii() && !bytes.contains(&0),
        _ => false,
    };
    length_fits
        && [2, 35, 52].into_iter().all(|at| bytes[at] == b'-')
        && is_hex(0..2)
        && is_hex(3..35)
        && is_hex(36..52)
        && is_hex(53..55)
        && !bytes.starts_with(b"ff")
        && !is_zero(3..35)
        && !is_zero(36..52)
}
