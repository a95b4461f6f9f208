//! What is so of an input that a decoder accepts, seen without the decoder's help: an error says what is not so.

use blixard_core::{Change, Command, State};
use blixard_node::config::NodeConfig;
use blixard_node::transport::{PeerAddress, Ticket};
use serde_json::Value;

type Verdict = Result<(), String>;

/// Nodes that a ticket names at most.
const TICKET_PEERS_MAX: usize = 16;
/// The highest UDP port that leaves one for HTTP, which is 1000 higher.
const PORT_MAX: u16 = 64_535;
/// The largest frame between members.
const FRAME_BYTES_MAX: usize = 16 << 20;

fn that(is_so: bool, otherwise: &str) -> Verdict {
    if is_so { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// What follows a place; nothing where the input ends before it.
fn from(input: &[u8], at: usize) -> &[u8] {
    input.get(at..).unwrap_or_default()
}

/// The input as JSON; nothing where the text of a field that decoders skip is no Unicode, which they do not look at.
fn json(input: &[u8]) -> Option<Value> {
    serde_json::from_slice(input).ok()
}

/// Whether it is so many hexadecimal digits.
fn is_hex(value: &Value, digits: usize) -> bool {
    value.as_str().is_some_and(|text| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a name is one that file systems, guests and terminals take alike.
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = [text.as_bytes().first(), text.as_bytes().last()];
    edges.into_iter().all(|edge| edge.is_some_and(|byte| is_plain(*byte)))
        && text.len() <= 63
        && text.bytes().all(|byte| is_plain(byte) || b"-._".contains(&byte))
}

fn keys(input: &[u8], node: &str, cluster: &str) -> Verdict {
    let Some(value) = json(input) else { return Ok(()) };
    that(is_hex(&value[node], 64), "its node has no key")?;
    that(is_hex(&value[cluster], 64), "its cluster has no key")
}

pub(crate) fn bootstrap(input: &[u8], _: &[u8]) -> Verdict {
    keys(input, "p2p_node_id", "cluster_id")
}

pub(crate) fn registry(input: &[u8], _: &[u8]) -> Verdict {
    keys(input, "endpoint_id", "cluster_id")
}

pub(crate) fn catalog_record(input: &[u8], _: &[u8]) -> Verdict {
    that(input.len() <= 32 << 10, "it is too long")?;
    let Some(value) = json(input) else { return Ok(()) };
    let manifest = value["manifest"].as_object().ok_or("it has no manifest")?;
    that(manifest.len() == 1, "it is of two kinds")?;
    that(value["note"].as_str().is_none_or(|note| note.chars().count() <= 1000), "its note is too long")
}

pub(crate) fn document_ticket(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len(), "there is more in it than was given")?;
    let (nodes, _, name, right, _): (Vec<PeerAddress>, [u8; 32], String, u8, [u8; 32]) =
        postcard::from_bytes(again).map_err(|error| error.to_string())?;
    that((1..=8).contains(&nodes.len()), "it names no node, or too many")?;
    that(!name.contains(['/', '\0']) && !name.is_empty() && right <= 1, "it is for no document, or no right")
}

pub(crate) fn document_request(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len() && input.starts_with(&again[..32]), "its secret is another")?;
    match again[32] {
        // The length of the sums takes two bytes.
        0 => that(again.len() > 32 + 3 + 1024 && again[33..35] == [0x80, 0x08], "it has not all sums"),
        1 => that(again.len() > 65, "it names no key and no hash"),
        // Behind two signatures comes the name of the entry, which has at least two keys.
        2 => that(again.len() > 33 + 128 + 64, "its entry is cut within its name"),
        _ => Err("it wants what no document has".to_owned()),
    }
}

pub(crate) fn document_answer(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len() && again[0] <= 2, "it is no kind of answer")
}

pub(crate) fn document_key(input: &[u8], again: &[u8]) -> Verdict {
    that(input == again, "it is written again as another")?;
    that(input.len() <= 256 && input.ends_with(b"\0"), "it has no end, or is too long")?;
    let text = std::str::from_utf8(&input[..input.len() - 1]).map_err(|error| error.to_string())?;
    // As the file system reads it: no part of it may lead up, to the root, or to where it is already.
    let leads_down = |part: &str| !part.is_empty() && part != "." && part != "..";
    that(text.split('/').all(leads_down) && !text.contains(['\\', '\0']), "it leads out of its folder")
}

pub(crate) fn order(input: &[u8], _: &[u8]) -> Verdict {
    let Some(value) = json(input) else { return Ok(()) };
    match value["order"].as_str() {
        Some("stop") => that(value["timeout_ms"].is_u64(), "a stop has no time"),
        Some("kill" | "settle") => Ok(()),
        _ => Err("it names no order".to_owned()),
    }
}

