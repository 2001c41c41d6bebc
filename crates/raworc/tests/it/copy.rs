//! Directories as tars, and `session cp`: what arrives is what was there, and nothing leads out.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{RAWORC, TestServer};
use crate::raw::send;
use crate::server_or_skip;

const TAR: &str = "content-type: application/x-tar";
const ACCEPT: &str = "accept: application/x-tar";

/// A tree with what trees may have in it.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("d/deep/er")).unwrap();
    fs::write(at.join("d/file"), "content\n").unwrap();
    fs::hard_link(at.join("d/file"), at.join("d/deep/same")).unwrap();
    fs::write(at.join("program"), "#!/bin/sh\necho works\n").unwrap();
    symlink("d/file", at.join("link")).unwrap();
    symlink("/nowhere", at.join("dangling")).unwrap();
    fs::write(at.join(OsStr::from_bytes(b"bad\xff\nname")), "bytes").unwrap();
    fs::write(at.join("x".repeat(255)), "long").unwrap();
    fs::write(at.join("empty"), "").unwrap();
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 64 << 20).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    for (name, mode) in [("program", 0o750), ("empty", 0o400), ("d/deep", 0o700), ("d", 0o755)] {
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let _ = Command::new("setfattr").args(["-n", "user.note", "-v", "kept"]).arg(at.join("d/file")).status();
    for (name, time) in [("d/file", "1999-01-02 03:04:05.678901234"), ("d/deep", "1960-01-01"), ("d", "2001-01-01")] {
        assert!(Command::new("touch").args(["-h", "-d", time]).arg(at.join(name)).status().unwrap().success());
    }
}

/// Everything of a tree that a copy is to keep, in an order of its own.
fn described(root: &Path) -> Vec<(OsString, String)> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    let mut inodes = Vec::new();
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let mut text = format!("{:o} {} {}.{:09}", stat.mode(), stat.nlink(), stat.mtime(), stat.mtime_nsec());
        if kind.is_dir() {
            text = format!("{:o} {}.{:09}", stat.mode(), stat.mtime(), stat.mtime_nsec());
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_symlink() {
            text = format!("→ {:?} {}", fs::read_link(&path).unwrap(), stat.mtime());
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            let sum = content.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            let attribute = Command::new("getfattr").args(["--only-values", "-n", "user.note"]).arg(&path).output();
            let attribute = attribute.map(|output| output.stdout).unwrap_or_default();
            text += &format!(" {} {sum} {:?}", content.len(), OsString::from_vec(attribute));
            if stat.nlink() > 1 {
                inodes.push((stat.ino(), path.strip_prefix(root).unwrap().to_owned()));
            }
        }
        found.push((path.strip_prefix(root).unwrap().as_os_str().to_owned(), text));
    }
    assert!(inodes.iter().all(|(inode, _)| *inode == inodes[0].0), "{inodes:?}");
    found.sort();
    found
}

fn cp(server: &TestServer, arguments: &[&OsStr]) -> std::process::Output {
    let mut command = Command::new(RAWORC);
    command.args(["session", "cp"]).args(arguments).env("RAWORC_DATA_DIR", server.data_dir());
    command.env_remove("RAWORC_URL").env_remove("RAWORC_TOKEN").stdin(Stdio::null());
    command.output().unwrap()
}

fn copies(server: &TestServer, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) {
    let output = cp(server, &[from.as_ref(), to.as_ref()]);
    assert!(output.status.success(), "{:?} → {:?}: {output:?}", from.as_ref(), to.as_ref());
}

/// An entry of a tar: kind, path, link, content.
type Item<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

