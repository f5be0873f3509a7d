//! To be written.

pub mod epoch;
pub mod nats;
