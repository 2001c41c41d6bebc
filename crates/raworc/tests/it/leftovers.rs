//! Leftovers of dead servers: processes, cgroups and directories without a session.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::crash::{lives, until_only};
use crate::harness::TestServer;

/// A process unrelated to containers, killed on drop.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_no_session_owns_is_gone_when_a_server_has_started() {
    if !crate::harness::can_run_containers() {
        return;
    }
    let mut server = TestServer::start(&[]);
    let kept = server.session(json!({})).await;
    server.stop();
    // A session that the records know nothing of: they are set back to what they were before it.
    let records = |data: &Path| -> Vec<PathBuf> {
        let files = fs::read_dir(data).unwrap().flatten().map(|entry| entry.path());
        files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("raworc.db")).collect()
    };
    let data = server.data_dir();
    let before: Vec<(PathBuf, Vec<u8>)> =
        records(&data).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    server.start_again();
    let lost = server.session(json!({})).await;
    let orphan = server.host_pid(&format!("{lost}-1"));
    let kept_process = server.host_pid(&format!("{kept}-1"));
    let cgroup = server.cgroups_of(&format!("{lost}-1")).pop().unwrap();
    server.kill();
    records(&data).into_iter().for_each(|path| fs::remove_file(path).unwrap());
    before.into_iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    // And remains that no server would leave: a cgroup with a process, a bundle that names someone else's process, one
    // whose record was cut off, and files that are no containers.
    let (mut inside, mut outside) = (Bystander::start(), Bystander::start());
    let name = |n: u32| format!("01a20744-0059-7211-9344-{n:012}-1");
    let slot = |n: u32| format!("slot-{n:032}");
    let remains = cgroup.with_file_name(slot(1));
    fs::create_dir(&remains).unwrap();
    fs::write(remains.join("cgroup.procs"), inside.pid().to_string()).unwrap();
    for (n, record) in [(2, format!("{} 1", outside.pid())), (3, outside.pid().to_string()), (4, String::new())] {
        let bundle = data.join("run/containers").join(name(n));
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("process"), record).unwrap();
        fs::write(bundle.join("slot"), slot(n)).unwrap();
    }
    fs::write(data.join("run/containers/README"), "no container").unwrap();
    server.start_again();

    fs::remove_file(data.join("run/containers/README")).unwrap();
    until_only(&server, &[format!("{kept}-1")]).await;
    assert!(!lives(orphan), "the lost session's container has ended");
    assert!(!inside.lives(), "what was in a container's cgroup has ended");
    assert!(outside.lives(), "a process that only has the number of one lives");
    assert_eq!(server.host_pid(&format!("{kept}-1")), kept_process);
    assert_eq!(server.output(&kept, "echo kept").await, "kept\n");
    assert_eq!(server.get(&format!("/sessions/{lost}")).await.0, 404);
}
