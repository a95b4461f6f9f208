//! Limits on what comes from outside, and the checks that hold them.
//!
//! The state lives in the memory of every node and travels whole in every snapshot, so nothing in it may grow without a
//! bound. Each limit is far above what a sound cluster needs and far below what would hurt one.

use std::collections::BTreeMap;

use crate::audit::OBJECT_CHARS_MAX;
use crate::chunks::INDEX_BYTES_MAX;
use crate::{
    Client, ConfigFile, Deed, Image, Manifest, Node, Part, PublishedPort, Rejection, Seed, Settings, Token, UnixMs,
    VmSpec,
};

/// Answers kept for retries: a client retries for seconds, and 1024 requests are minutes even on a busy cluster.
pub const ANSWERED_MAX: usize = 1024;
/// Members: the scheduler looks at every node for every vm it places.
pub const NODES_MAX: usize = 1000;
/// Keys of removed nodes that are remembered; a forgotten one still needs a ticket to come back.
pub const REMOVED_MAX: usize = 1024;
/// Join tokens: more than anybody can tell apart in a list.
pub const TOKENS_MAX: usize = 256;
/// Clients: one per user and device.
pub const CLIENTS_MAX: usize = 1024;
/// Images in the catalog.
pub const IMAGES_MAX: usize = 10_000;
/// Ranges in the record of what a boot reads of an image: what a disk is asked for while it boots lies in some hundred places, and
/// records of all images then take some 25 MiB of a snapshot at most.
pub const BOOT_RANGES_MAX: usize = 256;
/// What a recorded boot read, in bytes: a desktop reads less than half of it until somebody can log in.
pub const BOOT_BYTES_MAX: u64 = 256 << 20;
/// Vms: at a few hundred bytes each a snapshot stays below a hundred megabytes.
pub const VMS_MAX: usize = 100_000;

/// Events kept: days of a quiet cluster, and some 100 KiB of every snapshot.
pub const EVENTS_MAX: usize = 1000;
/// Length of the reason in an event: the first line or two of what was reported.
pub const EVENT_REASON_BYTES_MAX: usize = 256;
/// Guests that a node tells of when it starts: more would only push each other out of the events.
pub const ADOPTED_MAX: usize = EVENTS_MAX / 2;

/// Direct addresses of a node: its interfaces, in both families.
pub const ADDRESSES_MAX: usize = 16;
/// Length of a relay's URL.
pub const RELAY_URL_BYTES_MAX: usize = 512;
/// Length of a version string.
pub const VERSION_BYTES_MAX: usize = 64;
/// Labels of a node, and labels that a vm may require.
pub const LABELS_MAX: usize = 32;
/// Length of a label's key, in characters.
pub const LABEL_KEY_CHARS_MAX: usize = 63;
/// Length of a label's value, in characters.
pub const LABEL_VALUE_CHARS_MAX: usize = 255;
/// Overcommit in percent: a hundredfold promise is a typing mistake.
pub const OVERCOMMIT_PERCENT_MAX: u32 = 10_000;
/// Length of a client's name and of an anti-affinity group, in characters.
pub const WORD_CHARS_MAX: usize = 63;

/// Published ports of one vm.
pub const PUBLISH_MAX: usize = 64;
/// Virtual processors of one vm: QEMU's machines stop between 255 and 1024.
pub const VCPUS_MAX: u32 = 512;
/// Memory of the smallest guest that boots anything, in MiB.
pub const MEMORY_MIB_MIN: u64 = 16;
/// Memory of one vm in MiB: 64 TiB, beyond any host, and small enough that sums over all vms cannot overflow.
pub const MEMORY_MIB_MAX: u64 = 64 << 20;
/// Disk of one vm in MiB: 1 PiB, for the same reason.
pub const DISK_MIB_MAX: u64 = 1 << 30;
/// Length of a key in a document: a path of a few folders, and no more than a file name may have.
pub const DOCUMENT_KEY_BYTES_MAX: usize = 255;
/// Length of a value in a document, in bytes: every member keeps every value, and handles it whole. What is larger is an image.
pub const DOCUMENT_VALUE_BYTES_MAX: u64 = 1 << 20;

