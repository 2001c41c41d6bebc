//! The workspaces of containers that run: which layers they are, a way in, and the exchange for another one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use raworc_core::ids::{ContainerId, LayerId};
use raworc_core::link::WORKSPACE_PATH;
use raworc_launcher::protocol::{Action, Outcome, PROCESS_FILE, Process, Remount};
use raworc_workspace::LayerStack;
use raworc_workspace::layers::usage;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::blocking;
use super::containers::Containers;
use super::image::WRITTEN;
use super::layout::{is_file, write_file};
use super::unlinked::unlinked;
use crate::{Hidden, Occupancy, RuntimeError};

/// The record, in a bundle, of what the container's workspace is made of: a line for each layer, the writable one first.
const WORKSPACE_FILE: &str = "workspace";

/// Notes what a container's workspace is made of, for the server after this one.
pub fn note(bundle: &Path, workspace: &LayerStack) -> io::Result<()> {
    let layers = workspace.writable.iter().chain(&workspace.layers);
    let text: String = layers.map(|layer| format!("{layer}\n")).collect();
    write_file(&bundle.join(WORKSPACE_FILE), text.as_bytes(), 0o600)
}

/// What was noted.
pub fn noted(bundle: &Path) -> Option<LayerStack> {
    let file = bundle.join(WORKSPACE_FILE);
    let text = if is_file(&file) { fs::read_to_string(file).ok()? } else { return None };
    let mut layers = text.lines().map(str::parse::<LayerId>).collect::<Result<Vec<_>, _>>().ok()?.into_iter();
    let writable = Some(layers.next()?);
    Some(LayerStack { layers: layers.collect(), writable })
}

impl Containers {
    /// See [`Runtime::workspace`](crate::Runtime::workspace).
    pub fn workspace(&self, id: ContainerId) -> Option<LayerStack> {
        self.running(id)?.workspace
    }

    /// See [`Runtime::open_workspace`](crate::Runtime::open_workspace).
    pub async fn open_workspace(&self, id: ContainerId) -> Result<OwnedFd, RuntimeError> {
        let gone = || RuntimeError::Other("the container does not run".into());
        let owned = self.running(id).ok_or_else(gone)?;
        let _here = owned.mount.read().await;
        let process = self.process(id)?;
        let workspace = workspace_of(&process).map_err(failed)?;
        // The number may have been given out again before it was opened, but not if the process lives now.
        if owned.process.is_some_and(|process| process.has_ended()) { Err(gone()) } else { Ok(workspace) }
    }

    /// See [`Runtime::freeze`](crate::Runtime::freeze).
    pub async fn freeze(&self, id: ContainerId) -> Result<Occupancy, RuntimeError> {
        let owned = self.running(id).ok_or_else(|| RuntimeError::Other("the container does not run".into()))?;
        let host = self.process(id)?.pid;
        let frozen = self.cgroups.set_frozen(&owned.slot, true).await.map_err(failed);
        match frozen.and_then(|()| self.cgroups.processes(&owned.slot).map_err(failed)) {
            Ok(processes) => {
                Ok(if processes.iter().eq([&host]) { Occupancy::HostOnly } else { Occupancy::OtherProcesses })
            }
            Err(error) => {
                self.thaw(id).await?;
                Err(error)
            }
        }
    }

    /// See [`Runtime::thaw`](crate::Runtime::thaw).
    pub async fn thaw(&self, id: ContainerId) -> Result<(), RuntimeError> {
        // Also one that is being stopped: it is asked to end, and cannot while it stands still.
        match self.slot(id) {
            Some(slot) => match self.cgroups.set_frozen(&slot, false).await {
                // It has ended, and its cgroup went with it.
                Err(_) if self.running(id).is_none() => Ok(()),
                outcome => outcome.map_err(failed),
            },
            None => Ok(()),
        }
    }

    /// See [`Runtime::remount`](crate::Runtime::remount).
    pub async fn remount(&self, id: ContainerId, workspace: &LayerStack) -> Result<(), RuntimeError> {
        let (mounter, stack) = (self.mounter.clone(), workspace.clone());
        let mount = blocking(move || mounter.mount(&stack)).await?;
        let owned = self.running(id).ok_or_else(|| RuntimeError::Other("the container does not run".into()))?;
        let process = self.process(id)?;
        let _alone = owned.mount.write().await;
        match self.launcher.request(Action::Remount(Remount { process }), Some(mount)).await? {
            Outcome::Remounted => {}
            Outcome::Failed(message) => return Err(RuntimeError::Other(message)),
            other => return Err(RuntimeError::Other(format!("the launcher answered {other:?}"))),
        }
        self.set_workspace(id, workspace.clone());
        let (bundle, stack) = (self.layout.bundle(id), workspace.clone());
        if let Err(error) = blocking(move || note(&bundle, &stack)).await {
            // The next server takes it that the container has the old one, and replaces it.
            tracing::warn!(%id, %error, "the exchange of a workspace could not be noted");
        }
        Ok(())
    }

    /// See [`Runtime::hidden`](crate::Runtime::hidden).
    pub fn hidden(&self, id: ContainerId) -> io::Result<Hidden> {
        let Some(owned) = self.running(id) else { return Ok(Hidden::default()) };
        let mut unlinked = unlinked(&self.cgroups.processes(&owned.slot)?)?;
        let removed = match self.process(id).and_then(|process| workspace_of(&process).map_err(failed)) {
            Ok(workspace) => unlinked.remove(&rustix::fs::fstat(&workspace)?.st_dev).unwrap_or(0),
            // It has ended just now.
            Err(_) => 0,
        };
        let elsewhere = usage(&self.layout.bundle(id).join(WRITTEN))?.saturating_add(unlinked.into_values().sum());
        Ok(Hidden { elsewhere, removed })
    }

    fn process(&self, id: ContainerId) -> Result<Process, RuntimeError> {
        let text = fs::read_to_string(self.layout.bundle(id).join(PROCESS_FILE)).map_err(failed)?;
        text.parse().map_err(|_| RuntimeError::Other("the record of its process is damaged".into()))
    }
}

/// The root of the workspace that a process sees.
fn workspace_of(process: &Process) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{}/root", process.pid), flags, Mode::empty())?;
    // The container may run a stranger's image: a link in it would be followed from our own root.
    let (path, within) = (WORKSPACE_PATH.trim_start_matches('/'), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    Ok(openat2(&root, path, flags, Mode::empty(), within)?)
}

fn failed(error: impl Into<io::Error>) -> RuntimeError {
    RuntimeError::Other(error.into().to_string())
}
