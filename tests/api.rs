//! The read API over a real store: who may read, tags, long-polls, batches, pages, problems, health.

mod fixture;
mod health;
mod lists;
mod one;
mod retry;
mod teachers;
mod tokens;