/// A tar of these entries.
fn archive(entries: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, path, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[tokio::test]
async fn a_tree_that_goes_in_and_out_is_the_same() {
    let server = server_or_skip!();
    let id = server.session(json!({ "name": "demo", "waiting_timeout_seconds": 3600 })).await;
    let here = tempfile::tempdir().unwrap();
    let source = here.path().join("source");
    tree(&source);
    let expected = described(&source);
    for round in ["resting", "running"] {
        if round == "running" {
            let seen = server
                .output(&id, "cd resting && ./program && stat -c '%u %a %h' d/file && du -k sparse | cut -f1")
                .await;
            let lines: Vec<&str> = seen.lines().collect();
            assert_eq!(lines[..2], ["works", "1000 644 2"], "{seen}");
            assert!(lines[2].parse::<u64>().unwrap() < 1024, "holes stay holes: {seen}");
        }
        copies(&server, &source, format!("demo:{round}"));
        let back = here.path().join(round);
        copies(&server, format!("demo:{round}"), &back);
        assert_eq!(described(&back), expected, "{round}");
    }
    // And of a checkpoint, as plain programs read and write it.
    let checkpoint = server.post(&format!("/sessions/{id}/checkpoints"), json!({})).await.1;
    server.output(&id, "rm -rf running").await;
    let saved =
        send(&server, "GET", &format!("/sessions/{id}/checkpoints/{}/files/running", checkpoint["n"]), &[ACCEPT], b"");
    assert_eq!((saved.status, saved.header("content-type")), (200, "application/x-tar"));
    let plain = here.path().join("plain");
    fs::create_dir(&plain).unwrap();
    fs::write(here.path().join("saved.tar"), &saved.body).unwrap();
    let tar = |arguments: &[&str]| {
        let status = Command::new("tar").args(arguments).current_dir(here.path()).status().unwrap();
        assert!(status.success(), "tar {arguments:?}");
    };
    tar(&["-xpf", "saved.tar", "-C", "plain", "--xattrs", "--xattrs-include=user.*", "--no-same-owner"]);
    assert_eq!(described(&plain), expected);
    tar(&["-cf", "made.tar", "--xattrs", "--format=pax", "-C", "plain", "."]);
    let made = fs::read(here.path().join("made.tar")).unwrap();
    let put = send(&server, "PUT", &format!("/sessions/{id}/files/made/by/tar"), &[TAR], &made);
    assert_eq!(put.status, 201, "{}", put.json());
    copies(&server, "demo:made/by/tar", here.path().join("again"));
    assert_eq!(described(&here.path().join("again")), expected);
}

#[tokio::test]
async fn what_becomes_of_a_copy_is_what_docker_cp_makes_of_it() {
    let server = server_or_skip!();
    server.session(json!({ "name": "demo" })).await;
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/one"), "1").unwrap();
    fs::write(at("file"), "f").unwrap();
    symlink("file", at("link")).unwrap();
    symlink("dir", at("dirlink")).unwrap();
    let content = |path: &str| {
        let output = server.cli(&["session", "files", "cat", "demo", path]);
        String::from_utf8(output.stdout).unwrap()
    };
    for (from, to, there, expected) in [
        ("dir", "demo:new", "new/one", "1"),
        ("dir", "demo:new", "new/dir/one", "1"),
        ("dir/.", "demo:new", "new/one", "1"),
        ("dir", "demo:", "dir/one", "1"),
        ("dir", "demo:/workspace/abs", "abs/one", "1"),
        ("dirlink/", "demo:through", "through/one", "1"),
        ("file", "demo:", "file", "f"),
        ("file", "demo:new", "new/file", "f"),
        ("file", "demo:new/", "new/file", "f"),
        ("file", "demo:a/b/c", "a/b/c", "f"),
        ("file", "demo:new/one", "new/one", "f"),
    ] {
        copies(&server, at(from), to);
        assert_eq!(content(there), expected, "{from} {to}");
    }
    copies(&server, at("link"), "demo:link");
    for (from, to) in [("dir", "demo:file"), ("file", "demo:none/"), ("missing", "demo:x"), ("file", "demo:/etc/x")] {
        let output = cp(&server, &[at(from).as_os_str(), OsStr::new(to)]);
        assert_eq!(output.status.code(), Some(2), "{from} {to}: {output:?}");
    }
    for (from, to, there, expected) in [
        ("demo:new", "out", "out/one", "f"),
        ("demo:new", "out", "out/new/one", "f"),
        ("demo:new/.", "out2", "out2/dir/one", "1"),
        ("demo:new/one", "out", "out/one", "f"),
        ("demo:new/dir/one", "plain", "plain", "1"),
        ("demo:new/one", "plain", "plain", "f"),
        ("demo:", "all", "all/new/one", "f"),
    ] {
        copies(&server, from, at(to));
        assert_eq!(fs::read_to_string(at(there)).unwrap(), expected, "{from} {to}");
    }
    copies(&server, "demo:link", at("out"));
    assert_eq!(fs::read_link(at("out/link")).unwrap(), Path::new("file"));
    let followed = cp(&server, &["-L".as_ref(), "demo:link".as_ref(), at("followed").as_os_str()]);
    assert!(followed.status.success(), "{followed:?}");
    assert!(fs::symlink_metadata(at("followed")).unwrap().is_file());
    for (from, to, status) in [("demo:new", "plain", 2), ("demo:none", "x", 2), ("demo:new/one", "none/", 2)] {
        let output = cp(&server, &[OsStr::new(from), at(to).as_os_str()]);
        assert_eq!(output.status.code(), Some(status), "{from} {to}: {output:?}");
    }
    assert_eq!(cp(&server, &["demo:a".as_ref(), "other:b".as_ref()]).status.code(), Some(2));
    assert_eq!(cp(&server, &["a".as_ref(), "b".as_ref()]).status.code(), Some(2));
    // As a stream, in both directions; and nothing is told on a pipe but the tar.
    let script = "raworc session cp demo:new - | tar t | LC_ALL=C sort | tr '\\n' ' ' && tar c -C \"$OUT\" dir | raworc session cp - demo:piped";
    let output = Command::new("sh")
        .args([
            "-c",
            &script.replace("raworc ", &format!("{RAWORC} ")).replace("\"$OUT\"", here.path().to_str().unwrap()),
        ])
        .env("RAWORC_DATA_DIR", server.data_dir())
        .env_remove("RAWORC_URL")
        .env_remove("RAWORC_TOKEN")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listed.starts_with("./ dir/ dir/one file one "), "{listed}");
    assert_eq!(content("piped/dir/one"), "1");
}

