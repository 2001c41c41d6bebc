//! Whether limits can be set on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{Check, rootless};

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const NAME: &str = "cgroups";

/// One check for the hierarchy, one for what it controls.
pub fn checks() -> Vec<Check> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<Mount<'_>> = table.lines().filter_map(Mount::parse).collect();
    if mounts.iter().any(|mount| mount.kind == "cgroup2" && mount.path == Path::new(ROOT)) {
        return vec![Check::ok(NAME, "version 2"), unified()];
    }
    if mounts.iter().any(|mount| mount.kind == "cgroup") {
        let note = "version 1 (works; version 2 is what Linux distributions use today)";
        return vec![Check::ok(NAME, note), separate(&mounts)];
    }
    vec![Check::missing(NAME, "not mounted", format!("mount -t cgroup2 none {ROOT}"))]
}

fn unified() -> Check {
    // An ordinary user has what systemd gives it: this process's own cgroup need not be the one that a server will be in.
    let user = format!("user.slice/user-{0}.slice/user@{0}.service", rustix::process::getuid().as_raw());
    let root = match rustix::process::geteuid().is_root() {
        true => PathBuf::from(ROOT),
        false => Path::new(ROOT).join(rootless::delegated().unwrap_or(user.into())),
    };
    let root = root.as_path();
    let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let lacking = lacking(|name| there.split_whitespace().any(|controller| controller == name));
    verdict(&lacking, &[root.to_path_buf()])
}

fn separate(mounts: &[Mount<'_>]) -> Check {
    let of =
        |name: &str| mounts.iter().find(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|o| o == name));
    let lacking = lacking(|name| of(name).is_some());
    let places: Vec<PathBuf> = CONTROLLERS.iter().filter_map(|name| of(name)).map(|mount| mount.path.clone()).collect();
    verdict(&lacking, &places)
}

fn lacking(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    CONTROLLERS.into_iter().filter(|name| !has(name)).collect()
}

fn verdict(lacking: &[&str], places: &[PathBuf]) -> Check {
    const LIMITS: &str = "limits";
    if !lacking.is_empty() {
        let remedy = "Boot with cgroup_enable=memory systemd.unified_cgroup_hierarchy=1 on the kernel's command line.";
        return Check::missing(LIMITS, format!("no cgroup controller for {}", lacking.join(", ")), remedy);
    }
    if let Some(path) = places.iter().find(|path| access(path.as_path(), Access::WRITE_OK).is_err()) {
        let remedy = "Run raworc as root; in a container, with its cgroups writable.";
        return Check::missing(LIMITS, format!("{} is not writable", path.display()), remedy);
    }
    Check::ok(LIMITS, "cpu, memory and processes can be limited")
}

/// A line of `/proc/self/mountinfo`, as far as it matters here.
struct Mount<'a> {
    path: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let (kind, _device, options) = (source.next()?, source.next()?, source.next()?);
        Some(Self { path: PathBuf::from(mount.split(' ').nth(4)?), kind, options })
    }
}
