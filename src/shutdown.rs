//! The first signal drains, the second stops.

use tokio_util::sync::CancellationToken;

/// Tells every loop to finish what it holds and end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens for SIGTERM and SIGINT (Ctrl-C elsewhere): the first drains, a second one ends the process at once with
    /// 128 + its number, as a shell reports a process that was killed by it.
    ///
    /// # Errors
    /// When the handlers cannot be installed. Must be called inside a Tokio runtime.
    #[cfg(unix)]
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let asked = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let (name, number) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 15),
                    _ = interrupt.recv() => ("SIGINT", 2),
                };
                if asked.is_asked() {
                    // Standard error and not the log: the process ends before a log line would be flushed.
                    eprintln!("{name} again: stopping at once; work under way is picked up after the next start");
                    std::process::exit(128 + number);
                }
                tracing::info!(signal = name, "draining; the same signal again stops at once");
                asked.ask();
            }
        });
        Ok(shutdown)
    }

    /// Asks for it; more than once does no harm.
    pub fn ask(&self) {
        self.0.cancel();
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is asked for.
    pub async fn asked(&self) {
        self.0.cancelled().await;
    }

    /// The token itself, for `select!` and for children that may be stopped on their own.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}
