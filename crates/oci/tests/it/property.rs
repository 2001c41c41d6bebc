//! Any layer directory survives packing and unpacking.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use raworc_oci::{Format, Ids, OverlayXattrs};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};

use crate::support::{able, assert_same, look, packed, unpacked};

/// Number of random trees.
const CASES: u32 = 64;

#[derive(Clone, Debug)]
enum Node {
    /// Data in blocks of 4096 bytes, and a tail of bytes.
    File {
        data: Vec<(u16, Vec<u8>)>,
        hole_after: u16,
    },
    Symlink(Vec<u8>),
    Fifo,
    Whiteout,
    Directory(BTreeMap<Vec<u8>, Made>, bool),
    /// A hard link to an earlier file, if there is one.
    Link(usize),
}

#[derive(Clone, Debug)]
struct Made {
    node: Node,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    attributes: BTreeMap<String, Vec<u8>>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = (1_u8..=255).prop_filter("no slash", |byte| *byte != b'/');
    let long = vec(byte.clone(), 100..=255);
    prop_oneof![6 => vec(byte, 1..12), 1 => long, 4 => "[a-c]{1,2}".prop_map(String::into_bytes)]
        .prop_filter("a name", |name| !matches!(&name[..], b"." | b"..") && !name.starts_with(b".wh."))
}

fn made(node: impl Strategy<Value = Node>) -> impl Strategy<Value = Made> {
    let seconds = prop_oneof![0..2_000_000_000_i64, -2_000_000_000..0_i64, 0x1_0000_0000..0x3_0000_0000_i64];
    let attributes = btree_map("user\\.[a-z.]{1,20}", vec(any::<u8>(), 0..60), 0..3);
    (node, 0..=0o7777_u32, (0..70_000_u32, 0..70_000_u32), (seconds, 0..1_000_000_000_u32), attributes)
        .prop_map(|(node, mode, owner, mtime, attributes)| Made { node, mode, owner, mtime, attributes })
}

fn leaf() -> impl Strategy<Value = Node> {
    let run = (0..40_u16, vec(any::<u8>(), 0..9000));
    prop_oneof![
        5 => (vec(run, 0..4), 0..20_u16).prop_map(|(data, hole_after)| Node::File { data, hole_after }),
        2 => vec(1_u8..=255, 1..200).prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        1 => Just(Node::Whiteout),
        2 => any::<usize>().prop_map(Node::Link),
    ]
}

fn tree() -> impl Strategy<Value = Made> {
    let inner = made(leaf()).prop_recursive(4, 40, 6, |inner| {
        made(
            (btree_map(name(), inner, 0..6), any::<bool>())
                .prop_map(|(inside, opaque)| Node::Directory(inside, opaque)),
        )
    });
    made((btree_map(name(), inner, 0..6), any::<bool>()).prop_map(|(inside, opaque)| Node::Directory(inside, opaque)))
}

/// Creates `made` at `path`. Attributes of directories last, because new entries change them.
fn make(path: &Path, made: &Made, xattrs: OverlayXattrs, files: &mut Vec<PathBuf>) {
    match &made.node {
        Node::File { data, hole_after } => {
            let mut file = fs::File::create(path).unwrap();
            let mut at = 0;
            for (hole, bytes) in data {
                at += u64::from(*hole) * 4096;
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(bytes).unwrap();
                at += bytes.len() as u64;
                at = at.next_multiple_of(4096);
            }
            file.set_len(at + u64::from(*hole_after) * 1000).unwrap();
            files.push(path.to_owned());
        }
        Node::Symlink(target) => {
            symlink(std::ffi::OsStr::from_bytes(target), path).unwrap();
            files.push(path.to_owned());
        }
        Node::Fifo => mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        Node::Whiteout => return mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap(),
        Node::Link(number) => {
            if !files.is_empty() {
                fs::hard_link(&files[number % files.len()], path).unwrap();
            }
            return;
        }
        Node::Directory(inside, opaque) => {
            let _ = fs::create_dir(path);
            for (name, inner) in inside {
                make(&path.join(std::ffi::OsStr::from_bytes(name)), inner, xattrs, files);
            }
            let mark = if xattrs == OverlayXattrs::Trusted { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
            if *opaque {
                setxattr(path, mark, b"y", XattrFlags::empty()).unwrap();
            }
        }
    }
    std::os::unix::fs::lchown(path, Some(made.owner.0), Some(made.owner.1)).unwrap();
    if !matches!(made.node, Node::Symlink(_)) {
        rustix::fs::chmod(path, Mode::from_raw_mode(made.mode)).unwrap();
        if !matches!(made.node, Node::Fifo) {
            for (name, value) in &made.attributes {
                setxattr(path, name.as_str(), value, XattrFlags::empty()).unwrap();
            }
        }
    }
    let time = Timespec { tv_sec: made.mtime.0, tv_nsec: made.mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layer_comes_back(tree in tree(), user in any::<bool>()) {
        if !able(&[]) {
            return Ok(());
        }
        let format = Format { xattrs: if user { OverlayXattrs::User } else { OverlayXattrs::Trusted }, ids: Ids::UNMAPPED };
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        make(&from, &tree, format.xattrs, &mut Vec::new());
        let (tar, said) = packed(&from, &format);
        prop_assert_eq!(said.skipped.count, 0);
        prop_assert!(packed(&from, &format).0 == tar, "the same directory, another tar");
        let back = unpacked(&tar, &to, &format);
        prop_assert_eq!(back.entries, said.entries);
        let (left, right) = (look(&from), look(&to));
        assert_same(&left, &right);
        for (path, seen) in &left {
            prop_assert!(right[path].blocks <= seen.blocks + 8192, "{:?} has grown on disk", path);
        }
        prop_assert!(packed(&to, &format).0 == tar, "what came back is another tar");
    }
}

/// `.wh.` plus the longest name is too long for a name.
#[test]
fn the_longest_name_can_be_hidden() {
    if !able(&[]) {
        return;
    }
    let format = Format { xattrs: OverlayXattrs::Trusted, ids: Ids::UNMAPPED };
    let scratch = tempfile::tempdir().unwrap();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    mknodat(CWD, from.join("n".repeat(255)), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    unpacked(&packed(&from, &format).0, &to, &format);
    assert_same(&look(&from), &look(&to));
}
