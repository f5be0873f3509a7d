//! To be written.
pub mod epoch;
