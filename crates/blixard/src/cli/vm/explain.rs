//! How `blixard vm explain` reads: which nodes could carry a vm, and what keeps the others from it.

use std::collections::BTreeMap;

use blixard_core::NodeId;
use blixard_node::api::{ExplainView, VerdictView};

use super::super::output::{self, Table};

/// With so many nodes each gets a line of its own. With more, refusals of one sort are told together.
const NODES_LISTED: usize = 10;
/// Nodes that could carry the vm that are shown, best first, when they are not all listed.
const FITTING_SHOWN: usize = 5;
/// Nodes named as examples of a refusal.
const EXAMPLES: usize = 4;

/// Why the vm is where it is, or nowhere; with `all` a line for each node.
pub(super) fn text(view: &ExplainView, all: bool) -> String {
    let place = view.node.map_or_else(
        || format!("vm {} is on no node yet", view.vm),
        |node| format!("vm {} is on node {node}", view.vm),
    );
    let mut fitting: Vec<&VerdictView> = view.verdicts.iter().filter(|verdict| verdict.fits).collect();
    fitting.sort_by_key(|verdict| (verdict.rank, verdict.node));
    let refused: Vec<&VerdictView> = view.verdicts.iter().filter(|verdict| !verdict.fits).collect();
    let counts = format!("{} of {} nodes could carry it", fitting.len(), view.verdicts.len());
    let head = format!("{}: {counts}\n", output::clean(&place));
    if all || view.verdicts.len() <= NODES_LISTED {
        return format!("{head}\n{}", list(fitting.iter().chain(&refused)));
    }
    let mut text = head;
    if !fitting.is_empty() {
        let shown = FITTING_SHOWN.min(fitting.len());
        text.push_str(&format!("\n{}", list(fitting[..shown].iter())));
        if fitting.len() > shown {
            text.push_str(&format!("and {} more that fit (`--all` shows them)\n", fitting.len() - shown));
        }
    }
    if !refused.is_empty() {
        text.push_str(&format!("\n{}", summary(&refused)));
    }
    text
}

fn list<'a>(verdicts: impl Iterator<Item = &'a &'a VerdictView>) -> String {
    let mut table = Table::new(&["NODE", "FITS", "WHY"]);
    for verdict in verdicts {
        table.row([&verdict.node, &if verdict.fits { "yes" } else { "no" }, &verdict.text]);
    }
    table.render()
}

/// One line for each sort of refusal, the most frequent first.
fn summary(refused: &[&VerdictView]) -> String {
    let mut sorts: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for verdict in refused {
        sorts.entry(verdict.sort.as_deref().unwrap_or(&verdict.text)).or_default().push(verdict.node);
    }
    let mut sorts: Vec<_> = sorts.into_iter().collect();
    sorts.sort_by_key(|(sort, nodes)| (std::cmp::Reverse(nodes.len()), *sort));
    let mut table = Table::new(&["REFUSED BY", "WHY", "NODES"]);
    for (sort, nodes) in sorts {
        let count = if nodes.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", nodes.len()) };
        table.row([&count, &sort, &examples(&nodes)]);
    }
    table.render()
}

/// The first few, and how many more.
fn examples(nodes: &[NodeId]) -> String {
    let shown = output::list(nodes.iter().take(EXAMPLES));
    match nodes.len().saturating_sub(EXAMPLES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(node: u64, rank: u32) -> VerdictView {
        VerdictView { node: NodeId(node), fits: true, rank: Some(rank), sort: None, text: format!("choice {rank}") }
    }

    fn refuses(node: u64, sort: &str) -> VerdictView {
        let text = format!("{sort}, {} free", node * 10);
        VerdictView { node: NodeId(node), fits: false, rank: None, sort: Some(sort.to_owned()), text }
    }

    fn view(verdicts: Vec<VerdictView>) -> ExplainView {
        ExplainView { vm: "web".parse().expect("a name"), node: None, verdicts }
    }

    #[test]
    fn a_few_nodes_get_a_line_each_the_best_first() {
        let view = view(vec![refuses(1, "too little memory"), fits(2, 2), fits(3, 1)]);
        assert_eq!(
            text(&view, false),
            "vm web is on no node yet: 2 of 3 nodes could carry it\n\n\
             NODE  FITS  WHY\n3     yes   choice 1\n2     yes   choice 2\n1     no    too little memory, 10 free\n"
        );
    }

    #[test]
    fn refusals_of_many_nodes_are_told_by_sort() {
        let mut verdicts: Vec<VerdictView> = (1..=60).map(|node| refuses(node, "too little memory")).collect();
        verdicts.extend((61..=92).map(|node| refuses(node, "label zone=a is required")));
        verdicts.push(refuses(93, "not reachable"));
        verdicts.extend((94..=100).map(|node| fits(node, u32::try_from(101 - node).expect("small"))));
        let placed = ExplainView { node: Some(NodeId(100)), ..view(verdicts) };
        assert_eq!(
            text(&placed, false),
            "vm web is on node 100: 7 of 100 nodes could carry it\n\n\
             NODE  FITS  WHY\n\
             100   yes   choice 1\n\
             99    yes   choice 2\n\
             98    yes   choice 3\n\
             97    yes   choice 4\n\
             96    yes   choice 5\n\
             and 2 more that fit (`--all` shows them)\n\n\
             REFUSED BY  WHY                       NODES\n\
             60 nodes    too little memory         1, 2, 3, 4 and 56 more\n\
             32 nodes    label zone=a is required  61, 62, 63, 64 and 28 more\n\
             1 node      not reachable             93\n"
        );
        assert_eq!(text(&placed, true).lines().count(), 103);
    }

    #[test]
    fn when_none_fits_only_the_refusals_are_told() {
        let text = text(&view((1..=40).map(|node| refuses(node, "not reachable")).collect()), false);
        assert!(text.starts_with("vm web is on no node yet: 0 of 40 nodes could carry it\n\nREFUSED BY"), "{text}");
    }
}
