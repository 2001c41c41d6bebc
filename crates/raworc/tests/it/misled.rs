//! Misleading names, and other users of the machine.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::server_or_skip;

#[tokio::test]
async fn names_that_mislead_are_refused_everywhere() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let wrong = [
        "a\u{200b}b",
        "\u{feff}a",
        "a\u{202e}b",
        "a\u{2066}b",
        "\u{200d}",
        "a\u{ad}b",
        "a\u{a0}b",
        "a\u{e000}",
        "a\u{fe0f}",
        "a\u{3164}",
        ".",
        "..",
        "a/b",
        "/",
        "a\\b",
        "../..",
        "gro\u{308}ße",
        " a",
        "a\tb",
        "",
    ];
    let account = json!({ "role": "member" });
    for name in wrong {
        for (method, path, field, rest) in [
            (Method::POST, "/sessions".to_owned(), "name", json!({})),
            (Method::PUT, format!("/sessions/{id}"), "name", json!({})),
            (Method::POST, format!("/sessions/{id}/remix"), "name", json!({})),
            (Method::POST, format!("/sessions/{id}/checkpoints"), "label", json!({})),
            (Method::POST, "/agents".to_owned(), "name", json!({})),
            (Method::POST, "/accounts".to_owned(), "name", account.clone()),
            (Method::POST, "/accounts/admin/tokens".to_owned(), "name", json!({})),
        ] {
            let mut body = rest;
            body[field] = json!(name);
            let answer = server.request(method.clone(), &path).json(&body).send().await.unwrap();
            let status = answer.status();
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(status, 422, "{method} {path} {name:?}: {problem:#}");
            assert_eq!(problem["errors"][0]["field"], field, "{problem:#}");
        }
    }
    let problem = server.post("/sessions", json!({ "name": "a\u{200b}b" })).await.1;
    assert!(problem["detail"].as_str().unwrap().contains("U+200B"), "{problem:#}");
    for name in ["größe", "日本 語", "Ω-7", "a.b", "...", "it's (mine) & 100% #1?"] {
        let (status, session) = server.post("/sessions", json!({ "name": name })).await;
        assert_eq!((status.as_u16(), &session["name"]), (201, &json!(name)), "{session:#}");
        let encoded = crate::raw::encoded(name);
        assert_eq!(server.get(&format!("/sessions/{encoded}")).await.1["id"], session["id"], "{name}");
    }
}

/// What another user of the machine can read or list of these paths.
fn open_to_others(paths: &[PathBuf]) -> Vec<String> {
    let script = "while IFS= read -r -d '' path; do if [ -r \"$path\" ] || [ -w \"$path\" ]; then printf '%s\\n' \"$path\"; fi; done";
    let mut child = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "bash", "-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let list: Vec<u8> = paths.iter().flat_map(|path| [path.as_os_str().as_encoded_bytes(), b"\0"].concat()).collect();
    let writer = std::thread::spawn(move || input.write_all(&list));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Everything that is below, however deep.
fn all_below(path: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        // A link's own mode says nothing, and where it leads is elsewhere.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            continue;
        }
        if metadata.is_dir() && all.len() < 20_000 {
            all_below(&path, all);
        }
        all.push(path);
    }
}

fn must_be_closed(server: &TestServer, when: &str) {
    let (mut all, data) = (Vec::new(), server.data_dir());
    all_below(&data, &mut all);
    let mut open = open_to_others(&all);
    open.retain(|path| path != &data.join("server.url").to_string_lossy());
    assert!(open.is_empty(), "{when}, others reach {open:#?}");
    assert!(all.len() > 20, "{when}: {all:?}");
}

#[tokio::test]
async fn other_users_of_the_machine_read_nothing() {
    let server = server_or_skip!();
    if !Command::new("setpriv").arg("--version").output().is_ok_and(|output| output.status.success()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no setpriv");
        return;
    }
    let id = server.session(json!({})).await;
    // More than connections hold of what nobody reads.
    let script = "mkdir -p open/deep; echo secret > open/deep/file; head -c 33554432 /dev/urandom > open/much
        chmod -R 777 .; chmod 777 /workspace";
    server.output(&id, script).await;
    must_be_closed(&server, "while a session runs");
    let (status, checkpoint) = server.post(&format!("/sessions/{id}/checkpoints"), json!({ "label": "kept" })).await;
    assert_eq!(status, 201, "{checkpoint}");
    must_be_closed(&server, "after a checkpoint");
    // An export that nobody reads: its image stays in the layout, on its way.
    let mut export =
        server.request(Method::GET, &format!("/sessions/{id}/checkpoints/now/export")).send().await.unwrap();
    assert_eq!(export.status(), 200);
    assert!(!server.blobs().is_empty(), "it is on its way");
    must_be_closed(&server, "while a transfer is under way");
    let mut archive = Vec::new();
    while let Some(chunk) = export.chunk().await.unwrap() {
        archive.extend_from_slice(&chunk);
    }
    let imported = server.request(Method::POST, "/images/import?name=copy").body(archive).send().await.unwrap();
    assert_eq!(imported.status(), 201, "{}", imported.text().await.unwrap());
    must_be_closed(&server, "after an import");
    // What was made in another way, or before: it is closed at the next start.
    let mut server = server;
    server.stop();
    let images = server.data_dir().join("images");
    fs::set_permissions(&images, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    server.start_again();
    assert_eq!(fs::metadata(&images).unwrap().mode() & 0o777, 0o700);
    must_be_closed(&server, "after a restart");
}
