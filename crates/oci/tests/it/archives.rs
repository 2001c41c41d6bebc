//! Images in one file, written by us and read by others, and the other way round.

use std::fs;
use std::path::Path;
use std::process::Command;

use raworc_oci::{Bounds, Descriptor, Error, Image, Layout, export, import};

use crate::registries::image;
use crate::support::{AMPLE, able, run};

/// What an import says.
type Imported = Result<Vec<(Option<String>, Descriptor)>, Error>;

fn imported(file: &Path, root: &Path) -> (Layout, Imported) {
    let layout = Layout::open(root).unwrap();
    let outcome = import(fs::File::open(file).unwrap(), &layout, &AMPLE, &mut |_| {});
    (layout, outcome)
}

#[test]
fn an_oci_archive_goes_out_and_comes_in() {
    if !able(&["skopeo"]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 100_000);
    let ours = scratch.path().join("ours.tar");
    export(&layout, &manifest, Some("name"), fs::File::create(&ours).unwrap(), &mut |_, done, total| {
        assert!(done <= total)
    })
    .unwrap();
    let (other, images) = imported(&ours, &scratch.path().join("other"));
    let images = images.unwrap();
    assert_eq!((images.len(), images[0].0.as_deref(), images[0].1.digest), (1, Some("name"), manifest.digest));
    assert_eq!(Image::load(&other, &manifest.digest).unwrap(), Image::load(&layout, &manifest.digest).unwrap());
    let judged = format!("oci-archive:{}:name", ours.display());
    let output = run(Command::new("skopeo").args(["inspect", &judged]));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["Digest"], manifest.digest.to_string());
    let theirs = scratch.path().join("theirs.tar");
    run(Command::new("skopeo").args(["copy", &judged, &format!("oci-archive:{}:again", theirs.display())]));
    let (_, images) = imported(&theirs, &scratch.path().join("third"));
    assert_eq!(images.unwrap()[0].1.digest, manifest.digest);
}

#[test]
fn an_archive_of_docker_comes_in() {
    if !able(&["skopeo", "gzip"]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 100_000);
    let from = format!("oci:{}:latest", scratch.path().join("layout").display());
    let file = scratch.path().join("docker.tar");
    run(Command::new("skopeo").args([
        "copy",
        &from,
        &format!("docker-archive:{}:host.example/name:v1", file.display()),
    ]));
    run(Command::new("gzip").arg("-k").arg(&file));
    for (file, name) in [(file.clone(), "plain"), (scratch.path().join("docker.tar.gz"), "compressed")] {
        let (other, images) = imported(&file, &scratch.path().join(name));
        let images = images.unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].0.as_deref(), Some("host.example/name:v1"));
        let (theirs, ours) =
            (Image::load(&other, &images[0].1.digest).unwrap(), Image::load(&layout, &manifest.digest).unwrap());
        let ids = |image: &Image| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        assert_eq!(ids(&theirs), ids(&ours));
        assert_eq!(theirs.labels, ours.labels);
    }
    let small = Bounds { bytes: 50_000, ..AMPLE };
    let refused = import(fs::File::open(&file).unwrap(), &layout, &small, &mut |_| {});
    assert!(matches!(refused, Err(Error::TooLarge(_))), "{refused:?}");
}

/// A tar of these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn archives_that_lie_are_refused() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 10_000);
    let mut right = Vec::new();
    export(&layout, &manifest, None, &mut right, &mut |_, _, _| {}).unwrap();
    let hex = manifest.digest.hex();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"sha256:{hex}","size":1}}]}}"#,
        raworc_oci::MANIFEST
    );
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{hex}"]}}}}"#);
    let saved = |layer: &str| format!(r#"[{{"Config":"c.json","RepoTags":null,"Layers":["{layer}"]}}]"#).into_bytes();
    let blob = format!("blobs/sha256/{hex}");
    let named = layout.document(&manifest.digest).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", archive(&[])),
        ("nothing of use", archive(&[("../../index.json", b"{}"), ("/etc/passwd", b"x")])),
        ("a blob of another content", archive(&[("index.json", index.as_bytes()), (&blob, b"other")])),
        ("no manifest", archive(&[("index.json", index.as_bytes())])),
        ("no layers", archive(&[("index.json", index.as_bytes()), (&blob, &named)])),
        ("no JSON", archive(&[("index.json", b"x")])),
        ("a manifest as the index", archive(&[("index.json", &named)])),
        ("no layer", archive(&[("manifest.json", &saved("l.tar")), ("c.json", config.as_bytes())])),
        (
            "another layer",
            archive(&[("manifest.json", &saved("l.tar")), ("c.json", config.as_bytes()), ("l.tar", b"x")]),
        ),
        ("a layer outside", archive(&[("manifest.json", &saved("../../etc/passwd")), ("c.json", config.as_bytes())])),
        ("no config", archive(&[("manifest.json", &saved("l.tar")), ("l.tar", b"x")])),
        ("cut off", right[..right.len() / 2].to_vec()),
    ];
    for (name, bytes) in cases {
        let to = tempfile::tempdir().unwrap();
        let other = Layout::open(&to.path().join("layout")).unwrap();
        let outcome = import(&bytes[..], &other, &AMPLE, &mut |_| {});
        let expected = matches!(
            outcome,
            Err(Error::BadArchive(_) | Error::BadImage(_) | Error::Damaged { .. } | Error::Missing { .. })
        );
        assert!(expected, "{name}: {outcome:?}");
        if name == "a blob of another content" {
            assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == manifest.digest), "{outcome:?}");
            assert!(other.blobs().unwrap().is_empty());
        }
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    }
    // A layer of zeros without end, as far as one can tell from its beginning.
    let mut bomb = raworc_oci::gzip(Vec::new());
    (0..64).for_each(|_| std::io::Write::write_all(&mut bomb, &[0; 1 << 16]).unwrap());
    let bytes = archive(&[("l.tar", &bomb.finish().unwrap())]);
    let to = tempfile::tempdir().unwrap();
    let other = Layout::open(to.path()).unwrap();
    let outcome = import(&bytes[..], &other, &Bounds { bytes: 1 << 20, entries: 10 }, &mut |_| {});
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert!(other.blobs().unwrap().is_empty());
}
