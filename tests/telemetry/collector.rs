//! An OTLP collector over HTTP that keeps what it is sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;

/// A running collector.
pub struct Collector {
    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
    bodies: Arc<Mutex<Vec<u8>>>,
}

/// A span as it was exported.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// In hex.
    pub trace: String,
    /// In hex.
    pub id: String,
    /// In hex; empty for a root.
    pub parent: String,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
    /// Whether its status is an error.
    pub is_error: bool,
    /// Start and end in nanoseconds since 1970.
    pub time: (u64, u64),
    /// `service.name`
    pub service: String,
}

impl Span {
    /// An attribute; empty when it is not there.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    /// One that takes everything.
    pub async fn start() -> Self {
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let kept = Arc::clone(&spans);
        let bodies: Arc<Mutex<Vec<u8>>> = Arc::default();
        let raw = Arc::clone(&bodies);
        let take = async move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            kept.lock().unwrap().extend(read(&body));
            raw.lock().unwrap().extend_from_slice(&body);
            StatusCode::OK
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, spans, bodies }
    }

    /// All that was sent, undecoded: every text in it stands there as it is.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bodies.lock().unwrap()).into_owned()
    }

    /// Everything so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The spans of that name.
    pub fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }

    /// The only span of that name.
    pub fn only(&self, name: &str) -> Span {
        let mut named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {named:#?}\namong {:?}", self.names());
        named.remove(0)
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.spans().into_iter().map(|span| span.name).collect();
        names.sort();
        names
    }
}

fn read(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let attributes = texts(&resource.resource.unwrap().attributes);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                kind: span.kind(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(&span.attributes),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                is_error: span.status.is_some_and(|status| status.code() == SpanStatus::Error),
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                service: attributes["service.name"].clone(),
            });
        }
    }
    spans
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: Option<&AnyValue>| match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