pub(crate) fn chunk_index(input: &[u8], again: &[u8]) -> Verdict {
    that(input == again, "it is written again as another")?;
    let mut rest = from(input, 33);
    let mut number = |skips_print: bool| {
        let bytes = rest.iter().position(|byte| byte & 0x80 == 0).map_or(rest.len(), |last| last + 1);
        let value = rest[..bytes].iter().rev().fold(0_u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
        rest = from(rest, bytes + if skips_print && value & 1 == 0 { 8 } else { 0 });
        (value, rest.is_empty())
    };
    let (blob_bytes, mut is_end) = number(false);
    let mut bytes = 0;
    while !is_end {
        let (chunk, is_last) = number(true);
        bytes += chunk >> 1;
        is_end = is_last;
    }
    that(bytes == blob_bytes, "its chunks do not make up its blob")
}

pub(crate) fn command(input: &[u8], _: &[u8]) -> Verdict {
    that(input.first() == Some(&Command::FORMAT), "it is of another format")?;
    match Command::decode(input).map_err(|error| error.to_string())?.change {
        Change::CreateVm { name, .. } => that(is_name(name.as_str()), "the vm's name is none"),
        Change::AddImage(image) => that(is_name(image.name.as_str()), "the image's name is none"),
        _ => Ok(()),
    }
}

pub(crate) fn state(input: &[u8], _: &[u8]) -> Verdict {
    that(input.first() == Some(&State::FORMAT), "it is of another format")?;
    let state = State::decode(input).map_err(|error| error.to_string())?;
    let mut names = state.vms.values().map(|vm| vm.name.as_str()).chain(state.images.values().map(|i| i.name.as_str()));
    that(names.all(is_name), "a name in it is none")
}

pub(crate) fn config(_: &[u8], again: &[u8]) -> Verdict {
    let config: NodeConfig = toml::from_str(&String::from_utf8_lossy(again)).map_err(|error| error.to_string())?;
    let [beat, least, most] = [config.raft.heartbeat_ms, config.raft.election_min_ms, config.raft.election_max_ms];
    that(config.id.0 > 0, "the node has no number")?;
    that((1..=PORT_MAX).contains(&config.bind.port()), "there is no port for HTTP")?;
    that(beat > 0 && u128::from(least) >= 2 * u128::from(beat) && most > least, "elections come before heartbeats")?;
    that(config.raft.snapshot_entries > 0, "a snapshot would follow every entry")
}

fn named_by_ticket(ticket: &Ticket) -> Verdict {
    that(ticket.peers.len() <= TICKET_PEERS_MAX, "it names too many nodes")
}

pub(crate) fn ticket(input: &[u8], again: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(input);
    that(text.trim().eq_ignore_ascii_case(&String::from_utf8_lossy(again)), "it is written again as another")?;
    named_by_ticket(&text.parse().map_err(|error| format!("{error}"))?)
}

pub(crate) fn ticket_content(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len(), "there is more in it than was given")?;
    named_by_ticket(&postcard::from_bytes(again).map_err(|error| error.to_string())?)
}

pub(crate) fn share_ticket(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len(), "there is more in it than was given")?;
    // At its end is the length of the listing, which somebody is to take in.
    let (_, _, (_, bytes)): (PeerAddress, [u8; 32], ([u8; 32], u64)) =
        postcard::from_bytes(again).map_err(|error| error.to_string())?;
    that((1..=16 << 20).contains(&bytes), "its listing has no length, or too great a one")
}

pub(crate) fn share_request(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len() && input.starts_with(&again[..32]), "its secret is another")?;
    that(again[32] <= 1, "it wants what no share has")
}

/// An entry of a listing, as it is encoded; what it is comes as a number, and what belongs to that behind it.
fn listed(mut rest: &[u8]) -> Result<Vec<(String, Option<String>)>, String> {
    fn take<'a, T: serde::Deserialize<'a>>(rest: &mut &'a [u8]) -> Result<T, String> {
        let (value, left) = postcard::take_from_bytes(rest).map_err(|error| error.to_string())?;
        *rest = left;
        Ok(value)
    }
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let _name: &[u8] = take(&mut rest)?;
    let count: usize = take(&mut rest)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (path, _mode, kind): (&[u8], u32, u8) = take(&mut rest)?;
        let target = match kind {
            0 => None,
            1 => take::<u64>(&mut rest).map(|_| None)?,
            _ => Some(text(take::<&[u8]>(&mut rest)?)),
        };
        entries.push((text(path), target));
    }
    Ok(entries)
}

