//! Query parameters and cursors. A parameter that a route does not know is refused, because a misspelled filter would
//! otherwise give everything.

use url::form_urlencoded;

use super::problem::Problem;
use crate::model::{SessionId, TeacherId, UnixMillis, quoted};
use crate::status::MeetStatus;
use crate::store::DocumentFilter;

/// Documents on a page unless asked otherwise.
const LIMIT: i64 = 50;

/// Most documents on a page or in a batch.
pub(super) const LIMIT_MAX: usize = 100;

/// The parameters of one request, decoded, each at most once.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Decodes them and refuses those that are not in `known`, and repeated ones.
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        let unknown: Vec<String> =
            pairs.iter().filter(|(name, _)| !known.contains(&name.as_str())).map(|(name, _)| quoted(name)).collect();
        if !unknown.is_empty() {
            let known = known.join(", ");
            return Err(Problem::unknown_parameter(format!(
                "not known: {}; this route knows {known}",
                unknown.join(", ")
            )));
        }
        for (at, (name, _)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(before, _)| before == name) {
                return Err(Problem::invalid_parameter(format!(
                    "{name} is given more than once; separate values by commas"
                )));
            }
        }
        Ok(Self(pairs))
    }

    /// The value, if the parameter is there and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there, empty or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn names_other_than(&self, name: &str) -> Vec<&str> {
        self.0.iter().map(|(known, _)| known.as_str()).filter(|known| *known != name).collect()
    }

    /// `wait`: seconds to wait for a change, 0 to 60.
    pub(super) fn wait_seconds(&self) -> Result<u64, Problem> {
        let Some(text) = self.get("wait") else { return Ok(0) };
        text.parse().ok().filter(|seconds| *seconds <= 60).ok_or_else(|| {
            Problem::invalid_parameter(format!("wait: {} is not a whole number of seconds from 0 to 60", quoted(text)))
        })
    }

    /// `sessionIds`: 1 to 100 ids in the order asked for, each once.
    pub(super) fn session_ids(&self) -> Result<Vec<SessionId>, Problem> {
        let others = self.names_other_than("sessionIds");
        if !others.is_empty() {
            let others = others.join(", ");
            return Err(Problem::invalid_parameter(format!("sessionIds cannot be combined with {others}")));
        }
        let text = self.get("sessionIds").unwrap_or_default();
        let mut ids: Vec<SessionId> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let id = SessionId::parse(part)
                .map_err(|invalid| Problem::invalid_parameter(format!("sessionIds: {invalid}")))?;
            if ids.contains(&id) {
                continue;
            }
            if ids.len() == LIMIT_MAX {
                return Err(Problem::invalid_parameter(format!("sessionIds: at most {LIMIT_MAX} in one request")));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// The filters of the list form; without a teacher it is about `own`, where there is one.
    pub(super) fn filter(&self, own: Option<&TeacherId>) -> Result<DocumentFilter, Problem> {
        let teacher = self.get("teacherId").map(TeacherId::parse).transpose();
        let statuses: Option<Vec<MeetStatus>> = self
            .get("status")
            .unwrap_or_default()
            .split(',')
            .filter(|word| !word.is_empty())
            .map(MeetStatus::parse)
            .collect();
        let limit = self.get("limit").map_or(Some(LIMIT), |text| text.parse().ok());
        let mut filter = DocumentFilter {
            teacher: teacher
                .map_err(|invalid| Problem::invalid_parameter(format!("teacherId: {invalid}")))?
                .or_else(|| own.cloned()),
            statuses: statuses.ok_or_else(|| {
                Problem::invalid_parameter(
                    "status: allowed are PENDING, READY, ERROR and CANCELED, separated by commas",
                )
            })?,
            starts_from: self.time("startsFrom")?,
            starts_to: self.time("startsTo")?,
            limit: limit
                .filter(|limit| (1..=100).contains(limit))
                .ok_or_else(|| Problem::invalid_parameter(format!("limit: a whole number from 1 to {LIMIT_MAX}")))?,
            after: None,
        };
        if let Some(cursor) = self.get("cursor") {
            filter.after = Some(cursor_place(cursor, &filter).ok_or_else(Problem::invalid_cursor)?);
        }
        Ok(filter)
    }

    fn time(&self, name: &str) -> Result<Option<UnixMillis>, Problem> {
        // A `+` that was not encoded arrives as a space, and RFC 3339 offsets have one: put it back.
        let text = self.get(name).map(|text| text.replace(' ', "+"));
        text.as_deref()
            .map(UnixMillis::parse_rfc3339)
            .transpose()
            .map_err(|invalid| Problem::invalid_parameter(format!("{name}: {invalid}")))
    }
}

/// The cursor to the page after `place`: opaque to readers, and good for the same filters only.
pub(super) fn cursor(place: &(i64, SessionId), filter: &DocumentFilter) -> String {
    let text = format!("1.{}.{}.{}", place.0, place.1, fingerprint(filter));
    data_encoding::BASE64URL_NOPAD.encode(text.as_bytes())
}

fn cursor_place(cursor: &str, filter: &DocumentFilter) -> Option<(i64, SessionId)> {
    let text = String::from_utf8(data_encoding::BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?).ok()?;
    let mut parts = text.split('.');
    let (version, start, session, filters) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "1" || parts.next().is_some() || filters != fingerprint(filter) {
        return None;
    }
    Some((start.parse().ok()?, SessionId::parse(session).ok()?))
}

/// What the filters are, in short; the limit may change from page to page.
fn fingerprint(filter: &DocumentFilter) -> String {
    let time = |moment: Option<UnixMillis>| moment.map(|moment| moment.get().to_string()).unwrap_or_default();
    let statuses: Vec<&str> = filter.statuses.iter().map(|status| status.as_str()).collect();
    let digest = crate::model::digest(&[
        filter.teacher.as_ref().map_or("", TeacherId::as_str).as_bytes(),
        statuses.join(",").as_bytes(),
        time(filter.starts_from).as_bytes(),
        time(filter.starts_to).as_bytes(),
    ]);
    data_encoding::HEXLOWER.encode(&digest[..4])
}

/// Decodes `%XX` of a path segment; `None` when what comes out is not text. Ids need no escapes, but RFC 3986
/// section 2.3 makes `%5F` and `_` the same.
pub(super) fn decode_segment(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, after @ ..] = tail else { return None };
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            bytes.push(digit(*high)? * 16 + digit(*low)?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Result<DocumentFilter, Problem> {
        let known = ["teacherId", "status", "startsFrom", "startsTo", "limit", "cursor"];
        Parameters::parse(Some(query), &known).and_then(|parameters| parameters.filter(None))
    }

    #[test]
    fn cursors_lead_back_to_their_place_with_the_same_filters_only() {
        let ours = filter("teacherId=t&status=READY,ERROR").unwrap();
        for place in
            [(1_700_000_000_000, SessionId::parse("a-b_c").unwrap()), (i64::MIN, SessionId::parse("x").unwrap())]
        {
            let text = cursor(&place, &ours);
            let next = filter(&format!("teacherId=t&status=READY,ERROR&limit=3&cursor={text}")).unwrap();
            assert_eq!(next.after, Some(place));
            assert_eq!(filter(&format!("teacherId=u&cursor={text}")).unwrap_err().code, "INVALID_CURSOR");
        }
        for forged in ["x", "%00", "MS4xLmE", &data_encoding::BASE64URL_NOPAD.encode(b"1.9.a b.00000000")] {
            assert_eq!(filter(&format!("cursor={forged}")).unwrap_err().code, "INVALID_CURSOR", "{forged}");
        }
    }

    #[test]
    fn an_offset_may_keep_its_plus() {
        let both = filter("startsFrom=2026-12-01T10:00:00+01:00&startsTo=2026-12-01T10:00:00%2B01:00").unwrap();
        assert_eq!(both.starts_from, both.starts_to);
        assert!(both.starts_from.is_some());
    }

    #[test]
    fn escapes_in_a_path_are_decoded() {
        assert_eq!(decode_segment("ses%5F8Kq2").as_deref(), Some("ses_8Kq2"));
        assert_eq!(decode_segment("plain").as_deref(), Some("plain"));
        for bad in ["%", "%5", "%zz", "%ff", "%+1"] {
            assert_eq!(decode_segment(bad), None, "{bad}");
        }
    }
}
