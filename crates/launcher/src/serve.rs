//! The launcher's loop: requests in, workers forked, outcomes and exits out.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use crate::cgroup::Cgroups;
use crate::protocol::{
    Action, Event, OUTCOME_BYTES_MAX, Outcome, PACKET_BYTES_MAX, Request, Setup, Status, WORKERS_MAX, hierarchies,
};
use crate::worker::{Task, Worker, WorkerContext};
use crate::{seccomp, stage};

/// Serves the socket that is descriptor 0 until its other end closes.
pub fn run() -> Result<(), String> {
    // Descriptor 0 itself is replaced in the workers, so that no container inherits the socket.
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(|e| e.to_string())?;
    // The terminal's signals are for the server, which then closes the socket.
    let _ = setsid();
    set_child_subreaper(true).map_err(|e| e.to_string())?;
    let Some((packet, lock)) = receive(&socket)? else {
        return Ok(());
    };
    let workshop = match open(&packet, lock) {
        Ok(workshop) => workshop,
        Err(message) => {
            send(&socket, &Event::Failed { message: message.clone() })?;
            return Err(message);
        }
    };
    send(&socket, &Event::Ready { stage: workshop.stage.clone() })?;
    let (containers, waiting, early) = (HashMap::new(), HashMap::new(), HashMap::new());
    Launcher { socket, workshop, workers: Vec::new(), containers, waiting, early }.serve()
}

fn open(packet: &[u8], lock: Option<OwnedFd>) -> Result<WorkerContext, String> {
    let setup: Setup = serde_json::from_slice(packet).map_err(|e| e.to_string())?;
    let profile = serde_json::from_value(setup.seccomp.clone()).map_err(|e| e.to_string())?;
    let filter = seccomp::compile(&profile)?;
    let stage = stage::prepare(&setup)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    let hierarchies = hierarchies(&table);
    let cgroups = if setup.oci_runtime.is_none() {
        let cgroups = Cgroups::open(&setup.cgroup_parent)?;
        stage::hide_cgroups()?;
        Some(cgroups)
    } else {
        None
    };
    Ok(WorkerContext { setup, stage, cgroups, hierarchies, filter, lock })
}

struct Launcher {
    socket: OwnedFd,
    workshop: WorkerContext,
    workers: Vec<Worker>,
    /// Containers by their first process.
    containers: HashMap<i32, String>,
    /// Containers that are prepared and not assigned: the first process, and what it reads from.
    waiting: HashMap<String, (i32, OwnedFd)>,
    /// Processes that ended while a worker lived whose container they may be.
    early: HashMap<i32, Status>,
}

impl Launcher {
    fn serve(&mut self) -> Result<(), String> {
        let children = SigSet::from(Signal::SIGCHLD);
        children.thread_block().map_err(|e| e.to_string())?;
        let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let signals = signals.map_err(|e| e.to_string())?;
        loop {
            let (request, finished) = self.wait(signals.as_fd())?;
            while let Ok(Some(_)) = signals.read_signal() {}
            for pid in finished {
                self.finish(pid)?;
            }
            self.reap()?;
            if request {
                let Some((packet, descriptor)) = receive(&self.socket)? else {
                    return Ok(());
                };
                self.accept(&packet, descriptor)?;
            }
        }
    }

