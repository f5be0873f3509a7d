//! Connecting and disconnecting a teacher, on real parts: NATS, database, fake Google, and where it matters a browser.

mod browser;
mod disconnects;
mod failures;
mod fixture;
mod flow;
mod races;
mod webdriver;
