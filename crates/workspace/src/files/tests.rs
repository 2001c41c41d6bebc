use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

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
    match workspace.look(path.as_bytes(), true)? {
        Found::File(mut file, version) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            assert_eq!(text.len() as u64, version.size);
            Ok(text)
        }
        Found::Directory(directory) => Ok(names(&list(&directory, None, 100)?)),
        Found::Symlink(..) => panic!("a link was not followed"),
    }
}

fn names(page: &Entries) -> String {
    page.entries.iter().map(|entry| entry.name.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

fn write(workspace: &Workspace, path: &str, content: &str) -> Result<bool, FileError> {
    let how = Write { follow: true, mode: None, bytes_max: 9, allows: &|_| Ok(true) };
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
    assert!(matches!(workspace.look(b"a", true), Err(FileError::NotFound)));
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
        assert!(matches!(workspace.look(path.as_bytes(), true), Err(FileError::Outside)), "{path}");
        assert!(matches!(write(workspace, path, "x"), Err(FileError::Outside)), "{path}");
    }
    assert!(matches!(workspace.look(b"a", true), Err(FileError::Loop)));
    for path in ["../secret", "a/../../secret", "..", "a\0b"] {
        assert!(matches!(workspace.look(path.as_bytes(), true), Err(FileError::BadPath(_))), "{path}");
    }
    assert!(matches!(write(workspace, "up/new", "x"), Err(FileError::Outside)));
    assert!(matches!(remove(workspace, "up/secret"), Err(FileError::Outside)));
    // Removing removes the link, and so does writing that does not follow it.
    let how = Write { follow: false, mode: None, bytes_max: 9, allows: &|_| Ok(true) };
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
    assert!(matches!(workspace.look(b"l1", false).unwrap(), Found::Symlink(target, _) if target == b"/workspace/d"));
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
        let how = Write { follow: true, mode: Some(0o750), bytes_max: 9, allows: &|_| Ok(true) };
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
    let with = |allows: Allows<'_>| {
        let how = Write { follow: true, mode: None, bytes_max: 9, allows };
        workspace.write(b"new/f", &mut "x".as_bytes(), &how)
    };
    assert!(matches!(with(&|present| Ok(present.is_some())), Err(FileError::Stale)));
    assert!(matches!(workspace.look(b"new", true), Err(FileError::NotFound)), "not even a directory is made");
    let first = with(&|present| Ok(present.is_none())).unwrap().version;
    assert!(matches!(with(&|present| Ok(present.is_none())), Err(FileError::Stale)));
    let same = |present: Option<&Present<'_>>| Ok(present.unwrap().version()?.is_some_and(|now| now.tag == first.tag));
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
            let Found::Directory(top) = workspace.look(b"", true).unwrap() else { panic!() };
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
    assert!(matches!(workspace.look(b"pipe", true), Err(FileError::WrongKind(_))));
    assert!(matches!(write(workspace, "pipe", "x"), Err(FileError::WrongKind(_))));
    remove(workspace, "pipe").unwrap();
}
