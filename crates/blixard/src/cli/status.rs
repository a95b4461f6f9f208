//! How `blixard cluster status` reads: facts first, then nodes, those in trouble before all others.

use std::collections::BTreeMap;

use blixard_node::Role;
use blixard_node::api::{ClusterView, NodeState, NodeView};

use super::output::{self, Table};

/// Nodes shown without being asked for: about what a screen holds beside the facts. Nodes in trouble are always shown, up to
/// [`TROUBLED_MAX`].
const NODES_SHOWN: usize = 20;
/// Nodes in trouble that are shown: when more are, the reader needs to know how many, not which.
const TROUBLED_MAX: usize = 40;
/// What goes first when the terminal is too narrow: what matters least in trouble.
const DROPPED_FIRST: &[&str] = &["VERSION", "LABELS", "DISK", "ADDRESS", "CONTACT"];

/// The settings in words.
pub(super) fn settings(view: &ClusterView) -> String {
    let plural = |count: u8, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let voters = plural(view.settings.voters, "voter", "voters");
    format!("{voters} and {} of each image", plural(view.settings.copies, "copy", "copies"))
}

/// The cluster; with `all` every node of it.
pub(super) fn text(view: &ClusterView, all: bool) -> String {
    let mut facts = Table::of_pairs();
    facts.row([&"cluster", &view.cluster_id]);
    let leader = view.leader.map_or_else(|| "none".to_owned(), |leader| format!("node {leader}"));
    facts.row([&"leader", &format!("{leader}, term {}", view.term)]);
    facts.row([&"quorum", &view.margin]);
    facts.row([&"nodes", &nodes_text(view)]);
    facts.row([&"settings", &settings(view)]);
    facts.row([&"holds", &format!("{} vms, {} images", view.vms, view.images)]);
    facts.row([&"in use", &use_text(view)]);
    facts.row([
        &"state",
        &format!("{} at index {}, seen by node {}", view.state_digest.short(), view.applied, view.seen_by),
    ]);
    let versions = count(view.nodes.iter().map(|node| node.version.as_str()));
    if let [_, _, ..] = versions.as_slice() {
        let versions = versions.iter().map(|(version, count)| format!("{version} on {count}"));
        facts.row([&"versions", &output::list(versions)]);
    }
    let mut nodes: Vec<&NodeView> = view.nodes.iter().collect();
    nodes.sort_by_key(|node| (trouble(node), role_rank(node), node.id));
    let troubled = nodes.iter().filter(|node| trouble(node) < Trouble::None).count();
    let shown = if all { nodes.len() } else { NODES_SHOWN.max(troubled.min(TROUBLED_MAX)).min(nodes.len()) };
    let (shown, others) = nodes.split_at(shown);
    let mut text = format!("{}\n{}", facts.render(), table(shown));
    if !others.is_empty() {
        let states = count(others.iter().map(|node| state_word(node)));
        let states = states.iter().map(|(state, count)| format!("{count} {state}"));
        text.push_str(&format!("and {} more: {} (`--all` shows them)\n", others.len(), output::list(states)));
    }
    text
}

fn table(nodes: &[&NodeView]) -> String {
    let mut table = Table::new(&[
        "NODE", "ADDRESS", "ROLE", "STATE", "CONTACT", "VCPUS", "MEMORY", "DISK", "VMS", "LABELS", "VERSION",
    ]);
    table.may_drop(DROPPED_FIRST);
    for node in nodes {
        table.row([
            &node.id,
            &address_text(node),
            &node.role.map_or("none", |role| match role {
                Role::Leader => "leader",
                Role::Voter => "voter",
                Role::Learner => "learner",
            }),
            &state_word(node),
            &contact_text(node.last_contact_ms),
            &format!("{}/{}", node.used.vcpus, node.capacity.vcpus),
            &share(node.used.memory_mib, node.capacity.memory_mib),
            &share(node.used.disk_mib, node.capacity.disk_mib),
            &node.vms,
            &output::list(node.labels.iter().map(|(key, value)| format!("{key}={value}"))),
            &node.version,
        ]);
    }
    table.render()
}

