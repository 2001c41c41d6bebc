//! Pushes to and pulls from a real registry, also over connections that break.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use raworc_oci::{Descriptor, Digest, Error, Image, Layer, Layout, Options, Reference, Registry};

use crate::daemon::{Daemon, Settings};
use crate::layers::full_layer;
use crate::proxy::Proxy;
use crate::support::{AMPLE, PLAIN, able, assert_same, look, run};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "umoci"];

/// Options with short delays.
pub fn quick() -> Options {
    Options { backoff: Duration::from_millis(20), chunk_bytes: 1 << 20, ..Options::default() }
}

pub fn registry(address: impl std::fmt::Display, name: &str, password: Option<&str>) -> Registry {
    let reference: Reference = format!("{address}/{name}").parse().unwrap();
    Registry::new(reference, password.map(|password| ("user".into(), password.into())), quick()).unwrap()
}

/// Incompressible bytes that follow from a seed.
pub fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(seed >> 16).to_le_bytes()[..4]);
    }
    noise.truncate(bytes);
    noise
}

/// An image with two layers: an entry of every kind, and `bytes` of noise with a whiteout.
pub fn image(root: &Path, bytes: usize) -> (Layout, Descriptor) {
    let layout = Layout::open(&root.join("layout")).unwrap();
    let (first, second) = (root.join("first"), root.join("second"));
    fs::create_dir_all(&first).unwrap();
    fs::create_dir_all(&second).unwrap();
    full_layer(&first);
    fs::write(second.join("noise"), noise(bytes, 1)).unwrap();
    let dev = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, second.join("empty"), dev, rustix::fs::Mode::empty(), 0).unwrap();
    let layers = [first, second].map(|directory| Layer::pack(&directory, &PLAIN, &layout).unwrap().0);
    let image = Image {
        layers: layers.into(),
        created: Some("2026-01-02T03:04:05Z".into()),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        annotations: [("c.example".to_owned(), "d".to_owned())].into(),
        env: vec!["PATH=/bin".to_owned()],
        extra: Some(serde_json::json!({"z": [1, 2], "a": {"y": null, "b": "x"}})),
        platform: Some(("linux".to_owned(), raworc_oci::architecture().to_owned())),
    };
    assert!(image.matches_platform());
    let manifest = image.store(&layout).unwrap();
    assert_eq!(image.store(&layout).unwrap(), manifest, "the same image is the same manifest");
    assert_eq!(Image::load(&layout, &manifest.digest).unwrap(), image);
    layout.tag("latest", &manifest).unwrap();
    (layout, manifest)
}

/// Checks that another layout has every blob of an image.
pub fn assert_arrived(from: &Layout, to: &Layout, manifest: &Descriptor) {
    let image = Image::load(to, &manifest.digest).unwrap();
    assert_eq!(image, Image::load(from, &manifest.digest).unwrap());
    for layer in &image.layers {
        std::io::copy(&mut to.get(&layer.blob.digest).unwrap(), &mut std::io::sink()).unwrap();
    }
}

pub fn quiet(_: &str, _: u64, _: u64) {}

#[tokio::test]
async fn an_image_goes_to_a_registry_and_comes_back() {
    if !able(&TOOLS) {
        return;
    }
    let daemon = Daemon::start(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 3 << 20);
    let told = Mutex::new(Vec::new());
    let tell = |what: &str, done: u64, total: u64| told.lock().unwrap().push((what.to_owned(), done, total));
    let remote = registry(daemon.address, "some/image:v1", None);
    remote.push(&layout, &manifest.digest, &tell).await.unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.iter().any(|(what, done, total)| what == "manifest" && done == total));
    assert!(told.iter().all(|(_, done, total)| done <= total));
    assert!(told.iter().any(|(_, done, total)| *done > 0 && done < total), "a large blob goes in pieces");
    // A second time, nothing but the manifest is sent.
    let counted = Proxy::start(daemon.address, u64::MAX, 0);
    registry(counted.address, "some/image:v1", None).push(&layout, &manifest.digest, &quiet).await.unwrap();
    assert!(counted.passed() < 20_000, "{}", counted.passed());

    let other = Layout::open(&scratch.path().join("other")).unwrap();
    assert_eq!(remote.pull(&other, &quiet).await.unwrap().digest, manifest.digest);
    assert_arrived(&layout, &other, &manifest);
    let by_digest = registry(daemon.address, &format!("some/image@{}", manifest.digest), None);
    assert_eq!(by_digest.pull(&other, &quiet).await.unwrap().digest, manifest.digest);
    let missing = registry(daemon.address, "some/image:v2", None).pull(&other, &quiet).await;
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
    judge(&daemon, scratch.path(), &manifest);
}

