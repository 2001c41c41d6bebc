//! The way out for programs inside: a port on the loopback interface, whose connections lead to the gateway outside.
//!
//! The host understands nothing of what is said there. Each connection has one of its own to the server, which says first whose container
//! it is; so programs have no key, and none of them reaches another session's gateway.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use raworc_core::limits::GATEWAY_CONNECTIONS_MAX;
use raworc_core::link::{HostFrame, SESSION_KEY, TURN_KEY_PREFIX, Versions, WorkId};
use rustix::event::PollFlags;

use crate::connection::dial;
use crate::output::Buffer;
use crate::relay::{End, Relay};
use crate::reports::line;

/// How long a program is kept waiting for a server that is not there, as while it restarts.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between attempts to reach a server that has no room for another connection.
const REDIAL_PAUSE: Duration = Duration::from_millis(20);

/// A source that poll reports as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewaySource {
    /// A program connects.
    Listener,
    /// One end of a connection.
    Relay(u64, End),
}

/// The port, and the connections that came from there.
pub struct Gateway {
    /// The first frame of each connection to the server.
    hello: Vec<u8>,
    socket: PathBuf,
    listener: Option<TcpListener>,
    relays: BTreeMap<u64, Relay>,
    /// The number of the next connection.
    next: u64,
    /// No connection to the server is attempted before.
    dial_at: Instant,
    buffer: Buffer,
}

impl Gateway {
    /// Listens at `address`. Without an address, or where it is taken, programs find nobody there.
    pub fn listen(address: Option<SocketAddrV4>, token: &str, socket: PathBuf, now: Instant) -> Self {
        let listener = address.and_then(|address| match TcpListener::bind(address) {
            Ok(listener) => listener.set_nonblocking(true).is_ok().then_some(listener),
            Err(error) => {
                eprintln!("programs cannot reach the gateway at {address}: {error}");
                None
            }
        });
        let hello = line(&HostFrame::Gateway { versions: Versions::OURS, token: token.to_owned() });
        Self {
            hello: hello.unwrap_or_default().into_bytes(),
            socket,
            listener,
            relays: BTreeMap::new(),
            next: 0,
            dial_at: now,
            buffer: Buffer::default(),
        }
    }

    /// The variables that lead the usual clients of models here, for one work. The key is worth nothing; it says which turn calls.
    pub fn variables(address: SocketAddrV4, work: WorkId) -> [(&'static str, String); 6] {
        let key = match work {
            WorkId::Turn(turn) => format!("{TURN_KEY_PREFIX}{turn}"),
            WorkId::Exec(_) => SESSION_KEY.to_owned(),
        };
        let root = format!("http://{address}");
        [
            ("OPENAI_BASE_URL", format!("{root}/v1")),
            ("OPENAI_API_KEY", key.clone()),
            ("ANTHROPIC_BASE_URL", root.clone()),
            ("ANTHROPIC_API_KEY", key.clone()),
            ("GOOGLE_GEMINI_BASE_URL", root),
            ("GEMINI_API_KEY", key),
        ]
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddrV4> {
        match self.listener.as_ref()?.local_addr().ok()? {
            std::net::SocketAddr::V4(address) => Some(address),
            std::net::SocketAddr::V6(_) => None,
        }
    }

    /// The descriptors to poll. While there is no room for another connection, the next one waits to be accepted.
    pub fn sources(&self) -> Vec<(GatewaySource, BorrowedFd<'_>, PollFlags)> {
        let has_room = self.relays.len() < GATEWAY_CONNECTIONS_MAX;
        let listener = self.listener.as_ref().filter(|_| has_room);
        let mut sources: Vec<_> =
            listener.map(|listener| (GatewaySource::Listener, listener.as_fd(), PollFlags::IN)).into_iter().collect();
        for (id, relay) in &self.relays {
            sources.extend(relay.sources().map(|(end, fd, flags)| (GatewaySource::Relay(*id, end), fd, flags)));
        }
        sources
    }

    /// Handles a ready descriptor.
    pub fn handle_ready(&mut self, source: GatewaySource, now: Instant) {
        match source {
            GatewaySource::Listener => self.accept(now),
            GatewaySource::Relay(id, end) => {
                let Some(relay) = self.relays.get_mut(&id) else { return };
                if !relay.handle_ready(end, self.buffer.as_mut_slice()) {
                    self.relays.remove(&id);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        let Some(listener) = &self.listener else { return };
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok(relay) = Relay::new(stream, self.hello.clone(), now + SERVER_TIMEOUT) {
                    self.relays.insert(self.next, relay);
                    self.next += 1;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Out of descriptors, most likely: a program that has all of them waits for itself.
            Err(error) => eprintln!("a program's connection to the gateway could not be accepted: {error}"),
        }
    }

    /// When [`Gateway::handle_timers`] has to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.relays.values().filter_map(Relay::give_up_at).min()?;
        Some(waiting.min(self.dial_at))
    }

    /// Connects to the server what is not connected yet, and gives up what has waited too long. `is_connected` says whether the server is
    /// there at all.
    pub fn handle_timers(&mut self, now: Instant, is_connected: bool) {
        if self.next_deadline().is_none() {
            return;
        }
        self.relays.retain(|_, relay| relay.give_up_at().is_none_or(|at| at > now));
        if self.dial_at > now {
            return;
        }
        for relay in self.relays.values_mut().filter(|relay| relay.give_up_at().is_some()) {
            let dialled = if is_connected { dial(&self.socket).ok() } else { None };
            let Some(stream) = dialled else {
                self.dial_at = now + REDIAL_PAUSE;
                return;
            };
            relay.connect(stream);
        }
    }
}