/// How much a node needs somebody's attention, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Unreachable,
    Joining,
    None,
}

fn trouble(node: &NodeView) -> Trouble {
    match node.state {
        NodeState::Unreachable => Trouble::Unreachable,
        NodeState::Joining => Trouble::Joining,
        // Nobody leads, and then it is so of all nodes: no reason to put any first.
        NodeState::Unknown | NodeState::Ready => Trouble::None,
    }
}

fn role_rank(node: &NodeView) -> u8 {
    match node.role {
        Some(Role::Leader) => 0,
        Some(Role::Voter) => 1,
        Some(Role::Learner) => 2,
        None => 3,
    }
}

fn state_word(node: &NodeView) -> &'static str {
    match node.state {
        NodeState::Ready => "ready",
        NodeState::Joining => "joining",
        NodeState::Unreachable => "unreachable",
        NodeState::Unknown => "unknown",
    }
}

/// How often each word comes, the most frequent first.
fn count<'a>(words: impl Iterator<Item = &'a str>) -> Vec<(&'a str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(word, count)| (std::cmp::Reverse(*count), *word));
    counts
}

/// How many nodes there are, and how they are; those in trouble by name while they are few.
fn nodes_text(view: &ClusterView) -> String {
    const NAMED_MAX: usize = 5;
    let counts = count(view.nodes.iter().map(state_word)).into_iter().map(|(state, count)| {
        let is_trouble = |node: &&NodeView| state_word(node) == state && trouble(node) < Trouble::None;
        let named: Vec<_> = view.nodes.iter().filter(is_trouble).map(|node| node.id).collect();
        match named.len() {
            1..=NAMED_MAX => format!("{count} {state} (node {})", output::list(named)),
            _ => format!("{count} {state}"),
        }
    });
    format!("{}: {}", view.nodes.len(), output::list(counts))
}

/// What all vms take of all nodes together.
fn use_text(view: &ClusterView) -> String {
    let sum = |amount: fn(&NodeView) -> u64| view.nodes.iter().map(amount).fold(0, u64::saturating_add);
    format!(
        "{}/{} vcpus, {} memory, {} disk",
        sum(|node| node.used.vcpus),
        sum(|node| node.capacity.vcpus),
        share(sum(|node| node.used.memory_mib), sum(|node| node.capacity.memory_mib)),
        share(sum(|node| node.used.disk_mib), sum(|node| node.capacity.disk_mib)),
    )
}

fn address_text(node: &NodeView) -> String {
    match (node.addresses.as_slice(), &node.relay_url) {
        ([], Some(relay)) => relay.clone(),
        ([], None) => String::new(),
        ([first], _) => first.to_string(),
        ([first, others @ ..], _) => format!("{first} +{}", others.len()),
    }
}

/// When a node last answered. Below a second it is the heartbeat's rhythm that would show, not the node's health.
fn contact_text(ms: Option<u64>) -> String {
    match ms {
        None => String::new(),
        Some(0..1000) => "now".to_owned(),
        Some(ms) => format!("{} ago", output::span(ms)),
    }
}

/// Used of capacity.
fn share(used_mib: u64, capacity_mib: u64) -> String {
    format!("{}/{}", output::mebibytes(used_mib), output::mebibytes(capacity_mib))
}

#[cfg(test)]
mod tests {
    use blixard_core::{BlobHash, ClusterId, EndpointId, NodeId, Resources, Settings};

    use super::*;

    fn node(id: u64) -> NodeView {
        NodeView {
            id: NodeId(id),
            endpoint_id: EndpointId([1; 32]),
            addresses: vec![format!("10.0.{}.{}:7001", id / 250, id % 250).parse().expect("an address")],
            relay_url: None,
            role: Some(match id {
                7 => Role::Leader,
                8 | 9 => Role::Voter,
                _ => Role::Learner,
            }),
            state: NodeState::Ready,
            last_contact_ms: Some(40),
            capacity: Resources { vcpus: 64, memory_mib: 128 << 10, disk_mib: 2 << 20 },
            used: Resources { vcpus: id % 64, memory_mib: (id % 100) << 10, disk_mib: id << 10 },
            vms: 3,
            labels: [("zone".to_owned(), format!("z{}", id % 3))].into(),
            version: "0.1.0".to_owned(),
        }
    }

