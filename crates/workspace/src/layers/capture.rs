//! Copies what changed in a writable layer while a session keeps using it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Stat, fstat, linkat, unlinkat};
use rustix::io::Errno;

use super::OverlayXattrs;
use super::entry::{self, OverlayXattr};
use super::seal;
use crate::failpoints;

/// The resolution of file system timestamps: a change so shortly before a look may be followed by another with the
/// same time.
pub const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(50);

/// Options of a capture.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// The namespace of overlayfs's attributes.
    pub xattrs: OverlayXattrs,
    /// Whether nothing changes meanwhile. Otherwise entries that change are left to the next capture.
    pub is_still: bool,
    /// Entries changed less than this before they were read are copied again by the next capture:
    /// [`TIMESTAMP_GRANULARITY`], except in simulations.
    pub doubtful: Duration,
}

/// Statistics of a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureStats {
    /// Entries copied, without directories that only lead to others.
    pub entries: u64,
    /// Bytes of copied files, holes included.
    pub bytes: u64,
}

/// The recorded state of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct EntryState {
    ino: u64,
    changed: (i64, i64),
    size: i64,
    is_directory: bool,
    is_doubtful: bool,
    /// A digest of a directory's overlayfs attributes. If it differs, it is another directory.
    xattrs: u64,
}

/// The recorded states by path.
type Listing = BTreeMap<Vec<u8>, EntryState>;

/// Copies `from` to the new layer `into` and records the states of entries in `listing`. With the listing of an
/// earlier capture, copies only changes since then; the new layer then lies on that one's. An entry that changes
/// meanwhile may be torn, and is copied again by the next capture.
///
/// # Errors
/// If reading or writing fails. It is no error if an entry is removed or, unless `is_still`, replaced meanwhile.
pub fn capture(
    from: &Path,
    into: &Path,
    listing: &Path,
    before: Option<&Path>,
    how: CaptureOptions,
) -> io::Result<CaptureStats> {
    let before = before.map(read).transpose()?;
    let is_first = before.is_none();
    fs::create_dir(into)?;
    let (source, target) = (entry::root(from)?, entry::root(into)?);
    let mut capture = Capture {
        before: before.unwrap_or_default(),
        now: Listing::new(),
        how,
        links: HashMap::new(),
        passed: Vec::new(),
        source: source.try_clone()?,
        target: target.try_clone()?,
        captured: CaptureStats::default(),
    };
    let below = Some(Vec::new());
    let mut stack =
        PathStack { parts: vec![PathComponent { source, target: Some(target), name: CString::default(), below }] };
    capture.directory(&mut stack, &[], is_first)?;
    capture.link_unchanged_names()?;
    entry::copy_attributes(entry::root(from)?, entry::root(into)?)?;
    write(listing, &capture.now)?;
    Ok(capture.captured)
}

/// The directories from the root to the current one.
struct PathStack {
    parts: Vec<PathComponent>,
}

struct PathComponent {
    source: OwnedFd,
    /// The copy, created when it gets its first entry.
    target: Option<OwnedFd>,
    name: CString,
    /// The path of this directory in the layers below, if it has one.
    below: Option<Vec<CString>>,
}

impl PathStack {
    /// The directory to copy to, created if needed.
    fn target(&mut self) -> io::Result<&OwnedFd> {
        let first = self.parts.iter().rposition(|part| part.target.is_some()).unwrap_or(0);
        for place in first + 1..self.parts.len() {
            let name = self.parts[place].name.clone();
            let made = match &self.parts[place - 1].target {
                Some(above) => entry::make_directory(above, &name, place)?,
                None => return Err(io::ErrorKind::NotFound.into()),
            };
            self.parts[place].target = Some(made);
        }
        let target = self.parts.last().and_then(|part| part.target.as_ref());
        target.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn source(&self) -> io::Result<OwnedFd> {
        let part = self.parts.last().ok_or(io::ErrorKind::NotFound)?;
        part.source.try_clone()
    }
}

struct Capture {
    before: Listing,
    now: Listing,
    how: CaptureOptions,
    /// Where hard-linked files were copied to, by inode.
    links: HashMap<u64, Vec<CString>>,
    /// Unchanged names of hard-linked files, which were not copied.
    passed: Vec<(u64, Vec<CString>)>,
    source: OwnedFd,
    target: OwnedFd,
    captured: CaptureStats,
}

impl Capture {
    /// `is_new`: nothing in this directory was recorded before.
    fn directory(&mut self, stack: &mut PathStack, path: &[u8], is_new: bool) -> io::Result<()> {
        let source = stack.source()?;
        let mut names = BTreeSet::new();
        for name in entry::names(&source)? {
            match self.capture_entry(stack, &source, &name, path, is_new) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if !self.how.is_still && is_race(&error) => self.defer(join(path, &name)),
                other => other?,
            }
            names.insert(name);
        }
        if !is_new {
            self.record_deletions(stack, path, &names)?;
        }
        Ok(())
    }

