//! A data directory with a runtime on it, and what is needed to leave no trace of either.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use raworc_core::ids::{ContainerId, LayerId, SessionId};
use raworc_runtime::native::{Ids, NativeConfig, NativeRuntime};
use raworc_runtime::{ContainerSpec, Exit, Resources, Runtime};
use raworc_workspace::layers::OverlayXattrs;
use raworc_workspace::{LayerStack, Mounter, layers_in};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Runs what a test has put into the workspace, once there is one.
const HOST: &str =
    "#!/bin/sh\nread -r TOKEN || exit 77\nexport TOKEN\ncd /workspace\nexec /bin/sh /workspace/script </dev/null\n";
/// What containers of tests may use.
const RESOURCES: Resources = Resources { cpu: 1.5, memory_bytes: 64 << 20, pids: 40 };
/// How long anything here may take (on an emulated machine as well).
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Everything a test has made; all of it goes when this does.
pub struct Machine {
    directory: tempfile::TempDir,
    oci_runtime: Option<PathBuf>,
    /// See [`NativeConfig::spares`].
    pub spares: usize,
    runtime: Option<NativeRuntime>,
    exits: Option<mpsc::Receiver<Exit>>,
}

impl Machine {
    /// `None`, loudly, where containers can't be tried.
    pub async fn new(oci_runtime: Option<&str>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("containers need root");
            return None;
        }
        if oci_runtime.is_some_and(|path| !Path::new(path).exists()) {
            skipped(&format!("{oci_runtime:?} is not installed"));
            return None;
        }
        // A temporary directory is 0700: nobody but root gets to the data directory below it.
        let directory = tempfile::tempdir().unwrap();
        let oci_runtime = oci_runtime.map(PathBuf::from);
        let mut machine = Self { directory, oci_runtime, spares: 0, runtime: None, exits: None };
        machine.reopen().await;
        Some(machine)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn runtime(&self) -> &NativeRuntime {
        self.runtime.as_ref().unwrap()
    }

    /// As a restart of the server.
    pub async fn reopen(&mut self) {
        self.close();
        let launcher = std::env::var("RAWORC_TEST_LAUNCHER").unwrap_or(env!("CARGO_BIN_EXE_raworc-launcher").into());
        let layers = layers_in(&self.data());
        fs::create_dir_all(&layers).unwrap();
        let mounter = Mounter::start(&layers, OverlayXattrs::Trusted).unwrap();
        let runtime = NativeRuntime::open(NativeConfig {
            mounter,
            data_dir: self.data(),
            host_binary: HOST.into(),
            launcher: launcher.into(),
            oci_runtime: self.oci_runtime.clone(),
            spares: self.spares,
            spare_resources: RESOURCES,
        });
        let runtime = runtime.await.unwrap();
        self.exits = Some(runtime.exits());
        self.runtime = Some(runtime);
    }

    pub fn close(&mut self) {
        self.runtime = None;
        self.exits = None;
    }

    /// A container that will run `script` as the container's root.
    pub fn container(&self, number: u128, script: &str) -> ContainerSpec {
        let (layer, workspace) = self.layer(number);
        chown(&workspace, Some(Ids::BASE_OF_ROOT), Some(Ids::BASE_OF_ROOT)).unwrap();
        fs::set_permissions(&workspace, Permissions::from_mode(0o777)).unwrap();
        fs::write(workspace.join("script"), script).unwrap();
        let workspace = LayerStack { layers: Vec::new(), writable: Some(layer) };
        ContainerSpec {
            id: ContainerId { session: SessionId(Uuid::from_u128(number)), generation: 1 },
            image: None,
            workspace,
            resources: RESOURCES,
            token: format!("token-{number}-of-{}", self.directory.path().display()),
            hostname: "box".into(),
        }
    }

