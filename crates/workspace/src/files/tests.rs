use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use raworc_oci::entries;
use rustix::fs::{Mode, mkdirat};

use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    workspace: Workspace,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("w")).unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(directory.path().join("w"), flags, Mode::empty()).unwrap();
    let workspace = Workspace::new(root, None);
    Fixture { directory, workspace }
}

fn read(workspace: &Workspace, path: &str) -> Result<String, FileError> {
    match workspace.open_entry(path.as_bytes(), true)? {
        OpenEntry::File(mut file, version) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            assert_eq!(text.len() as u64, version.size);
            Ok(text)
        }
        OpenEntry::Directory(directory) => Ok(names(&list(&directory, None, 100)?)),
        OpenEntry::Symlink(..) => panic!("a link was not followed"),
    }
}

fn names(page: &Entries) -> String {
    page.entries.iter().map(|entry| entry.name.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

fn write(workspace: &Workspace, path: &str, content: &str) -> Result<bool, FileError> {
    let how = WriteOptions { follow: true, mode: None, bytes_max: 9, allows: &|_| Ok(true) };
    workspace.write(path.as_bytes(), &mut content.as_bytes(), &how).map(|written| written.is_new)
}

fn remove(workspace: &Workspace, path: &str) -> Result<(), FileError> {
    workspace.remove(path.as_bytes(), &|_| Ok(true))
}

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_are_written_listed_replaced_and_removed() {
    let fixture = fixture();
    let Fixture { workspace, .. } = &fixture;
    assert!(write(workspace, "a/b/c.txt", "one").unwrap());
    assert!(!write(workspace, "/a/b/c.txt", "two").unwrap());
    assert_eq!(read(workspace, "a/b/c.txt").unwrap(), "two");
    assert_eq!(read(workspace, "").unwrap(), "a");
    assert!(matches!(write(workspace, "a/b/c.txt", "four times"), Err(FileError::TooLarge)));
    assert!(matches!(write(workspace, "a/b/d.txt", "four times"), Err(FileError::TooLarge)));
    assert_eq!(read(workspace, "a/b").unwrap(), "c.txt", "nothing is left of a write that failed");
    assert!(matches!(write(workspace, "a/b", "x"), Err(FileError::WrongKind(_))));
    remove(workspace, "a").unwrap();
    assert!(matches!(workspace.open_entry(b"a", true), Err(FileError::NotFound)));
}

#[test]
fn nothing_leads_out() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let inside = directory.path().join("w");
    for (target, name) in [
        (directory.path().join("secret").to_str().unwrap(), "absolute"),
        ("../secret", "relative"),
        ("..", "up"),
        ("/", "root"),
        ("/proc/self/root/etc/passwd", "magic"),
        ("/workspace/../etc/passwd", "round"),
        ("/workspacex", "other"),
    ] {
        symlink(target, inside.join(name)).unwrap();
    }
    symlink("b", inside.join("a")).unwrap();
    symlink("a", inside.join("b")).unwrap();
    for path in ["absolute", "relative", "up", "up/secret", "root", "root/etc", "magic", "round", "other"] {
        assert!(matches!(workspace.open_entry(path.as_bytes(), true), Err(FileError::Outside)), "{path}");
        assert!(matches!(write(workspace, path, "x"), Err(FileError::Outside)), "{path}");
    }
    assert!(matches!(workspace.open_entry(b"a", true), Err(FileError::Loop)));
    for path in ["../secret", "a/../../secret", "..", "a\0b"] {
        assert!(matches!(workspace.open_entry(path.as_bytes(), true), Err(FileError::BadPath(_))), "{path}");
    }
    assert!(matches!(write(workspace, "up/new", "x"), Err(FileError::Outside)));
    assert!(matches!(remove(workspace, "up/secret"), Err(FileError::Outside)));
    // Removing removes the link, and so does writing that does not follow it.
    let how = WriteOptions { follow: false, mode: None, bytes_max: 9, allows: &|_| Ok(true) };
    workspace.write(b"absolute", &mut "mine".as_bytes(), &how).unwrap();
    assert!(fs::symlink_metadata(inside.join("absolute")).unwrap().is_file());
    remove(workspace, "relative").unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
    for path in ["", "/", ".", "a/."] {
        assert!(matches!(remove(workspace, path), Err(FileError::BadPath(_))), "{path:?}");
    }
}

#[test]
fn links_that_stay_inside_lead_where_they_lead_inside() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let inside = directory.path().join("w");
    fs::create_dir_all(inside.join("d/e")).unwrap();
    fs::write(inside.join("d/f"), "f").unwrap();
    for (target, name) in [
        ("/workspace/d", "l1"),
        ("//workspace/./d/", "l2"),
        ("d/e/../../d", "l3"),
        ("../workspace/d", "l4"),
        ("../../../workspace/../workspace/l3", "l5"),
        ("/workspace", "top"),
        ("/workspace/new", "dangling"),
    ] {
        symlink(target, inside.join(name)).unwrap();
    }
    for path in ["l1/f", "l2/f", "l3/f", "l4/f", "l5/f", "top/d/f", "top/top/l1/f"] {
        assert_eq!(read(workspace, path).unwrap(), "f", "{path}");
        assert!(!write(workspace, path, "f").unwrap(), "{path}");
    }
    assert_eq!(read(workspace, "l1").unwrap(), "e f");
    assert!(write(workspace, "l5/made/on/the/way", "x").unwrap());
    assert_eq!(fs::read_to_string(inside.join("d/made/on/the/way")).unwrap(), "x");
    // A link that leads nowhere makes what it leads to, not the directories on its own way.
    assert!(write(workspace, "dangling", "x").unwrap());
    assert_eq!(fs::read_to_string(inside.join("new")).unwrap(), "x");
    symlink("none/file", inside.join("deep")).unwrap();
    assert!(matches!(write(workspace, "deep", "x"), Err(FileError::NotFound)));
    assert!(
        matches!(workspace.open_entry(b"l1", false).unwrap(), OpenEntry::Symlink(target, _) if target == b"/workspace/d")
    );
}

