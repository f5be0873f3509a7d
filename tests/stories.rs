//! Stories from booking event to Meet link and back, on real parts. Each runs on SQLite, the key ones on PostgreSQL too.

mod calendar;
mod drain;
mod grants;
mod outages;
mod refusals;
mod results;
mod stops;
mod stream;