/// Other programs read our image.
fn judge(daemon: &Daemon, scratch: &Path, manifest: &Descriptor) {
    let remote = format!("docker://{}/some/image:v1", daemon.address);
    let output = run(Command::new("skopeo").args(["inspect", "--tls-verify=false", &remote]));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["Digest"], manifest.digest.to_string());
    assert_eq!((&said["Labels"]["a"], &said["Os"]), (&"b".into(), &"linux".into()));
    let copied = scratch.join("copied");
    let to = format!("oci:{}:v1", copied.display());
    run(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &remote, &to]));
    // Both layers, one on the other, as umoci sees them.
    let expected = scratch.join("expected");
    run(Command::new("cp").arg("-a").arg(scratch.join("first")).arg(&expected));
    fs::remove_file(expected.join("empty")).unwrap();
    fs::write(expected.join("noise"), "").unwrap();
    for (at, image) in
        [format!("{}:v1", copied.display()), format!("{}:latest", scratch.join("layout").display())].iter().enumerate()
    {
        let bundle = scratch.join(format!("bundle{at}"));
        run(Command::new("umoci").args(["unpack", "--image", image]).arg(&bundle));
        let (mut theirs, mut ours) = (look(&bundle.join("rootfs")), look(&expected));
        assert_eq!(theirs[&b"noise"[..]].content, Some(Digest::of(&noise(3 << 20, 1))));
        // That is of the second layer, and so are the attributes of the root.
        for path in [&b""[..], b"noise"] {
            theirs.remove(path);
            ours.remove(path);
        }
        for seen in theirs.values_mut().chain(ours.values_mut()) {
            seen.mtime.1 = 0;
            // umoci keeps its own notes there, and Go's reader takes an attribute without a value for none.
            seen.attributes.retain(|name, value| {
                !name.starts_with(b"user.umoci") && !name.starts_with(b"user.rootlesscontainers") && !value.is_empty()
            });
        }
        assert_same(&ours, &theirs);
    }
}

#[tokio::test]
async fn images_of_others_are_pulled() {
    if !able(&TOOLS) {
        return;
    }
    let daemon = Daemon::start(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 1000);
    let from = format!("oci:{}:latest", scratch.path().join("layout").display());
    for (format, name) in [("v2s2", "docker"), ("oci", "oci")] {
        let to = format!("docker://{}/{name}:x", daemon.address);
        run(Command::new("skopeo").args(["copy", "--format", format, "--dest-tls-verify=false", &from, &to]));
        let other = Layout::open(&scratch.path().join(name)).unwrap();
        let pulled = registry(daemon.address, &format!("{name}:x"), None).pull(&other, &quiet).await.unwrap();
        let (theirs, ours) =
            (Image::load(&other, &pulled.digest).unwrap(), Image::load(&layout, &manifest.digest).unwrap());
        let ids = |image: &Image| image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
        assert_eq!(ids(&theirs), ids(&ours));
        let unpacked = tempfile::tempdir().unwrap();
        theirs.layers[0].unpack(&other, unpacked.path(), &PLAIN, &AMPLE, &mut |_| {}).unwrap();
        assert_same(&look(&scratch.path().join("first")), &look(unpacked.path()));
    }
}