/// Length of a path in a guest, in bytes.
pub const GUEST_PATH_BYTES_MAX: usize = 255;
/// Files of one vm whose values come from documents.
pub const CONFIG_FILES_MAX: usize = 32;
/// Everything cloud-init is given, in bytes: user data, ssh keys and the values of documents together.
pub const SEED_BYTES_MAX: usize = 64 << 10;
/// Public keys that may log in over ssh.
pub const SSH_KEYS_MAX: usize = 64;
/// The longest a guest may take to shut down, in milliseconds: a day.
pub const STOP_TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// What a vm created without a word about it gets to shut down, in milliseconds, as on most hosts.
pub const STOP_TIMEOUT_MS_DEFAULT: u64 = 30_000;
/// Length of the reason in a report on a vm: a few lines of what the hypervisor said.
pub const REASON_BYTES_MAX: usize = 1024;

/// Numbers of voters that tolerate more losses than the number below; above 7 each write waits for too many disks.
pub(crate) const VOTERS_ALLOWED: [u8; 4] = [1, 3, 5, 7];
/// Copies of an image: beyond 16 they protect nothing any more.
pub(crate) const COPIES_MAX: u8 = 16;
/// Names listed in one rejection: answers are kept in the state, so they have to be short.
const NAMES_LISTED_MAX: usize = 5;

/// What a word or a line of text is made of: anything but control characters, which could move a terminal's cursor.
pub const TEXT_PATTERN: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";
/// The same, or nothing.
pub const LINE_PATTERN: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// The same for the key of a label, which ends at the first `=`.
pub const LABEL_KEY_PATTERN: &str = r"^[^=\u0000-\u001f\u007f-\u009f]+$";

type Checked = Result<(), Rejection>;

pub(crate) fn invalid<T>(text: String) -> Result<T, Rejection> {
    Err(Rejection::Invalid(text))
}

/// Refuses one more of `what` than the limit.
pub(crate) fn room_for_one(count: usize, limit: usize, what: &str) -> Checked {
    if count < limit { Ok(()) } else { Err(Rejection::LimitReached { what: what.into(), limit: limit as u64 }) }
}

/// The first few names, and how many more there are.
pub(crate) fn listed<T: ToString>(names: impl Iterator<Item = T>) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut more = 0_usize;
    for name in names {
        if shown.len() < NAMES_LISTED_MAX {
            shown.push(name.to_string());
        } else {
            more += 1;
        }
    }
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn text(what: &str, value: &str, bytes_max: usize) -> Checked {
    plain(what, value, (value.len(), "bytes", bytes_max))
}

/// Text that people give things: its length is that which they see, and which a schema can say.
fn word(what: &str, value: &str, chars_max: usize) -> Checked {
    plain(what, value, (value.chars().count(), "characters", chars_max))
}

fn plain(what: &str, value: &str, (length, unit, max): (usize, &str, usize)) -> Checked {
    if value.is_empty() {
        return invalid(format!("{what} is empty"));
    }
    if length > max {
        return invalid(format!("{what} is {length} {unit} long; at most {max} are allowed"));
    }
    if value.chars().any(char::is_control) {
        return invalid(format!("{what} contains a control character"));
    }
    Ok(())
}

pub(crate) fn at_most(what: &str, count: usize, max: usize) -> Checked {
    if count <= max { Ok(()) } else { invalid(format!("{count} {what} are too many; at most {max} are allowed")) }
}

fn labels(labels: &BTreeMap<String, String>) -> Checked {
    at_most("labels", labels.len(), LABELS_MAX)?;
    for (key, value) in labels {
        word("a label's key", key, LABEL_KEY_CHARS_MAX)?;
        if key.contains('=') {
            return invalid(format!("the label key {key:?} contains '='"));
        }
        if !value.is_empty() {
            word(&format!("the value of label {key}"), value, LABEL_VALUE_CHARS_MAX)?;
        }
    }
    Ok(())
}

