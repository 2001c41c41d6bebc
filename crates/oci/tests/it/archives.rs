//! Image archives, written by us and read by other programs, and vice versa.

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

fn hex(bytes: &[u8]) -> String {
    raworc_oci::Digest::of(bytes).hex()
}

/// Compressed by a program of the machine.
fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    run(Command::new(program).arg("-c").arg(file.path())).stdout
}

/// File names and compression in `manifest.json` archives of other tools.
#[test]
fn whatever_an_archive_calls_its_files_comes_in() {
    if !able(&["gzip", "xz", "bzip2", "zstd"]) {
        return;
    }
    let layers = [archive(&[("a", b"one")]), archive(&[("b", b"two")])];
    let config = serde_json::json!({
        "architecture": raworc_oci::architecture(), "os": "linux", "config": { "Env": ["my.setting=1"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect::<Vec<_>>() },
    });
    let config = config.to_string().into_bytes();
    let id = hex(&config);
    let saved = |config: &str, names: &[String], tags: &[&str]| {
        serde_json::json!([{ "Config": config, "RepoTags": tags, "Layers": names }]).to_string().into_bytes()
    };
    let with = |program: &str| {
        layers.each_ref().map(|layer| match program {
            "" => layer.clone(),
            _ => compressed(program, layer),
        })
    };
    // The name of the config, those of the layers by their compressed content, the program that compresses them.
    type Naming = fn(&[u8]) -> String;
    let tools: [(&str, String, Naming, &str); 8] = [
        ("crane and ko", format!("sha256:{id}"), |layer| format!("{}.tar.gz", hex(layer)), "gzip"),
        ("kaniko", format!("sha256:{id}"), |layer| format!("{}.tar.gz", hex(layer)), "gzip"),
        ("Jib", "config.json".into(), |layer| format!("{}.tar.gz", hex(layer)), "gzip"),
        ("docker", format!("{id}.json"), |layer| format!("{}/layer.tar", hex(layer)), ""),
        (
            "docker with containerd",
            format!("blobs/sha256/{id}"),
            |layer| format!("blobs/sha256/{}", hex(layer)),
            "gzip",
        ),
        ("no extension", "config".into(), hex, "zstd"),
        ("xz", "config".into(), |layer| format!("{}.tar.xz", hex(layer)), "xz"),
        ("bzip2", "config".into(), |layer| format!("layers/{}", hex(layer)), "bzip2"),
    ];
    for (tool, config_name, name, program) in tools {
        let stored = with(program);
        let names: Vec<String> = stored.iter().map(|layer| name(layer)).collect();
        let manifest = saved(&config_name, &names, &["host.example/name:v1", "host.example/name:v2"]);
        let files: Vec<(&str, &[u8])> = vec![
            ("README.gz", b"\x1f\x8bno layer, and nobody names it"),
            (&config_name, &config),
            (&names[0], &stored[0]),
            ("manifest.json", &manifest),
            (&names[1], &stored[1]),
        ];
        for is_reversed in [false, true] {
            let mut files = files.clone();
            if is_reversed {
                files.reverse();
            }
            let to = tempfile::tempdir().unwrap();
            let layout = Layout::open(to.path()).unwrap();
            let images = import(&archive(&files)[..], &layout, &AMPLE, &mut |_| {});
            let images = images.unwrap_or_else(|error| panic!("{tool}: {error}"));
            let names: Vec<_> = images.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
            assert_eq!(names, ["host.example/name:v1", "host.example/name:v2"], "{tool}");
            let image = Image::load(&layout, &images[0].1.digest).unwrap();
            assert_eq!(image.env, ["my.setting=1"], "{tool}");
            let ids: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.hex()).collect();
            assert_eq!(ids, layers.each_ref().map(|layer| hex(layer)), "{tool}");
            image.layers.iter().for_each(|layer| layer.verify(&layout, 1 << 20).unwrap());
        }
    }
}

#[test]
fn every_media_type_of_a_layer_is_known_and_its_bytes_count() {
    if !able(&["gzip", "zstd", "xz"]) {
        return;
    }
    let layer = archive(&[("a", b"one")]);
    let bases = ["oci.image.layer.v1.tar", "oci.image.layer.nondistributable.v1.tar"];
    let dockers = ["docker.image.rootfs.diff.tar", "docker.image.rootfs.foreign.diff.tar"];
    let oci = bases.iter().flat_map(|base| ["", "+gzip", "+zstd"].map(|suffix| format!("{base}{suffix}")));
    let docker = dockers.iter().flat_map(|base| ["", ".gzip", ".zstd"].map(|suffix| format!("{base}{suffix}")));
    // Some tools say one thing and write another.
    for media_type in oci.chain(docker) {
        for program in ["", "gzip", "zstd", "xz"] {
            let stored = if program.is_empty() { layer.clone() } else { compressed(program, &layer) };
            let to = tempfile::tempdir().unwrap();
            let layout = Layout::open(&to.path().join("layout")).unwrap();
            let (digest, size) = layout.put(&stored[..], 1 << 20, None).unwrap();
            let blob = Descriptor::new(&format!("application/vnd.{media_type}"), digest, size);
            let diff_id = raworc_oci::Digest::of(&layer);
            let layer = raworc_oci::Layer { blob, diff_id, created_by: String::new(), created: None };
            let image = Image { layers: vec![layer.clone()], ..Image::default() };
            let manifest = image.store(&layout).unwrap();
            assert_eq!(Image::load(&layout, &manifest.digest).unwrap().layers.len(), 1, "{media_type}");
            let directory = to.path().join("unpacked");
            fs::create_dir(&directory).unwrap();
            layer.unpack(&layout, &directory, &crate::support::PLAIN, &AMPLE, &mut |_| {}).unwrap();
            assert_eq!(fs::read(directory.join("a")).unwrap(), b"one", "{media_type} {program}");
        }
    }
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