    /// Drops the record of an entry that was replaced meanwhile, so that the next capture copies it.
    fn defer(&mut self, key: Vec<u8>) {
        self.now.entry(key).or_default().is_doubtful = true;
    }

    fn capture_entry(
        &mut self,
        stack: &mut PathStack,
        source: &OwnedFd,
        name: &CStr,
        path: &[u8],
        is_new: bool,
    ) -> io::Result<()> {
        let stat = entry::lookup(source, name)?.ok_or(io::ErrorKind::NotFound)?;
        let key = join(path, name);
        let before = self.before.get(&key).copied().filter(|_| !is_new);
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(source, name, stack.parts.len() - 1)?;
            // The opened entry may differ from the listed one.
            let mut seen = entry_state(&fstat(&inner)?, self.how.doubtful);
            seen.xattrs = digest(&inner, self.how.xattrs)?;
            self.now.insert(key.clone(), seen);
            return self.inner(stack, inner, name, &key, seen, before);
        }
        let seen = entry_state(&stat, self.how.doubtful);
        self.now.insert(key, seen);
        let place = || stack.parts.iter().skip(1).map(|part| part.name.clone()).chain([name.to_owned()]).collect();
        if before == Some(seen) && !seen.is_doubtful {
            if stat.st_nlink > 1 {
                self.passed.push((stat.st_ino, place()));
            }
            return Ok(());
        }
        let place = place();
        self.captured.entries += 1;
        let target = stack.target()?;
        if stat.st_nlink > 1
            && let Some(copied) = self.links.get(&stat.st_ino)
            && self.link(copied, target, name).is_ok()
        {
            return Ok(());
        }
        if let Err(error) = entry::copy(source, name, &stat, target) {
            // Remove the incomplete copy.
            let _ = unlinkat(target, name, AtFlags::empty());
            return Err(error);
        }
        if entry::kind(&stat) == FileType::RegularFile {
            self.captured.bytes = self.captured.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, place);
        }
        Ok(())
    }

    /// Links a further name to a file that was copied.
    fn link(&self, place: &[CString], target: &OwnedFd, name: &CStr) -> io::Result<()> {
        let (last, stack) = place.split_last().ok_or(io::ErrorKind::NotFound)?;
        let mut at = self.target.try_clone()?;
        for (depth, name) in stack.iter().enumerate() {
            at = entry::inner(&at, name, depth)?;
        }
        Ok(linkat(&at, last, target, name, AtFlags::empty())?)
    }

    /// Gives copied files also their unchanged names. Otherwise the copies of an earlier capture would show up under
    /// those names.
    fn link_unchanged_names(&mut self) -> io::Result<()> {
        for (inode, place) in std::mem::take(&mut self.passed) {
            let Some(copied) = self.links.get(&inode) else { continue };
            match self.add_name(copied, &place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if !self.how.is_still && is_race(&error) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn add_name(&self, copied: &[CString], place: &[CString]) -> io::Result<()> {
        let (last, stack) = place.split_last().ok_or(io::ErrorKind::NotFound)?;
        let mut parts = vec![(self.source.try_clone()?, self.target.try_clone()?)];
        for (depth, name) in stack.iter().enumerate() {
            let Some((source, target)) = parts.last() else { break };
            let inner = entry::inner(source, name, depth)?;
            let made = entry::make_directory(target, name, depth)?;
            parts.push((inner, made));
        }
        let Some((_, target)) = parts.last() else { return Ok(()) };
        self.link(copied, target, last)?;
        parts.iter().rev().try_for_each(|(source, target)| entry::copy_attributes(source, target))
    }

    fn inner(
        &mut self,
        stack: &mut PathStack,
        inner: OwnedFd,
        name: &CStr,
        key: &[u8],
        seen: EntryState,
        before: Option<EntryState>,
    ) -> io::Result<()> {
        let above = stack.parts.last().and_then(|part| part.below.clone());
        let redirect = OverlayXattr::Redirect.get(&inner, self.how.xattrs)?;
        let below = match &redirect {
            Some(target) => Some(seal::redirect_target(target, above.as_deref())?),
            None if entry::is_opaque(&inner, self.how.xattrs)? => None,
            None => above.map(|above| [above, vec![name.to_owned()]].concat()),
        };
        let redirect = redirect.and(below.clone());
        stack.parts.push(PathComponent { source: inner.try_clone()?, target: None, name: name.to_owned(), below });
        let result = self.within(stack, &inner, key, (seen, before), redirect);
        let part = stack.parts.pop();
        result?;
        match part.and_then(|part| part.target) {
            Some(made) => entry::copy_attributes(&inner, &made),
            None => Ok(()),
        }
    }

    /// Descends into a directory. `redirect` is its path in the layers below, if it has one.
    fn within(
        &mut self,
        stack: &mut PathStack,
        inner: &OwnedFd,
        key: &[u8],
        (seen, before): (EntryState, Option<EntryState>),
        redirect: Option<Vec<CString>>,
    ) -> io::Result<()> {
        let is_same = before.is_some_and(|before| (before.ino, before.xattrs) == (seen.ino, seen.xattrs));
        if before != Some(seen) || seen.is_doubtful {
            let target = stack.target()?.try_clone()?;
            // The copy lies on an earlier copy, which has the attributes.
            if !is_same {
                if entry::is_opaque(inner, self.how.xattrs)? || before.is_some() {
                    OverlayXattr::Opaque.set(&target, self.how.xattrs, b"y")?;
                }
                if let Some(place) = redirect {
                    let path: Vec<u8> = place.iter().flat_map(|name| [b"/", name.to_bytes()].concat()).collect();
                    OverlayXattr::Redirect.set(&target, self.how.xattrs, &path)?;
                }
            }
        }
        self.directory(stack, key, !is_same)
    }

    /// Records deletions: entries of the listing that no longer exist.
    fn record_deletions(&mut self, stack: &mut PathStack, path: &[u8], names: &BTreeSet<CString>) -> io::Result<()> {
        let mut prefix = path.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let is_here = |key: &[u8]| key.starts_with(&prefix) && !key[prefix.len()..].contains(&b'/');
        let keys = self.before.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let gone: Vec<CString> = keys
            .filter(|(key, _)| is_here(key))
            .filter_map(|(key, _)| CString::new(&key[prefix.len()..]).ok())
            .filter(|name| !names.contains(name))
            .collect();
        for name in gone {
            self.captured.entries += 1;
            entry::whiteout(stack.target()?, &name)?;
        }
        Ok(())
    }
}

/// Whether an error means that the entry was replaced or truncated meanwhile.
fn is_race(error: &io::Error) -> bool {
    let races = [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NXIO, Errno::INVAL, Errno::STALE];
    races.iter().any(|race| error.raw_os_error() == Some(race.raw_os_error()))
}

fn entry_state(stat: &Stat, doubtful: Duration) -> EntryState {
    let changed = (stat.st_ctime, stat.st_ctime_nsec as i64);
    let since = Duration::new(u64::try_from(changed.0).unwrap_or(0), u32::try_from(changed.1).unwrap_or(0));
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since);
    EntryState {
        ino: stat.st_ino,
        changed,
        size: stat.st_size,
        is_directory: entry::kind(stat) == FileType::Directory,
        // Also if the clock was set back.
        is_doubtful: age.map_or(true, |age| age < doubtful),
        xattrs: 0,
    }
}

fn digest(directory: &OwnedFd, xattrs: OverlayXattrs) -> io::Result<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    (OverlayXattr::Opaque.get(directory, xattrs)?, OverlayXattr::Redirect.get(directory, xattrs)?).hash(&mut hasher);
    Ok(hasher.finish())
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

/// One line per entry: its numbers, and its path in hexadecimal.
fn write(path: &Path, listing: &Listing) -> io::Result<()> {
    use std::io::Write as _;
    failpoints::change()?;
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    for (key, seen) in listing {
        let EntryState { ino, changed: (seconds, nanos), size, is_directory, is_doubtful, xattrs } = seen;
        let (directory, doubtful) = (u8::from(*is_directory), u8::from(*is_doubtful));
        writeln!(file, "{ino} {seconds} {nanos} {size} {directory} {doubtful} {xattrs:x} {}", hex::encode(key))?;
    }
    file.flush()
}

fn read(path: &Path) -> io::Result<Listing> {
    let text = fs::read_to_string(path)?;
    let line = |line: &str| {
        let mut words = line.split(' ');
        let mut number = || words.next()?.parse::<i64>().ok();
        let ino = u64::try_from(number()?).ok()?;
        let changed = (number()?, number()?);
        let size = number()?;
        let (is_directory, is_doubtful) = (number()? != 0, number()? != 0);
        let xattrs = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((hex::decode(words.next()?).ok()?, EntryState { ino, changed, size, is_directory, is_doubtful, xattrs }))
    };
    let listing = text.lines().map(line).collect::<Option<Listing>>();
    listing.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a listing is damaged"))
}
