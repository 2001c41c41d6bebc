//! Pushing to and pulling from a real registry, and over wires that break.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use raworc_oci::{Descriptor, Digest, Error, Image, Layer, Layout, Options, Reference, Registry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::daemon::{Daemon, Settings};
use crate::layers::full_layer;
use crate::proxy::Proxy;
use crate::support::{AMPLE, PLAIN, able, assert_same, look, run};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "umoci"];

/// Waits that are over soon.
pub fn quick() -> Options {
    Options { backoff: Duration::from_millis(20), chunk_bytes: 1 << 20, ..Options::default() }
}

pub fn registry(address: impl std::fmt::Display, name: &str, password: Option<&str>) -> Registry {
    let reference: Reference = format!("{address}/{name}").parse().unwrap();
    Registry::new(reference, password.map(|password| ("user".into(), password.into())), quick()).unwrap()
}

/// Bytes that cannot be compressed, the same for a seed.
pub fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&(seed >> 16).to_le_bytes()[..4]);
    }
    noise.truncate(bytes);
    noise
}

/// An image of two layers: one of everything, and `bytes` of noise with a whiteout.
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
    assert!(image.is_ours());
    let manifest = image.store(&layout).unwrap();
    assert_eq!(image.store(&layout).unwrap(), manifest, "the same image is the same manifest");
    assert_eq!(Image::load(&layout, &manifest.digest).unwrap(), image);
    layout.tag("latest", &manifest).unwrap();
    (layout, manifest)
}

/// Everything of an image is in another layout.
fn assert_arrived(from: &Layout, to: &Layout, manifest: &Descriptor) {
    let image = Image::load(to, &manifest.digest).unwrap();
    assert_eq!(image, Image::load(from, &manifest.digest).unwrap());
    for layer in &image.layers {
        std::io::copy(&mut to.get(&layer.blob.digest).unwrap(), &mut std::io::sink()).unwrap();
    }
}

fn quiet(_: &str, _: u64, _: u64) {}

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

/// What others make of our image.
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
    assert!(matches!(&outcome, Err(Error::Away { why, .. }) if why.contains("ertificate")), "{outcome:?}");
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
    assert!(matches!(outcome, Err(Error::Away { tries: 5, .. })), "{outcome:?}");
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

/// Answers each request with what `answer` says, and closes; counts nothing, remembers all heads.
async fn liar(
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (std::net::SocketAddr, std::sync::Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let _ = stream.write_all(answer(&head).as_bytes()).await;
            seen.lock().unwrap().push(head);
        }
    });
    (address, heads)
}

fn respond(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn credentials_go_to_the_registry_and_its_server_of_tokens_only() {
    let layout = tempfile::tempdir().unwrap();
    let layout = Layout::open(layout.path()).unwrap();
    let (elsewhere, elsewhere_heads) = liar(|_| respond("200 OK", "", "{}")).await;
    let (tokens, token_heads) = liar(|_| respond("200 OK", "", r#"{"token": "a-token"}"#)).await;
    let (address, heads) = liar(move |head| {
        if head.to_lowercase().contains("authorization: bearer a-token") {
            respond("307 Temporary Redirect", &format!("Location: http://{elsewhere}/blob\r\n"), "")
        } else {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{tokens}/token\",service=\"s\",scope=\"x y\"\r\n");
            respond("401 Unauthorized", &challenge, "")
        }
    })
    .await;
    let outcome = registry(address, "image", Some("secret")).pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::BadImage(_))), "{outcome:?}");
    assert_eq!(heads.lock().unwrap().len(), 2);
    assert!(!heads.lock().unwrap()[0].to_lowercase().contains("authorization"), "nothing is shown unasked");
    let token_heads = token_heads.lock().unwrap();
    assert!(token_heads[0].starts_with("GET /token?service=s&scope=x+y HTTP"), "{token_heads:?}");
    assert!(token_heads[0].to_lowercase().contains("authorization: basic dxnlcjpzzwnyzxq="), "{token_heads:?}");
    let elsewhere_heads = elsewhere_heads.lock().unwrap();
    assert_eq!(elsewhere_heads.len(), 1);
    assert!(!elsewhere_heads[0].to_lowercase().contains("authorization"), "{elsewhere_heads:?}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_says_and_not_for_ever() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let (address, heads) = liar(|_| respond("429 Too Many Requests", "Retry-After: 1\r\n", "")).await;
    let reference: Reference = format!("{address}/image").parse().unwrap();
    let began = Instant::now();
    let outcome = Registry::new(reference, None, Options { tries: 2, ..quick() }).unwrap().pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::Away { tries: 2, .. })), "{outcome:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(heads.lock().unwrap().len(), 2);
    let (address, heads) =
        liar(|_| respond("400 Bad Request", "", r#"{"errors":[{"code":"NO","message":"never\u0007"}]}"#)).await;
    let outcome = registry(address, "image", None).pull(&layout, &quiet).await;
    assert!(matches!(&outcome, Err(Error::Refused { status: 400, why }) if why.ends_with("NO: never ")), "{outcome:?}");
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_registry_that_lies_is_found_out() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let other = Digest::of(b"other");
    let endless = format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20));
    let config = |size: u64| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{other}","size":{size}}},"layers":[]}}"#
        )
    };
    let small = config(5);
    let large = config(5 << 30);
    for (name, body) in [("endless", endless), ("other", "{}".into()), ("small", small), ("large", large)] {
        let (address, _) =
            liar(
                move |head| {
                    if head.contains("/blobs/") { respond("200 OK", "", "0ther") } else { respond("200 OK", "", &body) }
                },
            )
            .await;
        let reference = if name == "other" { format!("image@{other}") } else { "image".into() };
        let outcome = registry(address, &reference, None).pull(&layout, &quiet).await;
        match name {
            "endless" | "large" => assert!(matches!(outcome, Err(Error::TooLarge(_))), "{name}: {outcome:?}"),
            _ => assert!(matches!(outcome, Err(Error::Damaged { digest }) if digest == other), "{name}: {outcome:?}"),
        }
    }
    assert_eq!(layout.size(&other).unwrap(), None);
}