#[test]
fn a_file_keeps_its_mode_and_a_link_stays_one() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let file = directory.path().join("w/f");
    for before in [0o755, 0o600, 0o444, 0o000, 0o2640] {
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(before)).unwrap();
        symlink("f", directory.path().join("w/l")).unwrap();
        assert!(!write(workspace, "l", "x").unwrap());
        assert_eq!((mode(&file), fs::read_to_string(&file).unwrap()), (before, "x".into()), "{before:o}");
        assert!(fs::symlink_metadata(directory.path().join("w/l")).unwrap().is_symlink());
        let how = WriteOptions { follow: true, mode: Some(0o750), bytes_max: 9, allows: &|_| Ok(true) };
        workspace.write(b"f", &mut "y".as_bytes(), &how).unwrap();
        assert_eq!(mode(&file), 0o750);
        remove(workspace, "l").unwrap();
        remove(workspace, "f").unwrap();
    }
    write(workspace, "f", "x").unwrap();
    assert_eq!(mode(&file), 0o644);
}

#[test]
fn what_is_not_expected_is_not_changed() {
    let fixture = fixture();
    let Fixture { workspace, .. } = &fixture;
    let with = |allows: Precondition<'_>| {
        let how = WriteOptions { follow: true, mode: None, bytes_max: 9, allows };
        workspace.write(b"new/f", &mut "x".as_bytes(), &how)
    };
    assert!(matches!(with(&|present| Ok(present.is_some())), Err(FileError::Stale)));
    assert!(matches!(workspace.open_entry(b"new", true), Err(FileError::NotFound)), "not even a directory is made");
    let first = with(&|present| Ok(present.is_none())).unwrap().version;
    assert!(matches!(with(&|present| Ok(present.is_none())), Err(FileError::Stale)));
    let same =
        |present: Option<&ExistingEntry<'_>>| Ok(present.unwrap().version()?.is_some_and(|now| now.tag == first.tag));
    assert!(with(&same).is_ok());
    write(workspace, "new/f", "y").unwrap();
    assert!(matches!(with(&same), Err(FileError::Stale)));
    assert!(matches!(workspace.remove(b"new/f", &same), Err(FileError::Stale)));
    assert_eq!(read(workspace, "new/f").unwrap(), "y");
}

