//! Operations on a directory, and a description of all its visible properties.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// A random generator (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Few paths, so that most operations hit existing entries. The root is one of them.
const PATHS: [&str; 22] = [
    "", "a", "b", "c", "d", "e", "d/a", "d/b", "d/c", "d/d", "d/e", "d/d/a", "d/d/b", "e/a", "e/b", "e/d", "e/d/a",
    "e/d/b", "e/c", "f", "g", "g/a",
];
const BLOCK: u64 = 64 << 10;

#[derive(Clone, Debug)]
pub enum Op {
    Write(&'static str, u8),
    Append(&'static str, u8),
    Truncate(&'static str, u64),
    WriteAt(&'static str, u64),
    Punch(&'static str, u64),
    Mkdir(&'static str),
    Rmdir(&'static str),
    Unlink(&'static str),
    RemoveAll(&'static str),
    Symlink(&'static str),
    Fifo(&'static str),
    Link(&'static str, &'static str),
    LinkTree(&'static str, &'static str),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    /// Saves like an editor: a new file is renamed over the old one.
    Replace(&'static str, u8),
    Chmod(&'static str, u32),
    Chown(&'static str, u32, u32),
    Times(&'static str, i64, i64),
    Attribute(&'static str, u8, Option<u8>),
    List(&'static str, bool, Option<u16>),
}

impl Op {
    pub fn any(random: &mut Random) -> Self {
        let kind = random.below(44);
        let (one, other) = (PATHS[random.below(PATHS.len())], PATHS[random.below(PATHS.len())]);
        let (number, more) = (random.next() as u8, random.next());
        match kind {
            0..=3 => Op::Write(one, number),
            4..=6 => Op::Append(one, number),
            7 => Op::Truncate(one, u64::from(number) * 5000),
            8 => Op::WriteAt(one, u64::from(number % 128)),
            9..=10 => Op::Punch(one, u64::from(number % 128)),
            11..=13 => Op::Mkdir(one),
            14 => Op::Rmdir(one),
            15..=16 => Op::Unlink(one),
            17 => Op::RemoveAll(one),
            18 => Op::Symlink(one),
            19 => Op::Fifo(one),
            20..=24 => Op::Link(one, other),
            25 => Op::LinkTree(one, other),
            26..=29 => Op::Rename(one, other),
            30..=31 => Op::Exchange(one, other),
            32 => Op::Replace(one, number),
            33..=34 => Op::Chmod(one, (more & 0o7777) as u32),
            35 => Op::Chown(one, 1000 + (more % 3) as u32, 1000 + (more / 3 % 3) as u32),
            36..=38 => Op::Times(one, i64::from(more as i32 / 2), i64::from(number) * 3_000_001),
            39..=40 => Op::Attribute(one, number % 2, (more % 3 > 0).then_some(more as u8)),
            _ => Op::List(one, more % 3 == 0, (more % 4 > 0).then_some((more >> 8) as u16)),
        }
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Applies an operation; returns the kernel's result.
pub fn apply(root: &Path, op: &Op) -> Result<(), Errno> {
    let at = |path: &str| if path.is_empty() { root.to_owned() } else { root.join(path) };
    let options = |path: &str, options: &mut OpenOptions| {
        // What is no file is left alone: a link would lead elsewhere, a pipe wait.
        match rustix::fs::lstat(at(path)) {
            Ok(stat) if !FileType::from_raw_mode(stat.st_mode).is_file() => Err(Errno::ISDIR),
            _ => options.custom_flags(0o400_000).open(at(path)).map_err(errno),
        }
    };
    let open = |path: &str| options(path, File::options().read(true).write(true));
    match op {
        Op::Write(path, n) => {
            let file = options(path, File::options().write(true).create(true).truncate(true))?;
            file.write_all_at(format!("{n} ").repeat(usize::from(*n)).as_bytes(), 0).map_err(errno)
        }
        Op::Append(path, n) => {
            let file = open(path)?;
            let length = file.metadata().map_err(errno)?.len();
            file.write_all_at(&[*n; 3], length).map_err(errno)
        }
        Op::Truncate(path, length) => open(path)?.set_len(*length).map_err(errno),
        Op::WriteAt(path, block) => {
            let file = open(path)?;
            file.write_all_at(&[b'w'; 8192], block * BLOCK).map_err(errno)
        }
        Op::Punch(path, block) => {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open(path)?, how, block * BLOCK, 4 << 20)
        }
        Op::Mkdir(path) => rustix::fs::mkdir(at(path), Mode::from_raw_mode(0o755)),
        Op::Rmdir("") | Op::RemoveAll("") => Ok(()),
        Op::Rmdir(path) => rustix::fs::rmdir(at(path)),
        Op::Unlink(path) => rustix::fs::unlink(at(path)),
        Op::RemoveAll(path) => if at(path).is_dir() && !at(path).is_symlink() {
            fs::remove_dir_all(at(path))
        } else {
            fs::remove_file(at(path))
        }
        .map_err(errno),
        // Wherever it is renamed to, it leads to what is beside it: above the root, the two trees differ.
        Op::Symlink(path) => rustix::fs::symlink("a", at(path)),
        Op::Fifo(path) => rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0),
        Op::Link(from, to) => rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty()),
        Op::LinkTree(from, to) => {
            // What "cp -al" does.
            if !at(from).is_dir() || at(from).is_symlink() || to.starts_with(from) {
                return Ok(());
            }
            rustix::fs::mkdir(at(to), Mode::from_raw_mode(0o755))?;
            for entry in fs::read_dir(at(from)).map_err(errno)?.flatten() {
                if !entry.file_type().unwrap().is_dir() {
                    rustix::fs::linkat(CWD, entry.path(), CWD, at(to).join(entry.file_name()), AtFlags::empty())?;
                }
            }
            Ok(())
        }
        Op::Rename("", _) | Op::Rename(_, "") | Op::Exchange("", _) | Op::Exchange(_, "") => Ok(()),
        Op::Rename(from, to) => rustix::fs::rename(at(from), at(to)),
        Op::Exchange(from, to) => rustix::fs::renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE),
        Op::Replace(path, n) => {
            let _ = fs::remove_file(at("new"));
            fs::write(at("new"), [*n; 9]).map_err(errno)?;
            let done = if path.is_empty() { Err(Errno::BUSY) } else { rustix::fs::rename(at("new"), at(path)) };
            let _ = fs::remove_file(at("new"));
            done
        }
        Op::Chmod(path, mode) => {
            if at(path).is_symlink() {
                return Ok(());
            }
            rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode))
        }
        Op::Chown(path, user, group) => {
            let (user, group) = (Uid::from_raw(*user), Gid::from_raw(*group));
            rustix::fs::chownat(CWD, at(path), Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        }
        Op::Times(path, seconds, nanos) => {
            let time = Timespec { tv_sec: *seconds, tv_nsec: *nanos };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
        }
        Op::Attribute(path, name, value) => {
            let name = format!("user.n{name}");
            match value {
                Some(value) => rustix::fs::lsetxattr(at(path), name, &[*value; 4], XattrFlags::empty()),
                None => rustix::fs::lremovexattr(at(path), name),
            }
        }
        Op::List(path, of_children, entries) => {
            if at(path).is_symlink() {
                return Ok(());
            }
            let name = if *of_children { "system.posix_acl_default" } else { "system.posix_acl_access" };
            match entries {
                Some(entries) => rustix::fs::lsetxattr(at(path), name, &list(*entries), XattrFlags::empty()),
                // Where there is none, overlayfs says so, and others do not.
                None => match rustix::fs::lremovexattr(at(path), name) {
                    Err(rustix::io::Errno::NODATA) => Ok(()),
                    outcome => outcome,
                },
            }
        }
    }
}

/// An access control list with a user and a group of its own.
fn list(bits: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let (user, group) = (1000 + u32::from(bits & 3), 1000 + u32::from(bits >> 2 & 3));
    let bits = |at: u16| bits >> at & 7;
    let entries = [
        (1, 7, NOBODY),
        (2, bits(4), user),
        (4, bits(6), NOBODY),
        (8, bits(8), group),
        (0x10, bits(10), NOBODY),
        (0x20, bits(12), NOBODY),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(permissions));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut next) = (vec![root.to_owned()], vec![root.to_owned()]);
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                next.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// All properties of each path that must be equal. Times after `began` are only marked as such.
pub fn fingerprint(root: &Path, began: i64) -> BTreeMap<String, String> {
    let mut groups: BTreeMap<u64, String> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for path in paths(root) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let stat = path.symlink_metadata().unwrap();
        let time =
            if stat.mtime() >= began - 2 { "now".into() } else { format!("{}.{}", stat.mtime(), stat.mtime_nsec()) };
        let mut text = format!("{:06o} {}:{} {time}", stat.mode(), stat.uid(), stat.gid());
        if !stat.is_dir() {
            let group = groups.entry(stat.ino()).or_insert_with(|| name.clone());
            text += &format!(" ={group}");
        }
        if stat.is_file() {
            let content = fs::read(&path).unwrap();
            let sum = content.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            text += &format!(" {} {sum:x} holes {}", stat.len(), large_holes(&path, stat.len()));
        } else if stat.is_symlink() {
            text += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        }
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let mut names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).collect();
        names.sort_unstable();
        for name in names.into_iter().filter(|name| name.starts_with(b"user.") || name.starts_with(b"system.")) {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
            let name = String::from_utf8_lossy(std::ffi::OsStr::from_bytes(name).as_bytes()).into_owned();
            text += &format!(" {name}={}", hex::encode(&value[..length]));
        }
        found.insert(name, text);
    }
    found
}

/// Holes that the kernel keeps when it copies a file up: it looks for one at the beginning of each MiB that it copies.
fn large_holes(path: &Path, size: u64) -> usize {
    const LARGE: u64 = 3 << 20;
    let file = File::open(path).unwrap();
    let (mut at, mut holes) = (0, 0);
    while at < size {
        let data = rustix::fs::seek(&file, SeekFrom::Data(at)).unwrap_or(size);
        holes += usize::from(data - at >= LARGE);
        if data >= size {
            break;
        }
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
    }
    holes
}

/// The differences as a list, for readable failures.
pub fn differences(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differ
        .map(|name| format!("{name:?}:\n  {}\n  {}", a.get(name).map_or("-", |t| t), b.get(name).map_or("-", |t| t)))
        .collect()
}
