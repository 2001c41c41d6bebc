//! Overlay mounts of layers, as descriptors that no directory of the machine shows.
//!
//! Mounting needs a mount point and, for short paths, a working directory; both are things of a whole process. So one
//! thread does it, with a mount namespace and a working directory of its own (`unshare(2)`). What it hands out is a
//! detached copy (`open_tree(2)`, `OPEN_TREE_CLONE`): it can be moved into a container, read and written through, and it
//! goes when its last descriptor is closed, however this process ends.

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

use crate::layer_store::{PLAIN, name};
use crate::layers::{Marks, links};

/// The directory below all others, always empty: an overlay wants something below.
pub(crate) const EMPTY: &str = "empty";
/// Another one: without anything to write to, an overlay wants two, and not the same.
const NOTHING: &str = "nothing";
/// Where the thread mounts, in its own namespace.
const POINT: &str = "mount";
/// What a layer that is thrown away consists of: what is written, and the directory that overlayfs wants beside it.
const THROW_AWAY: [&str; 2] = ["upper", "work"];
/// Where it is tried whether links are kept together.
const PROBE: &str = "probe";
/// How long a mount waits for an earlier one of the same layer to go, which someone may be reading through, and how often it looks.
const BUSY_MAX: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// What overlayfs remembers of the layers below, in the root of the one that is written to. Layers are merged, and what is
/// remembered of one would keep the next mount from being made.
const ORIGIN: &str = "trusted.overlay.origin";
/// The longest options of a mount: the kernel takes a page, and would cut off the rest without a word.
const OPTIONS_BYTES_MAX: usize = 4095;

/// What a workspace is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Layers that never change, the topmost first.
    pub layers: Vec<LayerId>,
    /// What lies on top and takes what is written; without one, nothing can be.
    pub writable: Option<LayerId>,
}

/// A layer is named, and not there.
#[derive(Debug, thiserror::Error)]
#[error("the layer {0} of the workspace is missing")]
pub struct LayerMissing(pub LayerId);

/// What takes what is written to a mount.
#[derive(Clone)]
enum Above {
    /// Nothing can be written.
    Nothing,
    /// A layer.
    Layer(LayerId),
    /// The directories [`THROW_AWAY`] in this one.
    Directory(PathBuf),
}

struct Job {
    below: Vec<LayerId>,
    above: Above,
    answer: mpsc::Sender<io::Result<OwnedFd>>,
}

