//! Containers that run an image, also one that was made to do harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use raworc_core::ids::LayerId;
use raworc_runtime::native::Ids;
use raworc_runtime::{ContainerSpec, Exit, ExitReason, Occupancy, Root, Runtime, RuntimeError};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use uuid::Uuid;

use super::machine::Machine;
use super::{ENDLESS, RUNC};

/// Says what a container is like from inside, as `name: value` lines.
const PROBE: &str = include_str!("image.sh");
/// The machine's programs that are in the image, below `/bin`.
const PROGRAMS: [&str; 10] = ["cat", "chmod", "env", "id", "ls", "mkdir", "setpriv", "sh", "sleep", "touch"];

/// A layer with programs of the machine, and the libraries that they need. `more` is added to it.
fn programs(machine: &Machine, number: u128, more: impl FnOnce(&Path)) -> LayerId {
    layer(machine, number, |fs| {
        fs::create_dir(fs.join("bin")).unwrap();
        let found: Vec<_> = PROGRAMS.iter().map(|name| Path::new("/bin").join(name)).collect();
        let ldd = Command::new("ldd").args(&found).output().unwrap();
        let text = String::from_utf8(ldd.stdout).unwrap();
        let libraries: BTreeSet<_> = text.split_whitespace().filter(|word| word.starts_with("/lib")).collect();
        let libraries = libraries.into_iter().filter(|word| !word.ends_with(':')).map(Into::into);
        for path in found.into_iter().chain(libraries) {
            let to = fs.join(path.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&path, to).unwrap();
        }
        more(fs);
    })
}

/// A layer of what `fill` puts into it; all of it belongs to the container's root.
fn layer(machine: &Machine, number: u128, fill: impl FnOnce(&Path)) -> LayerId {
    let (layer, fs) = machine.layer(number);
    fill(&fs);
    own(&fs);
    layer
}

fn own(path: &Path) {
    lchown(path, Some(Ids::BASE_OF_ROOT), Some(Ids::BASE_OF_ROOT)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path()));
    }
}