    /// A cluster of so many nodes, some of them in trouble.
    fn cluster(nodes: u64, unreachable: &[u64]) -> ClusterView {
        let mut nodes: Vec<NodeView> = (1..=nodes).map(node).collect();
        for id in unreachable {
            let node = &mut nodes[*id as usize - 1];
            (node.state, node.last_contact_ms) = (NodeState::Unreachable, Some(3 * 60_000));
        }
        ClusterView {
            cluster_id: ClusterId([9; 32]),
            seen_by: NodeId(7),
            leader: Some(NodeId(7)),
            term: 3,
            voters: 3,
            voters_changing: false,
            voters_reachable: Some(3),
            margin: "3 of 3 voters reachable: one loss is tolerated".to_owned(),
            settings: Settings::default(),
            vms: nodes.len() * 3,
            nodes,
            images: 4,
            state_digest: BlobHash([5; 32]),
            applied: 1234,
        }
    }

    /// The first column of the table of nodes.
    fn nodes_in(text: &str) -> Vec<u64> {
        let rows = text.lines().skip_while(|line| !line.starts_with("NODE")).skip(1);
        rows.filter_map(|row| row.split_whitespace().next()?.parse().ok()).collect()
    }

    #[test]
    fn three_nodes_are_all_shown() {
        let mut view = cluster(3, &[2]);
        view.nodes[2].role = Some(Role::Leader);
        let text = text(&view, false);
        assert_eq!(nodes_in(&text), [2, 3, 1], "trouble first, then the leader");
        assert!(text.contains("\nnodes     3: 2 ready, 1 unreachable (node 2)\n"), "{text}");
        assert!(text.contains("6/192 vcpus, 6 GiB/384 GiB memory") && !text.contains("more"), "{text}");
    }

    #[test]
    fn of_a_hundred_nodes_those_in_trouble_come_first_and_the_rest_is_counted() {
        let mut view = cluster(100, &[42, 99]);
        view.nodes[49].state = NodeState::Joining;
        view.nodes[60].version = "0.2.0".to_owned();
        let text = text(&view, false);
        assert_eq!(nodes_in(&text)[..7], [42, 99, 50, 7, 8, 9, 1], "{text}");
        assert!(text.lines().count() <= 40, "a screen, and not {} lines", text.lines().count());
        assert!(text.contains("100: 97 ready, 2 unreachable (node 42, 99), 1 joining (node 50)"), "{text}");
        assert!(text.contains("versions  0.1.0 on 99, 0.2.0 on 1"), "{text}");
        assert!(text.ends_with("and 80 more: 80 ready (`--all` shows them)\n"), "{text}");
        assert_eq!(nodes_in(&super::text(&view, true)).len(), 100);
    }

    #[test]
    fn a_cluster_that_fell_apart_does_not_fill_the_screen() {
        let lost: Vec<u64> = (10..=100).collect();
        let text = text(&cluster(100, &lost), false);
        assert_eq!(nodes_in(&text).len(), TROUBLED_MAX);
        assert!(text.ends_with("and 60 more: 51 unreachable, 9 ready (`--all` shows them)\n"), "{text}");
        assert!(text.contains("100: 91 unreachable, 9 ready"), "{text}");
    }

    #[test]
    fn settings_are_said_in_words() {
        let mut view = cluster(3, &[]);
        view.settings = Settings { voters: 1, copies: 1 };
        assert_eq!(settings(&view), "1 voter and 1 copy of each image");
        view.settings = Settings::default();
        assert_eq!(settings(&view), "3 voters and 2 copies of each image");
    }
}
