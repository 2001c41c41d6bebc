//! Mounts layers with overlayfs. A mount is a descriptor and visible in no directory.
//!
//! Mounting needs a mount point and, for short paths, a working directory, which are per process. So one thread
//! unshares both (`unshare(2)`). It returns detached clones (`open_tree(2)`, `OPEN_TREE_CLONE`), which can be moved
//! into a container or used directly, and are unmounted with their last descriptor, even after a crash.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use raworc_core::ids::LayerId;
use rustix::fs::{CWD, Mode, OFlags, lremovexattr, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::LayerMissing;
use crate::layer_store::{PLAIN, name};
use crate::layers::{OverlayXattrs, links};

/// An empty directory for the bottom of a stack, because an overlay needs a lower layer.
pub(crate) const EMPTY: &str = "empty";
/// A second empty directory: a read-only overlay needs two distinct lower layers.
const EMPTY_SECOND: &str = "nothing";
/// The mount point in the thread's namespace.
const MOUNT_POINT: &str = "mount";
/// Directories of a throw-away writable layer.
const THROW_AWAY: [&str; 2] = ["upper", "work"];
/// A scratch directory for testing whether hard links are kept together.
const PROBE: &str = "probe";
/// How long a mount waits until an earlier one of the same layer is gone.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// The attribute by which overlayfs records the layers below a writable root. Merging layers changes them, and a
/// stale record would prevent the next mount.
const ORIGIN: &str = "trusted.overlay.origin";
/// Maximum length of mount options; the kernel silently truncates them at a page.
const OPTIONS_BYTES_MAX: usize = 4095;

/// The layers of a workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerStack {
    /// Sealed layers, the topmost first.
    pub layers: Vec<LayerId>,
    /// The writable layer on top; without it, the stack is read-only.
    pub writable: Option<LayerId>,
}

/// The writable top of a mount.
#[derive(Clone)]
enum UpperDir {
    /// Nothing: the mount is read-only.
    Nothing,
    /// A layer.
    Layer(LayerId),
    /// The directories [`THROW_AWAY`] in this one.
    Directory(PathBuf),
}

struct Job {
    below: Vec<LayerId>,
    above: UpperDir,
    answer: mpsc::Sender<io::Result<OwnedFd>>,
}

/// Mounts stacks of layers.
#[derive(Clone, Debug)]
pub struct Mounter {
    jobs: mpsc::Sender<Job>,
    keeps_links: bool,
}

