//! Exporting traces to a collector, over OTLP with HTTP. Off unless an endpoint is set.

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use blixard_node::trace::TARGET;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// The variable that commands read it from, and nodes by way of their settings.
pub(super) const VARIABLE: &str = "BLIXARD_TRACING_OTLP_ENDPOINT";
/// Where collectors take traces, below the endpoint.
const PATH: &str = "/v1/traces";
/// How long a batch may take, connecting included. The exporter has a thread of its own, so nobody else waits.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// Of an answer, no more than this is read: its status is in the first line.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The exporter of this process. When it is dropped, what was gathered is sent.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Exports to an endpoint, under the name of this process.
    ///
    /// # Errors
    /// When the endpoint is not a URL that can be used.
    pub(super) fn start(endpoint: &str, process: String) -> anyhow::Result<Self> {
        anyhow::ensure!(
            endpoint.starts_with("http://"),
            "the endpoint for traces must be of the form http://HOST:PORT, and is {endpoint:?}: let a collector on this host \
             pass them on where they have to be encrypted"
        );
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Post)
            .with_endpoint(format!("{}{PATH}", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .context("set up the export of traces")?;
        let config = BatchConfigBuilder::default().with_scheduled_delay(GATHER).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let instance = KeyValue::new("service.instance.id", process);
        let resource = Resource::builder_empty().with_service_name("blixard").with_attribute(instance).build();
        Ok(Self(SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build()))
    }

    /// What takes the spans that are exported, and no others.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("blixard"));
        layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // A collector that is away must not keep anybody; the spans are lost.
        let _ = self.0.shutdown_with_timeout(EXPORT_TIMEOUT);
    }
}

/// The least of an HTTP client: one POST a connection, blocking, in the exporter's own thread.
#[derive(Debug)]
struct Post;

fn post(request: &Request<Bytes>) -> io::Result<Response<Bytes>> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let authority = request.uri().authority().ok_or_else(|| invalid("the endpoint has no host"))?;
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let address = address.to_socket_addrs()?.next().ok_or_else(|| invalid("the endpoint's host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, EXPORT_TIMEOUT)?;
    stream.set_read_timeout(Some(EXPORT_TIMEOUT))?;
    stream.set_write_timeout(Some(EXPORT_TIMEOUT))?;
    let path = request.uri().path_and_query().map_or(PATH, http::uri::PathAndQuery::as_str);
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
    for (name, value) in request.headers() {
        let value = value.to_str().map_err(io::Error::other)?;
        fmt::Write::write_fmt(&mut head, format_args!("{name}: {value}\r\n")).map_err(io::Error::other)?;
    }
    let body = request.body();
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    let status = status.ok_or_else(|| invalid("the collector does not answer in HTTP"))?;
    // Its body says which spans were not taken, and nobody here could do anything about that.
    Response::builder().status(status).body(Bytes::new()).map_err(io::Error::other)
}

impl HttpClient for Post {
    fn send_bytes<'life, 'send>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'send>>
    where
        'life: 'send,
        Self: 'send,
    {
        Box::pin(std::future::ready(post(&request).map_err(HttpError::from)))
    }
}