pub(crate) fn settings(settings: &Settings) -> Checked {
    if !VOTERS_ALLOWED.contains(&settings.voters) {
        return invalid(format!("{} voters are not possible: choose 1, 3, 5 or 7", settings.voters));
    }
    if !(1..=COPIES_MAX).contains(&settings.copies) {
        return invalid(format!("{} copies of an image are not possible: choose 1 to {COPIES_MAX}", settings.copies));
    }
    Ok(())
}

pub(crate) fn node(node: &Node) -> Checked {
    if node.id.0 == 0 {
        return invalid("a node's id must not be 0: choose --id 1 or higher".into());
    }
    at_most("addresses of a node", node.addresses.len(), ADDRESSES_MAX)?;
    for address in &node.addresses {
        if address.ip().is_unspecified() || address.port() == 0 {
            return invalid(format!("{address} is not an address that another host could reach"));
        }
    }
    if let Some(url) = &node.relay_url {
        text("the relay's URL", url, RELAY_URL_BYTES_MAX)?;
    }
    labels(&node.labels)?;
    text("the version", &node.version, VERSION_BYTES_MAX)?;
    let capacity = &node.capacity;
    for (what, percent) in [
        ("processors", capacity.overcommit_vcpus_percent),
        ("memory", capacity.overcommit_memory_percent),
        ("disk", capacity.overcommit_disk_percent),
    ] {
        if percent > OVERCOMMIT_PERCENT_MAX {
            return invalid(format!("{percent} % overcommit of {what} is more than {OVERCOMMIT_PERCENT_MAX} %"));
        }
    }
    Ok(())
}

pub(crate) fn client(client: &Client) -> Checked {
    word("the client's name", &client.name, WORD_CHARS_MAX)
}

pub(crate) fn token(token: &Token, at: UnixMs) -> Checked {
    if token.uses_left == Some(0) {
        return invalid("a token for 0 nodes lets nobody in".into());
    }
    if token.expires_at.is_some_and(|expires_at| expires_at <= at) {
        return invalid("the token would have expired already".into());
    }
    Ok(())
}

pub(crate) fn image(image: &Image) -> Checked {
    if image.id != image.manifest.id() {
        return invalid(format!("{} is not the hash of the image's manifest", image.id));
    }
    manifest(&image.manifest)
}

/// Whether a manifest can be that of an image.
///
/// # Errors
/// When a part is empty, the command line too long, or the disk of a size that cannot be.
pub fn manifest(manifest: &Manifest) -> Result<(), Rejection> {
    let part = |what: &str, part: &Part| {
        if part.bytes == 0 { invalid(format!("the image's {what} is empty")) } else { Ok(()) }
    };
    match manifest {
        Manifest::Disk(disk) => part("disk", &disk.part)?,
        Manifest::Kernel { kernel, initrd, root, cmdline } => {
            part("kernel", kernel)?;
            initrd.iter().try_for_each(|initrd| part("initrd", initrd))?;
            root.iter().try_for_each(|root| part("root disk", &root.part))?;
            if !cmdline.is_empty() {
                text("the kernel's command line", cmdline, Manifest::CMDLINE_BYTES_MAX)?;
            }
        }
    }
    if let Some(disk) = manifest.disk() {
        let mib = disk.virtual_bytes.div_ceil(1 << 20);
        if mib == 0 || mib > DISK_MIB_MAX {
            return invalid(format!("a disk of {mib} MiB is not possible; 1 to {DISK_MIB_MAX} MiB are allowed"));
        }
        if let Some(chunks) = disk.chunks {
            part("chunk index", &chunks)?;
            if chunks.bytes > INDEX_BYTES_MAX {
                let bytes = chunks.bytes;
                return invalid(format!(
                    "a chunk index of {bytes} bytes is too long; at most {INDEX_BYTES_MAX} are allowed"
                ));
            }
        }
    }
    Ok(())
}

