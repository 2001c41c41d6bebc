//! Stores layers in `layers/ID/fs`, with overlayfs's `work` directory beside the writable one.
//!
//! The database records each directory before it is created, so a directory without a record is garbage.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raworc_core::ids::{LayerId, SessionId};
use raworc_oci::FreeSpaceGuard;
use raworc_oci::entries::{HOLE_BYTES, runs_of_data};
use raworc_quota::Projects;
use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use crate::error::{FileError, LayerMissing};
use crate::failpoints;
use crate::files::Workspace;
use crate::layers::links::CopiedUpFile;
use crate::layers::{ENTRY_BYTES_MIN, OverlayXattrs, links, seal, usage};
use crate::mount::{EMPTY, LayerStack, Mounter};
use crate::trash::Trash;

/// Bytes per read when spooling: a multiple of [`HOLE_BYTES`].
const SPOOL_BUFFER_BYTES: usize = 64 * 1024;

/// A marker file beside a layer that has no hard links. Without it, there may be some.
pub(crate) const PLAIN: &str = "plain";
/// Files that the server and overlayfs make for a layer themselves, at most.
const OWN_FILES_MAX: u64 = 16;

/// All layers of a server, and `trash/` for those being removed. Calls block.
#[derive(Clone, Debug)]
pub struct LayerStore {
    root: PathBuf,
    trash: Trash,
    owner: Option<u32>,
    xattrs: OverlayXattrs,
    mounter: Option<Mounter>,
    /// Project quotas, if the file system has them: each writable layer is a project.
    projects: Option<Arc<Projects>>,
}

/// The size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes available.
    pub free_bytes: u64,
}

/// The name of a layer's directory. It is short because many must fit into the options of one mount.
pub(crate) fn name(layer: LayerId) -> String {
    layer.0.as_simple().to_string()
}

