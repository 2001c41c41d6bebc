//! A workspace as its container sees and changes it. What overlayfs would do to the layer that is written to is done by hand,
//! since not everyone who runs a simulation may mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use raworc_core::ids::LayerId;
use raworc_workspace::Stack;
use raworc_workspace::layers::{Marks, squash};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};

/// How layers are marked here: everybody may write these.
pub const MARKS: Marks = Marks::User;
const OPAQUE: &str = "user.overlay.opaque";
const REDIRECT: &str = "user.overlay.redirect";
/// Longer than any path here.
const REDIRECT_BYTES_MAX: usize = 256;

/// What a workspace shows, by path.
pub type Tree = BTreeMap<String, Entry>;

/// Something in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file, and what is in it.
    File(String),
    /// What nobody put there.
    Strange,
}

/// A change of a workspace.
#[derive(Clone, Debug)]
pub enum Change {
    /// This file has this content now, be it new or not.
    Put(String, String),
    /// A new directory.
    Make(String),
    /// A file or directory is gone, with all that is in it.
    Remove(String),
    /// A directory has another path, which was free.
    Rename(String, String),
}

/// Does to a tree what is done to a workspace.
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

/// Whether a path is another one or leads into it.
pub fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where the content of a layer is.
pub fn place(layers: &Path, layer: LayerId) -> PathBuf {
    layers.join(layer.0.as_simple().to_string()).join("fs")
}

/// Whether layers can be made in a directory.
pub fn can_hold_layers(directory: &Path) -> bool {
    mark(directory, OPAQUE, "n").is_ok()
}

/// A stack as a container has it mounted.
pub struct Overlay {
    upper: PathBuf,
    lower: Vec<PathBuf>,
}

impl Overlay {
    /// Nothing, where there is no layer to write to.
    pub fn of(layers: &Path, stack: &Stack) -> Option<Self> {
        let lower = stack.layers.iter().map(|layer| place(layers, *layer)).collect();
        Some(Self { upper: place(layers, stack.writable?), lower })
    }

    /// Whether what is written to has not been made yet.
    fn is_unwritten(&self) -> bool {
        !self.upper.is_dir()
    }

    /// The directories that are not there.
    pub fn missing(&self) -> Vec<&Path> {
        let all = self.lower.iter().chain([&self.upper]);
        all.filter(|path| !path.is_dir()).map(PathBuf::as_path).collect()
    }

    /// Changes it.
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

    /// The rest of a directory that has been renamed is found where it was, which it says of itself.
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

    /// A directory that is shown, in the layer that is written to.
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

    /// What is below is hidden, if anything is.
    fn cover(&self, path: &str) -> io::Result<()> {
        if self.is_below(path)?.is_none() {
            return Ok(());
        }
        let place = self.make_way(parent(path))?.join(name(path));
        Ok(mknodat(CWD, place, FileType::CharacterDevice, Mode::empty(), 0)?)
    }

    /// A file, or what hides one, makes room.
    fn uncover(&self, place: &Path) -> io::Result<()> {
        match kind(place)? {
            Some(Kind::Directory) | None => Ok(()),
            Some(_) => fs::remove_file(place),
        }
    }

    /// What is below at this path, where nothing but its own name hides it.
    fn is_below(&self, path: &str) -> io::Result<Option<Kind>> {
        match self.origin(parent(path))? {
            Some(origin) => self.find(&join(&origin, name(path))),
            None => Ok(None),
        }
    }

    /// Where the rest of a directory is found in the layers below.
    fn origin(&self, path: &str) -> io::Result<Option<String>> {
        let (mut place, mut origin) = (self.upper.clone(), Some(String::new()));
        for name in path.split('/').filter(|name| !name.is_empty()) {
            place.push(name);
            origin = rest_of(&place, origin.as_deref(), name)?;
        }
        Ok(origin)
    }

    /// What the layers below show at a path.
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

    /// What it shows. `scratch` is a path for what the server's own code makes of the layers below.
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

/// What sealed layers show, the topmost first: made one at `scratch` as the server does it.
pub fn compose(layers: &[PathBuf], scratch: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    if scratch.is_dir() {
        fs::remove_dir_all(scratch)?;
    }
    if !layers.is_empty() {
        squash::squash(layers, &[], scratch, MARKS)?;
        merge(scratch, "", None, &Tree::new(), &mut tree)?;
    }
    Ok(tree)
}

/// Adds to `tree` what the directory `place`, shown at `path`, shows on top of what is at `origin` below.
fn merge(place: &Path, path: &str, origin: Option<&str>, below: &Tree, tree: &mut Tree) -> io::Result<()> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(place)? {
        let inner = entry?.path();
        let name = inner.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let at = join(path, &name);
        match kind(&inner)? {
            // Where nothing is below, there is nothing to hide.
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

/// Where the rest of the directory `place` is found, if its parent's is at `origin`.
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

/// The path of something in a directory.
pub fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}