#[tokio::test]
async fn an_index_is_pushed_whole_and_pulled_for_this_machine() {
    if !able(&TOOLS) {
        return;
    }
    let daemon = Daemon::start(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 1000);
    let other = Image { extra: None, ..Image::load(&layout, &manifest.digest).unwrap() }.store(&layout).unwrap();
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let entry = |descriptor: &Descriptor, architecture: &str| {
        let platform = serde_json::json!({"os": "linux", "architecture": architecture});
        Descriptor { platform: Some(platform), ..descriptor.clone() }
    };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": raworc_oci::INDEX,
        "manifests": [entry(&other, "sparc64"), entry(&manifest, machine)],
    });
    let bytes = index.to_string().into_bytes();
    let (digest, _) = layout.put(&bytes[..], 10_000, None).unwrap();
    let remote = registry(daemon.address, "index:v1", None);
    remote.push(&layout, &digest, &quiet).await.unwrap();
    let to = Layout::open(&scratch.path().join("to")).unwrap();
    assert_eq!(remote.pull(&to, &quiet).await.unwrap().digest, digest);
    assert_eq!(Image::load(&to, &digest).unwrap(), Image::load(&layout, &manifest.digest).unwrap());
    assert_eq!(to.size(&other.digest).unwrap(), None, "what is for other machines stays there");
}

#[tokio::test]
async fn a_registry_with_a_password_lets_only_those_in_who_know_it() {
    if !able(&["docker-registry", "htpasswd"]) {
        return;
    }
    let daemon = Daemon::start(Settings { password: true, tls: false });
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 2 << 20);
    for wrong in [None, Some("wrong")] {
        let outcome = registry(daemon.address, "image", wrong).push(&layout, &manifest.digest, &quiet).await;
        assert!(matches!(outcome, Err(Error::Unauthorized(_))), "{outcome:?}");
    }
    let right = registry(daemon.address, "image", Some("secret"));
    right.push(&layout, &manifest.digest, &quiet).await.unwrap();
    let other = Layout::open(&scratch.path().join("other")).unwrap();
    let outcome = registry(daemon.address, "image", None).pull(&other, &quiet).await;
    assert!(matches!(outcome, Err(Error::Unauthorized(_))), "{outcome:?}");
    right.pull(&other, &quiet).await.unwrap();
    assert_arrived(&layout, &other, &manifest);
}

#[tokio::test]
async fn tls_is_spoken_with_whom_we_trust() {
    if !able(&["docker-registry", "openssl"]) {
        return;
    }
    let daemon = Daemon::start(Settings { password: false, tls: true });
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 2 << 20);
    let reference: Reference = format!("{}/image", daemon.address).parse().unwrap();
    let trusting = Options {
        plain_http: Some(false),
        certificates: Some(fs::read(daemon.path("cert.pem")).unwrap()),
        tries: 2,
        ..quick()
    };
    let wary = Options { certificates: None, ..trusting.clone() };
    let outcome = Registry::new(reference.clone(), None, wary).unwrap().push(&layout, &manifest.digest, &quiet).await;
    assert!(matches!(&outcome, Err(Error::Unreachable { why, .. }) if why.contains("ertificate")), "{outcome:?}");
    let remote = Registry::new(reference, None, trusting).unwrap();
    remote.push(&layout, &manifest.digest, &quiet).await.unwrap();
    let other = Layout::open(&scratch.path().join("other")).unwrap();
    remote.pull(&other, &quiet).await.unwrap();
    assert_arrived(&layout, &other, &manifest);
}

