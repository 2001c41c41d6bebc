//! A workspace as its container sees and changes it. Overlayfs's effects on the writable layer are emulated, because
//! mounting needs privileges.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use raworc_core::ids::LayerId;
use raworc_workspace::LayerStack;
use raworc_workspace::layers::{OverlayXattrs, squash};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};

/// The namespace of overlayfs's attributes; writing to it needs no privilege.
pub const XATTRS: OverlayXattrs = OverlayXattrs::User;
const OPAQUE: &str = "user.overlay.opaque";
const REDIRECT: &str = "user.overlay.redirect";
/// Longer than any path here.
const REDIRECT_BYTES_MAX: usize = 256;

/// The content of a workspace, by path.
pub type Tree = BTreeMap<String, Entry>;

/// An entry of a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file with its content.
    File(String),
    /// Anything that agents do not create.
    Strange,
}

/// A change to a workspace.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates or replaces a file.
    Put(String, String),
    /// Creates a directory.
    Make(String),
    /// Removes a file or a directory tree.
    Remove(String),
    /// Renames a directory to a free path.
    Rename(String, String),
}

/// Applies a change to a tree.
pub fn apply(tree: &mut Tree, change: &Change) {
    match change {
        Change::Put(path, content) => drop(tree.insert(path.clone(), Entry::File(content.clone()))),
        Change::Make(path) => drop(tree.insert(path.clone(), Entry::Directory)),
        Change::Remove(path) => tree.retain(|other, _| !is_within(other, path)),
        Change::Rename(from, to) => {
            let moved: Vec<String> = tree.keys().filter(|path| is_within(path, from)).cloned().collect();
            for path in moved {
                if let Some(entry) = tree.remove(&path) {
                    tree.insert(format!("{to}{}", &path[from.len()..]), entry);
                }
            }
        }
    }
}

/// Whether `path` equals `outer` or is below it.
pub fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The content directory of a layer.
pub fn place(layers: &Path, layer: LayerId) -> PathBuf {
    layers.join(layer.0.as_simple().to_string()).join("fs")
}

/// Whether layers can be created in a directory.
pub fn can_hold_layers(directory: &Path) -> bool {
    mark(directory, OPAQUE, "n").is_ok()
}

/// An emulated overlay mount.
pub struct Overlay {
    upper: PathBuf,
    lower: Vec<PathBuf>,
}

impl Overlay {
    /// `None` without a writable layer.
    pub fn of(layers: &Path, stack: &LayerStack) -> Option<Self> {
        let lower = stack.layers.iter().map(|layer| place(layers, *layer)).collect();
        Some(Self { upper: place(layers, stack.writable?), lower })
    }

    /// Whether the writable layer does not exist yet.
    fn is_unwritten(&self) -> bool {
        !self.upper.is_dir()
    }

    /// Layer directories that do not exist.
    pub fn missing(&self) -> Vec<&Path> {
        let all = self.lower.iter().chain([&self.upper]);
        all.filter(|path| !path.is_dir()).map(PathBuf::as_path).collect()
    }

    /// Applies a change.
    pub fn change(&self, change: &Change) -> io::Result<()> {
        match change {
            Change::Put(path, content) => {
                let place = self.make_way(parent(path))?.join(name(path));
                self.uncover(&place)?;
                fs::write(place, content)
            }
            Change::Make(path) => {
                let place = self.make_way(parent(path))?.join(name(path));
                self.uncover(&place)?;
                fs::create_dir(&place)?;
                if self.is_below(path)?.is_some() { mark(&place, OPAQUE, "y") } else { Ok(()) }
            }
            Change::Remove(path) => {
                let place = self.upper.join(path);
                match kind(&place)? {
                    Some(Kind::Directory) => fs::remove_dir_all(&place)?,
                    Some(_) => fs::remove_file(&place)?,
                    None => {}
                }
                self.cover(path)
            }
            Change::Rename(from, to) => self.rename(from, to),
        }
    }

