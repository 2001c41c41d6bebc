//! The hosts that are connected, or were a moment ago: their leases, and the execs they run.
//!
//! Kept in memory only. After a restart every host that the records call running gets a full lease to come back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::ids::ContainerId;
use raworc_core::limits::LEASE;
use raworc_core::link::{Attach, Report, ServerFrame, Work, WorkId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::sync::lock;

/// Frames that wait for one host.
const FRAMES: usize = 256;
/// Reports of one exec that wait for whoever asked for it.
const EXEC_REPORTS: usize = 256;

/// Why an exec was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecRejection {
    /// No host is connected.
    NoHost,
    /// The host is of an older version and cannot do it.
    Outdated,
    /// The container for which it was recorded is no more.
    Replaced,
}

struct Host {
    heard: Instant,
    background: u32,
    /// By how many it is kept from saying that it lives.
    stopped: u32,
    /// Which connection speaks for it, and the way to it; absent while it is away.
    connection: Option<(u64, mpsc::Sender<ServerFrame>)>,
    execs: HashMap<Uuid, mpsc::Sender<Report>>,
    /// It understands `attach`.
    can_attach: bool,
    /// Terminals, and commands whose streams are attached.
    streams: BTreeSet<Uuid>,
    /// The newest report of an exec that was passed on: what comes again after a broken connection is not.
    passed_on: u64,
}

impl Host {
    fn is_lost(&self) -> bool {
        self.stopped == 0 && self.heard.elapsed() > LEASE
    }
}

/// A host stands still, and has nothing to answer for.
pub struct LeaseSuspension<'h> {
    hosts: &'h Hosts,
    container: ContainerId,
}

impl Drop for LeaseSuspension<'_> {
    fn drop(&mut self) {
        if let Some(host) = lock(&self.hosts.hosts).get_mut(&self.container) {
            host.stopped = host.stopped.saturating_sub(1);
            host.heard = Instant::now();
        }
    }
}

/// Something that is recorded as begun, or about to be, and of which the host has not been told.
pub struct StartGuard<'h> {
    hosts: &'h Hosts,
    id: Uuid,
}

impl Drop for StartGuard<'_> {
    fn drop(&mut self) {
        lock(&self.hosts.beginning).remove(&self.id);
    }
}

/// All hosts.
pub struct Hosts {
    hosts: Mutex<BTreeMap<ContainerId, Host>>,
    beginning: Mutex<BTreeSet<Uuid>>,
    connections: watch::Sender<u64>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { hosts: Mutex::default(), beginning: Mutex::default(), connections: watch::channel(0).0 }
    }
}

impl Hosts {
    /// A host is expected, and has a full lease from now on.
    pub fn expect(&self, container: ContainerId) {
        let host = Host {
            heard: Instant::now(),
            background: 0,
            stopped: 0,
            connection: None,
            execs: HashMap::new(),
            can_attach: false,
            streams: BTreeSet::new(),
            passed_on: 0,
        };
        lock(&self.hosts).entry(container).or_insert(host);
    }

    /// A connection speaks for this host from now on, instead of any older one: its number, and frames to pass on.
    pub fn connect(&self, container: ContainerId) -> (u64, mpsc::Receiver<ServerFrame>) {
        let (sender, receiver) = mpsc::channel(FRAMES);
        let mut number = 0;
        self.connections.send_modify(|count| {
            *count += 1;
            number = *count;
        });
        self.expect(container);
        if let Some(host) = lock(&self.hosts).get_mut(&container) {
            host.heard = Instant::now();
            host.connection = Some((number, sender));
        }
        // Again, now that it can be found: for whoever waits for a connection.
        self.connections.send_modify(|_| ());
        (number, receiver)
    }

    /// What a host that is about to connect can do, and which streams it has.
    pub fn describe(&self, container: ContainerId, can_attach: bool, streams: BTreeSet<Uuid>) {
        self.expect(container);
        if let Some(host) = lock(&self.hosts).get_mut(&container) {
            host.can_attach = can_attach;
            host.streams = streams;
        }
    }

    /// Whether a host could be told something now.
    ///
    /// # Errors
    /// Where none is connected.
    pub fn is_connected(&self, container: ContainerId) -> Result<(), ExecRejection> {
        let hosts = lock(&self.hosts);
        hosts.get(&container).filter(|host| host.connection.is_some()).map(drop).ok_or(ExecRejection::NoHost)
    }