#[tokio::test]
async fn a_registry_that_does_not_stop_is_cut_off() {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout::open(scratch.path()).unwrap();
    let digest = Digest::of(b"other");
    let body = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":5}},"layers":[]}}"#
    );
    // Without a length, an answer ends with its connection.
    let (address, _) = liar(move |head| {
        if head.contains("/blobs/") {
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nother{}", "x".repeat(100))
        } else {
            respond("200 OK", "", &body)
        }
    })
    .await;
    let outcome = registry(address, "image", None).pull(&layout, &quiet).await;
    assert!(matches!(outcome, Err(Error::TooLarge(_))), "{outcome:?}");
    assert_eq!(layout.size(&digest).unwrap(), None);
}

/// A registry as the specification has it, for one upload: of each piece but the last, the connection is cut when `most`
/// bytes are there. Says what it has, and how many bytes came in.
async fn by_the_book(most: usize) -> (std::net::SocketAddr, std::sync::Arc<Mutex<(Vec<u8>, usize)>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = std::sync::Arc::new(Mutex::new((Vec::new(), 0)));
    let shared = std::sync::Arc::clone(&state);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let field =
                |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
            let length: usize = field("content-length:").and_then(|value| value.parse().ok()).unwrap_or(0);
            let is_blob = head.starts_with("put /up");
            let mut body = vec![0; if head.starts_with("patch") { length.min(most) } else { length }];
            if stream.read_exact(&mut body).await.is_err() {
                continue;
            }
            let (has, answer) = {
                let mut state = shared.lock().unwrap();
                state.1 += body.len();
                if head.starts_with("patch") {
                    let range = format!("{}-{}", state.0.len(), state.0.len() + length - 1);
                    assert_eq!(field("content-range:"), Some(range), "it goes on where we said");
                }
                if head.starts_with("patch") || is_blob {
                    state.0.extend_from_slice(&body);
                }
                (state.0.len(), body.len() == length)
            };
            let range = format!("Location: /up\r\nRange: 0-{}\r\n", has.max(1) - 1);
            let status = match head.split(' ').next().unwrap() {
                "head" => "404 Not Found",
                "post" | "patch" => "202 Accepted",
                "get" => "204 No Content",
                _ => "201 Created",
            };
            if answer {
                let _ = stream.write_all(respond(status, &range, "").as_bytes()).await;
            }
        }
    });
    (address, state)
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_says() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 5 << 20);
    // One blob, so that all that comes is of it: the rest is small, and goes to the same place in the end.
    let image = Image::load(&layout, &manifest.digest).unwrap();
    let large = Image { layers: vec![image.layers[1].clone()], ..Image::default() }.store(&layout).unwrap();
    let size = usize::try_from(image.layers[1].blob.size).unwrap();
    let (address, state) = by_the_book(700_000).await;
    registry(address, "image", None).push(&layout, &large.digest, &quiet).await.unwrap();
    let state = state.lock().unwrap();
    assert!(
        state.0[..size] == fs::read(layout.path(&image.layers[1].blob.digest)).unwrap(),
        "what arrived is what was sent"
    );
    assert!(state.1 < size + 10_000, "nothing was sent twice: {} for {size}", state.1);
}

#[tokio::test]
async fn a_registry_that_never_has_more_is_given_up() {
    if !able(&[]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (layout, manifest) = image(scratch.path(), 5 << 20);
    let (address, _) = liar(|head| match head.split(' ').next() {
        Some("POST" | "PATCH") => respond("202 Accepted", "Location: /up\r\nRange: 0-0\r\n", ""),
        _ => respond("404 Not Found", "", ""),
    })
    .await;
    let image = Image::load(&layout, &manifest.digest).unwrap();
    let large = Image { layers: vec![image.layers[1].clone()], ..Image::default() }.store(&layout).unwrap();
    let outcome = registry(address, "image", None).push(&layout, &large.digest, &quiet).await;
    assert!(matches!(outcome, Err(Error::Away { .. })), "{outcome:?}");
}
