//! Where an image may be had from.

use std::collections::BTreeSet;

use blixard_core::{ImageId, Manifest, Node, NodeId, SITE_LABEL, State};

use crate::images::Holder;

/// What an image is made of, and the other nodes that share it: those that hold it, and those that are fetching it, which serve
/// what they have so far. Nothing when the image is not in the catalog.
///
/// Who is fetching follows from the same state by which each of them was told to, so nobody has to announce it.
pub(super) fn sources(state: &State, me: NodeId, image: ImageId) -> Option<(Manifest, Vec<Holder>)> {
    let record = state.images.get(&image)?;
    let placed = state.vms_using(image).filter_map(|vm| vm.placement).map(|placement| placement.node);
    let mut nodes: BTreeSet<NodeId> = record.holders.union(&record.wanted).copied().chain(placed).collect();
    nodes.remove(&me);
    let site = |node: &Node| node.labels.get(SITE_LABEL).cloned();
    let own_site = state.nodes.get(&me).and_then(site);
    let sharing = nodes.iter().filter_map(|node| state.nodes.get(node)).filter(|node| node.shares_images);
    let holders = sharing.map(|node| Holder {
        endpoint: node.endpoint,
        is_whole: record.holders.contains(&node.id),
        same_site: own_site.as_ref().zip(site(node)).map(|(own, other)| *own == other),
        opened_by: None,
    });
    Some((record.manifest.clone(), holders.collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blixard_core::{
        BlobHash, Capacity, Desired, EndpointId, Image, Part, Placement, Power, Resources, RestartPolicy, Seed,
        Strategy, UnixMs, Vm, VmId, VmSpec,
    };

    use super::*;

    fn key(number: u64) -> EndpointId {
        EndpointId([u8::try_from(number).expect("a small number"); 32])
    }

    fn node(number: u64, site: Option<&str>) -> Node {
        Node {
            id: NodeId(number),
            endpoint: key(number),
            addresses: Vec::new(),
            relay_url: None,
            capacity: Capacity {
                physical: Resources { vcpus: 1, memory_mib: 1, disk_mib: 1 },
                overcommit_vcpus_percent: 100,
                overcommit_memory_percent: 100,
                overcommit_disk_percent: 100,
            },
            labels: site.map(|site| (SITE_LABEL.to_owned(), site.to_owned())).into_iter().collect(),
            shares_images: true,
            version: String::new(),
            joined_at: UnixMs(0),
        }
    }

    fn vm_on(number: u64, image: &Image) -> Vm {
        let spec = VmSpec {
            image: image.id,
            image_name: image.name.clone(),
            vcpus: 1,
            memory_mib: 1,
            disk_mib: 0,
            publish: Vec::new(),
            seed: Seed::default(),
            require: BTreeMap::new(),
            anti_affinity: None,
            strategy: Strategy::Spread,
            node: None,
            restart: RestartPolicy::Never,
            config_files: Vec::new(),
            lazy: None,
        };
        Vm {
            id: VmId([1; 16]),
            name: "web".parse().expect("a name"),
            spec,
            desired: Desired { power: Power::On, run: 1, stop_timeout_ms: 0, deleting: false },
            placement: Some(Placement { node: NodeId(number), epoch: 1 }),
            epoch: 1,
            observed: None,
            created_at: UnixMs(0),
        }
    }

    #[test]
    fn whoever_holds_or_fetches_an_image_and_shares_it_is_a_source() {
        let manifest = crate::images::tests::disk(Part { hash: BlobHash([1; 32]), bytes: 7 });
        let image = Image {
            id: manifest.id(),
            name: "tiny".parse().expect("a name"),
            manifest,
            added_at: UnixMs(0),
            holders: [1, 5, 8].map(NodeId).into(),
            wanted: [2, 3].map(NodeId).into(),
        };
        let id = image.id;
        let mut state = State::default();
        let sites = [Some("here"), Some("here"), Some("here"), None, Some("there"), None, None];
        for (number, site) in (1..).zip(sites) {
            state.nodes.insert(NodeId(number), node(number, site));
        }
        state.nodes.entry(NodeId(3)).and_modify(|node| node.shares_images = false);
        let vm = vm_on(4, &image);
        state.vms.insert(vm.id, vm);
        state.images.insert(id, image);

        let (_, from) = sources(&state, NodeId(2), id).expect("it is in the catalog");
        let holder =
            |number, is_whole, same_site| Holder { endpoint: key(number), is_whole, same_site, opened_by: None };
        // Not node 2, which asks, nor 3, which shares nothing, nor 6 and 7, which have no part in it, nor 8, which is gone.
        assert_eq!(from, [holder(1, true, Some(true)), holder(4, false, None), holder(5, true, Some(false))]);
        let (_, from) = sources(&state, NodeId(7), id).expect("it is in the catalog");
        assert!(from.contains(&holder(2, false, None)), "who has no site is neither here nor there: {from:?}");
        assert_eq!(sources(&state, NodeId(2), ImageId([9; 32])), None);
    }
}
