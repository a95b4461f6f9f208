//! What Blixard decides, and nothing else.
//!
//! This crate owns the words of the system (nodes, images, vms, tokens, clients), the commands by which cluster state changes, the
//! state itself, and every decision taken on it: [`apply`](State::apply), the scheduler, the voter plan and the agent's
//! reconciliation. It performs no io, reads no clock, draws no random numbers and holds no async code: time, ids and
//! reachability come in as arguments, plans go out as data. That is what lets one log give byte-equal state on every
//! replica, and lets all of it be tested by the thousand in seconds.

mod access;
mod apply;
mod audit;
mod boot;
mod cache;
mod check;
pub mod chunks;
mod command;
mod copies;
mod document;
mod fit;
mod history;
mod ids;
mod image;
pub mod limits;
mod membership;
mod node;
mod reconcile;
mod rejection;
mod schedule;
mod state;
mod vm;

pub use access::{Client, ClientRole, ParseRoleError, Token};
pub use audit::{AUDIT_MAX, Audit, AuditEntry, Deed};
pub use boot::{BootRecord, ByteRange};
pub use cache::{Cached, KeepReason};
pub use command::{Actor, Answer, Change, Command, DecodeError, Outcome, RequestKey};
pub use copies::COPY_LOST_AFTER_MS;
pub use document::{
    ConfigFile, ConfigSource, ConfigSourceError, DocumentKey, DocumentKeyError, DocumentName, DocumentsSecret,
    GuestPath, GuestPathError,
};
pub use fit::{Fit, RefusalReason, Resource};
pub use history::{Event, Happening, History, Note, SILENT_AFTER_MS, VmOrder};
pub use ids::{
    BlobHash, ClusterId, ContentHash, EndpointId, ImageId, NodeId, ParseIdError, RequestId, SecretHash, ShareId,
    TokenId, UnixMs, VmId,
};
pub use image::{DiskFormat, DiskPart, Image, ImageKind, ImageName, Manifest, Part};
pub use membership::{HEALTHY_WITHIN_MS, LOST_AFTER_MS, MembershipStep, RaftView};
pub use node::{Capacity, Node, Resources, SITE_LABEL, Settings};
pub use reconcile::{Action, Ages, LocalImage, LocalView, LocalVm, LocalVmState, Order, Plan, reconcile};
pub use rejection::Rejection;
pub use schedule::{NodeVerdict, Verdict};
pub use state::State;
pub use vm::{
    Desired, LAZY_BYTES_MIN, NameError, Observed, Phase, Placement, Power, Protocol, PublishedPort, RestartPolicy,
    Seed, Strategy, Vm, VmName, VmSpec,
};
