//! `blixard cluster`: nodes, settings, join tokens and clients.

use blixard_core::{EndpointId, NodeId, TokenId};
use blixard_node::api::{Client, CreateToken, TokenView};
use clap::{Args, Subcommand};

use super::audit;
use super::client;
use super::connect::NodeAddress;
use super::output::{self, Output, Table};
use super::status;
use super::values::{self, Ttl, Uses};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the cluster: its leader, its quorum margin and its nodes.
    #[command(after_help = "Examples:
  blixard cluster status
  blixard cluster status --addr ./data1/node-1-registry.json
  blixard cluster status --stale        ask though there is no leader
  blixard cluster status --all          every node of a large cluster
  blixard cluster status -o name        the numbers of the nodes")]
    Status {
        /// Show what the asked node last knew, without asking the leader whether that is current.
        #[arg(long)]
        stale: bool,
        /// Show every node. Without this, a large cluster shows those in trouble, the voters and some of the others.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Change settings that hold for the whole cluster.
    #[command(after_help = "Examples:
  blixard cluster set --voters 5        survive the loss of two nodes
  blixard cluster set --copies 3        keep each image on three nodes")]
    Set(Set),
    /// Take the asked node out of the cluster. It hands over its vote and then stops.
    #[command(after_help = "Examples:
  blixard cluster leave --addr 127.0.0.1:7003
  blixard cluster leave --addr 127.0.0.1:7003 --force")]
    Leave {
        /// Leave though vms are placed on the node or it holds the last copy of an image: both are lost.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Remove a node from the cluster, running or not.
    #[command(after_help = "Examples:
  blixard cluster remove 3
  blixard cluster remove 3 --force      its host is lost with all that was on it")]
    Remove {
        /// The number of the node.
        #[arg(value_name = "NODE", value_parser = values::node_id)]
        node: NodeId,
        /// Remove it though vms are placed on it or it holds the last copy of an image: both are lost.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make, list and revoke the tokens with which nodes join.
    #[command(subcommand)]
    Token(TokenVerb),
    /// Let a client use the cluster, or change what it may do.
    #[command(after_help = "Examples:
  blixard cluster grant $(sudo -u ada blixard client id) --role operator --name ada
  blixard cluster grant $(ssh desk blixard client id) --role viewer")]
    Grant(client::Grant),
    /// Take all rights from a client. What it has open ends.
    #[command(after_help = "Examples:
  blixard cluster revoke 1f0c9d2e4b8a37d5a8e0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f506")]
    Revoke {
        /// The id of the client's key, as `blixard cluster clients` shows it.
        #[arg(value_name = "CLIENT")]
        client: EndpointId,
        #[command(flatten)]
        output: Output,
    },
    /// List the clients and their roles.
    #[command(after_help = "Examples:
  blixard cluster clients
  blixard cluster clients -o json")]
    Clients {
        #[command(flatten)]
        output: Output,
    },
    /// Show who asked for which write when, and how it ended, rejected writes included.
    #[command(after_help = "Examples:
  blixard cluster log
  blixard cluster log -n 1000 -o json
  blixard cluster log -f")]
    Log(audit::Log),
}

/// Settings to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true, id = "settings")]
pub(super) struct Set {
    /// How many nodes vote: 1, 3, 5 or 7. The cluster goes on for as long as more than half of them run.
    #[arg(long, value_name = "N", group = "settings", value_parser = clap::value_parser!(u8))]
    voters: Option<u8>,
    /// On how many nodes each image is kept.
    #[arg(long, value_name = "N", group = "settings", value_parser = clap::value_parser!(u8).range(1..))]
    copies: Option<u8>,
    #[command(flatten)]
    output: Output,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// Make a token, and print the ticket that holds its secret. It is shown this once, and not with `-o name`, which prints
    /// the token's id.
    #[command(after_help = "Examples:
  blixard cluster token create                            one node, within an hour
  blixard cluster token create --ttl 7d --uses 20
  blixard node --id 2 --join $(blixard cluster token create)")]
    Create {
        /// How long it is good for, as in 30m, 12h or 7d, or `unlimited`: until it is revoked.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::ttl)]
        ttl: Ttl,
        /// How many nodes may join with it; 0 or `unlimited` for any number.
        #[arg(long, value_name = "N", default_value = "1", value_parser = values::uses)]
        uses: Uses,
        #[command(flatten)]
        output: Output,
    },
    /// List the tokens.
    #[command(after_help = "Examples:
  blixard cluster token list
  blixard cluster token list -o json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Revoke a token: nobody joins with it any more. Nodes that have joined stay.
    #[command(after_help = "Examples:
  blixard cluster token revoke 6a1f0c9d2e4b8a37")]
    Revoke {
        /// The token's id, as `blixard cluster token list` shows it.
        #[arg(value_name = "ID")]
        id: TokenId,
        #[command(flatten)]
        output: Output,
    },
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    node.ask(async |client| match verb {
        Verb::Status { stale, all, output } => {
            let view = client.cluster(stale).await?;
            output.show(&view, |view| status::text(view, all), |view| view.nodes.iter().map(|node| node.id).collect())
        }
        Verb::Set(set) => change_settings(client, set).await,
        Verb::Leave { force, output } => {
            let node = client.leave(force).await?;
            let answer = serde_json::json!({ "left": node });
            output.show(&answer, |_| format!("node {node} has left the cluster and stops\n"), |_| vec![node])
        }
        Verb::Remove { node, force, output } => {
            client.remove_node(node, force).await?;
            let answer = serde_json::json!({ "removed": node });
            output.show(&answer, |_| format!("node {node} is removed from the cluster\n"), |_| vec![node])
        }
        Verb::Token(verb) => run_token(client, verb).await,
        Verb::Grant(grant) => client::grant(client, grant).await,
        Verb::Revoke { client: revoked, output } => client::revoke(client, revoked, output).await,
        Verb::Clients { output } => client::list(client, output).await,
        Verb::Log(log) => audit::run(client, log).await,
    })
    .await
}

async fn change_settings(client: &Client, set: Set) -> anyhow::Result<()> {
    let mut settings = client.cluster(false).await?.settings;
    settings.voters = set.voters.unwrap_or(settings.voters);
    settings.copies = set.copies.unwrap_or(settings.copies);
    let view = client.change_settings(&settings).await?;
    set.output.show(
        &view,
        |view| format!("the cluster now has {}\n", status::settings(view)),
        |view| vec![view.cluster_id],
    )
}

async fn run_token(client: &Client, verb: TokenVerb) -> anyhow::Result<()> {
    match verb {
        TokenVerb::Create { ttl: Ttl(ttl), uses: Uses(uses), output } => {
            let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            let created = client.create_token(&CreateToken { ttl_ms, uses }).await?;
            // The ticket stands alone on standard output, for `--join $(...)`; what it is good for goes beside it.
            output.show(
                &created,
                |created| format!("{}\n", output::clean(&created.ticket)),
                |created| vec![created.token.id],
            )?;
            let nodes = match uses {
                None => "any number of nodes".to_owned(),
                Some(1) => "one node".to_owned(),
                Some(uses) => format!("{uses} nodes"),
            };
            let end = ttl_ms.map_or_else(|| "until it is revoked".to_owned(), |ms| format!("for {}", output::span(ms)));
            output::note(&format!(
                "lets in {nodes} {end}, by `blixard node --join TICKET`; token {}",
                created.token.id
            ));
            Ok(())
        }
        TokenVerb::List { output } => {
            let ids = |tokens: &Vec<TokenView>| tokens.iter().map(|token| token.id).collect();
            output.show(&client.tokens().await?, |tokens| tokens_text(tokens), ids)
        }
        TokenVerb::Revoke { id, output } => {
            client.revoke_token(id).await?;
            output.show(&serde_json::json!({ "revoked": id }), |_| format!("token {id} is revoked\n"), |_| vec![id])
        }
    }
}

fn tokens_text(tokens: &[TokenView]) -> String {
    let mut table = Table::new(&["ID", "STATE", "USES LEFT", "EXPIRES IN", "AGE"]);
    for token in tokens {
        let expires = match token.expires_at {
            None => "never".to_owned(),
            Some(at) => match at.since_ms(output::now()) {
                0 => "over".to_owned(),
                ms => output::span(ms),
            },
        };
        let uses = token.uses_left.map_or_else(|| "any".to_owned(), |uses| uses.to_string());
        table.row([&token.id, &token.state, &uses, &expires, &output::age(token.created_at)]);
    }
    table.render()
}
