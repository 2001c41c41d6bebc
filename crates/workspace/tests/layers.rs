//! Layers on real overlays: each version shows the same tree, however its layers were made. Prints SKIPPED if it may
//! not mount.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use raworc_core::ids::LayerId;
use raworc_workspace::layers::capture::CaptureOptions;
use raworc_workspace::layers::compare::ComparedTree;
use raworc_workspace::layers::{OverlayXattrs, capture, compare, seal, squash};
use raworc_workspace::{LayerStack, LayerStore, Mounter, failpoints, layers_in};
use rustix::fs::XattrFlags;
use uuid::Uuid;

/// A change to a tree. The numbers are indices into existing entries, so most changes have an effect.
#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, u16),
    Append(usize),
    Directory(usize, usize),
    Link(usize, usize, usize),
    Symlink(usize, usize),
    Pipe(usize, usize),
    Rename(usize, usize, usize),
    Remove(usize),
    Mode(usize, u32),
    Attribute(usize, u8),
    Time(usize, u32),
    Sparse(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0..64_usize;
    prop_oneof![
        4 => (n(), n(), any::<u16>()).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        2 => n().prop_map(Op::Append),
        3 => (n(), n()).prop_map(|(a, b)| Op::Directory(a, b)),
        1 => (n(), n(), n()).prop_map(|(a, b, c)| Op::Link(a, b, c)),
        1 => (n(), n()).prop_map(|(a, b)| Op::Symlink(a, b)),
        1 => (n(), n()).prop_map(|(a, b)| Op::Pipe(a, b)),
        3 => (n(), n(), n()).prop_map(|(a, b, c)| Op::Rename(a, b, c)),
        2 => n().prop_map(Op::Remove),
        1 => (n(), 0..0o1000_u32).prop_map(|(a, b)| Op::Mode(a, b)),
        1 => (n(), any::<u8>()).prop_map(|(a, b)| Op::Attribute(a, b)),
        1 => (n(), any::<u32>()).prop_map(|(a, b)| Op::Time(a, b)),
        1 => (n(), n()).prop_map(|(a, b)| Op::Sparse(a, b)),
    ]
}

/// Paths in a tree, of directories only or of everything, sorted; the root is the first.
fn paths(root: &Path, directories: bool) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = vec![root.to_owned()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let is_directory = entry.file_type().unwrap().is_dir();
            if is_directory {
                next.push(entry.path());
            }
            if is_directory || !directories {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn any_of(paths: &[PathBuf], n: usize) -> &Path {
    &paths[n % paths.len()]
}

/// Applies a change; impossible ones (moving a directory into itself, an existing name) are ignored.
fn apply(root: &Path, op: &Op) {
    let (all, directories) = (paths(root, false), paths(root, true));
    let place = |directory: usize, name: usize| any_of(&directories, directory).join(format!("n{}", name % 6));
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
    match op {
        Op::Write(directory, name, content) => {
            let path = place(*directory, *name);
            if !path.is_symlink() && (!path.exists() || is_file(&path)) {
                let _ = fs::write(path, content.to_string().repeat(usize::from(*content % 50)));
            }
        }
        Op::Append(n) if is_file(any_of(&all, *n)) => {
            fs::File::options().append(true).open(any_of(&all, *n)).unwrap().write_all(b"more").unwrap();
        }
        Op::Directory(directory, name) => drop(fs::create_dir(place(*directory, *name))),
        Op::Link(from, directory, name) if is_file(any_of(&all, *from)) => {
            let _ = fs::hard_link(any_of(&all, *from), place(*directory, *name));
        }
        Op::Symlink(directory, name) => drop(symlink("../n1", place(*directory, *name))),
        Op::Pipe(directory, name) => {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o640));
            let _ = rustix::fs::mknodat(rustix::fs::CWD, place(*directory, *name), kind, mode, 0);
        }
        Op::Rename(from, directory, name) if *from % all.len() != 0 => {
            let _ = fs::rename(any_of(&all, *from), place(*directory, *name));
        }
        Op::Remove(n) if n % all.len() != 0 => {
            let path = any_of(&all, *n);
            let _ = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        Op::Mode(n, mode) if !any_of(&all, *n).is_symlink() => {
            fs::set_permissions(any_of(&all, *n), fs::Permissions::from_mode(*mode)).unwrap();
        }
        Op::Attribute(n, value) => {
            let path = any_of(&all, *n);
            if is_file(path) || path.is_dir() && !path.is_symlink() {
                rustix::fs::setxattr(path, "user.test", &[*value], XattrFlags::empty()).unwrap();
            }
        }
        Op::Time(n, seconds) if is_file(any_of(&all, *n)) => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::new(u64::from(*seconds), 123_456_789);
            fs::File::options().write(true).open(any_of(&all, *n)).unwrap().set_modified(time).unwrap();
        }
        Op::Sparse(directory, name) => {
            if let Ok(file) = fs::File::create_new(place(*directory, *name)) {
                file.set_len(1 << 20).unwrap();
            }
        }
        _ => {}
    }
}

