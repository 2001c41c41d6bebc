//! Checkpoints that are moved to another server: through a registry and as a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::accounts::{call, member};
use crate::daemon::{Daemon, Settings, run};
use crate::harness::{RAWORC, TestServer, can_run_containers};

/// Prints everything in a workspace that could differ between two servers.
const FINGERPRINT: &str = r"find . -mindepth 1 -printf '%p %y %m %U %G %s %l\n' | LC_ALL=C sort
find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum";

/// Fills a workspace with an entry of every kind, in several layers.
const WORK: [&str; 2] = [
    "mkdir -p src/deep empty; echo one > src/a; ln src/a src/same; ln -s ../nowhere src/link; chmod 751 src; chmod 4640 src/a
     truncate -s 5M sparse; printf 'x' | dd of=sparse bs=1 seek=3000000 conv=notrunc 2>/dev/null
     head -c 2000000 /dev/urandom > noise; printf 'odd' > \"$(printf 'n\\377me')\"; echo gone > gone; echo old > src/deep/f",
    "rm gone; rm -r src/deep; mkdir src/deep; echo new > src/deep/g; echo two > b",
];

/// Starts a test that needs a registry, or prints SKIPPED.
pub fn registry(settings: Settings) -> Option<Daemon> {
    if !can_run_containers() {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in ["docker-registry", "skopeo", "umoci", "htpasswd"] {
        if !std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()) {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {tool} is not installed");
            return None;
        }
    }
    Some(Daemon::start(settings))
}

async fn worked(server: &TestServer, name: &str) -> String {
    let id = server.session(json!({ "name": name, "metadata": { "team": 7 }, "env": { "SECRET": "hidden" } })).await;
    for script in WORK {
        server.output(&id, script).await;
    }
    id
}

async fn push(server: &TestServer, session: &str, n: &str, reference: &str) -> (u16, Value) {
    let body = json!({ "reference": reference });
    let (status, answer) = server.post(&format!("/sessions/{session}/checkpoints/{n}/push"), body).await;
    (status.as_u16(), answer)
}

fn texts(messages: &[Value]) -> Vec<(String, String, String)> {
    let text = |message: &Value, key: &str| message[key].as_str().unwrap_or_default().to_owned();
    messages.iter().map(|message| (text(message, "role"), text(message, "content"), text(message, "status"))).collect()
}

#[tokio::test]
async fn a_session_goes_on_at_another_server() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let (here, there) = (TestServer::start(&[]), TestServer::start(&[]));
    let id = worked(&here, "traveller").await;
    let seen = here.output(&id, FINGERPRINT).await;
    let spoken = here.messages(&id).await;
    let reference = format!("{}/team/traveller:v1", daemon.address);
    let (status, pushed) = push(&here, &id, "now", &reference).await;
    assert_eq!(status, 200, "{pushed:#}\n{}", here.log());
    assert!(here.events(&id).await.iter().any(|event| event["type"] == "checkpoint.pushed"));

    let (status, image) = there.post("/images", json!({ "reference": reference })).await;
    assert_eq!(status, 201, "{image:#}\n{}", there.log());
    assert_eq!((&image["digest"], &image["checkpoint"]["session"]), (&pushed["digest"], &json!("traveller")));
    assert_eq!((&image["checkpoint"]["messages"], &image["shared"]), (&json!(spoken.len()), &json!(false)));
    let body = json!({ "from": reference, "name": "arrived", "starting_prompt": "cat b; echo \"${SECRET:-none}\"" });
    let (status, session) = there.post("/sessions", body).await;
    assert_eq!(status, 201, "{session:#}");
    assert_eq!((&session["metadata"]["team"], &session["from"]["digest"]), (&json!(7), &pushed["digest"]));
    let other = session["id"].as_str().unwrap();
    assert_eq!(there.output(other, FINGERPRINT).await, seen);
    let arrived = there.messages(other).await;
    assert_eq!(texts(&arrived[..spoken.len()]), texts(&spoken));
    let said = |text: &str| arrived[spoken.len()..].iter().any(|message| message["content"] == text);
    assert!(said("two\nnone\n"), "no secret goes along: {arrived:#?}");
    // What it writes from now on is its own, and goes back the same way.
    there.output(other, "echo more > c").await;
    let back = format!("{}/team/traveller:v2", daemon.address);
    assert_eq!(push(&there, other, "now", &back).await.0, 200);
    let (status, session) = here.post("/sessions", json!({ "from": back })).await;
    assert_eq!(status, 201, "it is pulled where it is named: {session:#}\n{}", here.log());
    assert_eq!(here.output(session["id"].as_str().unwrap(), "cat b c").await, "two\nmore\n");
    assert!(session["name"].as_str().unwrap().starts_with("arrived-"));
}