pub(crate) fn share_listing(_: &[u8], again: &[u8]) -> Verdict {
    let entries = listed(again.get(1..).unwrap_or_default())?;
    let mut seen = std::collections::BTreeMap::new();
    for (path, target) in &entries[1..] {
        // As the file system reads it: no part of it may lead up, to the root, or to where it is already.
        let leads_down = |part: &str| !part.is_empty() && part != "." && part != "..";
        that(path.split('/').all(leads_down) && !path.contains('\0'), "a path leads out of its folder")?;
        that(seen.insert(path.as_str(), target.is_some()).is_none(), "a path is there twice")?;
        for (at, _) in path.match_indices('/') {
            that(seen.get(&path[..at]) == Some(&false), "a path leads through a link, or through nothing")?;
        }
        let Some(target) = target else { continue };
        // Followed one step at a time from the link's folder, where every name but `..` may turn out to be the share itself.
        let mut depth = path.matches('/').count();
        that(!target.starts_with('/') && !target.is_empty(), "a link leads to the root")?;
        for part in target.split('/') {
            match part {
                ".." => depth = depth.checked_sub(1).ok_or("a link leads out of the share")?,
                "" | "." => {}
                _ => depth = 0,
            }
        }
    }
    Ok(())
}

pub(crate) fn trace(input: &[u8], again: &[u8]) -> Verdict {
    // Of the flags at the end only one has a meaning, and it is always set.
    let ids = |bytes: &[u8]| bytes.get(..53).map(<[u8]>::to_ascii_lowercase);
    that(input.len() == 55 && ids(input).is_some() && ids(input) == ids(again), "its ids are others")
}

pub(crate) fn request(input: &[u8], _: &[u8]) -> Verdict {
    let known = [&b"GET /"[..], b"PUT /", b"POST /", b"DELETE /", b"HEAD /"];
    // Empty lines before a request are skipped, and a full URL may stand for a path.
    let start = input.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(0);
    let line = from(input, start);
    let names_host =
        line.split(|byte| *byte == b' ').nth(1).is_some_and(|target| target.windows(3).any(|w| w == b"://"));
    that(names_host || known.iter().any(|method| line.starts_with(method)), "it is no request")
}

pub(crate) fn raft_stream(input: &[u8], again: &[u8]) -> Verdict {
    that(again.len() <= input.len(), "there is more in it than was given")?;
    let Some(head) = input.first_chunk::<4>() else { return that(input.is_empty(), "it is cut within a frame") };
    let bytes = u32::from_le_bytes(*head) as usize;
    that(
        bytes <= FRAME_BYTES_MAX && bytes <= input.len() - 4,
        "its first frame is longer than it may be, or than it is",
    )
}

pub(crate) fn kernel(input: &[u8], _: &[u8]) -> Verdict {
    let is_bzimage = from(input, 0x202).starts_with(b"HdrS") && from(input, 510).starts_with(&[0x55, 0xaa]);
    let names_entry = || input.windows(4).any(|word| word == b"Xen\0");
    let is_elf = input.starts_with(b"\x7fELF\x02\x01") && from(input, 18).starts_with(&[62, 0]);
    that(is_bzimage || is_elf && names_entry(), "it is no kernel")
}

/// A big-endian number of 8 bytes at most.
fn big(input: &[u8], at: u64, bytes: usize) -> Result<u64, String> {
    let field = usize::try_from(at).ok().and_then(|at| input.get(at..)?.get(..bytes));
    let field = field.ok_or_else(|| format!("it is cut off before {at}"))?;
    Ok(field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

pub(crate) fn disk(input: &[u8], _: &[u8]) -> Verdict {
    if !input.starts_with(b"QFI\xfb") {
        return that(input.len() >= 512 && input.len().is_multiple_of(512), "it is no whole number of sectors");
    }
    that(big(input, 8, 8)? == 0, "it names a backing file")?;
    that(big(input, 32, 4)? == 0, "it is encrypted")?;
    let is_newer = big(input, 4, 4)? == 3;
    let features = if is_newer { big(input, 72, 8)? } else { 0 };
    that(features & 0b111 == 0, "it is dirty, corrupt, or has its data elsewhere")?;
    that(features >> 5 == 0, "it needs what nobody knows")?;
    let cluster = 1_u64 << big(input, 20, 4)?.min(63);
    let entry_bytes = if features & 0b1_0000 == 0 { 8 } else { 16 };
    let (disk_bytes, l1) = (big(input, 24, 8)?, big(input, 40, 8)?);
    let mapped_by_one = u128::from(cluster) * u128::from(cluster / entry_bytes);
    that(mapped_by_one * u128::from(big(input, 36, 4)?) >= u128::from(disk_bytes), "it cannot map its disk")?;
    let end = input.len() as u64;
    for l1_index in 0..big(input, 36, 4)? {
        let table = big(input, l1 + l1_index * 8, 8)? & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            continue;
        }
        for l2_index in 0..cluster / entry_bytes {
            let entry = big(input, table + l2_index * entry_bytes, 8)?;
            let is_compressed = entry >> 62 & 1 == 1;
            let data = entry & 0x00ff_ffff_ffff_fe00;
            that(is_compressed || data <= end, "its data lies beyond its end")?;
        }
    }
    Ok(())
}
