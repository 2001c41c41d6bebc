//! Damage to the files in `run`: a session still has exactly one host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::json;

use crate::harness::{TestServer, eventually};
use crate::server_or_skip;

/// What is done to a file or directory.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Gone,
    Garbage,
    Directory,
    LeadsElsewhere,
}

const FATES: [Fate; 4] = [Fate::Gone, Fate::Garbage, Fate::Directory, Fate::LeadsElsewhere];
/// All files in `run`; `ID` is the session's container.
const PATHS: [&str; 17] = [
    "",
    "instance",
    "launcher",
    "rootfs",
    "rootfs/etc",
    "rootfs/etc/passwd",
    "host/host",
    "host/host.sock",
    "containers",
    "containers/ID",
    "containers/ID/slot",
    "containers/ID/process",
    "containers/ID/assigned",
    "containers/ID/workspace",
    "containers/ID/config.json",
    "state",
    "trash",
];

fn meet(path: &Path, fate: Fate) {
    // What a container that goes on does not need is not made again.
    if let Ok(there) = fs::symlink_metadata(path) {
        if there.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    match fate {
        Fate::Gone => {}
        Fate::Garbage => fs::write(path, "\0\u{7f}4242 17 of another time").unwrap(),
        Fate::Directory => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("something"), "else").unwrap();
        }
        Fate::LeadsElsewhere => symlink("/nonexistent/place", path).unwrap(),
    }
}

/// Hosts of this server's containers: with a session's workspace, and spare ones.
fn hosts(server: &TestServer) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let place = server.data_dir().join("run/host");
    let is_ours = |process: &PathBuf| {
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        let is_first = fs::read_to_string(process.join("status"))
            .unwrap_or_default()
            .lines()
            .any(|line| line.strip_prefix("NSpid:").is_some_and(|pids| pids.split_whitespace().skip(1).eq(["1"])));
        is_first
            && mounts.lines().any(|line| {
                let mut fields = line.split(' ').skip(3);
                let (root, point) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
                point == "/run/raworc" && root.starts_with(place.to_str().unwrap())
            })
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let ours = processes.filter(|path| path.join("mountinfo").exists()).filter(is_ours);
    ours.partition(|process| fs::read_to_string(process.join("mountinfo")).unwrap_or_default().contains(" /workspace "))
}

/// An unrelated process.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn one_host(server: &TestServer, id: &str, what: &str) {
    assert_eq!(server.output(id, "cat kept; echo alive").await, "kept\nalive\n", "{what}");
    let (own, _) = hosts(server);
    assert_eq!(own.len(), 1, "{what}: {own:?}");
    // Spare ones of the server before have ended.
    eventually("two spare containers", async || hosts(server).1.len() == 2).await;
}

#[tokio::test]
async fn whatever_becomes_of_run_a_session_has_one_host() {
    let mut server = server_or_skip!();
    let id = server.session(json!({})).await;
    server.output(&id, "echo kept >kept").await;
    one_host(&server, &id, "at first").await;
    for path in PATHS {
        for fate in FATES {
            let container = server.container(&id).await;
            let place = format!("run/{}", path.replace("ID", &container));
            let place = server.data_dir().join(place.trim_end_matches('/'));
            server.kill();
            meet(&place, fate);
            server.start_again();
            one_host(&server, &id, &format!("{path:?} {fate:?}")).await;
        }
    }
    // A record that names a process of another time, or of another server.
    let bystander = Bystander(Command::new("sleep").arg("600").spawn().unwrap());
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.0.id())).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let container = server.container(&id).await;
    let record = server.data_dir().join("run/containers").join(&container).join("process");
    server.kill();
    fs::write(&record, format!("{} {started}", bystander.0.id())).unwrap();
    fs::write(server.data_dir().join("run/instance"), "deadbeef").unwrap();
    server.start_again();
    one_host(&server, &id, "a record of another process").await;
    let mut bystander = bystander;
    assert!(bystander.0.try_wait().unwrap().is_none(), "it is left alone");
}

#[tokio::test]
async fn a_copy_of_a_data_directory_leaves_the_first_ones_containers_alone() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let (before, _) = hosts(&server);
    let copy = TestServer::start_on_copy(&server.data_dir());
    let (status, _) = copy.get("/health").await;
    assert_eq!(status, 200);
    assert_eq!(copy.output(&id, "echo copy").await, "copy\n");
    assert_eq!(hosts(&server).0, before);
    assert_eq!(server.output(&id, "echo first").await, "first\n");
}