#[test]
fn pages_have_every_name_once() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let mut all: Vec<Vec<u8>> = (0..250).map(|n| format!("{n}").into_bytes()).collect();
    all.push(b"bad\xff".to_vec());
    all.push(b"\x01".to_vec());
    for name in &all {
        fs::write(directory.path().join("w").join(OsStr::from_bytes(name)), "").unwrap();
    }
    all.sort();
    for page_entries in [1, 7, 250, 252, 1000] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let OpenEntry::Directory(top) = workspace.open_entry(b"", true).unwrap() else { panic!() };
            let page = list(&top, after.as_deref(), page_entries).unwrap();
            assert!(page.entries.len() <= page_entries);
            seen.extend(page.entries.into_iter().map(|entry| entry.name));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, all, "{page_entries}");
    }
}

#[test]
fn a_tree_of_any_depth_is_removed() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(directory.path().join("w"), flags, Mode::empty()).unwrap();
    for _ in 0..3_000 {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        let inner = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        rustix::fs::openat(&inner, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        at = inner;
    }
    remove(workspace, "d").unwrap();
    assert_eq!(fs::read_dir(directory.path().join("w")).unwrap().count(), 0);
}

#[test]
fn a_pipe_does_not_hold_us() {
    let fixture = fixture();
    let Fixture { directory, workspace, .. } = &fixture;
    let pipe = directory.path().join("w/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(matches!(workspace.open_entry(b"pipe", true), Err(FileError::WrongKind(_))));
    assert!(matches!(write(workspace, "pipe", "x"), Err(FileError::WrongKind(_))));
    remove(workspace, "pipe").unwrap();
}

fn how() -> UnpackOptions {
    UnpackOptions { bytes_max: 1 << 30, entries_max: 1 << 20, mode_mask: 0o7777, name: None }
}

fn packed(workspace: &Workspace) -> (Vec<u8>, PackStats) {
    let mut archive = Vec::new();
    let packed = workspace.pack_source(b"", true).unwrap().write(&mut archive).unwrap();
    (archive, packed)
}

/// An entry of a tar: path, kind, link, records.
type Item<'a> = (&'a [u8], entries::EntryType, &'a [u8], &'a [(&'a str, &'a str)]);