#[tokio::test]
async fn others_read_what_was_pushed() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let server = TestServer::start(&[]);
    let id = worked(&server, "read").await;
    let reference = format!("{}/read:v1", daemon.address);
    let (_, pushed) = push(&server, &id, "now", &reference).await;
    let remote = format!("docker://{reference}");
    let said = run(Command::new("skopeo").args(["inspect", "--tls-verify=false", &remote])).stdout;
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["Digest"], pushed["digest"]);
    let scratch = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}:v1", scratch.path().join("layout").display());
    run(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &remote, &layout]));
    let bundle = scratch.path().join("bundle");
    let layout = layout.trim_start_matches("oci:");
    run(Command::new("umoci").args(["unpack", "--image", layout]).arg(&bundle));
    let theirs = run(Command::new("sh").args(["-c", FINGERPRINT]).current_dir(bundle.join("rootfs"))).stdout;
    assert_eq!(String::from_utf8_lossy(&theirs), server.output(&id, FINGERPRINT).await);
    assert_eq!(server.blobs(), Vec::<PathBuf>::new(), "what has served is gone");
    // Only what is new is sent: one layer, and what says how it all fits together.
    let blobs = || {
        let found =
            run(Command::new("find").arg(daemon.path("data")).args(["-path", "*/blobs/sha256/*", "-name", "data"]));
        found.stdout.iter().filter(|byte| **byte == b'\n').count()
    };
    let before = blobs();
    server.output(&id, "echo three > d").await;
    assert_eq!(push(&server, &id, "now", &reference).await.0, 200);
    assert_eq!(blobs(), before + 3);
}