/// Mounts stacks of layers.
#[derive(Clone, Debug)]
pub struct Mounter {
    jobs: mpsc::Sender<Job>,
    keeps_links: bool,
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
            let ready = set_apart(&root).map(|()| keeps_links(marks));
            let keeps_links = *ready.as_ref().unwrap_or(&false);
            if began.send(ready).is_ok() {
                for job in waiting {
                    let _ = job.answer.send(overlay(&job.below, &job.above, marks, keeps_links));
                }
            }
        })?;
        let keeps_links = begun.recv().map_err(io::Error::other)??;
        Ok(Self { jobs, keeps_links })
    }

    /// Whether a file of layers that has several names is one file under all of them also when it is written to. It needs root, and
    /// a file system with file handles.
    pub fn keeps_links(&self) -> bool {
        self.keeps_links
    }

    /// A new mount of `stack`, not attached anywhere: its root.
    ///
    /// Two mounts with the same writable layer must not be used at the same time.
    ///
    /// # Errors
    /// Where a layer is missing, or the file system of the layers cannot carry an overlay.
    pub fn mount(&self, stack: &Stack) -> io::Result<OwnedFd> {
        self.run(&stack.layers, stack.writable.map_or(Above::Nothing, Above::Layer))
    }

    /// A new mount of `layers`, the topmost first, not attached anywhere: its root, which belongs to `owner`. What is written
    /// to it goes into the empty directory `above`, which may be renamed while the mount is in use.
    ///
    /// # Errors
    /// As [`Mounter::mount`], and where there are more layers than one mount can name.
    pub fn mount_over(&self, layers: &[LayerId], above: &Path, owner: u32) -> io::Result<OwnedFd> {
        let [upper, work] = THROW_AWAY.map(|part| above.join(part));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
        chown(&upper, Some(owner), Some(owner))?;
        self.run(layers, Above::Directory(above.to_owned()))
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

    fn run(&self, below: &[LayerId], above: Above) -> io::Result<OwnedFd> {
        let began = Instant::now();
        loop {
            let (answer, answered) = mpsc::channel();
            let job = Job { below: below.to_vec(), above: above.clone(), answer };
            self.jobs.send(job).map_err(|_| io::Error::other("the mounter has ended"))?;
            match answered.recv().map_err(io::Error::other)? {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < BUSY_MAX => {
                    std::thread::sleep(BUSY_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

/// Every option that matters is named, so that the machine's defaults do not (overlayfs, "Kernel Boot Parameters").
/// Paths are relative to the directory of layers: together they have to fit into a page. `above` is what can be written:
/// `upperdir` and `workdir`.
fn options(below: &[LayerId], above: Option<[String; 2]>, marks: Marks, index: bool) -> io::Result<String> {
    let is_nothing = above.is_none() && below.is_empty();
    let below = below.iter().map(|layer| format!("{}/fs:", name(*layer))).collect::<String>();
    let more = if is_nothing { format!(":{NOTHING}") } else { String::new() };
    let above = above.map(|[upper, work]| format!(",upperdir={upper},workdir={work}")).unwrap_or_default();
    let renames = match marks {
        Marks::Trusted => "redirect_dir=on",
        Marks::User => "userxattr",
    };
    let index = if index { "on" } else { "off" };
    let options =
        format!("lowerdir={below}{EMPTY}{more}{above},index={index},metacopy=off,nfs_export=off,xino=auto,{renames}");
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(io::Error::other("it has more layers than one mount can name"));
    }
    Ok(options)
}

/// Gives this thread a mount namespace and a working directory of its own.
fn set_apart(root: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    nix::unistd::chdir(root)?;
    for directory in [EMPTY, NOTHING, POINT] {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether overlayfs, with an index, keeps links together here, and in a way that is known. The index is root's alone: without, the kernel
/// does not open files by their handles.
fn keeps_links(marks: Marks) -> bool {
    let scratch = Path::new(PROBE);
    let _ = fs::remove_dir_all(scratch);
    let tried = marks == Marks::Trusted && fs::create_dir(scratch).is_ok();
    let options = format!("lowerdir={PROBE}/lower,upperdir={PROBE}/upper,workdir={PROBE}/work,index=on,xino=auto");
    let kept = tried && links::are_kept(scratch, |_| mounted(&options, MsFlags::empty())).unwrap_or(false);
    let _ = fs::remove_dir_all(scratch);
    kept
}

/// Whether a mount needs an index: where a file below has several names, or one is in it already.
fn needs_index(below: &[LayerId], above: &Above) -> bool {
    let Above::Layer(layer) = above else { return false };
    let is_plain = |layer: &LayerId| Path::new(&name(*layer)).join(PLAIN).exists();
    let index = Path::new(&name(*layer)).join("work").join(links::INDEX);
    !below.iter().all(is_plain) || fs::read_dir(index).is_ok_and(|mut entries| entries.next().is_some())
}

fn overlay(below: &[LayerId], above: &Above, marks: Marks, keeps_links: bool) -> io::Result<OwnedFd> {
    let mut opened = None;
    let index = keeps_links && needs_index(below, above);
    let above = match above {
        Above::Nothing => None,
        Above::Layer(layer) => {
            if index {
                forget_origin(*layer)?;
            }
            Some(["fs", "work"].map(|part| format!("{}/{part}", name(*layer))))
        }
        // Opened in this namespace, which overlayfs insists on, and named by number: nothing in a path becomes an option.
        Above::Directory(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let number = opened.insert(open(path, flags, Mode::empty())?).as_raw_fd();
            Some(THROW_AWAY.map(|part| format!("/proc/self/fd/{number}/{part}")))
        }
    };
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if above.is_none() {
        flags |= MsFlags::MS_RDONLY;
    }
    let options = options(below, above, marks, index)?;
    mounted(&options, flags).map_err(|error| {
        let missing = below.iter().find(|layer| !Path::new(&name(**layer)).join("fs").is_dir());
        missing.map_or_else(|| error, |layer| io::Error::other(LayerMissing(*layer)))
    })
}

/// See [`ORIGIN`].
fn forget_origin(layer: LayerId) -> io::Result<()> {
    match lremovexattr(format!("{}/fs", name(layer)), ORIGIN) {
        // Where it is not there, the mount says so.
        Ok(()) | Err(Errno::NODATA | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mounted(options: &str, flags: MsFlags) -> io::Result<OwnedFd> {
    mount(Some("workspace"), POINT, Some("overlay"), flags, Some(options))?;
    let detached = open_tree(CWD, POINT, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    umount2(POINT, MntFlags::MNT_DETACH)?;
    Ok(detached?)
}
