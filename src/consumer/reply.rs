//! What the reply subject of a delivered message says about it.
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-15.md>

/// The numbers in an acknowledgement subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// How often the message was delivered, from 1.
    pub(super) deliveries: u64,
    /// Its stream sequence.
    pub(super) sequence: i64,
    /// When the server stored it, in nanoseconds since 1970.
    pub(super) stored_at_ns: i64,
    /// How many messages the consumer had not handed out yet.
    pub(super) pending: u64,
}

impl Delivery {
    /// Reads `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>`, and the form with
    /// domain and account hash in front (and perhaps more behind).
    pub(super) fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let numbers = match tokens.len() {
            7 => &tokens[2..],
            9.. => &tokens[4..],
            _ => return None,
        };
        Some(Self {
            deliveries: numbers[0].parse().ok()?,
            sequence: numbers[1].parse().ok()?,
            stored_at_ns: numbers[3].parse().ok()?,
            pending: numbers[4].parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_others_are_not() {
        let expected = Delivery { deliveries: 2, sequence: 77, stored_at_ns: 1_700_000_000_123_456_789, pending: 4 };
        for reply in [
            "$JS.ACK.BOOKINGS.meet-projector-e1.2.77.80.1700000000123456789.4",
            "$JS.ACK._.aCcHaSh.BOOKINGS.meet-projector-e1.2.77.80.1700000000123456789.4",
            "$JS.ACK.hub.aCcHaSh.BOOKINGS.meet-projector-e1.2.77.80.1700000000123456789.4.r4nd0m",
        ] {
            assert_eq!(Delivery::parse(reply), Some(expected), "{reply}");
        }
        for reply in ["", "_INBOX.x", "$JS.ACK.BOOKINGS.c.1.2.3", "$JS.ACK.S.c.x.77.80.1.4"] {
            assert_eq!(Delivery::parse(reply), None, "{reply}");
        }
    }
}
