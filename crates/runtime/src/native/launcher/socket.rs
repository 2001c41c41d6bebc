//! The socket between server and launcher: whole packets of JSON, with at most one descriptor.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use raworc_launcher::protocol::PACKET_BYTES_MAX;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::native::tasks::pollable;

/// The server's end.
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// The server's end and the launcher's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self(pollable(ours, Interest::READABLE | Interest::WRITABLE)?), theirs))
    }

    /// Sends one packet. May be cancelled: the packet then was not sent.
    pub async fn send<T: Serialize>(&self, value: &T, descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let json = serde_json::to_vec(value)?;
        let write = |socket: &OwnedFd| {
            let descriptors = descriptor.map(AsFd::as_fd);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if descriptors.is_some() {
                control.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()));
            }
            Ok(sendmsg(socket, &[IoSlice::new(&json)], &mut control, SendFlags::NOSIGNAL).map(drop)?)
        };
        self.0.async_io(Interest::WRITABLE, write).await
    }

    /// The next packet. May be cancelled: the packet then stays.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let read = |socket: &OwnedFd| Ok(recv(socket, packet.as_mut_slice(), RecvFlags::empty())?.0);
        let length: usize = self.0.async_io(Interest::READABLE, read).await?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher closed its socket"));
        }
        Ok(serde_json::from_slice(&packet[..length])?)
    }
}