impl LayerStore {
    /// Opens the layers below `data_dir`. New files belong to `owner`, the agents' uid and gid outside. Without a
    /// mounter, layers cannot be mounted.
    ///
    /// # Errors
    /// If the directories cannot be created.
    pub fn open(
        data_dir: &Path,
        owner: Option<u32>,
        xattrs: OverlayXattrs,
        mounter: Option<Mounter>,
    ) -> io::Result<Self> {
        let root = layers_in(data_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let trash = Trash::open(&data_dir.join("trash"))?;
        let projects = Projects::of(&root).map(Arc::new);
        let workspaces = Self { root, trash, owner, xattrs, mounter, projects };
        workspaces.migrate_legacy(&data_dir.join("workspaces"))?;
        Ok(workspaces)
    }

    /// Migrates workspaces that were plain directories (`workspaces/SESSION`): each becomes the writable layer with
    /// the session's id.
    fn migrate_legacy(&self, old: &Path) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(old) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            let session = path.file_name().and_then(|name| name.to_str()?.parse::<SessionId>().ok());
            if let Some(SessionId(id)) = session {
                let directory = self.directory(LayerId(id));
                create_directory(&directory)?;
                create_directory(&directory.join("work"))?;
                fs::rename(&path, directory.join("fs"))?;
            }
        }
        fs::remove_dir(old)
    }

    /// The namespace of overlayfs's attributes.
    pub fn overlay_xattrs(&self) -> OverlayXattrs {
        self.xattrs
    }

    /// The content directory of a layer.
    pub fn path(&self, layer: LayerId) -> PathBuf {
        self.directory(layer).join("fs")
    }

    /// The content directories of layers, in order.
    pub fn paths(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.path(*layer)).collect()
    }

    fn directory(&self, layer: LayerId) -> PathBuf {
        self.root.join(name(layer))
    }

    /// Creates the stack's writable directory unless it exists.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(&self, stack: &LayerStack) -> io::Result<()> {
        let Some(layer) = stack.writable else { return Ok(()) };
        let path = self.path(layer);
        // It is renamed into place when complete, so a crash leaves no half of it.
        if path.is_dir() {
            return Ok(());
        }
        let directory = self.directory(layer);
        let work = directory.join("work");
        create_directory(&directory)?;
        create_directory(&work)?;
        let new = directory.join("new");
        if new.exists() {
            fs::remove_dir(&new)?;
        }
        if let Some(missing) = stack.layers.first().filter(|layer| !self.path(**layer).is_dir()) {
            return Err(io::Error::other(LayerMissing(*missing)));
        }
        let below = stack.layers.first().map(|below| self.path(*below));
        seal::prepare(&new, below.as_deref(), self.owner.map(|owner| (owner, owner)))?;
        failpoints::change()?;
        if let Some(projects) = &self.projects {
            projects.found(&[&new, &work], layer.0.as_u128())?;
        }
        fs::rename(&new, &path)
    }

    /// Creates an empty directory for a layer; remains of an earlier attempt are removed.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_empty(&self, layer: LayerId) -> io::Result<PathBuf> {
        self.remove(layer)?;
        create_directory(&self.directory(layer))?;
        Ok(self.directory(layer).join("fs"))
    }

    /// The path of a file beside a layer's content.
    pub fn sibling(&self, layer: LayerId, name: &str) -> PathBuf {
        self.directory(layer).join(name)
    }

    /// Whether `layer` has any change relative to `below`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_changed(&self, layer: LayerId, below: Option<LayerId>) -> io::Result<bool> {
        let below = below.map(|below| self.path(below));
        match seal::is_changed(&self.path(layer), below.as_deref()) {
            // Nothing was mounted yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result,
        }
    }

    /// Records whether a sealed layer contains hard links.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn record_hard_links(&self, layer: LayerId, has_links: bool) -> io::Result<()> {
        let directory = self.directory(layer);
        failpoints::change()?;
        if !has_links {
            return File::create(directory.join(PLAIN)).map(drop);
        }
        match fs::remove_file(directory.join(PLAIN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A stale marker would be wrong, so its removal is flushed.
            outcome => outcome.and_then(|()| File::open(directory)?.sync_all()),
        }
    }

    /// Detects and records hard links in a layer that was merged or imported.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn detect_hard_links(&self, layer: LayerId) -> io::Result<()> {
        let traits = links::layer_traits(&self.path(layer), self.xattrs)?;
        self.record_hard_links(layer, traits.has_links)
    }

    /// Whether overlayfs keeps an index for a mount of these layers.
    fn has_index(&self, layers: &[LayerId]) -> bool {
        let keeps_links = self.mounter.as_ref().is_some_and(Mounter::keeps_links);
        keeps_links && !layers.iter().all(|layer| self.directory(*layer).join(PLAIN).exists())
    }

    /// Lists copied-up files that lack some of their names in the writable layer (see [`links`]).
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn copied_up_files(&self, writable: LayerId) -> io::Result<BTreeSet<CopiedUpFile>> {
        links::copied_up_files(&self.directory(writable).join("work"))
    }

    /// Gives these files all their names, through the mounted `root`.
    ///
    /// # Errors
    /// If the layer cannot be read or changed.
    pub fn restore_hard_links(
        &self,
        root: impl AsFd,
        writable: LayerId,
        files: &BTreeSet<CopiedUpFile>,
    ) -> io::Result<()> {
        links::restore_hard_links(root, &self.path(writable), files)
    }

    /// As [`Self::restore_hard_links`], for a stack that is not mounted.
    ///
    /// # Errors
    /// As [`Self::mount`] and [`Self::gather`].
    pub fn restore_hard_links_unmounted(&self, stack: &LayerStack) -> io::Result<()> {
        let Some(writable) = stack.writable else { return Ok(()) };
        let files = self.copied_up_files(writable)?;
        if files.is_empty() {
            return Ok(());
        }
        let mount = self.mounter()?.mount(stack)?;
        self.restore_hard_links(&mount, writable, &files)
    }

    /// Seals the stack's writable layer, through `root` if it is mounted; nothing may write to it meanwhile. Returns
    /// the sealed layer: the same one, or `settled` with the same content if the original depends on overlayfs
    /// redirects or an index.
    ///
    /// # Errors
    /// If it cannot be read, or the new layer cannot be created.
    pub fn seal(&self, stack: &LayerStack, root: Option<OwnedFd>, settled: LayerId) -> io::Result<LayerId> {
        let writable = stack.writable.ok_or(io::ErrorKind::NotFound)?;
        match root {
            Some(root) => self.restore_hard_links(root, writable, &self.copied_up_files(writable)?)?,
            None => self.restore_hard_links_unmounted(stack)?,
        }
        let from = self.path(writable);
        let traits = links::layer_traits(&from, self.xattrs)?;
        self.record_hard_links(writable, traits.has_links)?;
        // The kernel refuses a mount with an index over a layer that is still writable through another.
        if !traits.has_redirects && !self.has_index(&stack.layers) && !self.has_index(&[writable]) {
            return Ok(writable);
        }
        let into = self.create_empty(settled)?;
        seal::copy_without_redirects(&from, &self.paths(&stack.layers), &into, self.xattrs)?;
        self.detect_hard_links(settled)?;
        Ok(settled)
    }

    /// Removes a layer; its disk space is freed in the background.
    ///
    /// # Errors
    /// If it cannot be moved to the trash.
    pub fn remove(&self, layer: LayerId) -> io::Result<()> {
        failpoints::change()?;
        self.trash.remove(&self.directory(layer))
    }

    /// Removes a layer whose files are hard-linked by others. When this returns, its links are gone.
    ///
    /// # Errors
    /// If it cannot be moved to the trash.
    pub fn remove_names(&self, layer: LayerId) -> io::Result<()> {
        failpoints::change()?;
        self.trash.remove_now(&self.directory(layer))
    }

    /// Whether the file system has project quotas (see [`Self::limit`]).
    pub fn has_limits(&self) -> bool {
        self.projects.is_some()
    }

    /// Sets the quota of a layer in bytes; `None` removes it. Returns whether it applies: false without quotas, or
    /// for a layer created without one.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn limit(&self, layer: LayerId, bytes: Option<u64>) -> io::Result<bool> {
        let Some((projects, project)) = self.project(layer)? else { return Ok(false) };
        // Files of the layer itself do not count as the session's.
        let files = bytes.map(|bytes| bytes / ENTRY_BYTES_MIN + OWN_FILES_MAX);
        projects.limit(project, bytes, files)?;
        Ok(true)
    }

    /// Disk usage of a writable layer, in bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn written(&self, layer: LayerId) -> io::Result<u64> {
        match self.project(layer)? {
            Some((projects, project)) => {
                let used = projects.used(project)?;
                Ok(used.bytes.max(used.files.saturating_mul(ENTRY_BYTES_MIN)))
            }
            None => usage(&self.path(layer)),
        }
    }

    fn project(&self, layer: LayerId) -> io::Result<Option<(&Projects, u32)>> {
        let Some(projects) = &self.projects else { return Ok(None) };
        match projects.project(&self.path(layer)) {
            // The layer does not exist yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            outcome => Ok(outcome?.map(|project| (projects.as_ref(), project))),
        }
    }

    /// The size of the file system with the layers.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
    }

    /// Tracks the space that imports may use.
    pub fn free_space_guard(&self) -> FreeSpaceGuard {
        FreeSpaceGuard::of(&self.root)
    }

    /// Every layer that has a directory.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn list(&self) -> io::Result<Vec<LayerId>> {
        let names = fs::read_dir(&self.root)?.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
        let ids = names.filter(|name| name != EMPTY).filter_map(|name| Uuid::try_parse(&name).ok());
        Ok(ids.map(LayerId).collect())
    }

    /// Mounts a workspace for writing; nothing else may write to it meanwhile.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount(&self, stack: &LayerStack) -> io::Result<Workspace> {
        Ok(self.workspace(self.mounter()?.mount(stack)?))
    }

    /// Mounts a workspace or checkpoint read-only.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount_read_only(&self, stack: &LayerStack) -> io::Result<Workspace> {
        Ok(self.workspace(self.mounter()?.mount_read_only(stack)?))
    }

    /// Copies up to `bytes_max` bytes of `content` to an unnamed file, and rewinds it.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] for more.
    pub fn spool(&self, content: &mut dyn Read, bytes_max: u64) -> Result<File, FileError> {
        let mut file = self.nameless()?;
        let written = io::copy(&mut content.take(bytes_max.saturating_add(1)), &mut file)?;
        if written > bytes_max {
            return Err(FileError::TooLarge);
        }
        file.rewind()?;
        Ok(file)
    }

    /// As [`Self::spool`], but checks free space and writes zeros as holes. `None` if more than `data_max` bytes are
    /// not zeros.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] for more than `bytes_max`.
    pub fn spool_sparse(
        &self,
        content: &mut dyn Read,
        bytes_max: u64,
        data_max: u64,
    ) -> Result<Option<File>, FileError> {
        let file = self.nameless()?;
        let (mut free_space, mut buffer) = (self.free_space_guard(), vec![0; SPOOL_BUFFER_BYTES]);
        let (mut at, mut data_bytes) = (0, 0);
        loop {
            let filled = read_full(content, &mut buffer)?;
            for (offset, data) in runs_of_data(&buffer[..filled], HOLE_BYTES as usize) {
                data_bytes += data.len() as u64;
                if data_bytes > data_max {
                    return Ok(None);
                }
                free_space.charge(data.len() as u64)?;
                file.write_all_at(data, at + offset as u64)?;
            }
            at += filled as u64;
            if at > bytes_max {
                return Err(FileError::TooLarge);
            }
            if filled < buffer.len() {
                break;
            }
        }
        file.set_len(at)?;
        Ok(Some(file))
    }

    fn nameless(&self) -> Result<File, FileError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(self.trash.directory(), flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// A workspace with this open root.
    pub fn workspace(&self, root: OwnedFd) -> Workspace {
        Workspace::new(root, self.owner)
    }

    fn mounter(&self) -> io::Result<&Mounter> {
        self.mounter.as_ref().ok_or_else(|| io::Error::other("workspaces cannot be looked into here"))
    }
}

/// Reads until the buffer is full or the input ends.
fn read_full(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether the file system of a directory has project quotas for layers.
pub fn has_limits(directory: &Path) -> bool {
    Projects::of(directory).is_some()
}

/// The layer directory of a server with this data directory.
pub fn layers_in(data_dir: &Path) -> PathBuf {
    data_dir.join("layers")
}

fn create_directory(directory: &Path) -> io::Result<()> {
    failpoints::change()?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
