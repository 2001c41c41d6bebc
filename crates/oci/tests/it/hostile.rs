//! Hostile archives: nothing outside the directory changes.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use raworc_oci::{Bounds, Error, unpack};
use tar::EntryType;

use crate::support::{AMPLE, PLAIN, able, look};

/// Builds a tar without a library's checks.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, name: &[u8], link: &[u8], size: u64, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name);
        bytes[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.entry(b'0', name.as_bytes(), b"", data.len() as u64, data.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", 0, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), 0, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), 0, b"")
    }

    /// An extended header for the next entry.
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', b"x", b"", data.len() as u64, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Unpacks next to a file and a directory that must not change.
fn tried(tar: &[u8], bounds: &Bounds) -> (tempfile::TempDir, Result<raworc_oci::UnpackedLayer, Error>) {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir_all(outside.join("directory")).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let to = scratch.path().join("to");
    fs::create_dir(&to).unwrap();
    let before = look(&outside);
    let outcome = unpack(tar, &to, &PLAIN, bounds, &mut |_| {});
    let after = look(&outside);
    assert!(before == after, "something outside has changed");
    let names: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "something outside is new: {names:?}");
    (scratch, outcome)
}

#[test]
fn hostile_archives_are_refused() {
    if !able(&[]) {
        return;
    }
    let huge = u64::MAX.to_string();
    let many_headers = (0..40).fold(Tar::default(), |tar, _| tar.entry(b'x', b"x", b"", 1 << 19, &vec![0; 1 << 19]));
    let bad_sum = {
        let mut tar = Tar::default().file("a", "x").end();
        tar[0] = b'b';
        tar
    };
    let mut followed = Tar::default().file("a", "x").end();
    let end = followed.len() - 512;
    followed[end] = 1;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("upwards", Tar::default().file("../outside/secret", "x").end()),
        ("upwards in the middle", Tar::default().directory("a").file("a/../../outside/secret", "x").end()),
        ("upwards in an extended header", Tar::default().pax(&[("path", b"a/../../outside/new")]).file("a", "x").end()),
        ("only upwards", Tar::default().directory("..").end()),
        ("through a symlink", Tar::default().symlink("a", "../outside").file("a/secret", "x").end()),
        ("through an absolute symlink", Tar::default().symlink("a", "/tmp").file("a/x-of-a-test", "x").end()),
        ("a directory through a symlink", Tar::default().symlink("a", "../outside").directory("a/b").end()),
        ("a whiteout through a symlink", Tar::default().symlink("a", "../outside").file("a/.wh.secret", "").end()),
        ("opaque through a symlink", Tar::default().symlink("a", "../outside").file("a/.wh..wh..opq", "").end()),
        (
            "through a symlink two deep",
            Tar::default().directory("d").symlink("d/a", "../../outside").file("d/a/b/c", "x").end(),
        ),
        (
            "a swap",
            Tar::default().directory("a").file("a/b", "x").symlink("a", "../outside").file("a/secret", "x").end(),
        ),
        ("a link upwards", Tar::default().link("a", "../outside/secret").file("a", "x").end()),
        ("a link through a symlink", Tar::default().symlink("a", "../outside").link("b", "a/secret").end()),
        ("a link to nothing", Tar::default().link("a", "b").end()),
        ("a link to the root", Tar::default().link("a", "/").end()),
        ("a link to a directory", Tar::default().directory("d").link("a", "d").end()),
        ("a link to itself", Tar::default().file("a", "x").link("a", "./a").end()),
        ("a link to a whiteout", Tar::default().file(".wh.a", "").link("b", "a").end()),
        ("a link into what it replaces", Tar::default().directory("d").file("d/a", "x").link("d", "d/a").end()),
        ("beneath a file", Tar::default().file("a", "x").file("a/b", "x").end()),
        ("no name", Tar::default().file("", "x").end()),
        ("a file as the root", Tar::default().file("./", "x").end()),
        ("a symlink as the root", Tar::default().symlink(".", "/").end()),
        ("a NUL", Tar::default().pax(&[("path", b"a\0b")]).file("a", "x").end()),
        ("a NUL in a target", Tar::default().pax(&[("linkpath", b"a\0b")]).symlink("a", "x").end()),
        ("a target of nothing", Tar::default().symlink("a", "").end()),
        ("a whiteout of the directory above", Tar::default().file("a/.wh...", "").end()),
        ("a whiteout of the directory", Tar::default().file("a/.wh..", "").end()),
        ("a whiteout of nothing", Tar::default().file("a/.wh.", "").end()),
        ("beneath a whiteout", Tar::default().file(".wh.a/b", "x").end()),
        ("a long name", Tar::default().pax(&[("path", &[b'a'; 300])]).file("a", "x").end()),
        ("a long path", Tar::default().pax(&[("path", &b"a/".repeat(40_000))]).file("a", "x").end()),
        ("huge", Tar::default().entry(b'0', b"a", b"", 8 << 40, b"x").end()),
        ("huge in an extended header", Tar::default().pax(&[("size", huge.as_bytes())]).file("a", "x").end()),
        ("a huge extended header", Tar::default().entry(b'x', b"x", b"", 8 << 30, b"x").end()),
        ("a huge long name", Tar::default().entry(b'L', b"x", b"", 8 << 30, b"x").end()),
        ("many extended headers", many_headers.file("a", "x").end()),
        ("a broken extended header", Tar::default().entry(b'x', b"x", b"", 5, b"9 a=b").file("a", "x").end()),
        ("cut off", Tar::default().entry(b'0', b"a", b"", 5000, b"x").end()),
        ("cut off in the header", Tar::default().file("a", "x").end()[..300].to_vec()),
        ("no tar", vec![b'x'; 2000]),
        ("a wrong sum", bad_sum),
        ("something after the end", followed),
        ("a sparse file without a size", sparse(&[("GNU.sparse.map", b"0,1")], "x")),
        ("a sparse file that overlaps", sparse(&[("GNU.sparse.map", b"0,1,0,1"), ("GNU.sparse.size", b"9")], "xy")),
        ("a sparse file beyond its size", sparse(&[("GNU.sparse.map", b"5,1"), ("GNU.sparse.size", b"5")], "x")),
        (
            "a sparse file that overflows",
            sparse(&[("GNU.sparse.map", b"18446744073709551615,1"), ("GNU.sparse.size", huge.as_bytes())], "x"),
        ),
        ("a sparse file of odd numbers", sparse(&[("GNU.sparse.map", b"0"), ("GNU.sparse.size", b"5")], "x")),
        ("a sparse file with less data", sparse(&[("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"5")], "x")),
        (
            "a sparse file of too many segments",
            sparse(&[("GNU.sparse.major", b"1"), ("GNU.sparse.size", b"5")], "99999999\n"),
        ),
        ("a map without end", sparse(&[("GNU.sparse.major", b"1"), ("GNU.sparse.size", b"5")], "2\n1\n")),
        ("an attribute that cannot be one", Tar::default().pax(&[("SCHILY.xattr.user.", b"x")]).file("a", "x").end()),
    ];
    for (name, tar) in cases {
        let (_scratch, outcome) = tried(&tar, &Bounds { bytes: 16 << 20, entries: 50_000 });
        let expected =
            matches!(outcome, Err(Error::BadArchive(_) | Error::Blocked(_) | Error::TooLarge(_)) | Err(Error::Io(_)));
        // An error of the file system would be luck, but for what has been removed under a link's feet.
        let by_luck = matches!(outcome, Err(Error::Io(_))) && name != "a link into what it replaces";
        assert!(expected && !by_luck, "{name}: {outcome:?}");
    }
}

fn sparse(records: &[(&str, &[u8])], data: &str) -> Vec<u8> {
    Tar::default().pax(records).file("a", data).end()
}

#[test]
fn odd_archives_are_harmless() {
    if !able(&[]) {
        return;
    }
    let read = |root: &Path, name: &str| fs::read_to_string(root.join(name)).unwrap();
    let is_whiteout = |root: &Path, name: &str| {
        let metadata = fs::symlink_metadata(root.join(name)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    };
    let opaque = |root: &Path, name: &str| {
        look(root)[name.as_bytes()].attributes.get(&b"trusted.overlay.opaque"[..]).map(Vec::as_slice) == Some(b"y")
    };
    type Check<'a> = Box<dyn Fn(&Path, &raworc_oci::UnpackedLayer) -> bool + 'a>;
    let cases: Vec<(&str, Tar, Check<'_>)> = vec![
        ("absolute", Tar::default().file("/etc/a", "x"), Box::new(|root, _| read(root, "etc/a") == "x")),
        ("slashes and dots", Tar::default().file(".//a/./b//", "x"), Box::new(|root, _| read(root, "a/b") == "x")),
        ("twice", Tar::default().file("a", "x").file("a", "yy"), Box::new(|root, _| read(root, "a") == "yy")),
        (
            "a file for a directory",
            Tar::default().file("a/b/c", "x").file("a", "y"),
            Box::new(|root, found| read(root, "a") == "y" && found.implied.is_empty()),
        ),
        (
            "a directory for a file",
            Tar::default().file("a", "x").directory("a").file("a/b", "y"),
            Box::new(|root, _| read(root, "a/b") == "y"),
        ),
        (
            "a file for a symlink",
            Tar::default().symlink("a", "../outside/secret").file("a", "y"),
            Box::new(|root, _| read(root, "a") == "y"),
        ),
        (
            "a directory for a symlink",
            Tar::default().symlink("a", "../outside").directory("a").file("a/secret", "y"),
            Box::new(|root, _| read(root, "a/secret") == "y"),
        ),
        (
            "a file for one of two names",
            Tar::default().file("a", "x").link("b", "a").file("a", "yy"),
            Box::new(|root, _| read(root, "b") == "x"),
        ),
        (
            "a link to a symlink",
            Tar::default().symlink("a", "../outside/secret").link("b", "a"),
            Box::new(|root, _| fs::read_link(root.join("b")).is_ok()),
        ),
        (
            "a device",
            Tar::default().entry(b'3', b"a", b"", 0, b"").entry(b'4', b"b", b"", 0, b""),
            Box::new(|root, found| found.skipped.count == 2 && look(root).len() == 1),
        ),
        (
            "an unknown kind",
            Tar::default().entry(b'V', b"a", b"", 3, b"abc").file("b", "x"),
            Box::new(|root, found| found.skipped.count == 1 && look(root).len() == 2),
        ),
        (
            "another union file system",
            Tar::default().file(".wh..wh.plnk", "x").file(".wh..wh.aufs", ""),
            Box::new(|root, found| found.skipped.count == 2 && look(root).len() == 1),
        ),
        (
            "implied",
            Tar::default().file("a/b/c", "x"),
            Box::new(|root, found| {
                found.implied == [Path::new("a"), Path::new("a/b")] && look(root)[&b"a/b"[..]].mode == 0o755
            }),
        ),
        (
            "implied, then said",
            Tar::default().file("a/b/c", "x").directory("a"),
            Box::new(|_, found| found.implied == [Path::new("a/b")]),
        ),
        ("a whiteout", Tar::default().file("d/.wh.a", ""), Box::new(|root, _| is_whiteout(root, "d/a"))),
        (
            "a whiteout before a file",
            Tar::default().file(".wh.a", "").file("a", "x"),
            Box::new(|root, _| read(root, "a") == "x"),
        ),
        (
            "a whiteout after a file",
            Tar::default().file("a", "x").file(".wh.a", ""),
            Box::new(|root, _| read(root, "a") == "x"),
        ),
        (
            "a whiteout before a directory",
            Tar::default().file(".wh.a", "").directory("a"),
            Box::new(|root, _| opaque(root, "a")),
        ),
        (
            "a whiteout before an implied directory",
            Tar::default().file(".wh.a", "").file("a/b", "x"),
            Box::new(|root, _| opaque(root, "a") && read(root, "a/b") == "x"),
        ),
        (
            "a whiteout after a directory",
            Tar::default().file("a/b", "x").file(".wh.a", ""),
            Box::new(|root, _| opaque(root, "a") && read(root, "a/b") == "x"),
        ),
        (
            "opaque after what is in it",
            Tar::default().file("a/b", "x").file("a/.wh..wh..opq", ""),
            Box::new(|root, _| opaque(root, "a") && read(root, "a/b") == "x"),
        ),
        ("the opaque root", Tar::default().file(".wh..wh..opq", ""), Box::new(|root, _| opaque(root, ""))),
        (
            "xattrs as attributes",
            Tar::default()
                .pax(&[
                    ("SCHILY.xattr.user.overlay.opaque", b"y"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.security.capability", b"y"),
                ])
                .directory("a"),
            Box::new(|root, _| look(root)[&b"a"[..]].attributes.is_empty()),
        ),
        (
            "a negative time",
            Tar::default().pax(&[("mtime", b"-5.5")]).file("a", "x"),
            Box::new(|root, _| look(root)[&b"a"[..]].mtime == (-6, 500_000_000)),
        ),
        ("no end", Tar(Tar::default().file("a", "x").0), Box::new(|root, _| read(root, "a") == "x")),
        ("no padding", Tar(Tar::default().file("a", "x").0[..513].into()), Box::new(|root, _| read(root, "a") == "x")),
    ];
    for (name, tar, check) in cases {
        let bytes = if name.starts_with("no ") { tar.0 } else { tar.end() };
        let (scratch, outcome) = tried(&bytes, &AMPLE);
        let unpacked = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(check(&scratch.path().join("to"), &unpacked), "{name}: {unpacked:?}");
    }
}

#[test]
fn bombs_do_not_go_off() {
    if !able(&[]) {
        return;
    }
    let bounds = Bounds { bytes: 1 << 20, entries: 1000 };
    // Segments of one byte, each of which takes a block.
    let map: Vec<String> = (0..5000_u64).map(|at| format!("{},1", at << 20)).collect();
    let size = (5000_u64 << 20).to_string();
    let records = [("GNU.sparse.map", map.join(",").into_bytes()), ("GNU.sparse.size", size.into_bytes())];
    let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, &value[..])).collect();
    let (scratch, outcome) = tried(&sparse(&records, &"x".repeat(5000)), &bounds);
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert_eq!(look(&scratch.path().join("to")).len(), 1, "nothing was written");
    // Directories that are only implied count.
    let (_scratch, outcome) = tried(&Tar::default().pax(&[("path", &b"a/".repeat(1001))]).file("a", "").end(), &bounds);
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    // A hundred mebibytes of nothing, in a hundred kibibytes.
    let mut bomb = raworc_oci::gzip(Vec::new());
    let zeros = vec![0; 1 << 20];
    let head = Tar::default().entry(b'0', b"a", b"", 100 << 20, b"").0;
    std::io::Write::write_all(&mut bomb, &head).unwrap();
    (0..100).for_each(|_| std::io::Write::write_all(&mut bomb, &zeros).unwrap());
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let to = tempfile::tempdir().unwrap();
    let outcome = unpack(raworc_oci::decompress(&bomb[..]).unwrap(), to.path(), &PLAIN, &bounds, &mut |_| {});
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0, "nothing was written");
    // Nothing after the end, without end.
    let ended = Tar::default().file("a", "x").end();
    let endless = std::io::Read::chain(&ended[..], std::io::repeat(0));
    let to = tempfile::tempdir().unwrap();
    let outcome = unpack(endless, to.path(), &PLAIN, &bounds, &mut |_| {});
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
}

#[test]
fn a_list_that_cannot_be_kept_widens_nothing() {
    if !able(&[]) {
        return;
    }
    let raw = |user: u32| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, bits, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 6, user), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
        {
            value.extend([tag.to_le_bytes(), bits.to_le_bytes()].concat());
            value.extend(id.to_le_bytes());
        }
        value
    };
    let tar = Tar::default()
        .pax(&[("SCHILY.acl.access", b"user::rwx,user:joe:rwx,group::r-x,mask::rwx,other::---")])
        .file("named", "x")
        .pax(&[("SCHILY.acl.access", b"user::rwx,user:7:rwx,group::r-x,other::---")])
        .file("without-mask", "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", b"nonsense")])
        .file("nonsense", "x")
        .pax(&[("SCHILY.acl.default", b"nonsense")])
        .directory("directory")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &raw(1007))])
        .file("raw", "x")
        .end();
    let scratch = tempfile::tempdir().unwrap();
    let found = unpack(&tar[..], scratch.path(), &PLAIN, &AMPLE, &mut |_| {}).unwrap();
    assert_eq!(found.skipped.count, 4, "{:?}", found.skipped);
    let mode = |name: &str| fs::metadata(scratch.path().join(name)).unwrap().mode() & 0o777;
    for name in ["named", "without-mask", "nonsense", "directory"] {
        assert_eq!(mode(name), 0o705, "{name}");
    }
    let mut value = [0; 100];
    let count = rustix::fs::lgetxattr(scratch.path().join("raw"), "system.posix_acl_access", &mut value[..]).unwrap();
    // Its group bits and those of others are those of the mode then, which is what comes last.
    assert_eq!((count, value[12..16].to_vec()), (raw(1007).len(), raw(1007)[12..16].to_vec()));
}
