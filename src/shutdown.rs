//! The first signal drains, the second stops.
//!
//! Signals are heard on a thread of their own. Everything else may stand still, a log that nobody reads among it (a write
//! to a full pipe holds up every thread that wants to say something), and still the second signal ends the process, and so
//! does the end of [`DRAIN_MAX`].

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A drain ends within this time, whatever hangs: Kubernetes kills after 30 s.
pub const DRAIN_MAX: Duration = Duration::from_secs(28);

/// How long what is said last may take.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Tells every loop to finish what it holds and end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens for SIGTERM and SIGINT (Ctrl-C elsewhere): the first drains, a second one ends the process at once with
    /// 128 + its number, as a shell reports a process that was killed by it. A drain that lasts longer than
    /// [`DRAIN_MAX`] ends with 1.
    ///
    /// # Errors
    /// When the thread or the handlers cannot be made.
    #[cfg(unix)]
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut interrupt) = {
            let _entered = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let shutdown = Self::new();
        let asked = shutdown.clone();
        let listen = async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 15),
                    _ = interrupt.recv() => ("SIGINT", 2),
                }
            };
            let (name, _) = next().await;
            asked.ask();
            std::thread::spawn(move || tracing::info!(signal = name, "draining; the same signal again stops at once"));
            if let Ok((name, number)) = tokio::time::timeout(DRAIN_MAX, next()).await {
                last_words(format!("{name} again: stopping at once; work under way is picked up after the next start"));
                std::process::exit(128 + number);
            }
            last_words(format!(
                "the drain has not ended within {} s: stopping; work under way is picked up after the next start",
                DRAIN_MAX.as_secs()
            ));
            std::process::exit(1);
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(listen))?;
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

/// Standard error and not the log: the process ends before a log line would be flushed. On a thread of its own, since
/// nobody may read it.
fn last_words(text: String) {
    let (said, heard) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        eprintln!("{text}");
        drop(said);
    });
    // It ends when the text is out; if it does not, the process ends without.
    heard.recv_timeout(LAST_WORDS).ok();
}