#[tokio::test]
async fn a_checkpoint_goes_in_a_file() {
    if !can_run_containers() {
        return;
    }
    let (here, there) = (TestServer::start(&[]), TestServer::start(&[]));
    let id = worked(&here, "parcel").await;
    let seen = here.output(&id, FINGERPRINT).await;
    let file = here.data_dir().with_file_name("parcel.tar");
    let file = file.to_str().unwrap();
    let output = here.cli(&["checkpoint", "export", "parcel", file]);
    assert!(output.status.success(), "{output:?}\n{}", here.log());
    assert!(!String::from_utf8_lossy(&output.stderr).contains("left out"), "{output:?}");
    // What has no form in it is told, each time; so is what is large, and has holes, whole.
    let large = "truncate -s 5G large; printf end >> large; mkdir new; : > new/.wh.x; : > new/kept";
    here.output(&id, large).await;
    for _ in 0..2 {
        let output = here.cli(&["checkpoint", "export", "parcel", "/dev/null"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("1 of what is in it"), "{output:?}");
    }
    let big = here.data_dir().with_file_name("big.tar");
    assert!(here.cli(&["checkpoint", "export", "parcel", big.to_str().unwrap()]).status.success());
    assert!(there.cli(&["checkpoint", "import", big.to_str().unwrap(), "--name", "big"]).status.success());
    assert!(there.cli(&["session", "create", "--from", "big", "--name", "big"]).status.success());
    let shown = there.output("big", "stat -c %s large; tail -c 3 large; ls -A new").await;
    assert_eq!(shown, "5368709123\nendkept\n");
    assert_eq!(there.delete("/images/big").await.0, 204);
    let output = there.cli(&["checkpoint", "import", file, "--name", "parcel"]);
    assert!(output.status.success(), "{output:?}\n{}", there.log());
    let output = there.cli(&["session", "create", "--from", "parcel", "--name", "opened", "--output", "json"]);
    let session: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let opened = session["id"].as_str().unwrap();
    assert_eq!(there.output(opened, FINGERPRINT).await, seen);
    // Making room does not take what there may be no other copy of.
    assert_eq!(there.post("/system/prune", json!({ "unused_images": true })).await.1["images"], 0);
    assert_eq!(there.get("/images/parcel").await.0, 200);
    // The image can go; the session stands on its own. A second one of the same name takes the first one's place.
    let again = there.cli(&["checkpoint", "import", file, "--name", "parcel"]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(there.get("/images").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(there.delete("/images/parcel").await.0, 204);
    assert_eq!(there.get("/images/parcel").await.0, 404);
    assert_eq!(there.output(opened, FINGERPRINT).await, seen);
    // A file that was cut is refused, and nothing of it stays.
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    let cut = there.cli(&["checkpoint", "import", file, "--name", "cut"]);
    assert_eq!(cut.status.code(), Some(2), "{cut:?}");
    assert_eq!(there.get("/images").await.1["items"], json!([]));
}

#[tokio::test]
async fn registries_ask_who_it_is_and_go_away() {
    let Some(mut daemon) = registry(Settings { password: true, tls: false }) else { return };
    let auth = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(auth.path(), "{}").unwrap();
    let server = TestServer::start(&["--registry-auth", auth.path().to_str().unwrap()]);
    let id = worked(&server, "locked").await;
    let reference = format!("{}/locked:v1", daemon.address);
    let (status, problem) = push(&server, &id, "1", &reference).await;
    assert_eq!((status, &problem["code"]), (403, &json!("registry_refused")), "{problem:#}");
    let login = json!({ "reference": reference, "credentials": { "username": "user", "password": "secret" } });
    let (status, pushed) = server.post(&format!("/sessions/{id}/checkpoints/1/push"), login).await;
    assert_eq!(status, 200, "{pushed:#}");
    assert!(!server.log().contains("secret"), "nothing of it is in the log");
    // The same from the server's own file.
    let (status, problem) = server.post("/images", json!({ "reference": reference })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("registry_refused")));
    let auths = json!({ "auths": { daemon.address.to_string(): { "auth": "dXNlcjpzZWNyZXQ=" } } });
    std::fs::write(auth.path(), auths.to_string()).unwrap();
    assert_eq!(server.post("/images", json!({ "reference": reference })).await.0, 201);
    let missing = json!({ "reference": format!("{}/locked:v9", daemon.address) });
    let (status, problem) = server.post("/images", missing).await;
    assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("registry_not_found")));
    daemon.kill();
    let (status, problem) = push(&server, &id, "now", &reference).await;
    assert_eq!((status, &problem["code"]), (503, &json!("registry_unavailable")), "{problem:#}");
    assert_eq!(server.output(&id, "echo on").await, "on\n", "the session does not mind");
    daemon.again();
    assert_eq!(push(&server, &id, "now", &reference).await.0, 200);
}

