//! Layer directories and tars.

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use raworc_oci::{Bounds, Error, Format, Ids, OverlayXattrs, unpack};
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, mkdirat, mknodat, openat, setxattr};

use crate::support::{AMPLE, PLAIN, Seen, able, assert_same, look, packed, run, unpacked};

/// A layer with an entry of every kind.
pub fn full_layer(root: &Path) {
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    fs::write(root.join("dir/file"), "content").unwrap();
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("dir/empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(root.join("dir/file"), root.join("a link")).unwrap();
    symlink("dir/file", root.join("symlink")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let odd = OsStr::from_bytes(b"odd \xff\n name");
    fs::write(root.join(odd), "odd").unwrap();
    symlink(odd, root.join("to odd")).unwrap();
    fs::hard_link(root.join(odd), root.join("z odd link")).unwrap();
    fs::write(root.join("long".repeat(50)), "long").unwrap();
    symlink("target".repeat(100), root.join("long target")).unwrap();
    std::os::unix::fs::chown(root.join("empty"), Some(1000), Some(4711)).unwrap();
    let mut sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all(b"begin").unwrap();
    sparse.seek(SeekFrom::Start(5 << 20)).unwrap();
    sparse.write_all(b"middle").unwrap();
    sparse.set_len(8 << 20).unwrap();
    fs::File::create(root.join("all hole")).unwrap().set_len(1 << 20).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    setxattr(root.join("dir/file"), "user.note", b"a\0b\n=", XattrFlags::empty()).unwrap();
    setxattr(root.join("dir"), "user.note", b"", XattrFlags::empty()).unwrap();
    fs::File::open(root.join("dir/file")).unwrap().set_modified(time(1_700_000_000, 123_456_789)).unwrap();
    fs::File::open(root.join("dir/empty")).unwrap().set_modified(time(1, 0)).unwrap();
}

/// Entries that only layers have.
fn xattrs(root: &Path, format: &Format) {
    let opaque = match format.xattrs {
        OverlayXattrs::Trusted => "trusted.overlay.opaque",
        OverlayXattrs::User => "user.overlay.opaque",
    };
    mknodat(CWD, root.join("dir/deleted"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "new").unwrap();
    setxattr(root.join("opaque"), opaque, b"y", XattrFlags::empty()).unwrap();
}

fn time(seconds: u64, nanos: u32) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::new(seconds, nanos)
}

fn two() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    (scratch, from, to)
}

#[test]
fn a_layer_comes_back_as_it_was() {
    if !able(&[]) {
        return;
    }
    for xattrs_at in [OverlayXattrs::Trusted, OverlayXattrs::User] {
        let format = Format { xattrs: xattrs_at, ids: Ids::UNMAPPED };
        let (_scratch, from, to) = two();
        full_layer(&from);
        xattrs(&from, &format);
        let (tar, first) = packed(&from, &format);
        assert_eq!(first.skipped.count, 0);
        assert_eq!(packed(&from, &format).0, tar, "the same directory is the same tar");
        let mut compressed = raworc_oci::gzip(Vec::new());
        compressed.write_all(&tar).unwrap();
        let compressed = compressed.finish().unwrap().len();
        assert!(compressed < 200_000, "holes cost next to nothing: {compressed}");
        let back = unpacked(&tar, &to, &format);
        assert_eq!(back.entries, first.entries);
        assert!(back.implied.is_empty() && back.skipped.count == 0);
        assert_same(&look(&from), &look(&to));
        assert!(fs::metadata(to.join("sparse")).unwrap().blocks() * 512 < 100_000);
        assert_eq!(packed(&to, &format).0, tar);
    }
}

#[test]
fn owners_are_mapped() {
    if !able(&[]) {
        return;
    }
    let (scratch, from, to) = two();
    let based = Format { xattrs: OverlayXattrs::Trusted, ids: Ids::based(100_000) };
    for (name, id) in [("root", 100_000), ("agent", 101_000), ("last", 165_534), ("beyond", 165_535), ("host", 0)] {
        fs::write(from.join(name), "").unwrap();
        std::os::unix::fs::chown(from.join(name), Some(id), Some(id)).unwrap();
    }
    let (tar, _) = packed(&from, &based);
    unpacked(&tar, &to, &PLAIN);
    let owner = |path: &Path, name: &str| fs::metadata(path.join(name)).unwrap().uid();
    let inside: Vec<u32> = ["root", "agent", "last", "beyond", "host"].map(|name| owner(&to, name)).into();
    assert_eq!(inside, [0, 1000, 65534, 65534, 65534]);
    std::os::unix::fs::chown(to.join("beyond"), Some(70_000), None).unwrap();
    let (tar, _) = packed(&to, &PLAIN);
    let again = scratch.path().join("again");
    fs::create_dir(&again).unwrap();
    unpacked(&tar, &again, &based);
    let outside: Vec<u32> = ["root", "agent", "last", "beyond"].map(|name| owner(&again, name)).into();
    assert_eq!(outside, [100_000, 101_000, 165_534, 165_534]);
}

#[test]
fn what_has_no_form_is_left_out_and_named() {
    if !able(&[]) {
        return;
    }
    let (_scratch, from, to) = two();
    fs::write(from.join(".wh.name"), "x").unwrap();
    mknodat(CWD, from.join("device"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    fs::write(from.join("kept"), "x").unwrap();
    setxattr(from.join("kept"), "user.a=b", b"", XattrFlags::empty()).unwrap();
    setxattr(from.join("kept"), "trusted.overlay.origin", b"", XattrFlags::empty()).unwrap();
    setxattr(from.join("kept"), "user.overlay.origin", b"", XattrFlags::empty()).unwrap();
    setxattr(from.join("kept"), "trusted.other", b"", XattrFlags::empty()).unwrap();
    let (tar, packed) = packed(&from, &PLAIN);
    let names: Vec<&str> = packed.skipped.named.iter().map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(names, [".wh.name", "device", "kept", "kept", "socket"]);
    assert_eq!(packed.skipped.count, 5);
    unpacked(&tar, &to, &PLAIN);
    let seen = look(&to);
    assert_eq!(seen.len(), 2, "the directory and what is kept");
    assert!(seen[&b"kept"[..]].attributes.is_empty());
}

#[test]
fn a_deep_tree_is_no_problem() {
    if !able(&[]) {
        return;
    }
    const DEPTH: usize = 10_000;
    let (_scratch, from, to) = two();
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(&from, flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    let (tar, packed) = packed(&from, &PLAIN);
    assert_eq!((packed.entries, packed.skipped.count), (DEPTH as u64 + 2, 0));
    unpacked(&tar, &to, &PLAIN);
    let (again, _) = crate::support::packed(&to, &PLAIN);
    assert!(again == tar);
    // The temporary directory removes itself with long paths.
    for tree in [&from, &to] {
        run(Command::new("rm").arg("-rf").arg(tree));
    }
}

#[test]
fn gnu_tar_reads_what_is_packed_and_the_other_way_round() {
    if !able(&["tar"]) {
        return;
    }
    let (scratch, from, to) = two();
    full_layer(&from);
    let (tar, _) = packed(&from, &PLAIN);
    let file = scratch.path().join("layer.tar");
    fs::write(&file, &tar).unwrap();
    let extract = ["--extract", "--preserve-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=user.*"];
    run(Command::new("tar").args(extract).arg("-C").arg(&to).arg("-f").arg(&file));
    assert_same(&look(&from), &look(&to));
    for options in [
        &["--format=pax", "--sparse-version=1.0"][..],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=gnu"],
    ] {
        let to = tempfile::tempdir().unwrap();
        let create = ["--create", "--sparse", "--numeric-owner"];
        let mut command = Command::new("tar");
        command.args(create).args(options).arg("-C").arg(&from).arg("-f").arg(&file);
        let gnu = options[0] == "--format=gnu";
        if !gnu {
            command.args(["--xattrs", "--xattrs-include=user.*"]);
        }
        run(command.arg("."));
        unpacked(&fs::read(&file).unwrap(), to.path(), &PLAIN);
        let (mut left, mut right) = (look(&from), look(to.path()));
        if gnu {
            // That format knows whole seconds and no attributes.
            for seen in left.values_mut().chain(right.values_mut()) {
                seen.mtime.1 = 0;
                seen.attributes.clear();
            }
        }
        assert_same(&left, &right);
        assert!(fs::metadata(to.path().join("sparse")).unwrap().blocks() * 512 < 200_000, "{options:?}");
    }
}

/// Other programs read our tars: long names, names that are not UTF-8, links, holes.
#[test]
fn every_reader_reads_what_is_packed() {
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path().join("from");
    if !able(&["tar"]) {
        return;
    }
    fs::create_dir(&from).unwrap();
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(130));
    fs::create_dir_all(from.join(&deep)).unwrap();
    let long = format!("{deep}/{}", "f".repeat(200));
    fs::write(from.join(&long), "long").unwrap();
    fs::hard_link(from.join(&long), from.join("another name")).unwrap();
    std::os::unix::fs::symlink(&long, from.join("symbolic")).unwrap();
    fs::write(from.join("größe"), "utf-8").unwrap();
    fs::write(from.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), "latin").unwrap();
    let holes = fs::File::create(from.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"middle", 3 << 20).unwrap();
    holes.set_len(5 << 20).unwrap();
    fs::set_permissions(from.join("holes"), fs::Permissions::from_mode(0o640)).unwrap();
    let (tar, _) = packed(&from, &PLAIN);
    let file = scratch.path().join("layer.tar");
    fs::write(&file, &tar).unwrap();
    for (reader, arguments) in [
        ("tar", &["-x", "-p", "-f"][..]),
        ("bsdtar", &["-x", "-p", "-f"]),
        ("busybox", &["tar", "-x", "-p", "-f"]),
        ("python3", &["-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall()"]),
    ] {
        if !able(&[reader]) {
            continue;
        }
        let to = tempfile::tempdir().unwrap();
        run(Command::new(reader).args(arguments).arg(&file).current_dir(to.path()));
        let (mut left, mut right) = (look(&from), look(to.path()));
        // Fractions of seconds are not for all of them.
        for seen in left.values_mut().chain(right.values_mut()) {
            seen.mtime = (0, 0);
        }
        // The directory itself is not in the archive for all of them.
        left.remove(&b""[..]);
        right.remove(&b""[..]);
        let names = |seen: &std::collections::BTreeMap<Vec<u8>, Seen>| {
            seen.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&left), names(&right), "{reader}");
        assert_same(&left, &right);
    }
}

/// Zeros take no space, however they were packed.
#[test]
fn zeros_become_holes() {
    if !able(&["tar"]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let from = scratch.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut content = vec![0; 64 << 20];
    content[20 << 20..][..5].copy_from_slice(b"inner");
    content[(40 << 20) + 123] = 1;
    fs::write(from.join("zeros"), &content).unwrap();
    fs::write(from.join("small"), [0; 100]).unwrap();
    fs::write(from.join("uneven"), [&[0; 10_000][..], b"x"].concat()).unwrap();
    let file = scratch.path().join("layer.tar");
    run(Command::new("tar").args(["-c", "--format=pax", "-C"]).arg(&from).arg("-f").arg(&file).arg("."));
    let to = tempfile::tempdir().unwrap();
    unpacked(&fs::read(&file).unwrap(), to.path(), &PLAIN);
    assert!(fs::read(to.path().join("zeros")).unwrap() == content);
    for name in ["small", "uneven"] {
        assert_eq!(fs::read(to.path().join(name)).unwrap(), fs::read(from.join(name)).unwrap(), "{name}");
    }
    let taken = fs::metadata(to.path().join("zeros")).unwrap().blocks() * 512;
    assert!(taken <= 64 << 10, "{taken} bytes");
}

/// AUFS's form of hard links: files below `.wh..wh.plnk`, with links to them.
#[test]
fn links_of_old_images_are_found() {
    if !able(&[]) {
        return;
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut entry = |kind: tar::EntryType, path: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    use tar::EntryType::{Directory, Link, Regular};
    entry(Regular, ".wh..wh.aufs", "", b"");
    entry(Directory, ".wh..wh.orph", "", b"");
    entry(Regular, ".wh..wh.orph/x", "", b"nobody's");
    entry(Directory, ".wh..wh.plnk", "", b"");
    entry(Regular, ".wh..wh.plnk/12.34", "", b"shared");
    entry(Directory, "d", "", b"");
    entry(Link, "d/one", ".wh..wh.plnk/12.34", b"");
    entry(Link, "two", "/.wh..wh.plnk/12.34", b"");
    entry(Regular, "d/.wh..wh..opq", "", b"");
    let bytes = tar.into_inner().unwrap();
    let to = tempfile::tempdir().unwrap();
    let outcome = unpacked(&bytes, to.path(), &PLAIN);
    assert_eq!(outcome.skipped.count, 3, "{:?}", outcome.skipped);
    let seen = look(to.path());
    let names: Vec<&[u8]> = seen.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [&b""[..], b"d", b"d/one", b"two"]);
    assert_eq!(fs::read(to.path().join("two")).unwrap(), b"shared");
    assert_eq!(seen[&b"two"[..]].first.as_deref(), Some(&b"d/one"[..]));
}

#[test]
fn compressed_layers_are_read() {
    let text = b"some text that is compressed".repeat(1000);
    let mut gz = raworc_oci::gzip(Vec::new());
    gz.write_all(&text).unwrap();
    let gz = gz.finish().unwrap();
    let mut twice = gz.clone();
    twice.extend_from_slice(&gz);
    let zst = zstd::encode_all(&text[..], 3).unwrap();
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz.write_all(&text).unwrap();
    let bz = bz.finish().unwrap();
    for (bytes, times) in [(&text, 1), (&gz, 1), (&twice, 2), (&zst, 1), (&bz, 1)] {
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut raworc_oci::decompress(&bytes[..]).unwrap(), &mut read).unwrap();
        assert!(read == text.repeat(times));
    }
}

#[test]
fn bounds_hold_before_anything_is_written() {
    if !able(&[]) {
        return;
    }
    let (scratch, from, _) = two();
    full_layer(&from);
    let (tar, first) = packed(&from, &PLAIN);
    let exact = Bounds { bytes: first.bytes, entries: first.entries };
    let bounds = [
        (exact, true),
        (Bounds { bytes: exact.bytes - 1, ..exact }, false),
        (Bounds { entries: exact.entries - 1, ..exact }, false),
    ];
    for (at, (bounds, fits)) in bounds.into_iter().enumerate() {
        let to = scratch.path().join(at.to_string());
        fs::create_dir(&to).unwrap();
        match unpack(&tar[..], &to, &PLAIN, &bounds, &mut |_| {}) {
            Ok(_) => assert!(fits),
            Err(Error::TooLarge(_)) => assert!(!fits),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(unpack(&tar[..], &from, &PLAIN, &AMPLE, &mut |_| {}).is_err(), "only an empty directory is unpacked to");
}

#[test]
fn a_hole_may_be_larger_than_any_tar() {
    if !able(&["tar"]) {
        return;
    }
    const SIZE: u64 = 3 << 40;
    let (scratch, from, to) = two();
    let mut file = fs::File::create(from.join("hole")).unwrap();
    file.seek(SeekFrom::Start(SIZE - 3)).unwrap();
    file.write_all(b"end").unwrap();
    let (tar, _) = packed(&from, &PLAIN);
    assert!(tar.len() < 20_000);
    unpacked(&tar, &to, &PLAIN);
    let theirs = scratch.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(scratch.path().join("tar"), &tar).unwrap();
    run(Command::new("tar").arg("-x").arg("-C").arg(&theirs).arg("-f").arg(scratch.path().join("tar")));
    for directory in [&to, &theirs] {
        let mut file = fs::File::open(directory.join("hole")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        assert!(file.metadata().unwrap().blocks() * 512 <= 16384);
        file.seek(SeekFrom::Start(SIZE - 3)).unwrap();
        let mut end = String::new();
        std::io::Read::read_to_string(&mut file, &mut end).unwrap();
        assert_eq!(end, "end");
    }
}

/// Started by the next test in a user namespace.
#[test]
fn does_it_without_root() {
    let Some(root) = std::env::var_os("RAWORC_OCI_TEST_NAMESPACE") else { return };
    let (from, to) = (PathBuf::from(&root).join("from"), PathBuf::from(&root).join("to"));
    let format = Format { xattrs: OverlayXattrs::User, ids: Ids { base: 0, count: 1 } };
    let (tar, _) = packed(&from, &format);
    unpacked(&tar, &to, &format);
    assert_same(&look(&from), &look(&to));
}

#[test]
fn a_layer_comes_back_in_a_user_namespace() {
    if !able(&["unshare"]) {
        return;
    }
    let (scratch, from, to) = two();
    fs::create_dir(from.join("dir")).unwrap();
    fs::write(from.join("dir/file"), "content").unwrap();
    xattrs(&from, &Format { xattrs: OverlayXattrs::User, ids: Ids::UNMAPPED });
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user"]).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "layers::does_it_without_root"]).env("RAWORC_OCI_TEST_NAMESPACE", scratch.path());
    run(&mut inside);
    assert!(fs::symlink_metadata(to.join("dir/deleted")).unwrap().rdev() == 0);
    assert_same(&look(&from), &look(&to));
}

/// An access control list with one user of its own, as the kernel keeps it.
fn list(user: u32) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 6, user), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        value.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

fn list_of(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let count = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(count);
    Some(value)
}

#[test]
fn access_control_lists_go_along() {
    if !able(&["tar"]) {
        return;
    }
    const OWN: &str = "system.posix_acl_access";
    const OF_CHILDREN: &str = "system.posix_acl_default";
    let format = Format { xattrs: OverlayXattrs::Trusted, ids: Ids::based(100_000) };
    let (scratch, from, to) = two();
    fs::create_dir(from.join("d")).unwrap();
    fs::write(from.join("d/child"), "x").unwrap();
    fs::create_dir(from.join("d/inner")).unwrap();
    fs::write(from.join("f"), "x").unwrap();
    mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for (path, name) in [("d", OF_CHILDREN), ("d", OWN), ("f", OWN), ("pipe", OWN)] {
        setxattr(from.join(path), name, &list(101_007), XattrFlags::empty()).unwrap();
    }
    let (tar, packed) = packed(&from, &format);
    assert_eq!(packed.skipped.count, 0, "{:?}", packed.skipped);
    let record = b"SCHILY.acl.default=user::rwx,user:1007:rw-,group::r--,mask::rw-,other::---\n";
    assert!(tar.windows(record.len()).any(|window| window == record), "ids in it are those of inside");
    let back = unpacked(&tar, &to, &format);
    assert_eq!(back.skipped.count, 0, "{:?}", back.skipped);
    // Another program reads it, too.
    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(scratch.path().join("a.tar"), &tar).unwrap();
    run(Command::new("tar").args(["--acls", "--numeric-owner", "-xpf", "../a.tar"]).current_dir(&other));
    for path in ["d", "d/child", "d/inner", "f", "pipe"] {
        let mode = |root: &Path| fs::symlink_metadata(root.join(path)).unwrap().mode();
        assert_eq!(mode(&from), mode(&to), "{path}");
        for name in [OWN, OF_CHILDREN] {
            assert_eq!(list_of(&from.join(path), name), list_of(&to.join(path), name), "{path} {name}");
            let inside = list_of(&from.join(path), name).map(|_| list(1007));
            assert_eq!(list_of(&other.join(path), name), inside, "GNU tar: {path} {name}");
        }
    }
}
