//! Measures other installed container runtimes: each runs `true` in a new container and removes it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::report::{Report, Samples};

/// An image that most docker installations have.
const IMAGE: &str = "busybox";

/// The installed runtimes.
pub struct Peers {
    peers: Vec<Peer>,
    _bundle: tempfile::TempDir,
}

struct Peer {
    name: String,
    words: Vec<String>,
    samples: Samples,
}

impl Peers {
    /// Finds them, and reports missing ones.
    pub fn find() -> anyhow::Result<Self> {
        let bundle = tempfile::tempdir()?;
        write_bundle(bundle.path())?;
        let mut peers = Vec::new();
        for (name, words) in commands(bundle.path()) {
            let peer = Peer { name, words, samples: Samples::default() };
            match peer.run() {
                Ok(()) => peers.push(peer),
                Err(error) => eprintln!("{} is left out: {error:#}", peer.name),
            }
        }
        Ok(Self { peers, _bundle: bundle })
    }

    /// Runs each once.
    pub async fn run_each(&mut self) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| {
            for peer in &mut self.peers {
                let begun = Instant::now();
                peer.run()?;
                peer.samples.push(begun.elapsed());
            }
            Ok(())
        })
    }

    /// Adds their times to the report.
    pub fn report(self, report: &mut Report) {
        for peer in self.peers {
            report.times(&peer.name, peer.samples);
        }
    }
}

impl Peer {
    fn run(&self) -> anyhow::Result<()> {
        let (program, arguments) = self.words.split_first().context("no command")?;
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().context("not installed")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

fn commands(bundle: &Path) -> Vec<(String, Vec<String>)> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let oci = |program: &str| {
        let name = format!("raworc-bench-{}", std::process::id());
        [words(program), vec!["run".into(), "--bundle".into(), bundle.display().to_string(), name]].concat()
    };
    let mut bwrap =
        words("bwrap --unshare-all --die-with-parent --ro-bind /usr /usr --proc /proc --dev /dev --tmpfs /tmp");
    for (name, target) in merged() {
        bwrap.extend(["--symlink".into(), target.display().to_string(), format!("/{name}")]);
    }
    bwrap.push("true".into());
    vec![
        (
            format!("docker run --rm --network none {IMAGE} true"),
            words(&format!("docker run --rm --network none {IMAGE} true")),
        ),
        ("runc run … true".into(), oci("runc")),
        ("crun run … true".into(), oci("crun")),
        ("bwrap … true".into(), bwrap),
    ]
}

/// Program directories that are links into `/usr`.
fn merged() -> Vec<(&'static str, PathBuf)> {
    let names = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
    names.into_iter().filter_map(|name| Some((name, std::fs::read_link(Path::new("/").join(name)).ok()?))).collect()
}

/// Writes a bundle as minimal as ours: the machine's `/usr`, a network namespace, the same namespaces and limits.
fn write_bundle(bundle: &Path) -> anyhow::Result<()> {
    let root = bundle.join("rootfs");
    for name in ["dev", "proc", "tmp", "usr"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    for (name, target) in merged() {
        std::os::unix::fs::symlink(target, root.join(name))?;
    }
    std::fs::write(bundle.join("config.json"), config().to_string())?;
    Ok(())
}

fn config() -> Value {
    let tmpfs = |path: &str| json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] });
    let namespaces = ["pid", "mount", "network", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["/usr/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"],
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
            { "destination": "/proc", "type": "proc", "source": "proc" },
            tmpfs("/dev"), tmpfs("/tmp"),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 512 << 20 }, "pids": { "limit": 256 } },
        },
    })
}