#[tokio::test]
async fn what_is_brought_in_is_ones_own() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let server = TestServer::start(&["--registry-allow", &daemon.address.to_string()]);
    let id = worked(&server, "mine").await;
    let reference = format!("{}/mine:v1", daemon.address);
    assert_eq!(push(&server, &id, "now", &reference).await.0, 200);
    assert_eq!(server.post("/images", json!({ "reference": reference })).await.0, 201);
    let token = member(&server, "other").await;
    let ask = async |method: &str, path: &str, body: Value| {
        call(&server, &token, method, path, (!body.is_null()).then_some(body)).await
    };
    let encoded = reference.replace('/', "%2F");
    let (_, list) = ask("GET", "/images", Value::Null).await;
    assert_eq!(list["items"], json!([]), "an administrator's checkpoint is nobody else's");
    assert_eq!(ask("GET", &format!("/images/{encoded}"), Value::Null).await.0, 404);
    assert_eq!(ask("DELETE", &format!("/images/{encoded}"), Value::Null).await.0, 404);
    let push = format!("/sessions/{id}/checkpoints/1/push");
    assert_eq!(ask("POST", &push, json!({ "reference": reference })).await.0, 404);
    assert_eq!(ask("GET", &format!("/sessions/{id}/checkpoints/1/export"), Value::Null).await.0, 404);
    // What they pull themselves is theirs, with the same layers.
    assert_eq!(ask("POST", "/images", json!({ "reference": reference })).await.0, 201);
    let (_, list) = ask("GET", "/images", Value::Null).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    for (body, field) in
        [(json!({ "reference": "no reference" }), "reference"), (json!({ "reference": "" }), "reference")]
    {
        let (status, problem) = ask("POST", "/images", body).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)), "{problem:#}");
    }
    for (body, field) in [
        (json!({ "from": "nothing of the kind" }), "from"),
        (json!({ "from": "nothing" }), "from"),
        (json!({ "image": "nothing" }), "image"),
        (json!({ "image": reference }), "image"),
    ] {
        let (status, problem) = ask("POST", "/sessions", body).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)), "{problem:#}");
    }
}

#[tokio::test]
async fn what_the_server_may_at_registries_is_not_what_members_may() {
    let Some(daemon) = registry(Settings { password: true, tls: false }) else { return };
    let auth = tempfile::NamedTempFile::new().unwrap();
    // The nearest entry counts; the others are wrong.
    let (host, wrong) = (daemon.address, json!({ "auth": "dXNlcjp3cm9uZw==" }));
    let auths = json!({ host.to_string(): wrong, format!("{host}/te"): wrong,
                        format!("{host}/team"): { "auth": "dXNlcjpzZWNyZXQ=" } });
    std::fs::write(auth.path(), json!({ "auths": auths }).to_string()).unwrap();
    let file = auth.path().to_str().unwrap();
    let reference = format!("{host}/team/own:v1");
    for is_shared in [false, true] {
        let shared = format!("--registry-auth-shared={is_shared}");
        let server = TestServer::start(&["--registry-auth", file, &shared, "--registry-allow", &host.to_string()]);
        let id = worked(&server, "own").await;
        assert_eq!(push(&server, &id, "now", &reference).await.0, 200);
        let token = member(&server, "other").await;
        let pulled = call(&server, &token, "POST", "/images", Some(json!({ "reference": reference }))).await;
        let made = call(&server, &token, "POST", "/sessions", Some(json!({ "from": reference }))).await;
        if is_shared {
            assert_eq!((pulled.0, made.0), (201, 201), "{pulled:#?} {made:#?}");
        } else {
            assert_eq!((pulled.0, &pulled.1["code"]), (403, &json!("registry_refused")), "{pulled:#?}");
            assert_eq!((made.0, &made.1["code"]), (403, &json!("registry_refused")), "{made:#?}");
            let as_themselves = json!({ "username": "user", "password": "secret" });
            let body = json!({ "reference": reference, "credentials": as_themselves });
            assert_eq!(call(&server, &token, "POST", "/images", Some(body)).await.0, 201);
        }
        // Backups write below names of their own only, for everyone.
        let body = json!({ "backup": { "registry": format!("{host}/team/backups") } });
        let (status, session) = call(&server, &token, "POST", "/sessions", Some(body)).await;
        assert_eq!(status, 201, "{session:#}");
        let theirs = session["id"].as_str().unwrap();
        server.output(theirs, "echo safe > file").await;
        server.until(theirs, |session| session["backup"]["checkpoint"] == 1).await;
    }
    let scratch = tempfile::tempdir().unwrap();
    for (option, word) in [("--registry-auth", "credentials"), ("--registry-certificates", "certificates")] {
        let mut server = Command::new(RAWORC);
        let output =
            server.args(["serve", option, "/nowhere/file", "--data-dir"]).arg(scratch.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(word) && said.contains("/nowhere/file"), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
}

/// Members may use public and allowed registries only. The error for another one does not reveal whether its port is
/// open.
#[tokio::test]
async fn members_do_not_look_around_through_the_server() {
    if !can_run_containers() {
        return;
    }
    let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    open.set_nonblocking(true).unwrap();
    let port = open.local_addr().unwrap().port();
    let allowed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = format!("http://127.0.0.1:{port}/");
    let redirect = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n");
    let address = allowed.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in allowed.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut head);
            let _ = std::io::Write::write_all(&mut stream, redirect.as_bytes());
        }
    });
    let server = TestServer::start(&["--registry-allow", &address.to_string()]);
    let token = member(&server, "curious").await;
    let mine = call(&server, &token, "POST", "/sessions", Some(json!({ "name": "mine" }))).await.1;
    let id = mine["id"].as_str().unwrap();
    server.until(id, |session| session["state"] == "READY").await;
    let mut answers = std::collections::BTreeSet::new();
    let hosts = [
        format!("127.0.0.1:{port}"),
        "127.0.0.1:1".to_owned(),
        format!("localhost:{port}"),
        format!("127.1:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        "169.254.169.254".to_owned(),
        "10.0.0.1:5000".to_owned(),
        // One that is allowed, and leads elsewhere.
        address.to_string(),
    ];
    for host in hosts {
        let reference = format!("{host}/a/b:c");
        for (path, body) in [
            ("/images", json!({ "reference": reference })),
            ("/sessions", json!({ "from": reference })),
            ("/sessions", json!({ "image": reference })),
            (&format!("/sessions/{id}/checkpoints/now/push"), json!({ "reference": reference })),
        ] {
            let (status, problem) = call(&server, &token, "POST", path, Some(body)).await;
            let code = problem["code"].as_str().unwrap_or_default().to_owned();
            assert!([403, 422].contains(&status), "{host} {path}: {status} {problem:#}");
            answers.insert((host.clone(), status, code));
        }
    }
    assert!(
        answers.iter().all(|(_, status, code)| (*status, code.as_str()) == (403, "registry_not_allowed")
            || (*status, code.as_str()) == (422, "invalid_input")),
        "{answers:#?}"
    );
    assert!(open.accept().is_err(), "nothing was sent to a port of the machine");
    // Backups neither.
    let body = json!({ "backup": { "registry": format!("127.0.0.1:{port}/a"), "every_seconds": 5 } });
    let (status, session) = call(&server, &token, "POST", "/sessions", Some(body)).await;
    assert_eq!(status, 201, "{session:#}");
    let id = session["id"].as_str().unwrap();
    server.output(id, "echo x > file").await;
    let session = server.until(id, |session| session["backup"]["error"].is_string()).await;
    assert!(session["backup"]["error"].as_str().unwrap().contains("administrator"), "{session:#}");
    assert!(open.accept().is_err(), "nothing was sent to a port of the machine");
}

