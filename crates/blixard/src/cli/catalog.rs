//! `blixard catalog`: images that clusters publish for each other.

use std::time::Duration;

use anyhow::bail;
use blixard_core::{DocumentName, ImageName};
use blixard_node::api::{
    CatalogView, Client, CreateDocumentShare, DocumentTicket, PublishImage, PublishedView, PullImage, PullView,
};
use clap::Subcommand;

use super::connect::NodeAddress;
use super::fetch::given_ticket;
use super::image::kind_word;
use super::output::{self, Output, Table};
use super::progress::StatusLine;
use super::values::{self, Ttl};
use crate::failure::Failure;

/// How often it is asked how far a pull is.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What to do with catalogs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Publish images of this cluster, and print a ticket with which other clusters follow what is published.
    #[command(after_help = "Examples:
  blixard catalog publish debian appliance
  blixard catalog publish debian --note 'with the updates of May' --expires 30d
  blixard catalog publish                 only a ticket

The tickets are those of the document `catalog`: see `blixard doc share catalog --list`, and `--stop`.")]
    Publish {
        /// The images' names.
        #[arg(value_name = "IMAGE")]
        images: Vec<ImageName>,
        /// What to say of them, at most 1000 characters.
        #[arg(long, value_name = "TEXT", requires = "images")]
        note: Option<String>,
        /// How long the ticket holds, as in 30m, 24h or 7d, or `unlimited`: until it is stopped.
        #[arg(long, value_name = "TIME", default_value = "unlimited", value_parser = values::ttl)]
        expires: Ttl,
        #[command(flatten)]
        output: Output,
    },
    /// Take a published image back. What others have pulled is theirs.
    #[command(after_help = "Examples:
  blixard catalog withdraw debian")]
    Withdraw {
        /// The image's name.
        #[arg(value_name = "IMAGE")]
        image: ImageName,
        #[command(flatten)]
        output: Output,
    },
    /// Follow what another cluster publishes, with its ticket.
    #[command(after_help = "Examples:
  blixard catalog follow blixarddocaf3... --as upstream")]
    Follow {
        /// The ticket that `blixard catalog publish` printed there, or - to read it from standard input.
        #[arg(value_name = "TICKET")]
        ticket: String,
        /// What to call the catalog here.
        #[arg(long = "as", value_name = "NAME")]
        name: DocumentName,
        #[command(flatten)]
        output: Output,
    },
    /// Follow a catalog no longer. Images that were pulled from it stay.
    #[command(after_help = "Examples:
  blixard catalog unfollow upstream")]
    Unfollow {
        /// The catalog's name here.
        #[arg(value_name = "NAME")]
        name: DocumentName,
        #[command(flatten)]
        output: Output,
    },
    /// List what this cluster publishes, and what those publish that it follows.
    #[command(after_help = "Examples:
  blixard catalog list")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Pull an image from a cluster that is followed. It is an image of this cluster then.
    #[command(after_help = "Examples:
  blixard catalog pull upstream debian
  blixard catalog pull upstream debian --name debian-upstream
  blixard catalog pull upstream debian --no-wait

It goes on when it is interrupted: `blixard transfer list` shows it, and `blixard transfer cancel` gives it up.")]
    Pull {
        /// The catalog's name here.
        #[arg(value_name = "CATALOG")]
        catalog: DocumentName,
        /// The image's name in the catalog.
        #[arg(value_name = "IMAGE")]
        image: ImageName,
        /// What to call it here; without it, as in the catalog.
        #[arg(long, value_name = "NAME")]
        name: Option<ImageName>,
        /// Do not wait until it is here.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Publish { images, note, expires: Ttl(ttl), output } => {
            let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            node.ask(async |client| publish(client, &images, &note, ttl_ms, output).await).await
        }
        Verb::Withdraw { image, output } => {
            node.ask(async |client| {
                client.withdraw_image(&image).await?;
                let answer = serde_json::json!({ "withdrawn": image });
                output.show(&answer, |_| format!("{image} is published no longer\n"), |_| vec![image.clone()])
            })
            .await
        }
        Verb::Follow { ticket, name, output } => {
            let ticket: DocumentTicket = given_ticket(&ticket)?;
            if ticket.name != DocumentName::catalog() {
                bail!(Failure::usage("this is the ticket of a document and not of a catalog: see `blixard doc join`"));
            }
            node.ask(async |client| {
                client.join_document(&name, &ticket.to_string()).await?;
                let answer = serde_json::json!({ "name": name });
                output.show(&answer, |_| format!("catalog {name} is followed\n"), |_| vec![name.clone()])
            })
            .await
        }
        Verb::Unfollow { name, output } => {
            node.ask(async |client| {
                client.leave_document(&name).await?;
                let answer = serde_json::json!({ "left": name });
                output.show(&answer, |_| format!("catalog {name} is followed no longer\n"), |_| vec![name.clone()])
            })
            .await
        }
        Verb::List { output } => {
            node.ask(async |client| output.show(&client.catalogs().await?, |all| text(all), |all| names(all))).await
        }
        Verb::Pull { catalog, image, name, no_wait, output } => {
            node.ask(async |client| {
                let name = name.as_ref();
                let pulled = pull(client, &catalog, &image, name, no_wait).await?;
                let named = name.unwrap_or(&image);
                let words = if pulled.here { "is here" } else { "is on its way: see `blixard transfer list`" };
                output.show(&pulled, |_| format!("image {named} {words}\n"), |_| vec![named.clone()])
            })
            .await
        }
    }
}

