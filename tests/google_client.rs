//! The Google client against a server that answers what Google answers, and against one that does not answer at all.

mod access;
mod answers;
mod fixtures;
mod requests;
mod seed;
mod token_endpoint;
