//! Image layouts: storing, tagging, damage, crashes and collection.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};

use raworc_oci::{Collected, Descriptor, Digest, Error, Image, Layout, MANIFEST};

use crate::registries::image;
use crate::support::{AMPLE, PLAIN, able};

fn layout() -> (tempfile::TempDir, Layout) {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    (scratch, layout)
}

#[test]
fn blobs_are_what_their_digests_say() {
    let (scratch, layout) = layout();
    let (digest, size) = layout.put(&b"content"[..], 7, None).unwrap();
    assert_eq!((digest, size), (Digest::of(b"content"), 7));
    assert!(matches!(layout.put(&b"content"[..], 6, None), Err(Error::TooLarge(_))));
    let wrong = layout.put(&b"other"[..], 7, Some(&digest));
    assert!(matches!(wrong, Err(Error::Damaged { digest: named }) if named == digest));
    assert_eq!(layout.document(&digest).unwrap(), b"content");
    let (other, _) = layout.put(&b"other"[..], 7, None).unwrap();
    fs::write(layout.path(&digest), "c0ntent").unwrap();
    let read = layout.document(&digest);
    assert!(matches!(&read, Err(error @ Error::Damaged { .. }) if error.to_string().contains(&digest.to_string())));
    assert_eq!(layout.document(&other).unwrap(), b"other", "the rest can be read");
    assert!(layout.delete(&digest).unwrap() && !layout.delete(&digest).unwrap());
    assert!(matches!(layout.get(&digest), Err(Error::Missing { digest: named }) if named == digest));
    assert_eq!(fs::read_dir(scratch.path().join("uploads")).unwrap().count(), 0);
}

#[test]
fn names_are_given_and_taken() {
    let (scratch, layout) = layout();
    let put = |text: &str| {
        let (digest, size) = layout.put(text.as_bytes(), 100, None).unwrap();
        Descriptor::new(MANIFEST, digest, size)
    };
    let (one, two) = (put("one"), put("two"));
    layout.tag("a", &one).unwrap();
    layout.tag("b", &one).unwrap();
    layout.tag("a", &two).unwrap();
    let found = |name: &str| Layout::open(scratch.path()).unwrap().find(name).unwrap().map(|found| found.digest);
    assert_eq!((found("a"), found("b")), (Some(two.digest), Some(one.digest)));
    layout.untag("a").unwrap();
    layout.untag("a").unwrap();
    assert_eq!((found("a"), layout.list().unwrap().len()), (None, 1));
    let missing = Descriptor::new(MANIFEST, Digest::of(b"nowhere"), 1);
    assert!(matches!(layout.tag("c", &missing), Err(Error::Missing { .. })));
    // Many at once: no change is lost.
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (layout, one) = (&layout, &one);
            scope.spawn(move || layout.tag(&format!("n{number}"), one).unwrap());
        }
    });
    assert_eq!(layout.list().unwrap().len(), 9);
}

#[test]
fn what_nobody_needs_is_collected_and_what_is_being_written_is_not() {
    let (scratch, layout) = layout();
    let (kept, _) = layout.put(&b"kept"[..], 9, None).unwrap();
    layout.put(&b"gone"[..], 9, None).unwrap();
    let mut writer = layout.writer().unwrap();
    writer.write_all(b"being written").unwrap();
    fs::write(scratch.path().join("uploads/of-one-that-was-killed"), "12345").unwrap();
    let collected = layout.collect(&BTreeSet::from([kept])).unwrap();
    assert_eq!(collected, Collected { removed: 2, bytes: 9 });
    let (written, _) = writer.commit(None).unwrap();
    assert_eq!(layout.blobs().unwrap(), BTreeSet::from([kept, written]));
}