#[tokio::test]
async fn an_archive_leads_nowhere_and_belongs_to_the_agent() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let files = format!("/sessions/{id}/files");
    let put = |path: &str, headers: &[&str], entries: &[Item]| {
        send(&server, "PUT", &format!("{files}{path}"), &[&[TAR], headers].concat(), &archive(entries))
    };
    server
        .output(
            &id,
            "mkdir -p dir old; printf x > dir/there; ln -s /etc out; ln -s dir in; mkfifo pipe; printf y > plain",
        )
        .await;
    // Refused before anything has changed.
    for entries in [
        &[(b'0', &b"new"[..], &b""[..], &b"n"[..]), (b'0', b"../up", b"", b"x")][..],
        &[(b'0', b"new", b"", b"n"), (b'0', b"a/../../up", b"", b"x")],
        &[(b'0', b"new", b"", b"n"), (b'2', b"nothing", b"", b"")],
        &[(b'0', b"new", b"", b"n"), (b'0', b"", b"", b"x")],
    ] {
        put("", &[], entries).must_be_problem(422, "invalid_input", &format!("{entries:?}"));
        assert_eq!(send(&server, "GET", &format!("{files}/new"), &[], b"").status, 404);
    }
    let whole = archive(&[(b'0', b"new", b"", b"n"), (b'0', b"more", b"", &[7; 2000])]);
    for broken in [&whole[..700], &whole[..1500], b"no tar at all, but long enough to be looked at", &[7; 512][..]] {
        let answer = send(&server, "PUT", &files, &[TAR], broken);
        answer.must_be_problem(422, "invalid_input", &format!("{} bytes", broken.len()));
        assert_eq!(send(&server, "GET", &format!("{files}/new"), &[], b"").status, 404);
    }
    // Something is in the way: what comes before is there, and it is said.
    for entries in [
        [(b'0', &b"before"[..], &b""[..], &b"b"[..]), (b'0', b"out/passwd", b"", b"x")],
        [(b'0', b"before", b"", b"b"), (b'0', b"in/there", b"", b"x")],
        [(b'0', b"before", b"", b"b"), (b'0', b"dir", b"", b"x")],
        [(b'0', b"before", b"", b"b"), (b'5', b"plain", b"", b"")],
        [(b'0', b"before", b"", b"b"), (b'0', b"plain/x", b"", b"x")],
        [(b'0', b"before", b"", b"b"), (b'0', b"pipe", b"", b"x")],
    ] {
        let answer = put("", &[], &entries);
        answer.must_be_problem(409, "file_conflict", &format!("{entries:?}"));
        assert!(answer.json()["detail"].as_str().unwrap().contains("is unpacked, and the rest is not"));
        assert_eq!(send(&server, "DELETE", &format!("{files}/before"), &[], b"").status, 204);
    }
    for link in [&b"/etc/passwd"[..], b"out/passwd", b"none", b"dir", b"../x"] {
        let answer = put("", &[], &[(b'1', b"hard", link, b"")]);
        answer.must_be_problem(422, "invalid_input", &format!("{link:?}"));
    }
    // Absolute names begin at the directory, links are replaced and not followed, devices are left out and counted.
    let answer = put(
        "/old",
        &[],
        &[
            (b'0', b"/abs", b"", b"a"),
            (b'2', b"evil", b"/etc", b""),
            (b'0', b"evil", b"", b"mine"),
            (b'2', b"a", b"dir", b""),
            (b'5', b"a/", b"", b""),
            (b'0', b"a/x", b"", b"x"),
            (b'1', b"a/y", b"a/x", b""),
            (b'1', b"a/x", b"a/x", b""),
            (b'3', b"device", b"", b""),
            (b'6', b"fifo", b"", b""),
        ],
    );
    assert_eq!((answer.status, &answer.json()["left_out"]), (200, &json!(1)), "{}", answer.json());
    let seen = server.output(&id, "cd old; find . -type b -o -type c; cat abs evil; stat -c '%u:%g %h %F' a/x a/y a fifo; readlink a; find . ! -uid 1000; id -u").await;
    assert!(seen.starts_with("amine"), "{seen}");
    assert!(seen.contains("1000:1000 2 regular file\n1000:1000 2 regular file\n"), "{seen}");
    assert!(seen.contains("fifo\n1000\n"), "nothing is another's: {seen}");
    // Conditions: a directory has no tag, and is there or not.
    let one: &[Item] = &[(b'0', b"one", b"", b"1")];
    for (path, headers, status) in [
        ("/dir", &["if-none-match: *"][..], 412),
        ("/dir", &["if-match: \"x\""], 412),
        ("/dir", &["if-match: *"], 200),
        ("/dir", &["content-range: bytes 0-1/2"], 400),
        ("/dir", &["content-encoding: gzip"], 415),
        ("/fresh", &["if-match: *"], 412),
        ("/fresh", &["if-none-match: *"], 201),
        ("", &["if-none-match: *"], 412),
        ("", &["if-match: *"], 200),
        ("/plain", &[], 409),
        ("/out/x", &[], 422),
        ("/in?follow=false", &[], 409),
        ("/in", &[], 200),
        ("/dir?mode=0755", &[], 422),
    ] {
        assert_eq!(put(path, headers, one).status, status, "{path} {headers:?}");
    }
    let plain = send(&server, "PUT", &files, &["content-type: application/octet-stream"], b"x");
    plain.must_be_problem(422, "invalid_input", "a file without a name");
    let events = server.events(&id).await;
    assert!(
        events.iter().any(|event| event["type"] == "file.written" && event["data"]["path"] == "old"),
        "it is logged"
    );
    // What an archive is to fit into is looked at before it is unpacked.
    let small = server.session(json!({ "resources": { "disk": "1Mi" } })).await;
    let large = archive(&[(b'0', b"first", b"", b"1"), (b'0', b"large", b"", &[7; 2 << 20])]);
    let answer = send(&server, "PUT", &format!("/sessions/{small}/files/d"), &[TAR], &large);
    assert_eq!(answer.json()["code"], "disk_quota_exceeded", "{}", answer.json());
    assert_eq!(send(&server, "GET", &format!("/sessions/{small}/files/d"), &[], b"").status, 404);
    // More than it may ever take is not even received; of what has no name here, nothing would be unpacked.
    let endless = archive(&[(b'V', b"label", b"", &vec![7; 24 << 20])]);
    let answer = send(&server, "PUT", &format!("/sessions/{small}/files/d"), &[TAR], &endless);
    assert_eq!(answer.json()["code"], "disk_quota_exceeded", "{}", answer.json());
    let answer = send(&server, "PUT", &format!("/sessions/{small}/files/f"), &[], &[7; 2 << 20]);
    assert_eq!(answer.json()["code"], "disk_quota_exceeded", "{}", answer.json());
    // What is zeros takes nothing.
    let zeros = archive(&[(b'0', b"zeros", b"", &[0; 2 << 20])]);
    assert_eq!(send(&server, "PUT", &format!("/sessions/{small}/files/d"), &[TAR], &zeros).status, 201);
}