#[tokio::test]
async fn wires_that_break_cost_little() {
    if !able(&["docker-registry"]) {
        return;
    }
    const BYTES: u64 = 12 << 20;
    let daemon = Daemon::start(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), BYTES as usize);
    // Debian's registry (2.8) takes up nothing that was cut off within a piece: its own notes contradict each other then.
    // So this begins again, and ends when the wire holds; `an_upload_goes_on_where_the_registry_says` is for others.
    let proxy = Proxy::start(daemon.address, 2_500_000, 4);
    registry(proxy.address, "image", None).push(&layout, &manifest.digest, &quiet).await.unwrap();
    assert_eq!(proxy.cuts_left(), 0, "the wire did break");
    let proxy = Proxy::start(daemon.address, 2_500_000, 4);
    let other = Layout::open(&scratch.path().join("other")).unwrap();
    registry(proxy.address, "image", None).pull(&other, &quiet).await.unwrap();
    assert_eq!(proxy.cuts_left(), 0, "the wire did break");
    assert!(proxy.passed() < BYTES * 3 / 2, "{} of {BYTES} bytes: it goes on where it was", proxy.passed());
    assert_arrived(&layout, &other, &manifest);
}

#[tokio::test]
async fn a_registry_that_dies_in_the_middle_is_waited_for() {
    if !able(&["docker-registry"]) {
        return;
    }
    let daemon = Mutex::new(Daemon::start(Settings::default()));
    let address = daemon.lock().unwrap().address;
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 8 << 20);
    let deaths = Mutex::new(0);
    let tell = |_: &str, done: u64, total: u64| {
        let mut deaths = deaths.lock().unwrap();
        // In the middle of the large layer: before its third piece, and before its sixth.
        if total > 4 << 20 && done < total && done >= (2 + 3 * *deaths) << 20 && *deaths < 2 {
            *deaths += 1;
            daemon.lock().unwrap().again();
        }
    };
    let counted = Proxy::start(address, u64::MAX, 0);
    registry(counted.address, "image", None).push(&layout, &manifest.digest, &tell).await.unwrap();
    assert_eq!(*deaths.lock().unwrap(), 2);
    assert!(counted.passed() < 12 << 20, "{} bytes for 8 MiB: it goes on where it was", counted.passed());
    let other = Layout::open(&scratch.path().join("other")).unwrap();
    registry(address, "image", None).pull(&other, &quiet).await.unwrap();
    assert_arrived(&layout, &other, &manifest);
    daemon.lock().unwrap().kill();
    let began = Instant::now();
    let outcome = registry(address, "image:other", None).pull(&other, &quiet).await;
    assert!(matches!(outcome, Err(Error::Unreachable { tries: 5, .. })), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn what_is_damaged_here_is_not_pushed_and_what_is_damaged_there_is_not_pulled() {
    if !able(&["docker-registry"]) {
        return;
    }
    let daemon = Daemon::start(Settings::default());
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 3 << 20);
    let large = Image::load(&layout, &manifest.digest).unwrap().layers[1].blob.clone();
    let path = layout.path(&large.digest);
    let right = fs::read(&path).unwrap();
    let mut wrong = right.clone();
    wrong[100] ^= 1;
    fs::write(&path, &wrong).unwrap();
    let outcome = registry(daemon.address, "image", None).push(&layout, &manifest.digest, &quiet).await;
    assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == large.digest), "{outcome:?}");
    fs::write(&path, &wrong[1..]).unwrap();
    let outcome = registry(daemon.address, "image", None).push(&layout, &manifest.digest, &quiet).await;
    assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == large.digest), "{outcome:?}");
    fs::write(&path, &right).unwrap();
    registry(daemon.address, "image", None).push(&layout, &manifest.digest, &quiet).await.unwrap();
    let hex = large.digest.hex();
    let there = daemon.path("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data");
    let other = Layout::open(&scratch.path().join("other")).unwrap();
    fs::write(&there, &wrong).unwrap();
    let outcome = registry(daemon.address, "image", None).pull(&other, &quiet).await;
    assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == large.digest), "{outcome:?}");
    fs::write(&there, [&right[..], b"more"].concat()).unwrap();
    let outcome = registry(daemon.address, "image", None).pull(&other, &quiet).await;
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert_eq!(other.size(&large.digest).unwrap(), None);
    assert_eq!(fs::read_dir(scratch.path().join("other/uploads")).unwrap().count(), 0, "nothing is left of it");
}
