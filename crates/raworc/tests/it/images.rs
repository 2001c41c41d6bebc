//! Images for containers: pulled, imported, shared, deleted, hostile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::{Settings, run};
use crate::harness::TestServer;
use crate::portable::registry;

/// Programs in the image, copied from this machine.
const PROGRAMS: [&str; 10] = ["sh", "cat", "ls", "id", "env", "touch", "head", "sha256sum", "mkdir", "rm"];

/// An image layout with an image `v1` of this machine's programs, and `v2` with a change.
struct Made {
    scratch: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self { scratch: tempfile::tempdir().unwrap() };
        let layout = made.path("layout");
        run(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
        run(Command::new("umoci").args(["new", "--image"]).arg(made.image("v1")));
        let config = ["config", "--config.env", "FLAVOUR=sweet", "--config.env", "PATH=/tools"];
        run(Command::new("umoci").args(config).arg("--image").arg(made.image("v1")));
        made.change("v1", "v1", |root| {
            for program in PROGRAMS {
                install(root, Path::new("/usr/bin").join(program).as_path(), Path::new("tools"));
            }
            fs::create_dir_all(root.join("bin")).unwrap();
            std::os::unix::fs::symlink("/tools/sh", root.join("bin/sh")).unwrap();
            fs::write(root.join("only-here"), "one\n").unwrap();
        });
        made.change("v1", "v2", |root| {
            fs::remove_file(root.join("only-here")).unwrap();
            fs::write(root.join("newer"), "two\n").unwrap();
        });
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.path("layout").display())
    }

    fn change(&self, from: &str, to: &str, work: impl FnOnce(&Path)) {
        let bundle = self.path(&format!("bundle-{to}"));
        run(Command::new("umoci").args(["unpack", "--image"]).arg(self.image(from)).arg(&bundle));
        work(&bundle.join("rootfs"));
        run(Command::new("umoci").args(["repack", "--image"]).arg(self.image(to)).arg(&bundle));
    }

    fn copy(&self, tag: &str, to: &str) {
        let from = format!("oci:{}", self.image(tag));
        run(Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &from, to]));
    }
}

/// Copies a program with its shared libraries.
fn install(root: &Path, program: &Path, to: &Path) {
    let place = root.join(to);
    fs::create_dir_all(&place).unwrap();
    fs::copy(program, place.join(program.file_name().unwrap())).unwrap();
    let listed = run(Command::new("ldd").arg(program)).stdout;
    let words: BTreeSet<String> = String::from_utf8(listed).unwrap().split_whitespace().map(str::to_owned).collect();
    for library in words.iter().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
}

const LOOK: &str = "ls /; echo $FLAVOUR $PATH $HOME; id -u; id -nu; cat /only-here; ls /usr/bin 2>&1 | head -n 1";

#[tokio::test]
async fn containers_run_what_a_registry_has() {
    let Some(daemon) = registry(Settings::default()) else { return };
    let made = Made::new();
    let server = TestServer::start(&[]);
    let reference = format!("{}/tools:v1", daemon.address);
    made.copy("v1", &format!("docker://{reference}"));
    // Named for the first time, it is pulled; from then on it is here.
    let id = server.session(json!({ "image": reference, "env": { "MINE": "yes" } })).await;
    let told = server.output(&id, LOOK).await;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.contains(&"only-here") && lines.contains(&"tools") && lines.contains(&"workspace"), "{told}");
    assert!(
        lines.contains(&"sweet /tools /workspace") && lines.contains(&"1000") && lines.contains(&"agent"),
        "{told}"
    );
    assert!(lines.contains(&"one"), "{told}");
    assert!(lines.last().unwrap().contains("ls:") || !lines.last().unwrap().contains("apt"), "{told}");
    let (_, images) = server.get("/images").await;
    assert_eq!((images["items"].as_array().unwrap().len(), &images["items"][0]["shared"]), (1, &json!(true)));
    // A tag that moves changes nothing about it; what is written outside of the workspace goes with the container.
    made.copy("v2", &format!("docker://{reference}"));
    assert_eq!(server.post("/images", json!({ "reference": reference })).await.0, 201);
    server.output(&id, "echo kept > kept; echo lost > /tmp/lost").await;
    server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(server.output(&id, "cat kept; cat /only-here; ls /tmp").await, "kept\none\n");
    let (_, remix) = server.post(&format!("/sessions/{id}/remix"), json!({})).await;
    let remix = remix["id"].as_str().unwrap();
    assert_eq!(server.output(remix, "cat kept /only-here").await, "kept\none\n");
    let newer = server.session(json!({ "image": reference })).await;
    assert_eq!(server.output(&newer, "ls /only-here 2>&1 | head -c 3; cat /newer").await, "ls:two\n");
    // Removed, it is still what its sessions run.
    let encoded = reference.replace('/', "%2F");
    assert_eq!(server.delete(&format!("/images/{encoded}")).await.0, 204);
    assert_eq!(server.post("/system/prune", json!({ "unused_images": true })).await.0, 200);
    server.post(&format!("/sessions/{newer}/restart"), json!(null)).await;
    assert_eq!(server.output(&newer, "cat /newer").await, "two\n");
    assert_eq!(server.output(&id, "cat /only-here").await, "one\n");
}