#[tokio::test]
async fn a_tar_is_valid_whatever_changes_while_it_is_made() {
    let server = server_or_skip!();
    let id = server.session(json!({ "waiting_timeout_seconds": 3600 })).await;
    let script = "mkdir -p t/a/b t/c; for n in $(seq 200); do echo $n > t/a/b/f$n; done; head -c 3000000 /dev/urandom > t/big; \
        (while [ ! -e stop ]; do mv t/a t/c/a; mv t/c/a t/a; : > t/big; head -c 3000000 /dev/urandom > t/big; rm -rf t/x; mkdir t/x; \
        ln -s /etc t/x/e; mv t/a/b/f1 t/f1; ln -s /etc/passwd t/a/b/f1; rm t/a/b/f1; mv t/f1 t/a/b/f1; done) > /dev/null 2>&1 & echo on";
    assert_eq!(server.output(&id, script).await, "on\n");
    for _ in 0..30 {
        let answer = send(&server, "GET", &format!("/sessions/{id}/files/t"), &[ACCEPT], b"");
        assert_eq!(answer.status, 200);
        let mut archive = tar::Archive::new(&answer.body[..]);
        let mut names = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path_bytes().into_owned();
            assert!(path.starts_with(b"./") || !path.starts_with(b"/"), "{path:?}");
            assert!(!path.windows(2).any(|window| window == b"e/"), "no link is followed: {path:?}");
            std::io::copy(&mut entry, &mut std::io::sink()).unwrap();
            names += 1;
        }
        assert!(names >= 2, "{names}");
        assert_eq!(answer.body[answer.body.len() - 1024..], [0; 1024], "it has its end");
    }
    // The same while an archive is unpacked over it: nothing outside is touched, whatever the answer.
    let entries: Vec<Vec<u8>> = (0..200).map(|n| format!("a/b/f{n}").into_bytes()).collect();
    let entries: Vec<Item> = entries.iter().map(|path| (b'0', &path[..], &b""[..], &b"mine"[..])).collect();
    for _ in 0..10 {
        let answer = send(&server, "PUT", &format!("/sessions/{id}/files/t"), &[TAR], &archive(&entries));
        assert!(matches!(answer.status, 200 | 404 | 409 | 422), "{} {}", answer.status, answer.json());
    }
    server.output(&id, "touch stop").await;
}

