//! To be written.
/// The connection pools.
#[derive(Debug)]
pub struct Database;
