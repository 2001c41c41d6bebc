//! Cgroups of containers, from outside: counters, killing, removal. Making them is the launcher's (or an external
//! runtime's) work; they are always at `raworc/INSTANCE/SLOT` of each hierarchy.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout::{Slot, names};

/// How often, and how long apart, the removal of an emptied cgroup is tried: a process that has ended leaves its cgroup
/// a moment after it can be waited for, and version 1 has nothing that tells when.
const REMOVAL_ATTEMPTS_MAX: u32 = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// How often, and how long apart, it is looked whether a container stands still.
const FREEZE_ATTEMPTS_MAX: u32 = 2_000;
const FREEZE_PAUSE: Duration = Duration::from_millis(1);

/// The cgroups of one instance.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// The instance's directory in each hierarchy.
    directories: Vec<PathBuf>,
    version: u8,
}

impl Cgroups {
    /// Finds the hierarchies; those of this instance are below `parent` in each.
    pub fn find(parent: &Path, instance: &str) -> io::Result<Self> {
        let mounts = mounts(&fs::read_to_string("/proc/self/mountinfo")?);
        let version =
            if mounts.iter().any(|(kind, path)| kind == "cgroup2" && path == "/sys/fs/cgroup") { 2 } else { 1 };
        let directories =
            mounts.iter().map(|(_, path)| Path::new(path).join(parent).join("raworc").join(instance)).collect();
        Ok(Self { directories, version })
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Every container that has a cgroup.
    pub fn list(&self) -> io::Result<BTreeSet<Slot>> {
        let names = self.directories.iter().map(|directory| names(directory));
        names.collect::<io::Result<Vec<_>>>().map(|lists| lists.into_iter().flatten().collect())
    }

    /// How many processes the kernel has killed because the container's memory was used up.
    pub fn oom_kills(&self, slot: &Slot) -> u64 {
        let files = ["memory.events", "memory.oom_control"];
        let texts = self.of(slot).flat_map(|path| files.map(|file| fs::read_to_string(path.join(file))));
        let counts = texts.flatten().filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
        });
        counts.max().unwrap_or(0)
    }

    /// Kills everything in the container and removes its cgroups.
    pub async fn remove(&self, slot: &Slot) -> io::Result<()> {
        for attempt in 1.. {
            self.kill(slot);
            let results: Vec<_> = self.of(slot).map(fs::remove_dir).collect();
            let worst = results.into_iter().filter_map(Result::err).find(|e| e.kind() != io::ErrorKind::NotFound);
            match worst {
                None => break,
                Some(error) if attempt >= REMOVAL_ATTEMPTS_MAX => return Err(error),
                Some(_) => tokio::time::sleep(REMOVAL_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Removes the instance's own directories, where no container is left in them.
    pub fn remove_instance(&self) {
        for directory in &self.directories {
            // The second one is shared with other instances; only the last one succeeds.
            let _ = fs::remove_dir(directory).and_then(|()| directory.parent().map_or(Ok(()), fs::remove_dir));
        }
    }

    /// Kills everything in the container.
    pub fn kill(&self, slot: &Slot) {
        for path in self.of(slot) {
            if fs::write(path.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            // 0 is a process of another pid namespace: none of ours.
            let numbers = processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0);
            for pid in numbers.filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // In version 1, what stands still does not die before it goes on.
            let freezer = path.join("freezer.state");
            if freezer.exists() {
                let _ = fs::write(freezer, "THAWED");
            }
        }
    }

    /// Stops, or lets go on, everything in the container, and waits until it is so.
    pub async fn set_frozen(&self, slot: &Slot, is_frozen: bool) -> io::Result<()> {
        let version_1 = |path: &Path| path.join("freezer.state");
        let (file, value, state, wanted) = match self.of(slot).map(|path| version_1(&path)).find(|file| file.exists()) {
            Some(file) => {
                let word = if is_frozen { "FROZEN" } else { "THAWED" };
                (file.clone(), word, file, word)
            }
            None => {
                let path = self.of(slot).find(|path| path.join("cgroup.freeze").exists());
                let path = path.ok_or_else(|| io::Error::other("there is no cgroup to freeze"))?;
                let (value, wanted) = if is_frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
                (path.join("cgroup.freeze"), value, path.join("cgroup.events"), wanted)
            }
        };
        fs::write(&file, value)?;
        for _ in 0..FREEZE_ATTEMPTS_MAX {
            if fs::read_to_string(&state)?.lines().any(|line| line == wanted) {
                return Ok(());
            }
            tokio::time::sleep(FREEZE_PAUSE).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the container does not stand still"))
    }

    /// The processes of a container, by their numbers outside.
    pub fn processes(&self, slot: &Slot) -> io::Result<BTreeSet<i32>> {
        let mut all = BTreeSet::new();
        for path in self.of(slot).filter(|path| path.exists()) {
            let text = fs::read_to_string(path.join("cgroup.procs"))?;
            all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        Ok(all)
    }

    fn of<'a>(&'a self, slot: &'a Slot) -> impl Iterator<Item = PathBuf> + 'a {
        self.directories.iter().map(move |directory| directory.join(slot.as_str()))
    }
}

/// The cgroup filesystems in a mount table: kind and mount point.
fn mounts(table: &str) -> Vec<(String, String)> {
    let parse = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let kind = source.split(' ').next().filter(|kind| kind.starts_with("cgroup"))?;
        Some((kind.to_owned(), mount.split(' ').nth(4)?.to_owned()))
    };
    table.lines().filter_map(parse).collect()
}