#[tokio::test]
async fn access_control_lists_go_along_and_are_never_widened() {
    let server = server_or_skip!();
    let id = server.session(json!({ "name": "demo", "waiting_timeout_seconds": 3600 })).await;
    if server.output(&id, "command -v setfacl || true").await.is_empty() {
        eprintln!("SKIPPED: setfacl is not installed");
        return;
    }
    let script = "mkdir -p a/d && echo x > a/f && echo x > a/d/child && setfacl -m u:1000:rw,u:7:r a/f && setfacl -d -m u:7:rwx a/d";
    server.output(&id, script).await;
    let tar = send(&server, "GET", &format!("/sessions/{id}/files/a"), &[ACCEPT], b"");
    let put = send(&server, "PUT", &format!("/sessions/{id}/files/b"), &[TAR], &tar.body);
    assert_eq!((put.status, &put.json()["left_out"]), (201, &json!(0)), "{}", put.json());
    let seen = server.output(&id, "for t in a b; do (cd $t; getfacl -n f d d/child | grep -v '^# owner' | sha256sum); done | uniq | wc -l; getfacl -n b/f").await;
    assert!(seen.starts_with("1\n") && seen.contains("user:7:r--"), "{seen}");
    // On this machine there are other users.
    let here = tempfile::tempdir().unwrap();
    copies(&server, "demo:a", here.path().join("a"));
    let mode = fs::metadata(here.path().join("a/f")).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o604, "its group's bits were those of the mask");
}

