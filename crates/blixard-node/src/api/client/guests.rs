//! Requests for what a guest says on its serial console.

use std::io;

use anyhow::{Context, anyhow};
use axum::body::Body;
use blixard_core::{VmId, VmName};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Client, ClientError, pieces_of, unreachable};
use crate::api::{CONSOLE_UPGRADE, LOG_POSITION_HEADER, VM_HEADER};

/// Where in a vm's console log to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// With the last so many bytes.
    Last(u64),
    /// Behind so many bytes of all that the guest ever wrote: where an earlier answer ended. What is not kept any more is left
    /// out.
    At(u64),
}

/// A vm's console log as it comes.
pub struct VmLog {
    /// The vm: another one may have got the name since it was last asked for.
    pub vm: VmId,
    /// How many bytes the guest had written before the first of these.
    pub position: u64,
    /// What it wrote, without a gap. A stream that is cut off ends with an error.
    pub content: BoxStream<'static, io::Result<Bytes>>,
}

impl Client {
    /// The vm's console log from `start` on, and with `follow` what comes after, until the vm is gone or the stream is
    /// dropped.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn vm_logs(&self, name: &VmName, follow: bool, start: LogStart) -> Result<VmLog, ClientError> {
        let start = match start {
            LogStart::Last(bytes) => format!("tail_bytes={bytes}"),
            LogStart::At(position) => format!("from={position}"),
        };
        let answer = self.open_stream(&format!("/v1/vms/{name}/logs?follow={follow}&{start}")).await?;
        let header = |name: &str| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.ok_or_else(|| ClientError::Unreadable(anyhow!("the log came without {name}")))
        };
        let unreadable = |what: &str| ClientError::Unreadable(anyhow!("the log came with a bad {what}"));
        let vm = header(VM_HEADER)?.parse().map_err(|_| unreadable(VM_HEADER))?;
        let position = header(LOG_POSITION_HEADER)?.parse().map_err(|_| unreadable(LOG_POSITION_HEADER))?;
        Ok(VmLog { vm, position, content: pieces_of(answer).boxed() })
    }

    /// The vm's serial console, both ways. The reader must not be left unread for long: what a slow reader does not take
    /// is dropped by the node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn vm_console(
        &self,
        name: &VmName,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ClientError> {
        let request = Request::get(format!("/v1/vms/{name}/console"))
            .header(http::header::HOST, "blixard")
            .header(http::header::CONNECTION, "upgrade")
            .header(http::header::UPGRADE, CONSOLE_UPGRADE)
            .body(Body::empty())
            .map_err(unreachable)?;
        let answer = self.once(request).await?;
        let upgraded = hyper::upgrade::on(answer).await.context("switch to the console").map_err(ClientError::Lost)?;
        Ok(TokioIo::new(upgraded))
    }
}
