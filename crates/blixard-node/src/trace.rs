//! Traces: which doings in several processes and hosts belong together.
//!
//! A client's request carries the W3C trace context of its span in a header; a command that follows from it carries it through
//! the log, beside the command and not in it, so that nothing is ever decided by it; and each replica remembers, in memory
//! only, to which trace the latest word on a vm belongs. So the launch of a guest is part of the trace of the command that
//! asked for it. Unless a process exports its spans there are none, and all of this is a look at an empty thread-local.

use std::fmt;
use std::str::FromStr;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of spans that are exported, by which the log leaves them out.
pub const TARGET: &str = "blixard_trace";
/// The header that carries the context of a request.
pub(crate) const HEADER: &str = "traceparent";

/// A span of some process, and the trace that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

impl TraceContext {
    /// The span that this task is in, if it is part of a trace.
    pub(crate) fn current() -> Option<Self> {
        let context = Span::current().context();
        let span = context.span().span_context().clone();
        let ids = || Self { trace: span.trace_id().to_bytes(), span: span.span_id().to_bytes() };
        span.is_valid().then(ids)
    }
}

/// As in the header: version, trace, span and the flag that it is recorded.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span))
    }
}

/// A header that is no trace context.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAContext;

impl FromStr for TraceContext {
    type Err = NotAContext;
    fn from_str(text: &str) -> Result<Self, NotAContext> {
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, span, flags] = parts.as_slice() else { return Err(NotAContext) };
        // Hexadecimal digits and nothing else: what reads numbers takes signs as well.
        let is_hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
            return Err(NotAContext);
        }
        let trace = TraceId::from_hex(trace).map_err(|_| NotAContext)?;
        let span = SpanId::from_hex(span).map_err(|_| NotAContext)?;
        if trace == TraceId::INVALID || span == SpanId::INVALID {
            return Err(NotAContext);
        }
        Ok(Self { trace: trace.to_bytes(), span: span.to_bytes() })
    }
}

/// A span below one that may be in another process; none when there is nothing that it belongs to.
pub(crate) fn under(parent: Option<TraceContext>, make: impl FnOnce() -> Span) -> Span {
    let Some(TraceContext { trace, span }) = parent else { return Span::none() };
    let (trace, span_id) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    let parent = SpanContext::new(trace, span_id, TraceFlags::SAMPLED, true, TraceState::default());
    let span = make();
    // It fails where no spans are exported, and then there is nothing to belong to either.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    span
}

/// A span below the one that this task is in; none when that belongs to no trace.
pub(crate) fn here(make: impl FnOnce() -> Span) -> Span {
    if TraceContext::current().is_some() { make() } else { Span::none() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_others_are_refused() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(text.parse::<TraceContext>().map(|context| context.to_string()), Ok(text.to_owned()));
        for (from, to) in [
            ("00-0a", "01-0a"),
            ("-01", ""),
            ("-01", "-01-01"),
            ("0af7", "0ag7"),
            ("0af7", "+af7"),
            ("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
            ("b7ad6b7169203331", "0000000000000000"),
            ("b7ad", "ü7a"),
            ("b7ad", "b7a"),
        ] {
            assert!(text.contains(from));
            assert_eq!(text.replacen(from, to, 1).parse::<TraceContext>(), Err(NotAContext), "{from} as {to}");
        }
    }

    #[test]
    fn without_an_exporter_there_are_no_spans() {
        assert_eq!(TraceContext::current(), None);
        assert!(here(|| tracing::info_span!(target: TARGET, "never")).is_none());
    }
}