#[tokio::test]
async fn containers_run_what_is_in_a_file() {
    let Some(_daemon) = registry(Settings::default()) else { return };
    let made = Made::new();
    let server = TestServer::start(&[]);
    for (kind, name) in [("oci-archive", "tools:oci"), ("docker-archive", "tools:docker")] {
        let file = made.path(kind);
        made.copy("v2", &format!("{kind}:{}:{name}", file.display()));
        let output = server.cli(&["image", "import", file.to_str().unwrap(), "--name", name]);
        assert!(output.status.success(), "{output:?}\n{}", server.log());
    }
    // A layout is a directory; of its two images, each has a name.
    let import = |arguments: &[&str]| {
        server.cli(&[&["image", "import", made.path("layout").to_str().unwrap()], arguments].concat())
    };
    assert!(String::from_utf8_lossy(&import(&["--name", "both"]).stderr).contains("2 images"));
    assert!(import(&[]).status.success(), "{}", server.log());
    assert_eq!(server.delete("/images/v1").await.0, 204);
    assert_eq!(server.cli(&["image", "import", made.path("").to_str().unwrap()]).status.code(), Some(2));
    // However they came, their layers are the same and here once.
    let (_, usage) = server.get("/system/disk").await;
    let (_, image) = server.get("/images/tools:oci").await;
    let bytes = usage["unused_images"]["bytes"].as_u64().unwrap();
    assert!(bytes >= image["size_bytes"].as_u64().unwrap() && bytes < 2 * image["size_bytes"].as_u64().unwrap());
    // An agent may bring its own.
    let agent = json!({ "name": "sweet", "image": "tools:docker" });
    assert_eq!(server.post("/agents", agent).await.0, 201);
    let id = server.session(json!({ "agent_ids": ["shell", "sweet"] })).await;
    assert_eq!(server.output(&id, "cat /newer; echo $FLAVOUR").await, "two\nsweet\n");
    let (_, session) = server.get(&format!("/sessions/{id}")).await;
    assert_eq!(session["image"]["name"], "tools:docker");
    // A server that is killed finds its containers again, and their images.
    let mut server = server;
    server.kill();
    server.start_again();
    assert_eq!(server.output(&id, "cat /newer").await, "two\n");
    // Both are one and the same thing, and it is run.
    assert_eq!(server.post("/system/prune", json!({ "unused_images": true })).await.1["images"], 0);
    for name in ["tools:oci", "tools:docker", "v2"] {
        assert_eq!(server.delete(&format!("/images/{name}")).await.0, 204);
    }
    server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(server.output(&id, "cat /newer").await, "two\n");
    for (body, field) in [
        (json!({ "from": "tools:docker" }), "from"),
        (json!({ "image": "tools:docker ", }), "image"),
        (json!({ "image": "" }), "image"),
    ] {
        let (status, problem) = server.post("/sessions", body).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!(field)), "{problem:#}");
    }
}

#[tokio::test]
async fn what_an_image_deletes_from_nothing_is_not_there() {
    let Some(_daemon) = registry(Settings::default()) else { return };
    let made = Made::new();
    let server = TestServer::start(&[]);
    let files = made.path("files");
    fs::create_dir_all(files.join("new")).unwrap();
    for name in ["new/.wh.gone", "new/there", ".wh.only-here"] {
        fs::write(files.join(name), "").unwrap();
    }
    let layer = made.path("layer.tar");
    run(Command::new("tar").arg("-C").arg(&files).arg("-cf").arg(&layer).args(["new", ".wh.only-here"]));
    run(Command::new("umoci").args(["raw", "add-layer", "--image"]).arg(made.image("v1")).arg(&layer));
    let file = made.path("deletes.tar");
    made.copy("v1", &format!("oci-archive:{}:deletes", file.display()));
    assert!(server.cli(&["image", "import", file.to_str().unwrap(), "--name", "deletes"]).status.success());
    let id = server.session(json!({ "image": "deletes" })).await;
    assert_eq!(server.output(&id, "ls /new; ls /only-here 2>&1 | head -c 3").await, "there\nls:");
}

#[tokio::test]
async fn an_image_that_lies_leads_nowhere() {
    let Some(_daemon) = registry(Settings::default()) else { return };
    let made = Made::new();
    let server = TestServer::start(&[]);
    // What is to be mounted over leads to the machine's own.
    made.change("v1", "bad", |root| {
        for (name, target) in [("workspace", "/etc"), ("proc", "/"), ("tmp", "../../../etc"), ("run", "/root")] {
            let _ = fs::remove_dir(root.join(name));
            std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        }
        fs::create_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", root.join("etc/passwd")).unwrap();
    });
    let file = made.path("bad.tar");
    made.copy("bad", &format!("oci-archive:{}:bad", file.display()));
    assert!(server.cli(&["image", "import", file.to_str().unwrap(), "--name", "bad"]).status.success());
    let id = server.session(json!({ "image": "bad" })).await;
    assert_eq!(server.output(&id, "echo mine > file; ls; cat /proc/1/comm").await, "file\nhost\n");
    let (_, listing) = server.get(&format!("/sessions/{id}/files")).await;
    let names: Vec<&Value> = listing["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["file"], "{listing:#}");
    // What can run nothing says so, and can be left.
    let empty = made.path("empty.tar");
    made.change("v1", "empty", |root| fs::remove_dir_all(root.join("tools")).unwrap());
    made.copy("empty", &format!("oci-archive:{}:empty", empty.display()));
    assert!(server.cli(&["image", "import", empty.to_str().unwrap(), "--name", "empty"]).status.success());
    let id = server.session(json!({ "image": "empty" })).await;
    let message = server.send(&id, "echo on").await;
    assert_eq!(message["status"], "failed", "{message:#}");
}