/// All properties of each path that must be equal. Times and sizes of directories belong to the file system.
fn fingerprint(root: &Path) -> BTreeMap<String, String> {
    let mut groups: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for path in paths(root, false) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let stat = path.symlink_metadata().unwrap();
        let mut text = format!("{:06o} {} {}", stat.mode(), stat.uid(), stat.gid());
        if stat.is_file() {
            let content = fs::read(&path).unwrap();
            let head = String::from_utf8_lossy(&content[..content.len().min(20)]).into_owned();
            let group = groups.entry((stat.dev(), stat.ino())).or_insert_with(|| name.clone());
            let holes = stat.len() >= 1 << 20 && stat.blocks() * 512 < 1 << 20;
            text += &format!(" {} {head} {}.{} {group} {holes}", stat.len(), stat.mtime(), stat.mtime_nsec());
        } else if stat.is_symlink() {
            text += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        }
        if !stat.is_symlink() {
            let mut value = [0; 8];
            let length = rustix::fs::lgetxattr(&path, "user.test", &mut value).unwrap_or(0);
            text += &format!(" {:?}", &value[..length]);
        }
        found.insert(name, text);
    }
    found
}

/// Waits until the clock has advanced, so that the next capture copies nothing unchanged.
const EXACT: CaptureOptions =
    CaptureOptions { xattrs: OverlayXattrs::Trusted, is_still: true, doubtful: Duration::ZERO };

/// Waits until new changes get another change time.
fn until_the_clock_advances(directory: &Path) {
    let now = || {
        let probe = directory.join("probe");
        fs::write(&probe, "").unwrap();
        let stat = fs::metadata(&probe).unwrap();
        (stat.ctime(), stat.ctime_nsec())
    };
    let before = now();
    while now() == before {}
}

struct Shelf {
    _directory: tempfile::TempDir,
    layer_store: LayerStore,
    listings: PathBuf,
}

/// Skips unless it can mount: as root, on a file system that supports overlayfs.
fn layer_store() -> Option<Shelf> {
    let directory = tempfile::tempdir().unwrap();
    let root = layers_in(directory.path());
    fs::create_dir_all(&root).unwrap();
    let mounter = match Mounter::start(&root, OverlayXattrs::Trusted) {
        Ok(mounter) => mounter,
        Err(error) => {
            eprintln!("SKIPPED: nothing can be mounted: {error}");
            return None;
        }
    };
    let layer_store = LayerStore::open(directory.path(), None, OverlayXattrs::Trusted, Some(mounter)).unwrap();
    let listings = directory.path().join("listings");
    fs::create_dir(&listings).unwrap();
    Some(Shelf { _directory: directory, layer_store, listings })
}

fn path_of(root: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", root.as_fd().as_raw_fd()).into()
}