    /// Waits until something happens: whether a request is there, and which workers have written their outcome.
    fn wait(&self, signals: BorrowedFd<'_>) -> Result<(bool, Vec<i32>), String> {
        let room = if self.workers.len() < WORKERS_MAX { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut waits = vec![PollFd::new(self.socket.as_fd(), room), PollFd::new(signals, PollFlags::POLLIN)];
        waits.extend(self.workers.iter().map(|w| PollFd::new(w.outcome.as_fd(), PollFlags::POLLIN)));
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let busy = |wait: &PollFd<'_>| wait.any().unwrap_or(false);
        let finished = self.workers.iter().zip(&waits[2..]).filter(|(_, wait)| busy(wait)).map(|(w, _)| w.pid);
        Ok((busy(&waits[0]), finished.collect()))
    }

    fn accept(&mut self, packet: &[u8], descriptor: Option<OwnedFd>) -> Result<(), String> {
        let request: Request = serde_json::from_slice(packet).map_err(|e| e.to_string())?;
        let task = self.task(request.action, descriptor);
        let employed = task.and_then(|task| self.workshop.employ(request.id, task, self.socket.as_fd()));
        match employed {
            Ok(worker) => self.workers.push(worker),
            Err(message) => self.tell(&Event::Done { request: request.id, outcome: Outcome::Failed(message) })?,
        }
        Ok(())
    }

    fn task(&mut self, action: Action, descriptor: Option<OwnedFd>) -> Result<Task, String> {
        Ok(match action {
            Action::Prepare(prepare) => {
                let root =
                    if prepare.has_root { Some(descriptor.ok_or("no root came with the request")?) } else { None };
                Task::Prepare { prepare, root }
            }
            Action::Assign(assign) => {
                let workspace = descriptor.ok_or("no workspace came with the request")?;
                let (process, words) = self.waiting.remove(&assign.container).ok_or("it does not wait")?;
                Task::Assign { assign, process, workspace, words }
            }
            Action::Remount(remount) => {
                let workspace = descriptor.ok_or("no workspace came with the request")?;
                Task::Remount { remount, workspace }
            }
            Action::Delete { container } => Task::Delete { container },
        })
    }

    /// A worker has written its outcome, or has died.
    fn finish(&mut self, pid: i32) -> Result<(), String> {
        let Some(index) = self.workers.iter().position(|worker| worker.pid == pid) else {
            return Ok(());
        };
        let worker = self.workers.swap_remove(index);
        // One read, never to the end: a half-made container may hold the other end of the pipe for ever.
        let mut json = [0; OUTCOME_BYTES_MAX];
        let read = std::fs::File::from(worker.outcome).read(&mut json);
        let outcome = read.ok().and_then(|length| serde_json::from_slice(&json[..length]).ok());
        let outcome = outcome.unwrap_or_else(|| Outcome::Failed("the process that started it was killed".into()));
        let prepared = match &outcome {
            Outcome::Prepared(process) => Some(process.pid),
            Outcome::Assigned | Outcome::Remounted | Outcome::Deleted | Outcome::Failed(_) => None,
        };
        self.tell(&Event::Done { request: worker.request, outcome })?;
        if let (Some(pid), Some((container, words))) = (prepared, worker.prepares) {
            match self.early.remove(&pid) {
                Some(status) => self.tell(&Event::Exited { container, status })?,
                None => {
                    self.waiting.insert(container.clone(), (pid, words));
                    self.containers.insert(pid, container);
                }
            }
        }
        if self.workers.is_empty() {
            self.early.clear();
        }
        Ok(())
    }

    /// Takes the status of every child that has ended.
    fn reap(&mut self) -> Result<(), String> {
        loop {
            let (pid, status) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid.as_raw(), Status::Exited(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), Status::Signalled(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.to_string()),
            };
            if let Some(container) = self.containers.remove(&pid) {
                self.waiting.remove(&container);
                self.tell(&Event::Exited { container, status })?;
            } else if self.workers.iter().any(|worker| worker.pid == pid) {
                self.finish(pid)?;
            } else if !self.workers.is_empty() {
                self.early.insert(pid, status);
            }
        }
    }

    fn tell(&self, event: &Event) -> Result<(), String> {
        send(&self.socket, event)
    }
}

fn send(socket: &OwnedFd, event: &Event) -> Result<(), String> {
    let json = serde_json::to_vec(event).map_err(|e| e.to_string())?;
    match rustix::net::send(socket, &json, SendFlags::NOSIGNAL) {
        // The server has gone: the next receive says so too.
        Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What was sent, and the descriptor that came with it.
type Packet = (Vec<u8>, Option<OwnedFd>);

/// The next packet and the descriptor in it, or `None` when the other end has closed.
fn receive(socket: &OwnedFd) -> Result<Option<Packet>, String> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut packet)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other.map_err(|e| io::Error::from(e).to_string())?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    packet.truncate(received.bytes);
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Some((packet, descriptor)))
}