    /// An empty layer, and its directory.
    pub fn layer(&self, number: u128) -> (LayerId, PathBuf) {
        let layer = LayerId(Uuid::from_u128(number));
        let directory = layers_in(&self.data()).join(layer.0.as_simple().to_string());
        for part in ["work", "fs"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        (layer, directory.join("fs"))
    }

    /// What the container writes to.
    pub fn workspace(&self, spec: &ContainerSpec) -> PathBuf {
        let layer = spec.workspace.writable.unwrap();
        layers_in(&self.data()).join(layer.0.as_simple().to_string()).join("fs")
    }

    /// Waits until what is being removed in the background has gone.
    pub async fn until_buried(&self) {
        let trash = self.data().join("run/trash");
        let all = async {
            while fs::read_dir(&trash).unwrap().next().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
    }

    pub async fn exit(&mut self) -> Exit {
        let exits = self.exits.as_mut().unwrap();
        tokio::time::timeout(PATIENCE, exits.recv()).await.unwrap().unwrap()
    }

    /// Whether any exit is there to be told.
    pub fn exit_waits(&mut self) -> bool {
        self.exits.as_mut().unwrap().try_recv().is_ok()
    }

    pub async fn stop(&self, spec: &ContainerSpec) {
        self.runtime().stop(spec.id, Duration::ZERO).await.unwrap();
    }

    /// The containers that the runtime knows.
    pub async fn listed(&self) -> Vec<ContainerId> {
        self.runtime().list().await.unwrap().into_iter().map(|listed| listed.id).collect()
    }

    /// The container's cgroup directories.
    pub fn cgroups(&self, id: ContainerId) -> Vec<PathBuf> {
        let slot = fs::read_to_string(self.bundle(id).join("slot"));
        let Ok(slot) = slot else { return Vec::new() };
        self.all_cgroups().into_iter().filter(|path| path.ends_with(&slot)).collect()
    }

    /// All containers' cgroup directories.
    pub fn all_cgroups(&self) -> Vec<PathBuf> {
        let entries = instances(&self.data()).into_iter().flat_map(|path| fs::read_dir(path).unwrap().flatten());
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    /// The container's bundle.
    pub fn bundle(&self, id: ContainerId) -> PathBuf {
        self.data().join("run/containers").join(id.to_string())
    }

    /// The value of a cgroup file, wherever it is.
    pub fn cgroup_value(&self, id: ContainerId, file: &str) -> Option<String> {
        let texts = self.cgroups(id).into_iter().filter_map(|path| fs::read_to_string(path.join(file)).ok());
        texts.map(|text| text.trim().to_owned()).next()
    }

    /// Checks that nothing of any container is left, but its workspace.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.all_cgroups(), Vec::<PathBuf>::new());
        for path in ["run/containers", "run/state"] {
            let left: Vec<_> = fs::read_dir(self.data().join(path)).unwrap().flatten().map(|e| e.path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "{path}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
    }

    /// Checks that nothing of a container is left.
    pub fn assert_gone(&self, spec: &ContainerSpec) {
        assert!(!self.bundle(spec.id).exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
        assert_eq!(processes(&spec.token), Vec::<i32>::new());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.close();
        for instance in instances(&self.data()) {
            for container in fs::read_dir(&instance).into_iter().flatten().flatten().map(|entry| entry.path()) {
                remove_cgroup(&container);
            }
            let _ = fs::remove_dir(&instance);
            let _ = instance.parent().map(fs::remove_dir);
        }
    }
}

fn remove_cgroup(path: &Path) {
    for _ in 0..500 {
        let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if !path.is_dir() || fs::remove_dir(path).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The instance's directory in every cgroup hierarchy.
fn instances(data: &Path) -> Vec<PathBuf> {
    let Ok(instance) = fs::read_to_string(data.join("run/instance")) else {
        return Vec::new();
    };
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = table.lines().filter(|line| line.contains(" - cgroup"));
    let roots = cgroups.filter_map(|line| line.split(' ').nth(4));
    roots.map(|root| Path::new(root).join("raworc").join(&instance)).filter(|path| path.is_dir()).collect()
}

/// Says so even where the test harness keeps the output of tests that pass.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Processes that have inherited a container's token.
pub fn processes(token: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(token))
    };
    all.filter(has).collect()
}