impl Shelf {
    fn view(&self, layers: &[LayerId]) -> BTreeMap<String, String> {
        let view = self.layer_store.mount_read_only(&LayerStack { layers: layers.to_vec(), writable: None }).unwrap();
        let root = view.root().try_clone_to_owned().unwrap();
        fingerprint(&path_of(&root).join("."))
    }

    fn paths(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.layer_store.path(*layer)).collect()
    }

    /// Applies changes on top of `below`; returns the layers of each save, newest first. `live`: captures while
    /// changes go on.
    fn work(&self, below: &[LayerId], rounds: &[Vec<Op>], live: bool) -> Vec<(Vec<LayerId>, BTreeMap<String, String>)> {
        let (mut saved, mut stack) = (Vec::new(), below.to_vec());
        let mut writable = LayerId(Uuid::new_v4());
        let mut open = None;
        let mut listing: Option<PathBuf> = None;
        for (n, ops) in rounds.iter().enumerate() {
            if open.is_none() {
                let wanted = LayerStack { layers: stack.clone(), writable: Some(writable) };
                self.layer_store.create(&wanted).unwrap();
                open = Some(self.layer_store.mount(&wanted).unwrap());
            }
            let root = path_of(open.as_ref().unwrap().root()).join(".");
            ops.iter().for_each(|op| apply(&root, op));
            let seen = fingerprint(&root);
            let sealed = LayerStack { layers: stack.clone(), writable: Some(writable) };
            let layer = if live {
                let mount = open.as_ref().unwrap().root().try_clone_to_owned().unwrap();
                self.layer_store
                    .restore_hard_links(mount, writable, &self.layer_store.copied_up_files(writable).unwrap())
                    .unwrap();
                let copy = LayerId(Uuid::new_v4());
                let new = self.listings.join(format!("{n}-{}", Uuid::new_v4()));
                let into = self.layer_store.create_empty(copy).unwrap();
                capture::capture(&self.layer_store.path(writable), &into, &new, listing.as_deref(), EXACT).unwrap();
                until_the_clock_advances(&self.listings);
                listing = Some(new);
                copy
            } else {
                open = None;
                std::mem::replace(&mut writable, LayerId(Uuid::new_v4()))
            };
            // A copy refers to what lies below what it was copied from, not to earlier copies.
            let lower = self.paths(if live { below } else { &stack });
            let from = self.layer_store.path(layer);
            let layer = if live {
                seal::resolve_redirects(&from, &lower, OverlayXattrs::Trusted).unwrap();
                layer
            } else {
                self.layer_store.seal(&sealed, None, LayerId(Uuid::new_v4())).unwrap()
            };
            stack.insert(0, layer);
            saved.push((stack.clone(), seen));
        }
        saved
    }
}

/// The differences as a map, for readable failures.
fn differences(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differ = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differ.map(|name| format!("{name}: {:?} / {:?}", a.get(name), b.get(name))).collect()
}

/// The paths in which two versions differ, without times, hard links and holes.
fn told(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<String> {
    let essence = |text: &String| {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            [mode, user, group, length, head, _, _, _, attribute] => {
                [mode, user, group, length, head, attribute].join(" ")
            }
            _ => text.clone(),
        }
    };
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).filter(|name| !name.is_empty()).collect();
    let differ = names.into_iter().filter(|name| a.get(*name).map(essence) != b.get(*name).map(essence));
    differ.cloned().collect()
}

