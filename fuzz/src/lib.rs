//! What is fuzzed, and what must hold of every decoder whatever bytes it is given.
//!
//! It ends without a panic. It takes no more memory than the input accounts for. It says something when it refuses. What it
//! accepts is what `judges.rs` takes it for. What it writes down again it accepts again, and that is written down as the same
//! bytes; with one byte more it is refused, unless nothing says where it ends.

mod examples;
mod judges;
mod memory;

use blixard_hypervisor::decoders as hypervisor;
use blixard_node::decoders as node;

/// Memory that a decoder may take for nothing: tables of a parser, and what serde takes on a claimed length (1 MiB for
/// each list that is open, of which there are few inside each other).
const ALLOWANCE_BYTES: usize = 8 << 20;
/// Memory for each byte of input: a JSON value of one digit becomes one of some 100 bytes.
const BYTES_FOR_EACH: usize = 256;

/// A decoder and what it is fuzzed with.
pub struct Target {
    /// The name, also that of its folder in `corpus/`.
    pub name: &'static str,
    decode: fn(&[u8]) -> Result<Vec<u8>, String>,
    /// Inputs that it accepts, with names.
    pub examples: fn() -> Vec<(String, Vec<u8>)>,
    /// What is so of an input that it accepts, and of what it wrote down again; looked at with other eyes than its own.
    judge: fn(&[u8], &[u8]) -> Result<(), String>,
    /// How much is kept of the input.
    keeps: Keeps,
    /// Whether the input says where it ends.
    pub has_end: bool,
}

/// How much a decoder keeps of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// All, decoded.
    All,
    /// A part that does not grow with the input, which has no end.
    Some,
}

/// A decoder of which nothing more is known.
const PLAIN: Target = Target {
    name: "",
    decode: |_| Err(String::new()),
    examples: Vec::new,
    judge: |_, _| Ok(()),
    keeps: Keeps::All,
    has_end: true,
};

/// All decoders of outside bytes.
pub const TARGETS: &[Target] = &[
    Target { name: "answer", decode: node::answer, examples: examples::answers, ..PLAIN },
    Target {
        name: "bootstrap",
        decode: node::bootstrap,
        examples: examples::bootstraps,
        judge: judges::bootstrap,
        ..PLAIN
    },
    Target {
        name: "catalog_record",
        decode: node::catalog_record,
        examples: examples::catalog_records,
        judge: judges::catalog_record,
        ..PLAIN
    },
    Target {
        name: "chunk_index",
        decode: node::chunk_index,
        examples: examples::chunk_indexes,
        judge: judges::chunk_index,
        ..PLAIN
    },
    Target { name: "command", decode: node::command, examples: examples::commands, judge: judges::command, ..PLAIN },
    Target { name: "config", decode: node::config, examples: examples::configs, judge: judges::config, ..PLAIN },
    Target { name: "disk", decode: hypervisor::disk, examples: examples::disks, judge: judges::disk, ..PLAIN },
    Target {
        name: "disk_client",
        decode: node::disk_client,
        examples: examples::disk_clients,
        keeps: Keeps::Some,
        has_end: false,
        ..PLAIN
    },
    Target {
        name: "document_answer",
        decode: node::document_answer,
        examples: examples::document_answers,
        judge: judges::document_answer,
        ..PLAIN
    },
    Target {
        name: "document_key",
        decode: node::document_key,
        examples: examples::document_keys,
        judge: judges::document_key,
        ..PLAIN
    },
    Target {
        name: "document_request",
        decode: node::document_request,
        examples: examples::document_requests,
        judge: judges::document_request,
        ..PLAIN
    },
    Target {
        name: "document_ticket",
        decode: node::document_ticket,
        examples: examples::document_tickets,
        judge: judges::document_ticket,
        ..PLAIN
    },
    // A newer node may have more to say to a stranger than an older one can read, and the other way round.
    Target {
        name: "join_answer",
        decode: node::join_answer,
        examples: examples::join_answers,
        has_end: false,
        ..PLAIN
    },
    Target {
        name: "join_request",
        decode: node::join_request,
        examples: examples::join_requests,
        has_end: false,
        ..PLAIN
    },
    Target { name: "kernel", decode: hypervisor::kernel, examples: examples::kernels, judge: judges::kernel, ..PLAIN },
    Target { name: "monitor", decode: hypervisor::monitor, examples: examples::monitors, keeps: Keeps::Some, ..PLAIN },
    Target { name: "order", decode: hypervisor::order, examples: examples::orders, judge: judges::order, ..PLAIN },
    Target {
        name: "raft_stream",
        decode: node::raft_stream,
        examples: examples::raft_streams,
        judge: judges::raft_stream,
        ..PLAIN
    },
    Target {
        name: "registry",
        decode: node::registry,
        examples: examples::registries,
        judge: judges::registry,
        ..PLAIN
    },
    Target { name: "request", decode: node::request, examples: examples::requests, judge: judges::request, ..PLAIN },
    Target {
        name: "share_listing",
        decode: node::share_listing,
        examples: examples::share_listings,
        judge: judges::share_listing,
        ..PLAIN
    },
    Target {
        name: "share_request",
        decode: node::share_request,
        examples: examples::share_requests,
        judge: judges::share_request,
        ..PLAIN
    },
    Target {
        name: "share_ticket",
        decode: node::share_ticket,
        examples: examples::share_tickets,
        judge: judges::share_ticket,
        ..PLAIN
    },
    Target { name: "state", decode: node::state, examples: examples::states, judge: judges::state, ..PLAIN },
    Target { name: "ticket", decode: node::ticket, examples: examples::tickets, judge: judges::ticket, ..PLAIN },
    Target {
        name: "ticket_content",
        decode: node::ticket_content,
        examples: examples::ticket_contents,
        judge: judges::ticket_content,
        has_end: false,
        ..PLAIN
    },
    Target { name: "trace", decode: node::trace, examples: examples::traces, judge: judges::trace, ..PLAIN },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// Decodes, and gives the words of a refusal.
    pub fn decode(&self, input: &[u8]) -> Result<Vec<u8>, String> {
        (self.decode)(input)
    }

    /// Panics unless all that must hold of a decoder holds for this input.
    pub fn check(&self, input: &[u8]) {
        let name = self.name;
        let (decoded, peak_bytes) = memory::measured(|| self.decode(input));
        let for_input = if self.keeps == Keeps::All { input.len() * BYTES_FOR_EACH } else { 0 };
        let allowed = ALLOWANCE_BYTES + for_input;
        assert!(peak_bytes <= allowed, "{name}: {peak_bytes} bytes for an input of {}", input.len());
        let again = match decoded {
            Ok(again) => again,
            Err(words) => {
                assert!(!words.trim().is_empty(), "{name}: refused without a word");
                return;
            }
        };
        if let Err(words) = (self.judge)(input, &again) {
            panic!("{name}: accepted though {words}");
        }
        if again.is_empty() {
            return;
        }
        let second = self
            .decode(&again)
            .unwrap_or_else(|words| panic!("{name}: what was accepted is refused when it is written again: {words}"));
        assert!(second == again, "{name}: what was accepted is not read as it was written");
        if self.has_end {
            let longer = [&again[..], &[0]].concat();
            assert!(self.decode(&longer).is_err(), "{name}: a byte behind the end is accepted");
        }
    }
}