impl Mounter {
    /// Starts the mount thread for layers in `root`. It ends with the last clone.
    ///
    /// # Errors
    /// If the thread cannot unshare its mount namespace.
    pub fn start(root: &Path, xattrs: OverlayXattrs) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let (began, begun) = mpsc::channel();
        let root = root.to_owned();
        std::thread::Builder::new().name("mounter".into()).spawn(move || {
            let ready = unshare_mounts(&root).map(|()| keeps_links(xattrs));
            let keeps_links = *ready.as_ref().unwrap_or(&false);
            if began.send(ready).is_ok() {
                for job in waiting {
                    let _ = job.answer.send(overlay(&job.below, &job.above, xattrs, keeps_links));
                }
            }
        })?;
        let keeps_links = begun.recv().map_err(io::Error::other)??;
        Ok(Self { jobs, keeps_links })
    }

    /// Whether hard-linked files of layers stay one file when they are written to. That needs root and a file system
    /// with file handles.
    pub fn keeps_links(&self) -> bool {
        self.keeps_links
    }

    /// Mounts `stack` and returns the root of the detached mount.
    ///
    /// A writable layer must not be used by two mounts at the same time.
    ///
    /// If a layer is missing, or the file system does not support overlayfs.
    /// Where a layer is missing, or the file system of the layers cannot carry an overlay.
    pub fn mount(&self, stack: &LayerStack) -> io::Result<OwnedFd> {
        self.run(&stack.layers, stack.writable.map_or(UpperDir::Nothing, UpperDir::Layer))
    }

    /// Mounts `layers`, the topmost first, with the writable directory `above`, and returns the root, owned by
    /// `owner`. `above` must be empty, and may be renamed while it is mounted.
    ///
    /// # Errors
    /// As [`Mounter::mount`], and if the layers do not fit into one mount.
    pub fn mount_over(&self, layers: &[LayerId], above: &Path, owner: u32) -> io::Result<OwnedFd> {
        let [upper, work] = THROW_AWAY.map(|part| above.join(part));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
        chown(&upper, Some(owner), Some(owner))?;
        self.run(layers, UpperDir::Directory(above.to_owned()))
    }

    /// Mounts `stack`, including its writable layer, read-only. The writable layer may be in use; concurrent changes
    /// may be visible or not.
    ///
    /// # Errors
    /// As [`Mounter::mount`].
    pub fn mount_read_only(&self, stack: &LayerStack) -> io::Result<OwnedFd> {
        let layers = stack.writable.iter().chain(&stack.layers).copied().collect();
        self.mount(&LayerStack { layers, writable: None })
    }

    fn run(&self, below: &[LayerId], above: UpperDir) -> io::Result<OwnedFd> {
        let began = Instant::now();
        loop {
            let (answer, answered) = mpsc::channel();
            let job = Job { below: below.to_vec(), above: above.clone(), answer };
            self.jobs.send(job).map_err(|_| io::Error::other("the mounter has ended"))?;
            match answered.recv().map_err(io::Error::other)? {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < BUSY_TIMEOUT => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

/// The mount options. Every relevant option is explicit, so the machine's defaults do not matter (overlayfs, "Kernel
/// Boot Parameters"). Paths are relative to the layer directory, so that they fit into a page. `above` holds
/// `upperdir` and `workdir`.
fn options(below: &[LayerId], above: Option<[String; 2]>, xattrs: OverlayXattrs, index: bool) -> io::Result<String> {
    let is_nothing = above.is_none() && below.is_empty();
    let below = below.iter().map(|layer| format!("{}/fs:", name(*layer))).collect::<String>();
    let more = if is_nothing { format!(":{EMPTY_SECOND}") } else { String::new() };
    let above = above.map(|[upper, work]| format!(",upperdir={upper},workdir={work}")).unwrap_or_default();
    let renames = match xattrs {
        OverlayXattrs::Trusted => "redirect_dir=on",
        OverlayXattrs::User => "userxattr",
    };
    let index = if index { "on" } else { "off" };
    let options =
        format!("lowerdir={below}{EMPTY}{more}{above},index={index},metacopy=off,nfs_export=off,xino=auto,{renames}");
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(io::Error::other("it has more layers than one mount can name"));
    }
    Ok(options)
}

/// Gives this thread its own mount namespace and working directory.
fn unshare_mounts(root: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    nix::unistd::chdir(root)?;
    for directory in [EMPTY, EMPTY_SECOND, MOUNT_POINT] {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Tests whether overlayfs keeps hard links together with an index. The index needs root, because the kernel opens
/// files by handle.
fn keeps_links(xattrs: OverlayXattrs) -> bool {
    let scratch = Path::new(PROBE);
    let _ = fs::remove_dir_all(scratch);
    let tried = xattrs == OverlayXattrs::Trusted && fs::create_dir(scratch).is_ok();
    let options = format!("lowerdir={PROBE}/lower,upperdir={PROBE}/upper,workdir={PROBE}/work,index=on,xino=auto");
    let kept = tried && links::keeps_hard_links(scratch, |_| mounted(&options, MsFlags::empty())).unwrap_or(false);
    let _ = fs::remove_dir_all(scratch);
    kept
}

/// Whether a mount needs an index: a lower layer has hard links, or the index already has entries.
fn needs_index(below: &[LayerId], above: &UpperDir) -> bool {
    let UpperDir::Layer(layer) = above else { return false };
    let is_plain = |layer: &LayerId| Path::new(&name(*layer)).join(PLAIN).exists();
    let index = Path::new(&name(*layer)).join("work").join(links::INDEX);
    !below.iter().all(is_plain) || fs::read_dir(index).is_ok_and(|mut entries| entries.next().is_some())
}

fn overlay(below: &[LayerId], above: &UpperDir, xattrs: OverlayXattrs, keeps_links: bool) -> io::Result<OwnedFd> {
    let mut opened = None;
    let index = keeps_links && needs_index(below, above);
    let above = match above {
        UpperDir::Nothing => None,
        UpperDir::Layer(layer) => {
            if index {
                forget_origin(*layer)?;
            }
            Some(["fs", "work"].map(|part| format!("{}/{part}", name(*layer))))
        }
        // Opened in this namespace, which overlayfs requires, and passed by descriptor number, so that no path is
        // parsed as an option.
        UpperDir::Directory(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let number = opened.insert(open(path, flags, Mode::empty())?).as_raw_fd();
            Some(THROW_AWAY.map(|part| format!("/proc/self/fd/{number}/{part}")))
        }
    };
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if above.is_none() {
        flags |= MsFlags::MS_RDONLY;
    }
    let options = options(below, above, xattrs, index)?;
    mounted(&options, flags).map_err(|error| {
        let missing = below.iter().find(|layer| !Path::new(&name(**layer)).join("fs").is_dir());
        missing.map_or_else(|| error, |layer| io::Error::other(LayerMissing(*layer)))
    })
}

/// Removes [`ORIGIN`].
fn forget_origin(layer: LayerId) -> io::Result<()> {
    match lremovexattr(format!("{}/fs", name(layer)), ORIGIN) {
        // If the directory is missing, the mount reports it.
        Ok(()) | Err(Errno::NODATA | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mounted(options: &str, flags: MsFlags) -> io::Result<OwnedFd> {
    mount(Some("workspace"), MOUNT_POINT, Some("overlay"), flags, Some(options))?;
    let detached = open_tree(CWD, MOUNT_POINT, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH)?;
    Ok(detached?)
}