#[test]
fn a_damaged_layer_is_named() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 1 << 20);
    let image = Image::load(&layout, &manifest.digest).unwrap();
    let layer = &image.layers[1];
    let path = layout.path(&layer.blob.digest);
    let right = fs::read(&path).unwrap();
    for at in [0, right.len() / 2, right.len() - 1] {
        let mut wrong = right.clone();
        wrong[at] ^= 0xff;
        fs::write(&path, wrong).unwrap();
        let to = tempfile::tempdir().unwrap();
        let outcome = layer.unpack(&layout, to.path(), &PLAIN, &AMPLE, &mut |_| {});
        assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == layer.blob.digest), "{at}: {outcome:?}");
    }
    fs::write(&path, &right).unwrap();
    let lying = raworc_oci::Layer { diff_id: Digest::of(b"other"), ..layer.clone() };
    let to = tempfile::tempdir().unwrap();
    let outcome = lying.unpack(&layout, to.path(), &PLAIN, &AMPLE, &mut |_| {});
    assert!(matches!(outcome, Err(Error::Damaged { .. })), "{outcome:?}");
}

/// Started by the next test as a process that is killed while it writes.
#[test]
fn writes_until_it_is_killed() {
    let Some(root) = std::env::var_os("RAWORC_OCI_TEST_WRITE_TO") else { return };
    let first: u64 = std::env::var("RAWORC_OCI_TEST_FIRST").unwrap().parse().unwrap();
    let layout = Layout::open(root.as_ref()).unwrap();
    for number in first.. {
        let bytes = number.to_le_bytes().repeat(BLOB_BYTES / 8);
        let (digest, size) = layout.put(&bytes[..], 1 << 20, None).unwrap();
        layout.tag(&format!("n{}", number % 5), &Descriptor::new(MANIFEST, digest, size)).unwrap();
    }
}

/// Size of the blobs that it writes.
const BLOB_BYTES: usize = 160_000;

#[test]
fn a_kill_at_any_moment_leaves_a_whole_layout() {
    let (scratch, layout) = layout();
    let mut cut = 0;
    for round in 0..24 {
        let before = layout.blobs().unwrap().len();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "layouts::writes_until_it_is_killed", "--test-threads=1"])
            .env("RAWORC_OCI_TEST_WRITE_TO", scratch.path())
            .env("RAWORC_OCI_TEST_FIRST", (round * 1_000_000).to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        // With the second blob there, the first has its name. Then a moment more, another one in each round.
        while layout.blobs().unwrap().len() < before + 2 + round % 4 {
            assert!(std::time::Instant::now() < deadline);
        }
        let moment = std::time::Instant::now() + std::time::Duration::from_micros(400) * u32::try_from(round).unwrap();
        while std::time::Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let again = Layout::open(scratch.path()).unwrap();
        let listed = again.list().unwrap();
        assert!(!listed.is_empty());
        for (name, descriptor) in &listed {
            let mut bytes = Vec::new();
            again.get(&descriptor.digest).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(name.is_some() && bytes.len() == BLOB_BYTES);
        }
        for digest in again.blobs().unwrap() {
            again.document(&digest).unwrap();
        }
        let left = || fs::read_dir(scratch.path().join("uploads")).unwrap().count();
        cut += left();
        again.collect(&listed.iter().map(|(_, descriptor)| descriptor.digest).collect()).unwrap();
        assert_eq!(left(), 0, "what it left is collected");
    }
    assert!(cut > 0, "it was killed in the middle at least once");
}

#[test]
fn what_an_image_needs_is_kept() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 1000);
    let before = Image::load(&layout, &manifest.digest).unwrap();
    let (stray, _) = layout.put(&b"stray"[..], 9, None).unwrap();
    let kept = layout.reachable(&manifest.digest).unwrap();
    assert_eq!(kept.len(), 4, "a manifest, a config, two layers");
    assert_eq!(layout.collect(&kept).unwrap().removed, 1);
    assert_eq!((layout.size(&stray).unwrap(), layout.blobs().unwrap()), (None, kept));
    assert_eq!(Image::load(&layout, &manifest.digest).unwrap(), before);
}
