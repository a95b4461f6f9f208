//! What is fuzzed, and what must hold of every decoder whatever bytes it is given.
//!
//! It ends without a panic. It takes no more memory than the input accounts for. It says something when it refuses. What it
//! accepts and writes down again it accepts again, and that is written down as the same bytes.

mod examples;
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
}

/// All decoders of outside bytes.
pub const TARGETS: &[Target] = &[
    Target { name: "answer", decode: node::answer, examples: examples::answers },
    Target { name: "bootstrap", decode: node::bootstrap, examples: examples::bootstraps },
    Target { name: "command", decode: node::command, examples: examples::commands },
    Target { name: "config", decode: node::config, examples: examples::configs },
    Target { name: "disk", decode: hypervisor::disk, examples: examples::disks },
    Target { name: "join_answer", decode: node::join_answer, examples: examples::join_answers },
    Target { name: "join_request", decode: node::join_request, examples: examples::join_requests },
    Target { name: "kernel", decode: hypervisor::kernel, examples: examples::kernels },
    Target { name: "monitor", decode: hypervisor::monitor, examples: examples::monitors },
    Target { name: "order", decode: hypervisor::order, examples: examples::orders },
    Target { name: "raft_stream", decode: node::raft_stream, examples: examples::raft_streams },
    Target { name: "registry", decode: node::registry, examples: examples::registries },
    Target { name: "request", decode: node::request, examples: examples::requests },
    Target { name: "state", decode: node::state, examples: examples::states },
    Target { name: "ticket", decode: node::ticket, examples: examples::tickets },
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
        let (decoded, peak_bytes) = memory::measured(|| self.decode(input));
        let allowed = ALLOWANCE_BYTES + input.len() * BYTES_FOR_EACH;
        assert!(peak_bytes <= allowed, "{}: {peak_bytes} bytes for an input of {}", self.name, input.len());
        match decoded {
            Err(words) => assert!(!words.trim().is_empty(), "{}: refused without a word", self.name),
            Ok(again) if again.is_empty() => {}
            Ok(again) => {
                let second = self.decode(&again).unwrap_or_else(|words| {
                    panic!("{}: what was accepted is refused when it is written again: {words}", self.name)
                });
                assert!(second == again, "{}: what was accepted is not read as it was written", self.name);
            }
        }
    }
}