/// An image of two layers, the upper one of which hides something of the lower.
fn image(machine: &Machine) -> Root {
    let lower = programs(machine, 1000, |fs| {
        for name in ["etc", "opened"] {
            fs::create_dir(fs.join(name)).unwrap();
        }
        fs::set_permissions(fs.join("opened"), Permissions::from_mode(0o777)).unwrap();
        // No line feed at the end.
        fs::write(fs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh").unwrap();
        fs::write(fs.join("etc/motd"), "lower").unwrap();
        fs::write(fs.join("hidden"), "").unwrap();
    });
    let upper = layer(machine, 1001, |fs| {
        fs::create_dir(fs.join("etc")).unwrap();
        fs::write(fs.join("etc/motd"), "upper").unwrap();
        mknodat(CWD, fs.join("hidden"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    });
    let env = ["PATH=/bin:/opt/bin", "HOME=/root", "TERM=vt52", "GREETING=good day", "not a name=1"];
    Root { layers: vec![upper, lower], env: env.map(str::to_owned).to_vec() }
}

async fn findings(machine: &mut Machine, spec: &ContainerSpec) -> BTreeMap<String, String> {
    machine.runtime().start(spec).await.unwrap();
    let exit = machine.exit().await;
    let text = fs::read_to_string(machine.workspace(spec).join("findings")).unwrap_or_default();
    let errors = fs::read_to_string(machine.workspace(spec).join("errors")).unwrap_or_default();
    assert_eq!(exit, Exit { id: spec.id, reason: ExitReason::Exited(42) }, "{text}{errors}");
    machine.stop(spec).await;
    machine.assert_gone(spec);
    machine.assert_nothing_left();
    machine.until_buried().await;
    text.lines().filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.into(), v.trim().into())).collect()
}

/// What is in a directory, all the way down, and when it last changed.
fn state(path: &Path) -> Vec<(String, i64, i64)> {
    let metadata = fs::symlink_metadata(path).unwrap();
    let own = (path.display().to_string(), metadata.ctime(), metadata.ctime_nsec());
    let mut all = vec![own];
    if metadata.is_dir() {
        let mut inner: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        inner.sort();
        all.extend(inner.iter().flat_map(|path| state(path)));
    }
    all
}

async fn an_image_runs(runtime: Option<&str>) {
    let Some(mut machine) = Machine::new(runtime).await else {
        return;
    };
    let image = image(&machine);
    let layers = machine.data().join("layers");
    let directories = image.layers.iter().map(|layer| layers.join(layer.0.as_simple().to_string())).collect::<Vec<_>>();
    let before: Vec<_> = directories.iter().map(|path| state(path)).collect();
    // Twice the same: what the first one writes is not there for the second.
    for number in [30, 31] {
        let mut spec = machine.container(number, PROBE);
        spec.image = Some(image.clone());
        let findings = findings(&mut machine, &spec).await;
        let expected = [
            ("root_files", "bin dev etc lib lib64 opened proc run sys tmp var workspace"),
            ("motd", "upper"),
            ("hidden", "absent"),
            ("machine_programs", "absent"),
            ("path", "/bin:/opt/bin"),
            ("home", "/workspace"),
            ("term", "dumb"),
            ("lang", "C.UTF-8"),
            ("greeting", "good day"),
            ("user_0", "root"),
            ("user_1000", "agent"),
            ("group_1000", "agent"),
            ("localhost", "127.0.0.1 localhost"),
            ("resolv_conf", "0"),
            ("root_flags", "rw,nosuid,nodev"),
            ("root_writable", "yes"),
            ("file_changed", "yes"),
            ("agent_root_writable", "no"),
            ("agent_opened_writable", "yes"),
            ("agent_tmp_writable", "yes"),
            ("proc_sys_writable", "no"),
            ("device", "no"),
            ("left_by_another", "absent"),
            ("deep", "yes"),
            ("leaked_descriptors", ""),
        ];
        for (name, value) in expected {
            assert_eq!(findings.get(name).map(String::as_str), Some(value), "{name}: {findings:#?}");
        }
    }
    let after: Vec<_> = directories.iter().map(|path| state(path)).collect();
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_container_runs_an_image() {
    an_image_runs(None).await;
}

#[tokio::test]
async fn a_container_of_runc_runs_an_image() {
    an_image_runs(Some(RUNC)).await;
}

/// An image in which everything that something is mounted on, or looked for, is something else.
fn hostile(machine: &Machine, number: u128, places: &[&str], make: impl Fn(&Path)) -> Root {
    let lower = programs(machine, 1000 + 2 * number, |_| {});
    let upper = layer(machine, 1001 + 2 * number, |fs| {
        for place in places {
            let path = fs.join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            make(&path);
        }
    });
    Root { layers: vec![upper, lower], env: Vec::new() }
}

/// The containers whose `/etc/passwd` is a directory, or one very long line.
const RUNC_REFUSES: [u128; 2] = [48, 51];

async fn hostile_images(runtime: Option<&str>) {
    let Some(mut machine) = Machine::new(runtime).await else {
        return;
    };
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), Permissions::from_mode(0o777)).unwrap();
    let (everything, etc) = (state(outside.path()), state(Path::new("/etc")));
    let places = ["dev", "etc", "proc", "run", "sys", "tmp", "var", "workspace"];
    let files =
        ["etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/nsswitch.conf", "etc/resolv.conf", "var/tmp"];
    let up = "../../../../../../../../../..";
    let target = format!("{up}{}", outside.path().display());
    let inner = outside.path().join("file");
    let fifo = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device =
        |path: &Path| mknodat(CWD, path, FileType::BlockDevice, Mode::RUSR, rustix::fs::makedev(7, 0)).unwrap();
    let images = [
        hostile(&machine, 1, &places, |path| symlink("/", path).unwrap()),
        hostile(&machine, 2, &places, |path| symlink("/etc", path).unwrap()),
        hostile(&machine, 3, &places, |path| symlink(outside.path(), path).unwrap()),
        hostile(&machine, 4, &places, |path| symlink(&target, path).unwrap()),
        hostile(&machine, 5, &places, |path| symlink("/proc/1/root", path).unwrap()),
        hostile(&machine, 6, &places, |path| fs::write(path, "a file").unwrap()),
        hostile(&machine, 7, &places, fifo),
        hostile(&machine, 8, &files, |path| symlink(&inner, path).unwrap()),
        hostile(&machine, 9, &files, |path| fs::create_dir(path).unwrap()),
        hostile(&machine, 10, &files, fifo),
        hostile(&machine, 11, &files, device),
        hostile(&machine, 12, &files, |path| fs::write(path, vec![b'x'; 2 << 20]).unwrap()),
    ];
    let script = "for name in dev etc proc run sys tmp workspace; do [ -d /$name ] && [ ! -L /$name ] || exit 1; done\n\
                  [ -e /proc/self/exe ] && [ -c /dev/null ] && [ -e /run/raworc/host ] && >/tmp/file && exit 42";
    for (number, image) in (40..).zip(images) {
        let mut spec = machine.container(number, script);
        spec.image = Some(image);
        if runtime.is_some() && RUNC_REFUSES.contains(&number) {
            let error = machine.runtime().start(&spec).await.unwrap_err();
            assert!(matches!(&error, RuntimeError::Start(text) if text.contains("unable to find user 0")), "{error:?}");
            machine.assert_gone(&spec);
            continue;
        }
        findings(&mut machine, &spec).await;
    }
    assert_eq!(state(outside.path()), everything);
    assert_eq!(state(Path::new("/etc")), etc);
}

