//! Stories from booking event to Meet link and back, on real parts. Most run on SQLite, the key ones on both databases.

mod calendar;
