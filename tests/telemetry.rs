//! What the service says of itself: traces at a collector, log lines, metrics, and what it tells systemd.

pub mod collector;
mod logs;
mod metrics;
mod notify;
mod served;
mod traces;
