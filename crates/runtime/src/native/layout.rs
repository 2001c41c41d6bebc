//! The runtime's directories.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raworc_core::ids::ContainerId;

use super::cgroup::Cgroups;
use super::rootfs::Rootfs;
use super::view::Views;
use super::{Ids, NativeConfig, rootless};

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Layout {
    run: PathBuf,
    /// The name of this data directory's cgroups.
    pub instance: String,
    /// What those are below: nothing for root, otherwise what systemd has delegated.
    pub cgroup_parent: PathBuf,
    /// The ids of containers.
    pub ids: Ids,
    /// See [`NativeConfig::launcher`].
    pub launcher: PathBuf,
    /// See [`NativeConfig::oci_runtime`].
    pub oci_runtime: Option<PathBuf>,
    /// The root of every container that runs no image.
    pub rootfs: Arc<Rootfs>,
    /// What containers see of the machine.
    pub views: Arc<Views>,
}

impl Layout {
    /// Makes what isn't there yet. Containers may be running on what is.
    pub fn prepare(config: &NativeConfig) -> io::Result<Self> {
        // The directory itself is the server's: only made where it isn't there yet.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data_dir)?;
        let run = config.data_dir.canonicalize()?.join("run");
        directory(&run, 0o700)?;
        let (launcher, oci_runtime) = (config.launcher.clone(), config.oci_runtime.clone());
        let ids = rootless::ids()?;
        let cgroup_parent = if ids.base == Ids::BASE_OF_ROOT {
            PathBuf::new()
        } else {
            let parent = rootless::delegated();
            let parent = parent.ok_or_else(|| io::Error::other("no cgroup has been delegated to this user"))?;
            rootless::make_room(&parent)?;
            parent
        };
        let instance = instance(&run, &cgroup_parent)?;
        let rootfs = Arc::new(Rootfs::build(run.join("rootfs"))?);
        let views = Arc::new(Views::open(run.join("views"))?);
        let layout = Self { run, instance, cgroup_parent, ids, launcher, oci_runtime, rootfs, views };
        for path in [layout.containers(), layout.state()] {
            directory(&path, 0o700)?;
        }
        directory(&layout.empty(), 0o755)?;
        // For containers' root only: agents can neither watch nor lock what all containers share. They can execute the host
        // where it does so itself as one of them (`/proc/self/exe`), but not read it.
        directory(&layout.host(), 0o700)?;
        let host = layout.host().join("host");
        write_file(&host, &config.host_binary, 0o711)?;
        for path in [layout.host(), host] {
            chown(path, Some(ids.base), Some(ids.base))?;
        }
        Ok(layout)
    }

    /// A directory with nothing in it, for what wants two directories.
    pub fn empty(&self) -> PathBuf {
        self.run.join("empty")
    }

    /// The directory of [`Layout::rootfs`].
    pub fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// The host program and the server's socket.
    pub fn host(&self) -> PathBuf {
        self.run.join("host")
    }

    /// The server's socket.
    pub fn host_socket(&self) -> PathBuf {
        self.host().join("host.sock")
    }

    /// The data directory itself, which launchers hold locked.
    pub fn data_dir(&self) -> &Path {
        self.run.parent().unwrap_or(&self.run)
    }

    /// Which process the launcher is.
    pub fn launcher_record(&self) -> PathBuf {
        self.run.join("launcher")
    }

    /// The OCI runtime's own.
    pub fn state(&self) -> PathBuf {
        self.run.join("state")
    }

    /// What is being removed.
    pub fn trash(&self) -> PathBuf {
        self.run.join("trash")
    }

    /// The bundles.
    pub fn containers(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// A container's bundle.
    pub fn bundle(&self, id: ContainerId) -> PathBuf {
        self.containers().join(id.to_string())
    }

    /// The bundle of a container that is nobody's yet.
    pub fn spare(&self, slot: &Slot) -> PathBuf {
        self.containers().join(slot.as_str())
    }

    /// A container's cgroup, relative to [`Layout::cgroup_parent`].
    pub fn cgroup(&self, slot: &Slot) -> PathBuf {
        PathBuf::from(format!("raworc/{}/{slot}", self.instance))
    }
}

/// What a container is called before it is known whose it will be: its cgroup and the OCI runtime's records keep this
/// name. Its bundle is renamed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(String);

/// Begins every slot's name, which so is never that of a container.
const SLOT: &str = "slot-";
/// The file in a bundle that names its slot.
const SLOT_FILE: &str = "slot";

impl Slot {
    /// A name that nothing has yet.
    pub fn new() -> Self {
        Self(format!("{SLOT}{}", uuid::Uuid::new_v4().simple()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A number that hardly any other slot has.
    pub fn number(&self) -> u32 {
        self.0.get(SLOT.len()..SLOT.len() + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
    }

    /// Notes it in its bundle.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        write_file(&bundle.join(SLOT_FILE), self.0.as_bytes(), 0o600)
    }

    /// The slot of a bundle, if that got so far.
    pub fn of_bundle(bundle: &Path) -> Option<Self> {
        let file = bundle.join(SLOT_FILE);
        if is_file(&file) { fs::read_to_string(file).ok()?.parse().ok() } else { None }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Slot {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.strip_prefix(SLOT).ok_or(())?;
        let valid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if valid { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

/// The containers, or slots, that have an entry in `path`.
pub fn names<T: std::str::FromStr>(path: &Path) -> io::Result<Vec<T>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

/// Makes a directory with exactly this mode, in the place of anything that is none.
pub fn directory(path: &Path, mode: u32) -> io::Result<()> {
    let make = |recursive| DirBuilder::new().recursive(recursive).mode(mode).create(path);
    match make(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(true)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !path.is_dir() {
                remove(path)?;
                make(false)?;
            }
        }
        other => other?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Writes a file unless it has these bytes already. Whoever has the old one open (or runs it) keeps it.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if is_file(path) && fs::read(path).is_ok_and(|old| old == bytes) {
        return fs::set_permissions(path, Permissions::from_mode(mode));
    }
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let new = path.with_file_name(format!(".{name}.new"));
    remove(&new)?;
    fs::write(&new, bytes)?;
    fs::set_permissions(&new, Permissions::from_mode(mode))?;
    if path.is_dir() {
        remove(path)?;
    }
    fs::rename(&new, path)
}

/// Removes whatever is there, if anything is.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether it is a file itself. Anything else (a pipe, for one) is not to be opened.
pub fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// The name of this data directory's cgroups. It follows from what the kernel calls the directory, so that its containers are
/// found whatever became of the files in it; a copy of the directory has another one. The file only says so.
fn instance(run: &Path, cgroup_parent: &Path) -> io::Result<String> {
    let file = run.join("instance");
    let metadata = fs::metadata(run.parent().unwrap_or(run))?;
    let own = format!("{:x}-{:x}", metadata.dev(), metadata.ino());
    // Releases before this one made up a name. It is kept while containers of theirs are there.
    let made_up = if is_file(&file) { fs::read_to_string(&file).unwrap_or_default() } else { String::new() };
    let is_name = made_up.len() == 8 && made_up.bytes().all(|b| b.is_ascii_hexdigit());
    if is_name && Cgroups::find(cgroup_parent, &made_up)?.list().is_ok_and(|slots| !slots.is_empty()) {
        return Ok(made_up);
    }
    write_file(&file, own.as_bytes(), 0o600)?;
    Ok(own)
}
