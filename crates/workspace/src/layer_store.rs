//! Where layers are: `layers/ID/fs`, and beside it the `work` directory that overlayfs wants of the one that is written.
//!
//! Every directory here is named in the records before it is made, so one that no record names is nobody's.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raworc_core::ids::{LayerId, SessionId};
use raworc_oci::Room;
use raworc_oci::entries::{HOLE_BYTES, runs_of_data};
use raworc_quota::Projects;
use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use crate::FileError;
use crate::files::Workspace;
use crate::layers::links::CopiedUpFile;
use crate::layers::{ENTRY_BYTES_MIN, Marks, links, seal, usage};
use crate::mount::{EMPTY, LayerMissing, Mounter, Stack};
use crate::steps;
use crate::trash::Trash;

/// How much of what is kept is read at once, in bytes: a multiple of [`HOLE_BYTES`].
const SPOOL_BUFFER_BYTES: usize = 64 * 1024;

/// The name of the mark, beside the content of a layer, that no file in it has several names. One without it may have such.
pub(crate) const PLAIN: &str = "plain";
/// Directories of a layer itself, and what overlayfs makes for its work, at most.
const OWN_FILES_MAX: u64 = 16;

/// All layers of a server, and `trash/` for what is being removed. Calls block.
#[derive(Clone, Debug)]
pub struct LayerStore {
    root: PathBuf,
    trash: Trash,
    owner: Option<u32>,
    marks: Marks,
    mounter: Option<Mounter>,
    /// Where the file system enforces limits of projects: each layer that is written to is one.
    projects: Option<Arc<Projects>>,
}

/// How large a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

/// How a layer's directory is called: short, since many have to fit into the options of one mount.
pub(crate) fn name(layer: LayerId) -> String {
    layer.0.as_simple().to_string()
}