    /// Whether a stream could be attached to now.
    ///
    /// # Errors
    /// Where not.
    pub fn can_attach(&self, container: ContainerId) -> Result<(), ExecRejection> {
        let hosts = lock(&self.hosts);
        let host = hosts.get(&container).filter(|host| host.connection.is_some()).ok_or(ExecRejection::NoHost)?;
        if host.can_attach { Ok(()) } else { Err(ExecRejection::Outdated) }
    }

    /// Has the host dial for one more client of a stream.
    ///
    /// # Errors
    /// Where that is not possible now.
    pub fn attach(&self, container: ContainerId, attach: Attach) -> Result<(), ExecRejection> {
        let mut hosts = lock(&self.hosts);
        let host = hosts.get_mut(&container).ok_or(ExecRejection::NoHost)?;
        let (_, frames) = host.connection.as_ref().ok_or(ExecRejection::NoHost)?;
        let begun = attach.start.is_some().then_some(attach.work);
        frames.try_send(ServerFrame::Attach(attach)).map_err(|_| ExecRejection::NoHost)?;
        // One that is only attached to may just have ended.
        host.streams.extend(begun);
        Ok(())
    }

    /// Says that this is about to be recorded as begun: until the host has been told of it, it is not missed there.
    pub fn beginning(&self, id: Uuid) -> StartGuard<'_> {
        lock(&self.beginning).insert(id);
        StartGuard { hosts: self, id }
    }

    /// Whether the host has yet to be told of this.
    pub fn is_beginning(&self, id: Uuid) -> bool {
        lock(&self.beginning).contains(&id)
    }

    /// Whether the host has this stream.
    pub fn has_stream(&self, container: ContainerId, id: Uuid) -> bool {
        lock(&self.hosts).get(&container).is_some_and(|host| host.streams.contains(&id))
    }

    /// A stream has ended.
    pub fn stream_ended(&self, container: ContainerId, id: Uuid) {
        if let Some(host) = lock(&self.hosts).get_mut(&container) {
            host.streams.remove(&id);
        }
    }

    /// Has the host end a stream; whether it could be told.
    pub fn end_stream(&self, container: ContainerId, id: Uuid) -> bool {
        let hosts = lock(&self.hosts);
        let Some((_, frames)) = hosts.get(&container).and_then(|host| host.connection.as_ref()) else { return false };
        frames.try_send(ServerFrame::Cancel(WorkId::Exec(id))).is_ok()
    }

    /// A connection ended.
    pub fn disconnect(&self, container: ContainerId, connection: u64) {
        if let Some(host) = lock(&self.hosts).get_mut(&container)
            && host.connection.as_ref().is_some_and(|(number, _)| *number == connection)
        {
            host.connection = None;
        }
        self.connections.send_modify(|_| ());
    }

    /// Waits until no connection speaks for this host, for `patience` at most: until then it may have something to say.
    pub async fn until_disconnected(&self, container: ContainerId, patience: Duration) {
        let mut changes = self.connections.subscribe();
        let is_connected = || lock(&self.hosts).get(&container).is_some_and(|host| host.connection.is_some());
        let gone = async { while is_connected() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(patience, gone).await;
    }

    /// Whether this report of an exec was not passed on yet; it counts as passed on from now on.
    pub fn is_new_report(&self, container: ContainerId, n: u64) -> bool {
        let mut hosts = lock(&self.hosts);
        let Some(host) = hosts.get_mut(&container) else { return false };
        let is_new = n > host.passed_on;
        host.passed_on = host.passed_on.max(n);
        is_new
    }

    /// The host lives.
    pub fn heard(&self, container: ContainerId, background: Option<u32>) {
        if let Some(host) = lock(&self.hosts).get_mut(&container) {
            host.heard = Instant::now();
            host.background = background.unwrap_or(host.background);
        }
    }

    /// The host is about to stand still: its lease does not run until the [`LeaseSuspension`] ends, and is a full one then.
    pub fn pause(&self, container: ContainerId) -> LeaseSuspension<'_> {
        if let Some(host) = lock(&self.hosts).get_mut(&container) {
            host.stopped += 1;
        }
        LeaseSuspension { hosts: self, container }
    }

    /// The container is no more: whatever ran in it has ended.
    pub fn forget(&self, container: ContainerId) {
        lock(&self.hosts).remove(&container);
    }

    /// Hosts whose lease has run out; each is named once.
    pub fn lost(&self) -> Vec<ContainerId> {
        let mut hosts = lock(&self.hosts);
        let lost: Vec<ContainerId> = hosts.iter().filter(|(_, host)| host.is_lost()).map(|(id, _)| *id).collect();
        for id in &lost {
            hosts.remove(id);
        }
        lost
    }

    /// Whether something keeps the session from resting: an exec, a terminal, or, where they count, processes left
    /// running.
    pub fn is_active(&self, container: ContainerId, background_counts: bool) -> bool {
        let hosts = lock(&self.hosts);
        let Some(host) = hosts.get(&container) else { return false };
        !host.execs.is_empty() || !host.streams.is_empty() || (background_counts && host.background > 0)
    }

    /// Whether this host has a lease, and so is missed when it is not heard of.
    pub fn is_expected(&self, container: ContainerId) -> bool {
        lock(&self.hosts).contains_key(&container)
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        lock(&self.hosts).values().filter(|host| host.connection.is_some()).count()
    }

    /// Has the host run an exec that is recorded as begun, which bounds how many there are; its reports come out of the channel.
    ///
    /// # Errors
    /// Where that is not possible now.
    pub fn run_exec(
        &self,
        container: ContainerId,
        id: Uuid,
        work: Work,
    ) -> Result<mpsc::Receiver<Report>, ExecRejection> {
        let mut hosts = lock(&self.hosts);
        let host = hosts.get_mut(&container).ok_or(ExecRejection::NoHost)?;
        let (_, frames) = host.connection.as_ref().ok_or(ExecRejection::NoHost)?;
        frames.try_send(ServerFrame::Run(work)).map_err(|_| ExecRejection::NoHost)?;
        let (sender, receiver) = mpsc::channel(EXEC_REPORTS);
        host.execs.insert(id, sender);
        Ok(receiver)
    }

    /// Has the host end an exec, whose end is still waited for.
    pub fn cancel_exec(&self, container: ContainerId, id: Uuid) {
        let hosts = lock(&self.hosts);
        if let Some((_, frames)) = hosts.get(&container).and_then(|host| host.connection.as_ref()) {
            // Where it cannot be told now, whoever waits gives up.
            let _ = frames.try_send(ServerFrame::Cancel(WorkId::Exec(id)));
        }
    }

    /// The exec has ended, or nobody waits for it any more: then the host is told to end it.
    pub fn end_exec(&self, container: ContainerId, id: Uuid, cancel: bool) {
        let mut hosts = lock(&self.hosts);
        let Some(host) = hosts.get_mut(&container) else {
            return;
        };
        host.execs.remove(&id);
        host.streams.remove(&id);
        if let Some((_, frames)) = host.connection.as_ref().filter(|_| cancel) {
            // Where it cannot be told now, it is when it comes back: it then names an exec that is no longer recorded.
            let _ = frames.try_send(ServerFrame::Cancel(WorkId::Exec(id)));
        }
    }

    /// Where reports of this exec go; `None` where nobody waits for them.
    pub fn exec_reports(&self, container: ContainerId, id: Uuid) -> Option<mpsc::Sender<Report>> {
        lock(&self.hosts).get(&container)?.execs.get(&id).cloned()
    }

    /// Changes whenever a host connects or goes.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raworc_core::ids::SessionId;

    #[tokio::test(start_paused = true)]
    async fn a_host_that_stands_still_is_not_lost() {
        let (hosts, container) = (Hosts::default(), ContainerId { session: SessionId(Uuid::nil()), generation: 1 });
        hosts.expect(container);
        let pauses = [hosts.pause(container), hosts.pause(container)];
        for pause in pauses {
            tokio::time::advance(LEASE * 2).await;
            assert_eq!(hosts.lost(), []);
            drop(pause);
        }
        tokio::time::advance(LEASE).await;
        assert_eq!(hosts.lost(), [], "it has a full lease again");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(hosts.lost(), [container]);
    }
}