#[tokio::test]
async fn who_asks_for_what_gets_it() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let files = format!("/sessions/{id}/files");
    for path in ["d/f", "d/g"] {
        let put = server.request(Method::PUT, &format!("{files}/{path}")).body("text").send().await.unwrap();
        assert_eq!(put.status(), 201);
    }
    for (accept, on_directory, on_file) in [
        ("accept: */*", "application/json", "application/octet-stream"),
        ("accept: application/json", "application/json", "application/octet-stream"),
        ("accept: application/x-tar", "application/x-tar", "application/x-tar"),
        ("accept: application/x-tar;q=0.5, */*;q=0.1", "application/x-tar", "application/x-tar"),
        ("accept: application/x-tar;q=0.1, */*", "application/json", "application/octet-stream"),
        ("accept: text/html", "application/json", "application/octet-stream"),
    ] {
        for (path, expected) in [("", on_directory), ("/d", on_directory), ("/d/f", on_file)] {
            for method in ["GET", "HEAD"] {
                let answer = send(&server, method, &format!("{files}{path}"), &[accept], b"");
                assert_eq!((answer.status, answer.header("content-type")), (200, expected), "{method} {accept} {path}");
                assert!(answer.header("vary").to_lowercase().contains("accept"), "{accept} {path}");
            }
        }
    }
    // A tar has no tag, and no parts.
    for (headers, status) in [
        (&[ACCEPT, "range: bytes=0-1"][..], 200),
        (&[ACCEPT, "if-match: \"x\""], 412),
        (&[ACCEPT, "if-none-match: *"], 304),
        (&[ACCEPT, "if-none-match: \"x\""], 200),
    ] {
        let answer = send(&server, "GET", &format!("{files}/d"), headers, b"");
        assert_eq!((answer.status, answer.header("etag")), (status, ""), "{headers:?}");
    }
    send(&server, "GET", &format!("{files}/none"), &[ACCEPT], b"").must_be_problem(404, "not_found", "nothing");
    let answer = send(&server, "GET", &format!("{files}/d/f"), &[ACCEPT], b"");
    let mut archive = tar::Archive::new(&answer.body[..]);
    let names: Vec<Vec<u8>> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
    assert_eq!(names, [b"f".to_vec()]);
    let listing: Value = server.get(&format!("{files}/d")).await.1;
    assert_eq!(listing["entries"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_a_tar_cannot_hold_is_told_in_both_directions() {
    let server = server_or_skip!();
    let id = server.session(json!({ "name": "demo" })).await;
    let made = server.output(
        &id,
        "mkdir d; perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"d/socket\", Listen => 1) or die'",
    );
    assert_eq!(made.await, "");
    let answer = send(&server, "GET", &format!("/sessions/{id}/files/d"), &[ACCEPT, "te: trailers"], b"");
    assert_eq!(answer.header("trailer"), "raworc-left-out");
    assert_eq!(answer.header("raworc-left-out"), "1");
    let here = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(here.path().join("socket")).unwrap();
    let (inside, local) = (OsStr::new("demo:d"), here.path().as_os_str());
    for ends in [[inside, local], [local, inside]] {
        let output = cp(&server, &[&[OsStr::new("--output"), OsStr::new("json")], &ends[..]].concat());
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["left_out"], 1, "{ends:?}: {output:?}");
    }
    // What no file system can hold is no failure of the server.
    let records = format!("39 GNU.sparse.size={}\n22 GNU.sparse.map=0,0\n", i64::MAX);
    let huge = archive(&[(b'x', b"pax", b"", records.as_bytes()), (b'0', b"huge", b"", b"")]);
    let answer = send(&server, "PUT", &format!("/sessions/{id}/files/e"), &[TAR], &huge);
    answer.must_be_problem(413, "too_large", "a file of 2^63 - 1 bytes");
}

#[tokio::test]
async fn a_link_that_a_copy_brought_leads_no_later_copy_away() {
    let server = server_or_skip!();
    let (_, session) = server.post("/sessions", json!({ "name": "demo" })).await;
    let id = session["id"].as_str().unwrap();
    let here = tempfile::tempdir().unwrap();
    let (victim, out) = (here.path().join("victim"), here.path().join("out"));
    fs::create_dir(&victim).unwrap();
    fs::create_dir(&out).unwrap();
    server.output(id, &format!("ln -s {} x", victim.display())).await;
    copies(&server, "demo:x", &out);
    server.output(id, "rm x; mkdir x; echo planted > x/file").await;
    let again = cp(&server, &[OsStr::new("demo:x"), out.as_os_str()]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("symbolic link"), "{again:?}");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    server.output(id, "rm -r x; echo file > x").await;
    copies(&server, "demo:x", &out);
    assert_eq!(
        (fs::read_to_string(out.join("x")).unwrap().as_str(), fs::read_dir(&victim).unwrap().count()),
        ("file\n", 0)
    );
    // A link in the workspace that leads out of it is refused, and that is said.
    server.output(id, "ln -s /etc/passwd away").await;
    let refused = cp(&server, &["-L", "demo:away", "copy"].map(OsStr::new));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("out of the workspace"), "{refused:?}");
}
