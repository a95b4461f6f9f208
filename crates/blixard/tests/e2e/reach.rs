//! Ways for nodes to reach each other.

use serde_json::json;

use crate::cluster::{Cluster, Plan};
use crate::program::eventually;

#[test]
fn a_cluster_forms_over_ipv6() {
    let mut cluster = Cluster::start(Plan { host: "::1", ..Plan::fake(3) });
    let status = cluster.status(2).unwrap();
    for node in status["nodes"].as_array().unwrap() {
        let id = node["id"].as_u64().unwrap() as usize;
        assert_eq!(node["addresses"], json!([cluster.address(id)]));
    }
    let named = cluster.bench.run(&["cluster", "status", "--addr", cluster.address(3), "-o", "json"]).ends_with(0);
    assert_eq!(named.json()["cluster_id"], status["cluster_id"]);
    cluster.kill(&[1]);
    eventually("a leader without node 1", || cluster.leader_seen_by(2).filter(|leader| *leader != 1));
    cluster.run(2, &["cluster", "token", "create"]).ends_with(0);
    cluster.spawn(1);
    cluster.is_whole();
    cluster.agreed_digest();
}

#[test]
fn without_sharing_a_cluster_forms_and_images_stay_where_they_are() {
    let cluster = Cluster::start(Plan { environment: &[("BLIXARD_P2P_ENABLED", "false")], ..Plan::fake(3) });
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let disk = cluster.bench.write("disk.raw", disk);
    cluster.run(2, &["image", "import", "--name", "disk", &disk]).ends_with(0);
    let created = cluster.run(1, &["vm", "create", "here", "--image", "disk"]).ends_with(0);
    assert_eq!(created.stdout, "vm here is running on node 2\n");
    let create = ["vm", "create", "there", "--image", "disk", "--node", "3", "--timeout", "1s"];
    let ran = cluster.run(1, &create).ends_with(8);
    assert!(ran.stderr.contains("shares no images"), "{ran:?}");
    let explained = cluster.run(1, &["vm", "explain", "there"]).ends_with(0).stdout;
    assert!(explained.contains("would have to fetch the image but shares no images"), "{explained}");
    let image = cluster.ask(3, &["image", "show", "disk"]).unwrap();
    assert_eq!(
        (&image["holders"], &image["wanted"]),
        (&json!([2]), &json!([])),
        "a copy was ordered that cannot be made"
    );
}