    /// Renames a directory; a redirect names the old path of its lower part.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let origin = self.origin(from)?.filter(|origin| matches!(self.find(origin), Ok(Some(Kind::Directory))));
        let old = self.make_way(from)?;
        let new = self.make_way(parent(to))?.join(name(to));
        self.uncover(&new)?;
        match origin {
            Some(_) if attribute(&old, REDIRECT)?.is_some_and(|redirect| redirect.starts_with('/')) => {}
            Some(_) if parent(from) == parent(to) && attribute(&old, REDIRECT)?.is_some() => {}
            Some(_) if parent(from) == parent(to) => mark(&old, REDIRECT, name(from))?,
            Some(origin) => mark(&old, REDIRECT, &format!("/{origin}"))?,
            None => mark(&old, OPAQUE, "y")?,
        }
        fs::rename(&old, &new)?;
        self.cover(from)
    }

    /// Creates a visible directory in the writable layer.
    fn make_way(&self, path: &str) -> io::Result<PathBuf> {
        let mut place = self.upper.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            place.push(name);
            match fs::create_dir(&place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(place)
    }

    /// Writes a whiteout if a lower layer has the name.
    fn cover(&self, path: &str) -> io::Result<()> {
        if self.is_below(path)?.is_none() {
            return Ok(());
        }
        let place = self.make_way(parent(path))?.join(name(path));
        Ok(mknodat(CWD, place, FileType::CharacterDevice, Mode::empty(), 0)?)
    }

    /// Removes a file or whiteout.
    fn uncover(&self, place: &Path) -> io::Result<()> {
        match kind(place)? {
            Some(Kind::Directory) | None => Ok(()),
            Some(_) => fs::remove_file(place),
        }
    }

    /// The entry at this path in lower layers, unless a parent hides it.
    fn is_below(&self, path: &str) -> io::Result<Option<Kind>> {
        match self.origin(parent(path))? {
            Some(origin) => self.find(&join(&origin, name(path))),
            None => Ok(None),
        }
    }

    /// The path of a directory's lower part.
    fn origin(&self, path: &str) -> io::Result<Option<String>> {
        let (mut place, mut origin) = (self.upper.clone(), Some(String::new()));
        for name in path.split('/').filter(|name| !name.is_empty()) {
            place.push(name);
            origin = rest_of(&place, origin.as_deref(), name)?;
        }
        Ok(origin)
    }

    /// The entry at a path in lower layers.
    fn find(&self, path: &str) -> io::Result<Option<Kind>> {
        for layer in &self.lower {
            let (mut place, mut is_last) = (layer.clone(), false);
            let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
            for (at, name) in names.iter().enumerate() {
                place.push(name);
                match kind(&place)? {
                    None => break,
                    Some(Kind::Whiteout) => return Ok(None),
                    found if at + 1 == names.len() => return Ok(found),
                    Some(Kind::Directory) => is_last |= attribute(&place, OPAQUE)?.is_some(),
                    Some(_) => return Ok(None),
                }
            }
            if is_last {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The merged content. `scratch` is a path for layers that the server's code merges.
    pub fn show(&self, scratch: &Path) -> io::Result<Tree> {
        let below = compose(&self.lower, scratch)?;
        if self.is_unwritten() {
            return Ok(below);
        }
        let mut tree = Tree::new();
        merge(&self.upper, "", Some(""), &below, &mut tree)?;
        Ok(tree)
    }
}

/// The content of sealed layers, the topmost first, merged by the server's code in `scratch`.
pub fn compose(layers: &[PathBuf], scratch: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    if scratch.is_dir() {
        fs::remove_dir_all(scratch)?;
    }
    if !layers.is_empty() {
        squash::squash(layers, &[], scratch, XATTRS)?;
        merge(scratch, "", None, &Tree::new(), &mut tree)?;
    }
    Ok(tree)
}

/// Adds the directory `place`, visible at `path`, on top of `origin` in lower layers to `tree`.
fn merge(place: &Path, path: &str, origin: Option<&str>, below: &Tree, tree: &mut Tree) -> io::Result<()> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(place)? {
        let inner = entry?.path();
        let name = inner.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let at = join(path, &name);
        match kind(&inner)? {
            // A whiteout without a lower entry hides nothing.
            Some(Kind::Whiteout) if origin.is_some() => {}
            Some(Kind::File) => drop(tree.insert(at, Entry::File(fs::read_to_string(&inner)?))),
            Some(Kind::Directory) => {
                tree.insert(at.clone(), Entry::Directory);
                let rest = rest_of(&inner, origin, &name)?;
                let rest = rest.filter(|rest| below.get(rest) == Some(&Entry::Directory));
                merge(&inner, &at, rest.as_deref(), below, tree)?;
            }
            _ => drop(tree.insert(at, Entry::Strange)),
        }
        own.insert(name);
    }
    let Some(origin) = origin else { return Ok(()) };
    for (from, entry) in below {
        let rest = if origin.is_empty() { Some(from.as_str()) } else { from.strip_prefix(&format!("{origin}/")) };
        let first = |rest: &str| rest.split('/').next().is_some_and(|first| own.contains(first));
        if let Some(rest) = rest.filter(|rest| !first(rest)) {
            tree.insert(join(path, rest), entry.clone());
        }
    }
    Ok(())
}

/// The path of the lower part of `place`, if its parent's is `origin`.
fn rest_of(place: &Path, origin: Option<&str>, name: &str) -> io::Result<Option<String>> {
    match kind(place)? {
        Some(Kind::Directory) => match (attribute(place, REDIRECT)?, attribute(place, OPAQUE)?) {
            (Some(redirect), _) => Ok(Some(match redirect.strip_prefix('/') {
                Some(path) => path.to_owned(),
                None => join(origin.unwrap_or_default(), &redirect),
            })),
            (None, Some(_)) => Ok(None),
            (None, None) => Ok(origin.map(|origin| join(origin, name))),
        },
        Some(_) => Ok(None),
        None => Ok(origin.map(|origin| join(origin, name))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Whiteout,
    Strange,
}

fn kind(path: &Path) -> io::Result<Option<Kind>> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        found => found?,
    };
    let kind = found.file_type();
    Ok(Some(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        Kind::File
    } else if kind.is_char_device() && found.rdev() == 0 {
        Kind::Whiteout
    } else {
        Kind::Strange
    }))
}

fn mark(place: &Path, mark: &str, value: &str) -> io::Result<()> {
    Ok(lsetxattr(place, mark, value.as_bytes(), XattrFlags::empty())?)
}

fn attribute(place: &Path, name: &str) -> io::Result<Option<String>> {
    let mut value = [0; REDIRECT_BYTES_MAX];
    match lgetxattr(place, name, value.as_mut_slice()) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Joins a directory and a name.
pub fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}
