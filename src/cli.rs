//! To be written.

pub mod event;
