//! Log lines on standard error, traces to an OTLP collector, and [`metrics`].
//!
//! Log lines carry ids and never a token, an address or a link. [`trace`] says which spans there are; they are made only
//! where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, and `RUST_LOG` has no say in them. The exporter works on a thread of its
//! own with a bounded queue: a collector that is away or hangs costs spans and nothing else.

use std::collections::HashMap;
use std::future::Future;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData};
use tracing::Level;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::TelemetryConfig;

mod lines;
pub mod metrics;
pub mod scrape;
pub mod trace;

pub use metrics::Metrics;

/// How long the end of the process waits for spans that were not exported yet. A collector that is down must not hold
/// up a restart: Kubernetes kills after 30 s, and draining needs most of that.
const FLUSH: Duration = Duration::from_secs(3);

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG`; checked before when it came through [`crate::config`].
    #[error("RUST_LOG is not a filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The HTTP client or the exporter could not be built.
    #[error("the trace exporter cannot be set up")]
    Exporter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody else set a subscriber.
    #[error("telemetry is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Exports what is left when it is dropped; keep it in `main`, outside of the async part.
#[derive(Debug)]
#[must_use = "dropping it ends the export of traces"]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take()
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            eprintln!("the last traces were not exported: {error}");
        }
    }
}

/// Sets the subscriber of this process. Must be called inside a Tokio runtime when traces are exported, and that
/// runtime has to outlive the guard.
pub fn init(config: &TelemetryConfig) -> Result<TelemetryGuard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| tracer(endpoint, config)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        opentelemetry::global::set_tracer_provider(provider.clone());
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(trace::SCOPE))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_level(false)
            .with_filter(
                filter_fn(|metadata| metadata.target() == trace::TARGET).with_max_level_hint(LevelFilter::INFO),
            )
    });
    // A line never shows spans, so those of `trace` are of no interest here: without an exporter they do not even begin.
    let is_line = filter_fn(|metadata| {
        let is_ours = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        // At TRACE libraries write whole messages (async-nats) or bytes of connections: lessons, addresses, tokens.
        metadata.target() != trace::TARGET && (is_ours || *metadata.level() < Level::TRACE)
    })
    .with_max_level_hint(LevelFilter::TRACE);
    let lines = if config.json_logs {
        tracing_subscriber::fmt::layer().event_format(lines::Json).with_writer(std::io::stderr).boxed()
    } else {
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    tracing_subscriber::registry().with(traces).with(lines.with_filter(filter.and(is_line))).try_init()?;
    Ok(TelemetryGuard(provider))
}

fn tracer(endpoint: &str, config: &TelemetryConfig) -> Result<SdkTracerProvider, TelemetryError> {
    // No redirects: the headers may hold the collector's API key. Ring may have been installed before, which is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| TelemetryError::Exporter(error.into()))?;
    let headers: HashMap<String, String> = config
        .otlp_headers
        .as_ref()
        .map(secrecy::ExposeSecret::expose_secret)
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_headers(headers)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|error| TelemetryError::Exporter(error.into()))?;
    let resource = Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let runtime = tokio::runtime::Handle::current();
    let exporter = OnRuntime { inner: exporter, runtime, is_failing: AtomicBool::new(false) };
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        // A fold links to each of its events, of which there are at most 256.
        .with_max_links_per_span(256)
        .with_resource(resource)
        .build())
}

/// Lets an exporter that needs Tokio run on the SDK's own batch thread, which has no runtime: every poll enters ours. Says
/// once when spans begin to be lost, and once when they are not any more.
#[derive(Debug)]
struct OnRuntime<E> {
    inner: E,
    runtime: tokio::runtime::Handle,
    is_failing: AtomicBool,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for OnRuntime<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let mut export = pin!(self.inner.export(batch));
        let exported = std::future::poll_fn(|context| {
            let entered = self.runtime.enter();
            let poll: Poll<OTelSdkResult> = export.as_mut().poll(context);
            drop(entered);
            poll
        })
        .await;
        let was_failing = self.is_failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            // The error may hold the collector's address with a password in it.
            Err(_) if !was_failing => {
                tracing::warn!(spans, "traces are not exported: check OTEL_EXPORTER_OTLP_ENDPOINT");
            }
            Ok(()) if was_failing => tracing::info!("traces are exported again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// An error with its causes, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer as _};
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn spans_reach_the_collector_before_the_guard_is_gone() {
        let collector = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/v1/traces"))
            .and(header("x-api-key", "key"))
            .and(header("content-type", "application/x-protobuf"))
            .respond_with(ResponseTemplate::new(200))
            .expect(1)
            .mount(&collector)
            .await;
        let config = TelemetryConfig {
            json_logs: true,
            filter: "info".to_owned(),
            otlp_endpoint: Some(collector.uri()),
            otlp_headers: Some("x-api-key=key, other=1".into()),
            service_name: "test".to_owned(),
        };
        let provider = tracer(&collector.uri(), &config).unwrap();
        provider.tracer("test").start("span").end();
        // The guard waits for the export, as `main` does after the loops have ended.
        tokio::task::spawn_blocking(move || drop(TelemetryGuard(Some(provider)))).await.unwrap();
        collector.verify().await;
    }
}
