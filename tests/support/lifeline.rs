//! A child process that ends when this one does, killed included.

use std::process::{Child, Command, Stdio};

/// Kills a process when this one ends without having done so: a shell waits for the end of its input, whose other end
/// this process holds.
#[derive(Debug)]
pub struct Lifeline(Child);

impl Lifeline {
    /// Of that child. To be dropped before the child is waited for: until then nobody else can have its process id.
    pub fn of(child: &Child) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"cat >/dev/null ; kill -KILL "$1""#, "sh", &child.id().to_string()]);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(shell.spawn().unwrap())
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
