//! Copies what changed in a directory that a session writes to, while it goes on being used.

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

use super::Marks;
use super::entry::{self, Mark};
use super::seal;
use crate::steps;

/// The clock of a file system advances in ticks: what changed so shortly before it was looked at may have changed again
/// since without being seen to.
pub const DOUBTFUL: Duration = Duration::from_millis(50);

/// How a directory is captured.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// How overlayfs marks things.
    pub marks: Marks,
    /// Whether nothing changes it meanwhile. Otherwise what changes under one's eyes is left to the next capture.
    pub is_still: bool,
    /// What changed so shortly before it was looked at is copied again by the next capture; [`DOUBTFUL`], but where time is made up.
    pub doubtful: Duration,
}

/// What a capture brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Entries copied, without directories that were only on the way.
    pub entries: u64,
    /// Bytes of the files among them, holes included.
    pub bytes: u64,
}

/// What is known of an entry that was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    ino: u64,
    changed: (i64, i64),
    size: i64,
    is_directory: bool,
    is_doubtful: bool,
    /// Of a directory: a digest of the marks that say what it lies on. With others it is another directory.
    marks: u64,
}

/// Everything that was seen, by path.
type Listing = BTreeMap<Vec<u8>, Seen>;

/// Copies what is in `from` to the new layer `into`, and writes to `listing` what was seen. With the listing of an earlier
/// capture of the same directory, only what changed since: the new layer is meant to lie on that one's. What changes meanwhile
/// may be torn, and is copied by the next capture.
///
/// # Errors
/// Where something cannot be read or written. What vanishes meanwhile is no error, nor, where it does not stand still, what
/// becomes something else.
pub fn capture(from: &Path, into: &Path, listing: &Path, before: Option<&Path>, how: How) -> io::Result<Captured> {
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
        captured: Captured::default(),
    };
    let below = Some(Vec::new());
    let mut way = Way { parts: vec![Part { source, target: Some(target), name: CString::default(), below }] };
    capture.directory(&mut way, &[], is_first)?;
    capture.reunite()?;
    entry::copy_attributes(entry::root(from)?, entry::root(into)?)?;
    write(listing, &capture.now)?;
    Ok(capture.captured)
}

/// The directories from the root down to where we are.
struct Way {
    parts: Vec<Part>,
}

struct Part {
    source: OwnedFd,
    /// Made when there is something to put into it.
    target: Option<OwnedFd>,
    name: CString,
    /// The path of the rest of this directory in the layers below, if it has any there.
    below: Option<Vec<CString>>,
}

impl Way {
    /// The directory to copy to, made if need be.
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
    how: How,
    /// Where files with several names were copied to.
    links: HashMap<u64, Vec<CString>>,
    /// Names of such files that were not copied under them, since they had not changed.
    passed: Vec<(u64, Vec<CString>)>,
    source: OwnedFd,
    target: OwnedFd,
    captured: Captured,
}

