//! The part of the NBD protocol that a hypervisor needs to read a disk: the fixed newstyle handshake with one export, simple
//! replies, reads.
//!
//! The other end is a hypervisor, which a guest may have taken over: what it sends is bounded before it is read, and what is not
//! understood ends the connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// The longest read. A client is told so, and each read under way takes so much memory at most.
pub(super) const READ_BYTES_MAX: u32 = 1 << 20;
/// The longest option: a client names an export, for which we care little, and what it wants to know.
const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Options until a handshake has gone on for too long.
const OPTIONS_MAX: usize = 32;
/// A client on the same host takes milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const HANDSHAKE_FIXED: u16 = 1;
const HANDSHAKE_NO_ZEROES: u16 = 2;
/// It has flags, and is read-only.
const EXPORT_FLAGS: u16 = 1 | 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const SAID_ACK: u32 = 1;
const SAID_INFO: u32 = 3;
const SAID_UNSUPPORTED: u32 = (1 << 31) + 1;
const SAID_INVALID: u32 = (1 << 31) + 3;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;

/// Why a read, or what is no read, fails, in the numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The content cannot be had.
    Io,
    /// The request makes no sense, or is for something that a disk to be read does not do.
    Invalid,
}

impl Trouble {
    fn number(self) -> u32 {
        match self {
            Self::Io => 5,
            Self::Invalid => 22,
        }
    }
}

/// What a client asks for once the handshake is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Bytes of the disk.
    Read {
        /// By which the client knows the reply.
        cookie: u64,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        length: u32,
    },
    /// Something that is answered with an error.
    Refused {
        /// By which the client knows the reply.
        cookie: u64,
    },
    /// To be left alone.
    Disconnect,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Agrees with a client on the export of this size. Whether it goes on to ask for content; otherwise it wanted to know something.
///
/// # Errors
/// When the client breaks off, takes too long, or does not speak the protocol.
pub(super) async fn shake_hands(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    export_bytes: u64,
) -> io::Result<bool> {
    timeout(HANDSHAKE_TIMEOUT, handshake(stream, export_bytes)).await?
}

async fn handshake(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), export_bytes: u64) -> io::Result<bool> {
    stream.write_u64(SERVER_MAGIC).await?;
    stream.write_u64(OPTION_MAGIC).await?;
    stream.write_u16(HANDSHAKE_FIXED | HANDSHAKE_NO_ZEROES).await?;
    let flags = stream.read_u32().await?;
    if flags & !u32::from(HANDSHAKE_FIXED | HANDSHAKE_NO_ZEROES) != 0 {
        return Err(broken("flags that nobody offered"));
    }
    for _ in 0..OPTIONS_MAX {
        if stream.read_u64().await? != OPTION_MAGIC {
            return Err(broken("not an option"));
        }
        let (option, length) = (stream.read_u32().await?, stream.read_u32().await?);
        if length > OPTION_BYTES_MAX {
            return Err(broken("an option that is too long"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        match option {
            OPTION_EXPORT_NAME => {
                stream.write_u64(export_bytes).await?;
                stream.write_u16(EXPORT_FLAGS).await?;
                if flags & u32::from(HANDSHAKE_NO_ZEROES) == 0 {
                    stream.write_all(&[0; 124]).await?;
                }
                return Ok(true);
            }
            OPTION_INFO | OPTION_GO if names_export(&data) => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(export_bytes.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                say(stream, option, SAID_INFO, &export).await?;
                let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for bytes in [1, 4096, READ_BYTES_MAX] {
                    sizes.extend(bytes.to_be_bytes());
                }
                say(stream, option, SAID_INFO, &sizes).await?;
                say(stream, option, SAID_ACK, &[]).await?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_INFO | OPTION_GO => say(stream, option, SAID_INVALID, &[]).await?,
            OPTION_ABORT => {
                say(stream, option, SAID_ACK, &[]).await?;
                return Ok(false);
            }
            _ => say(stream, option, SAID_UNSUPPORTED, &[]).await?,
        }
    }
    Err(broken("options without end"))
}

/// Whether the data of an option is a name, of which any will do, and a list of what the client wants to know.
fn names_export(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return false };
    let Some(rest) = rest.get(u32::from_be_bytes(*length) as usize..) else { return false };
    let Some((count, rest)) = rest.split_first_chunk::<2>() else { return false };
    rest.len() == usize::from(u16::from_be_bytes(*count)) * 2
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    stream.write_u64(OPTION_REPLY_MAGIC).await?;
    stream.write_u32(option).await?;
    stream.write_u32(kind).await?;
    stream.write_u32(u32::try_from(data.len()).map_err(io::Error::other)?).await?;
    stream.write_all(data).await
}

/// Reads the next request; nothing when the client has gone.
///
/// # Errors
/// When it breaks off in the middle, or what it sends is no request, or cannot be passed over.
pub(super) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Request>> {
    let mut head = [0; 28];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let mut fields = &head[..];
    let (magic, flags, command) = (fields.read_u32().await?, fields.read_u16().await?, fields.read_u16().await?);
    let (cookie, offset, length) = (fields.read_u64().await?, fields.read_u64().await?, fields.read_u32().await?);
    if magic != REQUEST_MAGIC {
        return Err(broken("not a request"));
    }
    Ok(Some(match command {
        COMMAND_READ if flags == 0 && (1..=READ_BYTES_MAX).contains(&length) => {
            Request::Read { cookie, offset, length }
        }
        // The bytes to be written follow, and would be taken for requests.
        COMMAND_WRITE => return Err(broken("a write, to a disk that is only read")),
        COMMAND_DISCONNECT => Request::Disconnect,
        _ => Request::Refused { cookie },
    }))
}

/// Writes the reply to a request: the content, or what was the trouble.
///
/// # Errors
/// When the client is gone.
pub(super) async fn reply(
    stream: &mut (impl AsyncWrite + Unpin),
    cookie: u64,
    content: Result<&[u8], Trouble>,
) -> io::Result<()> {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&content.map_or_else(Trouble::number, |_| 0).to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    stream.write_all(&head).await?;
    if let Ok(content) = content {
        stream.write_all(content).await?;
    }
    stream.flush().await
}

/// Listens to all that a client sends, and answers no read.
///
/// # Errors
/// When it is not what a client sends.
pub(crate) async fn hear_out(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    if !shake_hands(client, 1 << 30).await? {
        return Ok(());
    }
    loop {
        match read_request(client).await?.ok_or_else(|| broken("it left without a word"))? {
            Request::Read { length, .. } if length > READ_BYTES_MAX => return Err(broken("too much is asked for")),
            Request::Read { cookie, .. } | Request::Refused { cookie } => {
                reply(client, cookie, Err(Trouble::Invalid)).await?;
            }
            Request::Disconnect => return Ok(()),
        }
    }
}
