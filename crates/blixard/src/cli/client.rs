//! `blixard client`, which is about this user's own key, and the verbs of `blixard cluster` that are about everybody's.

use blixard_core::{ClientRole, EndpointId};
use blixard_node::api::{Client, ClientView, GrantClient};
use blixard_node::user::UserState;
use clap::{Args, Subcommand};

use super::output::{self, Output, Table};

/// What to do with this user's key.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Print the id of your client key, by which clusters know you. The key is made when there is none.
    #[command(after_help = "Examples:
  blixard client id                     give this to an admin of the cluster
  blixard client id -o json")]
    Id {
        #[command(flatten)]
        output: Output,
    },
}

/// Whom to let in, and what for.
#[derive(Debug, Args)]
pub(super) struct Grant {
    /// The id of the client's key, as `blixard client id` prints it for its user.
    #[arg(value_name = "CLIENT")]
    client: EndpointId,
    /// What the client may ask for: a viewer sees, an operator also runs vms and images, an admin also changes the cluster.
    #[arg(long, value_name = "viewer|operator|admin")]
    role: ClientRole,
    /// A word for people. Without it the client keeps its name, or is known by the beginning of its id.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Does what was asked for. No node is asked.
pub(super) fn run(verb: Verb) -> anyhow::Result<()> {
    let Verb::Id { output } = verb;
    let user = UserState::locate()?;
    let (id, name) = (user.client_key()?.id(), user.user_name());
    // The id stands alone on standard output, for scripts; what to do with it goes beside it.
    output.show(&serde_json::json!({ "id": id, "name": name }), |_| format!("{id}\n"), |_| vec![id])?;
    output::note("an admin lets it in with `blixard cluster grant`, this id, and a --role");
    Ok(())
}

/// Lets a client in, or changes what it may do.
pub(super) async fn grant(client: &Client, grant: Grant) -> anyhow::Result<()> {
    let request = GrantClient { role: grant.role, name: grant.name };
    let granted = client.grant_client(grant.client, &request).await?;
    grant.output.show(
        &granted,
        |granted| format!("client {} ({}) is {}\n", output::clean(&granted.name), granted.id.short(), granted.role),
        |granted| vec![granted.id],
    )
}

/// Takes all rights from a client.
pub(super) async fn revoke(client: &Client, revoked: EndpointId, output: Output) -> anyhow::Result<()> {
    client.revoke_client(revoked).await?;
    let answer = serde_json::json!({ "revoked": revoked });
    output.show(&answer, |_| format!("client {} is revoked\n", revoked.short()), |_| vec![revoked])
}

/// Shows who may ask.
pub(super) async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let ids = |clients: &Vec<ClientView>| clients.iter().map(|client| client.id).collect();
    output.show(&client.clients().await?, |clients| clients_text(clients), ids)
}

fn clients_text(clients: &[ClientView]) -> String {
    let mut table = Table::new(&["NAME", "ROLE", "AGE", "CLIENT"]);
    for client in clients {
        table.row([&client.name, &client.role, &output::age(client.added_at), &client.id]);
    }
    table.render()
}
