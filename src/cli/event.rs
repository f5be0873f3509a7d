//! `event validate|publish`: for those who publish events.
/// The AsyncAPI document.
pub const ASYNCAPI: &str = "";
/// What to do with events.
#[derive(Debug, clap::Subcommand)]
pub enum EventCommand {
    /// Check files
    Validate,
}
/// Runs the command.
pub async fn run(
    _command: &EventCommand,
    _environment: &std::collections::BTreeMap<String, String>,
    _output: super::print::Output,
    _out: &mut (dyn std::io::Write + Send),
) -> Result<super::Exit, super::CommandError> {
    Ok(super::Exit::Ok)
}
