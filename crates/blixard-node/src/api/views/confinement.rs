//! What holds a hypervisor back, as the control API tells of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What holds a hypervisor process back, as the kernel of its node tells of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ConfinementView {
    /// What the process may do; nothing when there is no process (the fake driver).
    pub privileges: Option<PrivilegesView>,
    /// Why the process has no user of its own, when it has none.
    pub shared_user: Option<String>,
    /// The most memory it may use, in MiB: the guest's and the hypervisor's together.
    pub memory_mib: Option<u64>,
    /// The most processors it may use.
    pub processors: Option<u64>,
    /// Why memory and processors are not limited, when they are not.
    pub unlimited: Option<String>,
}

/// What a hypervisor process may do.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PrivilegesView {
    /// Number of its user.
    pub user: u32,
    /// Number of its group.
    pub group: u32,
    /// Numbers of its other groups.
    pub groups: Vec<u32>,
    /// Its capabilities, such as `net_bind_service`.
    pub capabilities: Vec<String>,
    /// Whether it can never gain more than this.
    pub no_new_privileges: bool,
    /// Whether a filter keeps it from system calls that it does not need.
    pub system_call_filter: bool,
}