/// Calls `change` with the blob directory, manifest and config of an OCI archive, and corrects the digests.
fn forge(archive: &Path, change: impl FnOnce(&Path, &mut Value, &mut Value)) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(scratch.path()));
    let blobs = scratch.path().join("blobs/sha256");
    let read = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let blob = |descriptor: &Value| blobs.join(descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    let put = |descriptor: &mut Value, content: &Value| {
        let bytes = content.to_string();
        let digest = hex::encode(Sha256::digest(&bytes));
        std::fs::write(blobs.join(&digest), &bytes).unwrap();
        (descriptor["digest"], descriptor["size"]) = (json!(format!("sha256:{digest}")), json!(bytes.len()));
    };
    let mut index = read(&scratch.path().join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = read(&blob(&manifest["config"]));
    change(&blobs, &mut manifest, &mut config);
    put(&mut manifest["config"], &config);
    put(&mut index["manifests"][0], &manifest);
    std::fs::write(scratch.path().join("index.json"), index.to_string()).unwrap();
    run(Command::new("tar").args(["-c", "oci-layout", "index.json", "blobs"]).current_dir(scratch.path())).stdout
}

#[tokio::test]
async fn to_know_what_a_layer_is_called_is_not_to_have_it() {
    if !can_run_containers() {
        return;
    }
    let server = TestServer::start(&[]);
    let id = server.session(json!({ "name": "secret" })).await;
    server.output(&id, "echo very secret > secret").await;
    let archive = server.data_dir().with_file_name("secret.tar");
    assert!(server.cli(&["checkpoint", "export", &id, archive.to_str().unwrap()]).status.success());
    let token = member(&server, "other").await;
    let import = async |token: &str, archive: Vec<u8>| {
        let request = server.request_as(token, reqwest::Method::POST, "/images/import?name=loot");
        let response = request.body(archive).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    // It lies among what is on its way, too: its owner has just brought it in, to no use.
    let useless = forge(&archive, |_, _, config| config["raworc"]["version"] = json!(99));
    assert_eq!(import(&server.token, useless).await.0, 422);
    assert_ne!(server.blobs(), Vec::<PathBuf>::new());
    let without = forge(&archive, |blobs, manifest, _| {
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        std::fs::remove_file(blobs.join(digest.trim_start_matches("sha256:"))).unwrap();
    });
    let other = forge(&archive, |blobs, manifest, config| {
        let bytes = [0_u8; 1024];
        let digest = hex::encode(Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
        manifest["layers"][0] = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": bytes.len(),
                                        "digest": format!("sha256:{digest}") });
    });
    for forged in [without, other] {
        let (status, problem) = import(&token, forged).await;
        assert_eq!((status, &problem["code"]), (422, &json!("image_unusable")), "{problem:#}");
    }
    assert_eq!(call(&server, &token, "GET", "/images", None).await.1["items"], json!([]));
    let whole = forge(&archive, |_, _, _| {});
    assert_eq!(import(&token, whole).await.0, 201, "whoever has it, has it");
}

#[tokio::test]
async fn backups_are_made_by_themselves() {
    let Some(mut daemon) = registry(Settings::default()) else { return };
    let server = TestServer::start(&[]);
    let repository = format!("{}/backups", daemon.address);
    daemon.kill();
    let backup = json!({ "registry": repository, "every_seconds": 5 });
    let id = server.session(json!({ "name": "kept", "backup": backup })).await;
    server.output(&id, "echo one > a").await;
    // A registry that is away is told of, and asked again.
    let session = server.until(&id, |session| session["backup"]["error"].is_string()).await;
    assert_eq!((&session["state"], &session["backup"]["checkpoint"]), (&json!("READY"), &Value::Null), "{session:#}");
    daemon.again();
    let update = json!({ "backup": backup });
    assert_eq!(server.put(&format!("/sessions/{id}"), update).await.0, 200);
    server.until(&id, |session| session["backup"]["checkpoint"] == 1).await;
    // Another server goes on from it, and keeps what it brought in, while the name comes to mean something newer.
    let (other, from) = (TestServer::start(&[]), json!({ "from": format!("{repository}:{id}") }));
    let (status, session) = other.post("/sessions", from.clone()).await;
    assert_eq!(status, 201, "{session:#}");
    assert_eq!(other.output(session["id"].as_str().unwrap(), "cat a").await, "one\n");
    server.output(&id, "echo two > a").await;
    let session = server.until(&id, |session| session["backup"]["checkpoint"] == 2).await;
    assert_eq!(session["backup"]["error"], Value::Null);
    let events = server.events(&id).await;
    let count = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("checkpoint.backed_up"), count("checkpoint.backup_failed")), (2, 1));
    // The server is lost; the other one goes on from the newest, which has a name that does not change; also while the
    // registry is away, now that it is here.
    drop(server);
    for is_away in [false, true] {
        if is_away {
            daemon.kill();
        }
        let (status, session) = other.post("/sessions", from.clone()).await;
        assert_eq!(status, 201, "{session:#}");
        assert_eq!(other.output(session["id"].as_str().unwrap(), "cat a").await, "two\n");
    }
    for wrong in [json!({ "registry": "nowhere" }), json!({ "registry": format!("{repository}:tag") })] {
        let (status, problem) = other.post("/sessions", json!({ "backup": wrong })).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!("backup.registry")), "{problem:#}");
    }
}