fn check(rounds: &[Vec<Op>], live: &[Vec<Op>], (start, length): (usize, usize)) {
    let Some(layer_store) = layer_store() else { return };
    let mut saved = layer_store.work(&[], rounds, false);
    let top = saved.last().map(|(stack, _)| stack.clone()).unwrap_or_default();
    saved.extend(layer_store.work(&top, live, true));
    let (mut files, mut bytes, mut disk) = (0_i64, 0_i64, 0_i64);
    for (stack, seen) in &saved {
        let shown = layer_store.view(stack);
        assert_eq!(differences(&shown, seen), [] as [String; 0], "{} layers", stack.len());
        let measured = seal::measure(
            &layer_store.layer_store.path(stack[0]),
            &layer_store.paths(&stack[1..]),
            OverlayXattrs::Trusted,
        )
        .unwrap();
        files += measured.files;
        bytes += measured.bytes;
        disk += measured.disk;
        let exact = seal::shown_usage(&layer_store.paths(stack), OverlayXattrs::Trusted).unwrap();
        assert!(u64::try_from(disk).unwrap() >= exact, "{disk} were counted of {exact}");
        let regular: Vec<i64> = seen
            .values()
            .filter(|text| text.starts_with("100"))
            .map(|text| text.split(' ').nth(3).unwrap().parse().unwrap())
            .collect();
        assert_eq!((files, bytes), (i64::try_from(regular.len()).unwrap(), regular.iter().sum()));
    }
    // However much of it they share, two versions differ in what differs.
    let open = |layers: &[LayerId]| {
        layer_store.layer_store.mount_read_only(&LayerStack { layers: layers.to_vec(), writable: None }).unwrap()
    };
    for [(before, old), (after, new)] in
        saved.array_windows().chain([&[saved[0].clone(), saved[saved.len() - 1].clone()]])
    {
        let (before, after) = (open(before), open(after));
        let (found, _) = compare::compare(
            ComparedTree::sealed(before.root()),
            ComparedTree::sealed(after.root()),
            usize::MAX,
            &|| true,
        )
        .unwrap();
        let mut found: Vec<_> = found.into_iter().map(|found| String::from_utf8(found.path).unwrap()).collect();
        found.sort();
        assert_eq!(found, told(old, new));
        for path in new.keys().filter(|path| !path.is_empty()) {
            let one = compare::compare_one(
                ComparedTree::sealed(before.root()),
                ComparedTree::sealed(after.root()),
                path,
                &|| true,
            );
            let one = one.unwrap();
            assert_eq!(one.is_some(), found.contains(path), "{path}");
        }
    }
    // Any run of layers made one shows the same, and so does what lies on it.
    let Some((stack, seen)) = saved.last() else { return };
    let start = start % stack.len();
    let end = (start + length).min(stack.len());
    let merged = LayerId(Uuid::new_v4());
    let into = layer_store.layer_store.create_empty(merged).unwrap();
    squash::squash(
        &layer_store.paths(&stack[start..end]),
        &layer_store.paths(&stack[end..]),
        &into,
        OverlayXattrs::Trusted,
    )
    .unwrap();
    let shorter: Vec<LayerId> = stack[..start].iter().copied().chain([merged]).chain(stack[end..].to_vec()).collect();
    assert_eq!(differences(&layer_store.view(&shorter), seen), [] as [String; 0], "{start}..{end} of {}", stack.len());
    // And it is built on like any other.
    let more = layer_store.work(&shorter, &[vec![Op::Rename(1, 0, 7), Op::Remove(2), Op::Directory(0, 2)]], false);
    for (stack, seen) in &more {
        assert_eq!(differences(&layer_store.view(stack), seen), [] as [String; 0]);
    }
}