pub(crate) fn spec(spec: &VmSpec, image: &Image) -> Checked {
    if !(1..=VCPUS_MAX).contains(&spec.vcpus) {
        return invalid(format!("{} vcpus are not possible: choose 1 to {VCPUS_MAX}", spec.vcpus));
    }
    if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&spec.memory_mib) {
        let mib = spec.memory_mib;
        return invalid(format!("{mib} MiB of memory are not possible: choose {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}"));
    }
    // A disk smaller than the one it is laid over would cut off the end of the guest's file system.
    let base_mib = image.manifest.disk().map_or(0, |disk| disk.virtual_bytes.div_ceil(1 << 20));
    if !(base_mib..=DISK_MIB_MAX).contains(&spec.disk_mib) {
        let mib = spec.disk_mib;
        return invalid(format!("a disk of {mib} MiB is not possible: choose {base_mib} to {DISK_MIB_MAX} MiB"));
    }
    publish(&spec.publish)?;
    config_files(&spec.config_files)?;
    seed(&spec.seed, &spec.config_files)?;
    labels(&spec.require)?;
    if let Some(group) = &spec.anti_affinity {
        word("the anti-affinity group", group, WORD_CHARS_MAX)?;
    }
    Ok(())
}

fn publish(ports: &[PublishedPort]) -> Checked {
    at_most("published ports", ports.len(), PUBLISH_MAX)?;
    for (index, port) in ports.iter().enumerate() {
        if port.host_port == 0 || port.guest_port == 0 {
            return invalid(format!("{port} is not a published port: ports are 1 to 65535"));
        }
        if let Some(other) = ports.iter().take(index).find(|other| other.collides_with(port)) {
            return invalid(format!("the published ports {other} and {port} cannot both listen on the host"));
        }
    }
    Ok(())
}

fn config_files(files: &[ConfigFile]) -> Checked {
    at_most("files from documents", files.len(), CONFIG_FILES_MAX)?;
    for (index, file) in files.iter().enumerate() {
        let path = &file.source.path;
        if files.iter().take(index).any(|other| other.source.path == *path) {
            return invalid(format!("{path} is named twice among the files from documents"));
        }
    }
    Ok(())
}

fn seed(seed: &Seed, files: &[ConfigFile]) -> Checked {
    at_most("ssh keys", seed.ssh_keys.len(), SSH_KEYS_MAX)?;
    for key in &seed.ssh_keys {
        text("an ssh key", key, SEED_BYTES_MAX)?;
    }
    let keys: usize = seed.ssh_keys.iter().map(String::len).sum();
    let files: usize = files.iter().map(|file| file.content.len()).sum();
    let bytes = keys.saturating_add(seed.user_data.as_ref().map_or(0, String::len)).saturating_add(files);
    if bytes > SEED_BYTES_MAX {
        let given = if files == 0 { "user data and ssh keys" } else { "user data, ssh keys and files from documents" };
        return invalid(format!("{given} are {bytes} bytes; at most {SEED_BYTES_MAX} are allowed"));
    }
    Ok(())
}

pub(crate) fn stop_timeout(timeout_ms: u64) -> Checked {
    if timeout_ms <= STOP_TIMEOUT_MS_MAX {
        return Ok(());
    }
    invalid(format!("a timeout of {timeout_ms} ms is too long; at most {STOP_TIMEOUT_MS_MAX} ms are allowed"))
}

/// What a node says that it did for a client.
pub(crate) fn deed(deed: Deed, object: &str) -> Checked {
    if !deed.is_of_one_node() {
        return invalid(format!("to {deed} is not a matter of one node"));
    }
    word("what a deed is about", object, OBJECT_CHARS_MAX)
}

pub(crate) fn reason(reason: &str) -> Checked {
    if reason.len() <= REASON_BYTES_MAX {
        return Ok(());
    }
    invalid(format!("a reason of {} bytes is too long; at most {REASON_BYTES_MAX} are allowed", reason.len()))
}
