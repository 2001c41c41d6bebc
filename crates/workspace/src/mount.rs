//! Overlay mounts of layers, as descriptors that no directory of the machine shows.
//!
//! Mounting needs a mount point and, for short paths, a working directory; both are things of a whole process. So one
//! thread does it, with a mount namespace and a working directory of its own (`unshare(2)`). What it hands out is a
//! detached copy (`open_tree(2)`, `OPEN_TREE_CLONE`): it can be moved into a container, read and written through, and it
//! goes when its last descriptor is closed, however this process ends.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use raworc_core::ids::LayerId;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::layers::Marks;
use crate::shelf::name;

/// The directory below all others, always empty: an overlay wants something below.
pub(crate) const EMPTY: &str = "empty";
/// Another one: without anything to write to, an overlay wants two, and not the same.
const NOTHING: &str = "nothing";
/// Where the thread mounts, in its own namespace.
const POINT: &str = "mount";

/// What a workspace is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Layers that never change, the topmost first.
    pub layers: Vec<LayerId>,
    /// What lies on top and takes what is written; without one, nothing can be.
    pub writable: Option<LayerId>,
}

struct Job {
    options: String,
    is_writable: bool,
    answer: mpsc::Sender<io::Result<OwnedFd>>,
}

/// Mounts stacks of layers.
#[derive(Clone, Debug)]
pub struct Mounter {
    jobs: mpsc::Sender<Job>,
    marks: Marks,
}

impl Mounter {
    /// For the layers in the directory `root`. The thread ends with the last of the clones.
    ///
    /// # Errors
    /// Where the thread cannot have a mount namespace of its own.
    pub fn start(root: &Path, marks: Marks) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let (began, begun) = mpsc::channel();
        let root = root.to_owned();
        std::thread::Builder::new().name("mounter".into()).spawn(move || {
            let ready = set_apart(&root);
            let is_ready = ready.is_ok();
            if began.send(ready).is_ok() && is_ready {
                for job in waiting {
                    let _ = job.answer.send(overlay(&job.options, job.is_writable));
                }
            }
        })?;
        begun.recv().map_err(io::Error::other)??;
        Ok(Self { jobs, marks })
    }

    /// A new mount of `stack`, not attached anywhere: its root.
    ///
    /// Two mounts with the same writable layer must not be used at the same time.
    ///
    /// # Errors
    /// Where a layer is missing, or the file system of the layers cannot carry an overlay.
    pub fn mount(&self, stack: &Stack) -> io::Result<OwnedFd> {
        self.run(options(stack, self.marks), stack.writable.is_some())
    }

    /// A view of everything in `stack`, writable layer included, through which nothing can be written. It may be made while
    /// the writable layer is in use; what is written meanwhile may or may not be seen.
    ///
    /// # Errors
    /// As [`Mounter::mount`].
    pub fn view(&self, stack: &Stack) -> io::Result<OwnedFd> {
        let layers = stack.writable.iter().chain(&stack.layers).copied().collect();
        self.mount(&Stack { layers, writable: None })
    }

    fn run(&self, options: String, is_writable: bool) -> io::Result<OwnedFd> {
        let (answer, answered) = mpsc::channel();
        self.jobs.send(Job { options, is_writable, answer }).map_err(|_| io::Error::other("the mounter has ended"))?;
        answered.recv().map_err(io::Error::other)?
    }
}

/// Every option that matters is named, so that the machine's defaults do not (overlayfs, "Kernel Boot Parameters").
/// Paths are relative to the directory of layers: together they have to fit into a page.
fn options(stack: &Stack, marks: Marks) -> String {
    let below = stack.layers.iter().map(|layer| format!("{}/fs:", name(*layer))).collect::<String>();
    let is_nothing = stack.writable.is_none() && stack.layers.is_empty();
    let more = if is_nothing { format!(":{NOTHING}") } else { String::new() };
    let above = stack.writable.map(name).map(|id| format!(",upperdir={id}/fs,workdir={id}/work")).unwrap_or_default();
    let renames = match marks {
        Marks::Trusted => "redirect_dir=on",
        Marks::User => "userxattr",
    };
    format!("lowerdir={below}{EMPTY}{more}{above},index=off,metacopy=off,nfs_export=off,xino=auto,{renames}")
}

/// Gives this thread a mount namespace and a working directory of its own.
fn set_apart(root: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    nix::unistd::chdir(root)?;
    for directory in [EMPTY, NOTHING, POINT] {
        match std::fs::create_dir(PathBuf::from(directory)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn overlay(options: &str, is_writable: bool) -> io::Result<OwnedFd> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if !is_writable {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some("workspace"), POINT, Some("overlay"), flags, Some(options))?;
    let detached = open_tree(CWD, POINT, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    umount2(POINT, MntFlags::MNT_DETACH)?;
    Ok(detached?)
}