async fn publish(
    client: &Client,
    images: &[ImageName],
    note: &Option<String>,
    ttl_ms: Option<u64>,
    output: Output,
) -> anyhow::Result<()> {
    for image in images {
        client.publish_image(image, &PublishImage { note: note.clone() }).await?;
    }
    let catalog = DocumentName::catalog();
    if images.is_empty() {
        client.create_document(&catalog).await?;
    }
    let created = client.share_document(&catalog, CreateDocumentShare { write: false, ttl_ms }).await?;
    // The ticket stands alone on standard output, for another command; what it is good for goes beside it.
    output.show(
        &created,
        |created| format!("{}\n", output::clean(&created.ticket)),
        |created| vec![created.share.id],
    )?;
    let end = ttl_ms.map_or_else(|| "until it is stopped".to_owned(), |ms| format!("for {}", output::span(ms)));
    let id = created.share.id;
    let words = "whoever has the ticket sees and pulls what this cluster publishes";
    output::note(&format!("{words}, {end}, by `blixard catalog follow TICKET --as NAME`; ticket {id}"));
    Ok(())
}

/// Asks for an image until it is here, unless nobody waits for it.
async fn pull(
    client: &Client,
    catalog: &DocumentName,
    image: &ImageName,
    name: Option<&ImageName>,
    no_wait: bool,
) -> anyhow::Result<PullView> {
    let mut asked = PullImage { name: name.cloned(), again: false };
    let line = StatusLine::start();
    loop {
        let pulled = client.pull_image(catalog, image, &asked).await?;
        if pulled.here || no_wait {
            return Ok(pulled);
        }
        asked.again = true;
        line.set(&progress(image, &pulled));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn progress(image: &ImageName, pulled: &PullView) -> String {
    let (done, total) = (output::bytes(pulled.bytes_done), output::bytes(pulled.bytes_total));
    match &pulled.failure {
        Some(failure) => format!("pulling {image}: {}; it is tried again", output::clean(failure)),
        None if pulled.bytes_total == 0 => format!("pulling {image}: looking for it"),
        None => format!("pulling {image}: {done} of {total} from {} nodes", pulled.sources),
    }
}

fn names(catalogs: &[CatalogView]) -> Vec<String> {
    let of = |catalog: &CatalogView| {
        catalog.images.iter().map(|image| format!("{}/{}", catalog.name, image.name)).collect::<Vec<_>>()
    };
    catalogs.iter().flat_map(of).collect()
}

fn text(catalogs: &[CatalogView]) -> String {
    let mut table = Table::new(&["CATALOG", "IMAGE", "KIND", "SIZE", "AGE", "STATE", "NOTE"]);
    for catalog in catalogs {
        if let Some(failure) = catalog.origin.as_ref().and_then(|origin| origin.failure.as_ref()) {
            table.row([&catalog.name, &"-", &"", &"", &"", &output::clean(failure), &""]);
        }
        for image in &catalog.images {
            let note = output::clean(image.note.as_deref().unwrap_or_default());
            table.row([
                &catalog.name,
                &image.name,
                &kind_word(image.kind),
                &output::bytes(image.bytes),
                &output::age(image.published_at),
                &state(catalog, image),
                &note,
            ]);
        }
    }
    table.render()
}

fn state(catalog: &CatalogView, image: &PublishedView) -> String {
    match (&image.here_as, &catalog.origin) {
        (Some(_), None) => "published".to_owned(),
        (None, None) => "deleted here".to_owned(),
        (Some(name), Some(_)) => format!("here as {name}"),
        (None, Some(_)) if image.coming => "on its way".to_owned(),
        (None, Some(_)) => "can be pulled".to_owned(),
    }
}