#[test]
fn what_is_written_over_layers_goes_where_it_is_told_to() {
    let Some(layer_store) = layer_store() else { return };
    let layer = LayerId(Uuid::new_v4());
    let below = layer_store.layer_store.create_empty(layer).unwrap();
    fs::create_dir(&below).unwrap();
    fs::write(below.join("file"), "below").unwrap();
    let mounter = Mounter::start(&layers_in(layer_store._directory.path()), OverlayXattrs::Trusted).unwrap();
    // Nothing in this path is an option, or ends one.
    let above = layer_store.listings.join("a,lowerdir=b:c\\d");
    fs::create_dir(&above).unwrap();
    let root = mounter.mount_over(&[layer], &above, 7).unwrap();
    let renamed = layer_store.listings.join("renamed");
    fs::rename(&above, &renamed).unwrap();
    fs::write(path_of(&root).join("file"), "above").unwrap();
    let attributes = fs::metadata(path_of(&root).join(".")).unwrap();
    assert_eq!((attributes.uid(), attributes.mode() & 0o7777), (7, 0o755));
    assert_eq!(fs::read_to_string(path_of(&root).join("file")).unwrap(), "above");
    assert_eq!(fs::read_to_string(below.join("file")).unwrap(), "below");
    drop(root);
    assert!(mounter.mount_over(&[layer], &renamed, 7).is_err(), "what is there already is not taken over");
    fs::create_dir(&above).unwrap();
    assert!(mounter.mount_over(&[layer; 200], &above, 7).is_err(), "not even a part of the layers");
}

/// Captures twice, with `change` applied before a step of the first capture. Both together must show the final
/// content.
fn changed_meanwhile(make: impl Fn(&Path), mut change: impl FnMut(&Path, &Path) -> bool + 'static) {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::create_dir(at("from")).unwrap();
    make(&at("from"));
    until_the_clock_advances(scratch.path());
    let (from, into, changed) = (at("from"), at("first"), Rc::new(Cell::new(false)));
    let is_changed = Rc::clone(&changed);
    failpoints::set_handler(Some(Box::new(move |_| {
        if !is_changed.get() && change(&from, &into) {
            is_changed.set(true);
            until_the_clock_advances(from.parent().unwrap());
        }
        Ok(())
    })));
    let moving = CaptureOptions { is_still: false, ..EXACT };
    capture::capture(&at("from"), &at("first"), &at("listing"), None, moving).unwrap();
    failpoints::set_handler(None);
    assert!(changed.get());
    capture::capture(&at("from"), &at("second"), &at("newer"), Some(&at("listing")), EXACT).unwrap();
    squash::squash(&[at("second"), at("first")], &[], &at("whole"), OverlayXattrs::Trusted).unwrap();
    assert_eq!(differences(&fingerprint(&at("whole")), &fingerprint(&at("from"))), [] as [String; 0]);
}

#[test]
fn what_changes_while_it_is_captured_is_captured_again() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root makes whiteouts");
        return;
    }
    let linked = |root: &Path| {
        fs::write(root.join("a"), "old").unwrap();
        fs::write(root.join("between"), "").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
    };
    // One of two names has been copied.
    changed_meanwhile(linked, |from, into| into.join("a").exists() && fs::write(from.join("a"), "new").is_ok());
    // A name goes, and comes again as something else.
    changed_meanwhile(linked, |from, _| {
        fs::remove_file(from.join("a")).unwrap();
        symlink("b", from.join("a")).is_ok()
    });
    changed_meanwhile(linked, |from, into| {
        into.join("a").exists()
            && fs::remove_file(from.join("between")).is_ok()
            && fs::create_dir(from.join("between")).is_ok()
    });
    // A directory with one of the names goes elsewhere.
    let deep = |root: &Path| {
        fs::create_dir_all(root.join("one/two")).unwrap();
        fs::write(root.join("one/two/file"), "old").unwrap();
        fs::hard_link(root.join("one/two/file"), root.join("z")).unwrap();
    };
    changed_meanwhile(deep, |from, into| {
        into.join("one/two/file").exists() && fs::rename(from.join("one"), from.join("three")).is_ok()
    });
    changed_meanwhile(deep, |from, into| into.join("one/two").exists() && fs::write(from.join("z"), "longer").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_show_the_same_however_they_were_made(
        rounds in vec(vec(op(), 1..12), 1..6),
        live in vec(vec(op(), 1..8), 0..4),
        run in (0..8_usize, 2..6_usize),
    ) {
        check(&rounds, &live, run);
    }
}
