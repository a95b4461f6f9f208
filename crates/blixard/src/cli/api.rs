//! `blixard api`: the control API for other programs.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_node::api::{Client, Proxy, openapi};
use clap::{Args, Subcommand};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::connect::NodeAddress;
use super::output;
use crate::failure::Failure;

/// Bytes of the secret that a loopback port asks for: nobody guesses it.
const SECRET_BYTES: usize = 32;

/// What to do with the API.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Print the OpenAPI document of the control API.
    #[command(after_help = "Examples:
  blixard api openapi > openapi.json")]
    Openapi,
    /// Pass requests of tools on this host on to the cluster, with your key, until Ctrl-C.
    ///
    /// Whoever reaches the proxy acts as you. A socket file can be opened by you alone; a loopback port can be reached by
    /// everybody on this host, so each request there must bear the token that is printed.
    #[command(after_help = "Examples:
  blixard api proxy --socket ./blixard.sock
  curl --unix-socket ./blixard.sock http://blixard/v1/vms
  blixard api proxy --listen 127.0.0.1:8080
  curl -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:8080/v1/vms")]
    Proxy(ProxyArgs),
}

/// Where tools reach the proxy.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct ProxyArgs {
    /// A socket file to make.
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// A loopback address and port.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    listen: Option<SocketAddr>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err("only a loopback address will do: others on the network would act as you".to_owned()),
        Err(_) => Err("expected a loopback address with a port, such as 127.0.0.1:8080".to_owned()),
    }
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Openapi => {
            let text = serde_json::to_string_pretty(&openapi()).context("encode the document")? + "\n";
            output::print(text.as_bytes())
        }
        Verb::Proxy(ProxyArgs { socket: Some(path), .. }) => {
            node.ask(async |client| until_interrupted(on_socket(client, &path)).await).await
        }
        Verb::Proxy(ProxyArgs { listen: Some(address), .. }) => {
            node.ask(async |client| until_interrupted(on_port(client, address)).await).await
        }
        Verb::Proxy(_) => bail!(Failure::usage("name a socket file or a loopback address")),
    }
}

async fn until_interrupted(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        served = serving => served,
        // That is how it is ended.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// A socket file that is gone when this is.
struct SocketFile<'a>(&'a Path);

impl Drop for SocketFile<'_> {
    fn drop(&mut self) {
        // Nobody can do anything about it any more.
        let _ = std::fs::remove_file(self.0);
    }
}

async fn on_socket(client: &Client, path: &Path) -> anyhow::Result<()> {
    if UnixStream::connect(path).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        // Left behind by a proxy that was killed.
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    // Before the name is there, so that at no time others may open it.
    let others = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(others);
    let listener = listener.with_context(|| format!("listen on {}", path.display()))?;
    let _file = SocketFile(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context("close the socket to others")?;
    output::note(&format!("curl --unix-socket {} http://blixard/v1/cluster", path.display()));
    let proxy = Proxy::new(client.clone(), None);
    loop {
        let (stream, _) = listener.accept().await.context("accept a tool")?;
        tokio::spawn(proxy.clone().serve(stream));
    }
}

async fn on_port(client: &Client, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let address = listener.local_addr().context("learn the port")?;
    let mut drawn = [0; SECRET_BYTES];
    getrandom::fill(&mut drawn).context("draw a token")?;
    let secret: String = drawn.iter().map(|byte| format!("{byte:02x}")).collect();
    output::note("warning: who has this token acts as you, for as long as this runs");
    output::note(&format!("curl -H 'Authorization: Bearer {secret}' http://{address}/v1/cluster"));
    // Alone on standard output, for programs.
    output::print(format!("{secret}\n").as_bytes())?;
    let proxy = Proxy::new(client.clone(), Some(secret));
    loop {
        let (stream, _) = listener.accept().await.context("accept a tool")?;
        tokio::spawn(proxy.clone().serve(stream));
    }
}