impl LayerStore {
    /// Layers below `data_dir`; new files belong to the user and group `owner` (the agents' id outside). Without a mounter,
    /// nothing can be looked into.
    ///
    /// # Errors
    /// Where the directories cannot be made.
    pub fn open(data_dir: &Path, owner: Option<u32>, marks: Marks, mounter: Option<Mounter>) -> io::Result<Self> {
        let root = layers_in(data_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let trash = Trash::open(&data_dir.join("trash"))?;
        let projects = Projects::of(&root).map(Arc::new);
        let workspaces = Self { root, trash, owner, marks, mounter, projects };
        workspaces.migrate_legacy(&data_dir.join("workspaces"))?;
        Ok(workspaces)
    }

    /// Workspaces used to be plain directories, `workspaces/SESSION`: each becomes what its session writes to, whose layer
    /// has the session's id then.
    fn migrate_legacy(&self, old: &Path) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(old) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            let session = path.file_name().and_then(|name| name.to_str()?.parse::<SessionId>().ok());
            if let Some(SessionId(id)) = session {
                let directory = self.directory(LayerId(id));
                make(&directory)?;
                make(&directory.join("work"))?;
                fs::rename(&path, directory.join("fs"))?;
            }
        }
        fs::remove_dir(old)
    }

    /// How overlayfs marks things here.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// The content of a layer.
    pub fn path(&self, layer: LayerId) -> PathBuf {
        self.directory(layer).join("fs")
    }

    /// The contents of layers, in their order.
    pub fn paths(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.path(*layer)).collect()
    }

    fn directory(&self, layer: LayerId) -> PathBuf {
        self.root.join(name(layer))
    }

    /// Makes the directory that is written to in this stack, where it is not there yet.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(&self, stack: &Stack) -> io::Result<()> {
        let Some(layer) = stack.writable else { return Ok(()) };
        let path = self.path(layer);
        // It gets its name when it is complete: whoever was killed before has not made it.
        if path.is_dir() {
            return Ok(());
        }
        let directory = self.directory(layer);
        let work = directory.join("work");
        make(&directory)?;
        make(&work)?;
        let new = directory.join("new");
        if new.exists() {
            fs::remove_dir(&new)?;
        }
        if let Some(missing) = stack.layers.first().filter(|layer| !self.path(**layer).is_dir()) {
            return Err(io::Error::other(LayerMissing(*missing)));
        }
        let below = stack.layers.first().map(|below| self.path(*below));
        seal::prepare(&new, below.as_deref(), self.owner.map(|owner| (owner, owner)))?;
        steps::change()?;
        if let Some(projects) = &self.projects {
            projects.found(&[&new, &work], layer.0.as_u128())?;
        }
        fs::rename(&new, &path)
    }

    /// An empty directory for a layer that is about to be filled; what an earlier attempt has left is thrown away.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn begin(&self, layer: LayerId) -> io::Result<PathBuf> {
        self.remove(layer)?;
        make(&self.directory(layer))?;
        Ok(self.directory(layer).join("fs"))
    }

    /// A file beside the content of a layer.
    pub fn beside(&self, layer: LayerId, name: &str) -> PathBuf {
        self.directory(layer).join(name)
    }

    /// Whether anything has been written into `layer` since it was laid on `below`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn is_changed(&self, layer: LayerId, below: Option<LayerId>) -> io::Result<bool> {
        let below = below.map(|below| self.path(below));
        match seal::is_changed(&self.path(layer), below.as_deref()) {
            // Nothing has been there to write to.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result,
        }
    }

    /// Notes whether files in a layer, which does not change any more, have several names.
    ///
    /// # Errors
    /// Where that cannot be noted.
    pub fn note_links(&self, layer: LayerId, has_links: bool) -> io::Result<()> {
        let directory = self.directory(layer);
        steps::change()?;
        if !has_links {
            return File::create(directory.join(PLAIN)).map(drop);
        }
        match fs::remove_file(directory.join(PLAIN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // It was written to since it was marked: what is on the disk must not say that it was not.
            outcome => outcome.and_then(|()| File::open(directory)?.sync_all()),
        }
    }

    /// The same for a layer that comes from others, or from elsewhere.
    ///
    /// # Errors
    /// Where it cannot be looked through.
    pub fn look_for_links(&self, layer: LayerId) -> io::Result<()> {
        let nature = links::nature(&self.path(layer), self.marks)?;
        self.note_links(layer, nature.has_links)
    }

    /// Whether these layers, and all that may be laid on them, are kept together by an index while they are mounted.
    fn has_index(&self, layers: &[LayerId]) -> bool {
        let keeps_links = self.mounter.as_ref().is_some_and(Mounter::keeps_links);
        keeps_links && !layers.iter().all(|layer| self.directory(*layer).join(PLAIN).exists())
    }

    /// Lists copied-up files that lack some of their names in the writable layer (see [`links`]).
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn touched(&self, writable: LayerId) -> io::Result<BTreeSet<CopiedUpFile>> {
        links::touched(&self.directory(writable).join("work"))
    }

    /// Gives such files all of their names, through the mount `root` of what is written to.
    ///
    /// # Errors
    /// Where it cannot be read or changed.
    pub fn gather(&self, root: impl AsFd, writable: LayerId, files: &BTreeSet<CopiedUpFile>) -> io::Result<()> {
        links::gather(root, &self.path(writable), files)
    }

    /// The same where nothing has it mounted.
    ///
    /// # Errors
    /// As [`Self::mount`] and [`Self::gather`].
    pub fn gather_resting(&self, stack: &Stack) -> io::Result<()> {
        let Some(writable) = stack.writable else { return Ok(()) };
        let files = self.touched(writable)?;
        if files.is_empty() {
            return Ok(());
        }
        let mount = self.mounter()?.mount(stack)?;
        self.gather(&mount, writable, &files)
    }

    /// What is written to in this stack becomes a layer that never changes; through `root` where it is mounted, and then nobody writes to it.
    /// The layer: the same one, or, where that depends on how overlayfs wrote it or on its mount, `settled`, which shows the same.
    ///
    /// # Errors
    /// Where it cannot be read, or the layer not be made.
    pub fn seal(&self, stack: &Stack, root: Option<OwnedFd>, settled: LayerId) -> io::Result<LayerId> {
        let writable = stack.writable.ok_or(io::ErrorKind::NotFound)?;
        match root {
            Some(root) => self.gather(root, writable, &self.touched(writable)?)?,
            None => self.gather_resting(stack)?,
        }
        let from = self.path(writable);
        let nature = links::nature(&from, self.marks)?;
        self.note_links(writable, nature.has_links)?;
        // A mount with an index is refused where what it lies on is still written to through another.
        if !nature.has_redirects && !self.has_index(&stack.layers) && !self.has_index(&[writable]) {
            return Ok(writable);
        }
        let into = self.begin(settled)?;
        seal::copy_without_redirects(&from, &self.paths(&stack.layers), &into, self.marks)?;
        self.look_for_links(settled)?;
        Ok(settled)
    }

    /// Removes a layer; what it takes is given back in the background.
    ///
    /// # Errors
    /// Where it cannot be moved away.
    pub fn remove(&self, layer: LayerId) -> io::Result<()> {
        steps::change()?;
        self.trash.take(&self.directory(layer))
    }

    /// Removes a layer whose files others share by hard link; when this returns, they have its names no more.
    ///
    /// # Errors
    /// Where it cannot be moved away.
    pub fn remove_names(&self, layer: LayerId) -> io::Result<()> {
        steps::change()?;
        self.trash.take_whole(&self.directory(layer))
    }

    /// Whether the file system keeps what is written within limits (see [`Self::limit`]).
    pub fn has_limits(&self) -> bool {
        self.projects.is_some()
    }

    /// Lets no more than so many bytes be written to a layer, or as many as there is room for. Whoever writes more gets an
    /// error. Says whether it could be done: where the file system has no limits, and for a layer that was made when it had
    /// none, nothing happens.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn limit(&self, layer: LayerId, bytes: Option<u64>) -> io::Result<bool> {
        let Some((projects, project)) = self.project(layer)? else { return Ok(false) };
        // What makes the layer itself is not what is written to it.
        let files = bytes.map(|bytes| bytes / ENTRY_BYTES_MIN + OWN_FILES_MAX);
        projects.limit(project, bytes, files)?;
        Ok(true)
    }

    /// What has been written to a layer takes, in bytes.
    ///
    /// # Errors
    /// Where it cannot be looked through.
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
            // It is made when it is first needed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            outcome => Ok(outcome?.map(|project| (projects.as_ref(), project))),
        }
    }

    /// The file system that layers are on.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::statvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
    }

    /// What of that is left for what comes from outside.
    pub fn room(&self) -> Room {
        Room::of(&self.root)
    }

    /// Every layer that has a directory.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub fn list(&self) -> io::Result<Vec<LayerId>> {
        let names = fs::read_dir(&self.root)?.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
        let ids = names.filter(|name| name != EMPTY).filter_map(|name| Uuid::try_parse(&name).ok());
        Ok(ids.map(LayerId).collect())
    }

    /// Opens a workspace to write to it, while nothing else does.
    ///
    /// # Errors
    /// Where it cannot be mounted.
    pub fn mount(&self, stack: &Stack) -> io::Result<Workspace> {
        Ok(self.workspace(self.mounter()?.mount(stack)?))
    }

    /// Opens a workspace, or a checkpoint, to read it.
    ///
    /// # Errors
    /// Where it cannot be mounted.
    pub fn view(&self, stack: &Stack) -> io::Result<Workspace> {
        Ok(self.workspace(self.mounter()?.view(stack)?))
    }

    /// Keeps what `content` yields, up to `bytes_max`, in a file without a name; that file, to be read from its beginning.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] where there is more.
    pub fn spool(&self, content: &mut dyn Read, bytes_max: u64) -> Result<File, FileError> {
        let mut file = self.nameless()?;
        let written = io::copy(&mut content.take(bytes_max.saturating_add(1)), &mut file)?;
        if written > bytes_max {
            return Err(FileError::TooLarge);
        }
        file.rewind()?;
        Ok(file)
    }

    /// The same, for as long as the disk has room for it; what is zeros takes none. Nothing where more than `data_max` bytes are not zeros.
    ///
    /// # Errors
    /// [`FileError::TooLarge`] where there is more than `bytes_max`.
    pub fn spool_sparse(
        &self,
        content: &mut dyn Read,
        bytes_max: u64,
        data_max: u64,
    ) -> Result<Option<File>, FileError> {
        let file = self.nameless()?;
        let (mut room, mut buffer) = (self.room(), vec![0; SPOOL_BUFFER_BYTES]);
        let (mut at, mut data_bytes) = (0, 0);
        loop {
            let filled = fill(content, &mut buffer)?;
            for (offset, data) in runs_of_data(&buffer[..filled], HOLE_BYTES as usize) {
                data_bytes += data.len() as u64;
                if data_bytes > data_max {
                    return Ok(None);
                }
                room.charge(data.len() as u64)?;
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

    /// The workspace whose root has been opened already.
    pub fn workspace(&self, root: OwnedFd) -> Workspace {
        Workspace::new(root, self.owner)
    }

    fn mounter(&self) -> io::Result<&Mounter> {
        self.mounter.as_ref().ok_or_else(|| io::Error::other("workspaces cannot be looked into here"))
    }
}

/// Reads until the buffer is full or nothing more comes.
fn fill(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
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

/// Whether the file system of a directory would keep what is written to layers within limits.
pub fn has_limits(directory: &Path) -> bool {
    Projects::of(directory).is_some()
}

/// Where a server with this data directory keeps its layers.
pub fn layers_in(data_dir: &Path) -> PathBuf {
    data_dir.join("layers")
}

fn make(directory: &Path) -> io::Result<()> {
    steps::change()?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