#[tokio::test]
async fn a_hostile_image_does_no_harm() {
    hostile_images(None).await;
}

#[tokio::test]
async fn a_hostile_image_does_no_harm_with_runc() {
    hostile_images(Some(RUNC)).await;
}

#[tokio::test]
async fn the_layers_of_an_image_are_known_while_they_are_mounted() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let image = image(&machine);
    let mut spec = machine.container(60, ENDLESS);
    spec.image = Some(image.clone());
    machine.runtime().start(&spec).await.unwrap();
    for _ in 0..2 {
        let listed = machine.runtime().list().await.unwrap();
        assert_eq!(listed.iter().map(|listed| &listed.image).collect::<Vec<_>>(), [&image.layers]);
        // The way into its workspace is the same.
        let workspace = machine.runtime().open_workspace(spec.id).await.unwrap();
        rustix::fs::statat(&workspace, "script", rustix::fs::AtFlags::empty()).unwrap();
        machine.reopen().await;
    }
    // It gets another workspace as any other does.
    let other = machine.container(63, "another script").workspace;
    assert_eq!(machine.runtime().freeze(spec.id).await.unwrap(), Occupancy::HostOnly);
    machine.runtime().remount(spec.id, &other).await.unwrap();
    machine.runtime().thaw(spec.id).await.unwrap();
    let workspace = machine.runtime().open_workspace(spec.id).await.unwrap();
    let script = format!("/proc/self/fd/{}/script", workspace.as_raw_fd());
    assert_eq!(fs::read_to_string(script).unwrap(), "another script");
    assert_eq!(machine.runtime().list().await.unwrap()[0].image, image.layers);
    drop(workspace);
    // As after a kill -9 in the middle of a start.
    machine.close();
    fs::remove_file(machine.bundle(spec.id).join("assigned")).unwrap();
    machine.reopen().await;
    assert_eq!(machine.runtime().list().await.unwrap()[0].image, image.layers);
    machine.runtime().start(&spec).await.unwrap();
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
    // Earlier still, and while something was being removed.
    let slot = format!("run/containers/slot-{}", Uuid::nil().simple());
    for left in [slot.as_str(), "run/trash/1"] {
        fs::create_dir_all(machine.data().join(left).join("root/upper/etc")).unwrap();
    }
    machine.reopen().await;
    machine.assert_nothing_left();
    machine.until_buried().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_no_start() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let mut spec = machine.container(61, ENDLESS);
    let image = image(&machine);
    let with = |layers| Some(Root { layers, env: Vec::new() });
    let missing = LayerId(Uuid::from_u128(62));
    let too_many = vec![image.layers[1]; 200];
    // And one that has nothing to run: the host is a script here.
    let empty = Vec::new();
    for layers in [vec![missing], too_many, empty] {
        spec.image = with(layers);
        match machine.runtime().start(&spec).await {
            Err(RuntimeError::Start(_)) => {}
            Ok(()) => assert!(!matches!(machine.exit().await.reason, ExitReason::Exited(0))),
            Err(error) => panic!("{error}"),
        }
        machine.stop(&spec).await;
        machine.assert_gone(&spec);
        machine.assert_nothing_left();
        assert_eq!(machine.listed().await, []);
        machine.until_buried().await;
    }
}