/// A tar of these entries.
fn archive(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, kind, link, pairs) in items {
        let mut records = entries::Records::default();
        pairs.iter().for_each(|(key, value)| records.add(key.as_bytes(), value.as_bytes()));
        let entry =
            entries::Entry { kind: *kind, path, link, mode: 0o755, uid: 0, gid: 0, mtime: (1, 0), size: 0, records };
        entries::write_header(&mut bytes, entry).unwrap();
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn what_is_too_deep_is_left_out_and_what_is_packed_can_be_unpacked() {
    let (from, to) = (fixture(), fixture());
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(from.directory.path().join("w"), flags, Mode::empty()).unwrap();
    for _ in 0..600 {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        let inner = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        rustix::fs::openat(&inner, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        at = inner;
    }
    let (archive, packed) = packed(&from.workspace);
    assert_eq!((packed.entries, packed.left_out), (1 + 2 * 512, 1));
    measure(&archive[..], &how()).unwrap();
    let unpacked = to.workspace.unpack(b"", true, &archive[..], &how(), &|_| Ok(true)).unwrap();
    assert_eq!(unpacked.entries, packed.entries);
    remove(&from.workspace, "d").unwrap();
    remove(&to.workspace, "d").unwrap();
}

#[test]
fn a_large_directory_is_not_read_anew_for_each_few_names() {
    let fixture = fixture();
    // Large directories above take what names may take together.
    let mut at = fixture.directory.path().join("w");
    let mut files = 4_000;
    for level in 0..20 {
        let count = (4_000 >> level).max(300);
        files += count + 1;
        (0..count).for_each(|n| fs::write(at.join(format!("{n:0>200}")), "").unwrap());
        at.push("!");
        fs::create_dir(&at).unwrap();
    }
    (0..4_000).for_each(|n| fs::write(at.join(format!("{n}")), "").unwrap());
    let before = list::READS.get();
    let (_, packed) = packed(&fixture.workspace);
    assert_eq!(packed.entries, 1 + files);
    let reads = list::READS.get() - before;
    assert!(reads < 150, "directories were read {reads} times");
}

#[test]
fn sparse_files_have_so_many_parts_and_no_more() {
    let (from, to) = (fixture(), fixture());
    let file = fs::File::create(from.directory.path().join("w/sparse")).unwrap();
    for n in 0..8_300_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", n * 8_192).unwrap();
    }
    let (archive, _) = packed(&from.workspace);
    to.workspace.unpack(b"", true, &archive[..], &how(), &|_| Ok(true)).unwrap();
    let read = |fixture: &Fixture| fs::read(fixture.directory.path().join("w/sparse")).unwrap();
    assert!(read(&from) == read(&to));
    assert!(archive[..8192].windows(6).any(|window| window == b"\x008192\n"), "the map begins with how many there are");
}

#[test]
fn what_no_file_can_be_is_found_before_anything_changes() {
    use entries::EntryType::{Directory, Link, Regular};
    let long = [b'x'; 256];
    let deep = b"d/".repeat(513);
    let below = [&b"d/".repeat(513)[..], b"file"].concat();
    for (items, expected) in [
        (vec![(&long[..], Regular, &b""[..], &[][..])], "255 bytes"),
        (vec![(b"a", Link, &long[..], &[])], "255 bytes"),
        (vec![(b"a", Link, b"../up", &[])], "upwards"),
        (vec![(&deep[..deep.len() - 1], Directory, b"", &[])], "levels"),
        (vec![(&below, Regular, b"", &[])], "levels"),
    ] {
        let error = measure(&archive(&items)[..], &how()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    measure(&archive(&[(&b"d/".repeat(512), Directory, b"", &[]), (&below[2..], Regular, b"", &[])])[..], &how())
        .unwrap();
}

#[test]
fn a_directory_has_its_list_also_where_an_archive_ends_half_way() {
    use entries::EntryType::{Directory, Link, Regular};
    let fixture = fixture();
    let root = rustix::fs::open(fixture.directory.path().join("w"), OFlags::DIRECTORY | OFlags::PATH, Mode::empty());
    let workspace = Workspace::new(root.unwrap(), Some(AGENT_UID));
    if std::os::unix::fs::chown(fixture.directory.path().join("w"), Some(AGENT_UID), None).is_err() {
        eprintln!("SKIPPED: files cannot be given to others");
        return;
    }
    let list = "user::rwx,user:7:rwx,group::r-x,mask::rwx,other::---";
    let records = [("SCHILY.acl.default", list)];
    let items: [Item; 4] = [
        (b"d", Directory, b"", &records),
        (b"d/e", Directory, b"", &records),
        (b"d/e/f", Regular, b"", &[]),
        (b"d/e/g", Link, b"none", &[]),
    ];
    let has_list = |path: &str| {
        let path = fixture.directory.path().join("w").join(path);
        rustix::fs::getxattr(&path, "system.posix_acl_default", &mut [0; 256][..]).is_ok_and(|bytes| bytes > 0)
    };
    workspace.unpack(b"", true, &archive(&items[..3])[..], &how(), &|_| Ok(true)).unwrap();
    if !has_list("d") {
        eprintln!("SKIPPED: the file system has no access control lists");
        return;
    }
    assert!(workspace.unpack(b"", true, &archive(&items)[..], &how(), &|_| Ok(true)).is_err());
    assert!(has_list("d") && has_list("d/e"));
}

/// Something that is mounted until it is dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn what_is_mounted_in_a_directory_belongs_to_it_here_and_not_in_a_workspace() {
    use entries::EntryType::{Directory, Regular};
    let fixture = fixture();
    let inside = fixture.directory.path().join("w");
    fs::create_dir(inside.join("m")).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(inside.join("m")).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: nothing can be mounted here");
        return;
    }
    let _mounted = Mounted(inside.join("m"));
    for archive in
        [archive(&[(b"m", Directory, b"", &[]), (b"m/f", Regular, b"", &[])]), archive(&[(b"m/f", Regular, b"", &[])])]
    {
        let open = OwnedFd::from(fs::File::open(&inside).unwrap());
        unpack_into(&open, false, &archive[..], &how()).unwrap();
        fs::remove_file(inside.join("m/f")).unwrap();
        let refused = fixture.workspace.unpack(b"", true, &archive[..], &how(), &|_| Ok(true));
        assert!(matches!(refused, Err(FileError::Outside)), "{refused:?}");
        assert!(!inside.join("m/f").exists());
    }
}