impl Capture {
    /// `is_new` where nothing in it was seen before.
    fn directory(&mut self, way: &mut Way, path: &[u8], is_new: bool) -> io::Result<()> {
        let source = way.source()?;
        let mut names = BTreeSet::new();
        for name in entry::names(&source)? {
            match self.one(way, &source, &name, path, is_new) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if !self.how.is_still && is_race(&error) => self.leave(join(path, &name)),
                other => other?,
            }
            names.insert(name);
        }
        if !is_new {
            self.gone(way, path, &names)?;
        }
        Ok(())
    }

    /// It became something else while it was looked at: the next capture copies it.
    fn leave(&mut self, key: Vec<u8>) {
        self.now.entry(key).or_default().is_doubtful = true;
    }

    fn one(&mut self, way: &mut Way, source: &OwnedFd, name: &CStr, path: &[u8], is_new: bool) -> io::Result<()> {
        let stat = entry::look(source, name)?.ok_or(io::ErrorKind::NotFound)?;
        let key = join(path, name);
        let before = self.before.get(&key).copied().filter(|_| !is_new);
        if entry::kind(&stat) == FileType::Directory {
            let inner = entry::inner(source, name, way.parts.len() - 1)?;
            // What was opened may be another one already.
            let mut seen = look(&fstat(&inner)?, self.how.doubtful);
            seen.marks = digest(&inner, self.how.marks)?;
            self.now.insert(key.clone(), seen);
            return self.inner(way, inner, name, &key, seen, before);
        }
        let seen = look(&stat, self.how.doubtful);
        self.now.insert(key, seen);
        let place = || way.parts.iter().skip(1).map(|part| part.name.clone()).chain([name.to_owned()]).collect();
        if before == Some(seen) && !seen.is_doubtful {
            if stat.st_nlink > 1 {
                self.passed.push((stat.st_ino, place()));
            }
            return Ok(());
        }
        let place = place();
        self.captured.entries += 1;
        let target = way.target()?;
        if stat.st_nlink > 1
            && let Some(copied) = self.links.get(&stat.st_ino)
            && self.link(copied, target, name).is_ok()
        {
            return Ok(());
        }
        if let Err(error) = entry::copy(source, name, &stat, target) {
            // Half a file is none.
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

    /// A further name of a file that was copied.
    fn link(&self, place: &[CString], target: &OwnedFd, name: &CStr) -> io::Result<()> {
        let (last, way) = place.split_last().ok_or(io::ErrorKind::NotFound)?;
        let mut at = self.target.try_clone()?;
        for (depth, name) in way.iter().enumerate() {
            at = entry::inner(&at, name, depth)?;
        }
        Ok(linkat(&at, last, target, name, AtFlags::empty())?)
    }

    /// Gives files that were copied their other names, too, that had not changed since they were looked at before: under them, the
    /// copies of an earlier capture would be shown as files of their own.
    fn reunite(&mut self) -> io::Result<()> {
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
        let (last, way) = place.split_last().ok_or(io::ErrorKind::NotFound)?;
        let mut parts = vec![(self.source.try_clone()?, self.target.try_clone()?)];
        for (depth, name) in way.iter().enumerate() {
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
        way: &mut Way,
        inner: OwnedFd,
        name: &CStr,
        key: &[u8],
        seen: Seen,
        before: Option<Seen>,
    ) -> io::Result<()> {
        let above = way.parts.last().and_then(|part| part.below.clone());
        let redirect = Mark::Redirect.get(&inner, self.how.marks)?;
        let below = match &redirect {
            Some(target) => Some(seal::place(target, above.as_deref())?),
            None if entry::is_opaque(&inner, self.how.marks)? => None,
            None => above.map(|above| [above, vec![name.to_owned()]].concat()),
        };
        let redirect = redirect.and(below.clone());
        way.parts.push(Part { source: inner.try_clone()?, target: None, name: name.to_owned(), below });
        let result = self.within(way, &inner, key, (seen, before), redirect);
        let part = way.parts.pop();
        result?;
        match part.and_then(|part| part.target) {
            Some(made) => entry::copy_attributes(&inner, &made),
            None => Ok(()),
        }
    }

    /// A directory that is the last part of the way; `redirect` is where the rest of it is, if it says so itself.
    fn within(
        &mut self,
        way: &mut Way,
        inner: &OwnedFd,
        key: &[u8],
        (seen, before): (Seen, Option<Seen>),
        redirect: Option<Vec<CString>>,
    ) -> io::Result<()> {
        let is_same = before.is_some_and(|before| (before.ino, before.marks) == (seen.ino, seen.marks));
        if before != Some(seen) || seen.is_doubtful {
            let target = way.target()?.try_clone()?;
            // The copy of one that was copied before lies on that copy, which has its marks.
            if !is_same {
                if entry::is_opaque(inner, self.how.marks)? || before.is_some() {
                    Mark::Opaque.set(&target, self.how.marks, b"y")?;
                }
                if let Some(place) = redirect {
                    let path: Vec<u8> = place.iter().flat_map(|name| [b"/", name.to_bytes()].concat()).collect();
                    Mark::Redirect.set(&target, self.how.marks, &path)?;
                }
            }
        }
        self.directory(way, key, !is_same)
    }

    /// What was seen before in this directory and is not there any more.
    fn gone(&mut self, way: &mut Way, path: &[u8], names: &BTreeSet<CString>) -> io::Result<()> {
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
            entry::whiteout(way.target()?, &name)?;
        }
        Ok(())
    }
}

/// What is said where something was replaced by something else, or cut off, between two looks at it.
fn is_race(error: &io::Error) -> bool {
    let races = [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NXIO, Errno::INVAL, Errno::STALE];
    races.iter().any(|race| error.raw_os_error() == Some(race.raw_os_error()))
}

fn look(stat: &Stat, doubtful: Duration) -> Seen {
    let changed = (stat.st_ctime, stat.st_ctime_nsec as i64);
    let since = Duration::new(u64::try_from(changed.0).unwrap_or(0), u32::try_from(changed.1).unwrap_or(0));
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since);
    Seen {
        ino: stat.st_ino,
        changed,
        size: stat.st_size,
        is_directory: entry::kind(stat) == FileType::Directory,
        // Also where the clock was set back.
        is_doubtful: age.map_or(true, |age| age < doubtful),
        marks: 0,
    }
}

fn digest(directory: &OwnedFd, marks: Marks) -> io::Result<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    (Mark::Opaque.get(directory, marks)?, Mark::Redirect.get(directory, marks)?).hash(&mut hasher);
    Ok(hasher.finish())
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

/// A line for each entry: the numbers, and the path in hexadecimal digits.
fn write(path: &Path, listing: &Listing) -> io::Result<()> {
    use std::io::Write as _;
    steps::change()?;
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    for (key, seen) in listing {
        let Seen { ino, changed: (seconds, nanos), size, is_directory, is_doubtful, marks } = seen;
        let (directory, doubtful) = (u8::from(*is_directory), u8::from(*is_doubtful));
        writeln!(file, "{ino} {seconds} {nanos} {size} {directory} {doubtful} {marks:x} {}", hex::encode(key))?;
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
        let marks = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((hex::decode(words.next()?).ok()?, Seen { ino, changed, size, is_directory, is_doubtful, marks }))
    };
    let listing = text.lines().map(line).collect::<Option<Listing>>();
    listing.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a listing is damaged"))
}
