//! The command line: parse, run, say what went wrong in one sentence, exit with a documented code.

use std::process::ExitCode;

fn main() -> ExitCode {
    meet_projector::cli::main()
}
