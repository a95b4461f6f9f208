//! Who asked for what: the audit trail, asked for at any node.

use std::time::Duration;

use blixard_core::{ClientRole, Deed, NodeId};
use blixard_node::api::{AuditView, CreateToken, FaultKind, GrantClient, SetLimits, TransferOrder};
use futures::{StreamExt, pin_mut};

use crate::bench::{Bench, PATIENCE, client, fault, import, kernel, until, vm};

fn words(entry: &AuditView) -> (Option<&str>, Deed, bool) {
    (entry.client_name.as_deref(), entry.deed, entry.rejection.is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_is_in_the_trail_at_every_node() {
    let bench = Bench::new();
    let (_, nodes, admin) = bench.cluster(2, &[], 1).await;
    let me = admin.clients().await.unwrap()[0].name.clone();
    let friend = bench.user("friend").client_key().unwrap().id();
    admin.grant_client(friend, &GrantClient { role: ClientRole::Operator, name: Some("olga".into()) }).await.unwrap();
    let operator = client(&bench.user("friend"), nodes[1].registry()).await;
    until("the other node to know the operator", async || operator.vms(false).await.is_ok()).await;

    // Watched at one node, written through the other.
    let watched = operator.watch_audit(1).await.unwrap();
    pin_mut!(watched);
    let mut next = async || tokio::time::timeout(PATIENCE, watched.next()).await.unwrap().unwrap().unwrap();
    let first = next().await;
    assert_eq!(words(&first), (Some(me.as_str()), Deed::GrantClient, true), "{first:?}");
    assert!(first.object.contains(&friend.to_string()) && first.client.is_some());

    let created = admin.create_token(&CreateToken { ttl_ms: None, uses: None }).await.unwrap();
    assert_eq!(next().await.object, format!("{} uses=any ttl=unlimited", created.token.id));
    import(&admin, "tiny", kernel(1, 4096)).await;
    assert_eq!(words(&next().await), (Some(me.as_str()), Deed::AddImage, true));
    let mut request = vm("web", "tiny");
    request.seed.user_data = Some("password: hunter2".into());
    request.start = false;
    operator.create_vm(&request).await.unwrap();
    assert_eq!(words(&next().await), (Some("olga"), Deed::CreateVm, true));
    assert_eq!(fault(operator.create_vm(&request).await).0, FaultKind::Conflict);
    let rejected = next().await;
    assert_eq!(words(&rejected), (Some("olga"), Deed::CreateVm, false));
    assert_eq!(rejected.rejection.as_deref(), Some("a vm named web exists already"));
    // What is forbidden is no write: nobody can push others out of the trail with it.
    assert_eq!(fault(operator.create_token(&CreateToken::default()).await).0, FaultKind::Forbidden);
    operator.delete_vm(&request.name).await.unwrap();
    assert_eq!(words(&next().await), (Some("olga"), Deed::DeleteVm, true));

    let (here, there) = (admin.audit(1000).await.unwrap(), operator.audit(1000).await.unwrap());
    assert_eq!(here, there);
    let numbers: Vec<u64> = here.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, (1..=here.len() as u64).collect::<Vec<_>>());
    assert_eq!(words(&here[0]), (None, Deed::FoundCluster, true));
    assert_eq!(here.iter().filter(|entry| entry.deed == Deed::AdmitNode).count(), 1);
    assert_eq!(operator.audit(2).await.unwrap(), here[here.len() - 2..]);
    let all = format!("{here:?}");
    let secret = created.ticket.parse::<blixard_node::transport::Ticket>().unwrap().secret.unwrap();
    assert!(!all.contains("hunter2") && !all.contains(&secret.hash().to_string()), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_did_for_somebody_is_in_the_trail_of_all() {
    let bench = Bench::new();
    let (_, nodes, admin) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    let me = admin.clients().await.unwrap()[0].name.clone();
    let big = import(&admin, "big", kernel(1, 8 << 20)).await.name;
    let second = Some(NodeId(2));
    // Through the other node, and slow, so that there is time for the rest.
    let limits = SetLimits { down_bytes_per_s: Some(128 << 10), ..SetLimits::default() };
    admin.set_limits(second, &limits).await.unwrap();
    admin.fetch_image(&big, second, Some(Duration::from_secs(3600))).await.unwrap();
    until("it to be on its way", async || {
        admin.transfers().await.unwrap().iter().any(|view| !view.transfers.is_empty())
    })
    .await;
    for order in [TransferOrder::Pause, TransferOrder::Resume, TransferOrder::Cancel] {
        admin.order_transfer(&big, second, order).await.unwrap();
    }
    admin.pin(&big, None, true).await.unwrap();
    admin.pin(&big, None, false).await.unwrap();
    // What was refused has not been done.
    assert_eq!(fault(admin.order_transfer(&big, None, TransferOrder::Pause).await).0, FaultKind::NotFound);

    let at_second = bench.client(&nodes[1]).await;
    let mut told = Vec::new();
    until("all of it to be told", async || {
        let trail = at_second.audit(1000).await.unwrap();
        told = trail.into_iter().skip_while(|entry| entry.deed != Deed::LimitTransfers).collect();
        told.iter().filter(|entry| entry.deed.is_of_one_node()).count() == 7
    })
    .await;
    let of = |deed: Deed| {
        let found: Vec<_> = told.iter().filter(|entry| entry.deed == deed).collect();
        assert_eq!(found.len(), 1, "{deed}: {told:?}");
        assert_eq!(words(found[0]), (Some(me.as_str()), deed, true));
        found[0].object.clone()
    };
    assert_eq!(of(Deed::LimitTransfers), "node=2 up=none down=131072B/s");
    assert_eq!(of(Deed::FetchImage), "big node=2 deadline=3600000ms");
    for deed in [Deed::PauseTransfer, Deed::ResumeTransfer, Deed::CancelTransfer] {
        assert_eq!(of(deed), "big node=2");
    }
    assert_eq!((of(Deed::PinImage), of(Deed::UnpinImage)), ("big node=1".to_owned(), "big node=1".to_owned()));
}
