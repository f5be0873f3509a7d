//! Real parts for the tests: they start what they need or fail loudly.

pub mod cluster;
pub mod gate;
pub mod google;
pub mod lifeline;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod service;
