//! The read API over a real store: who may read, tags, long-polls, batches, pages, problems, health.

mod connections;
mod fixture;
mod health;
mod jwt;
mod limits;
mod lists;
mod matrix;
mod one;
mod openapi;
mod retry;
mod schemathesis;
mod signing;
mod teachers;
mod tokens;
