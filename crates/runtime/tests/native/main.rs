//! The native runtime on this machine: real containers. Needs root; says so loudly where it hasn't got it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use machine::{Machine, PATIENCE};
use raworc_core::ids::LayerId;
use raworc_core::limits::{MEMORY_BYTES_MIN, PIDS_MIN};
use raworc_runtime::{ContainerSpec, Exit, ExitReason, Runtime, RuntimeError};
use uuid::Uuid;

mod image;
mod machine;

/// What a container looks like from inside, as `name: value` lines.
const PROBE: &str = include_str!("probe.sh");
const RUNC: &str = "/usr/sbin/runc";

/// A script that runs until it is ended.
const ENDLESS: &str = "exec sleep 1000";

async fn findings(machine: &mut Machine, number: u128) -> BTreeMap<String, String> {
    let findings = findings_of(machine, number).await;
    machine.assert_nothing_left();
    findings
}

async fn findings_of(machine: &mut Machine, number: u128) -> BTreeMap<String, String> {
    let spec = machine.container(number, &format!("DATA={}\n{PROBE}", machine.data().display()));
    machine.runtime().start(&spec).await.unwrap();
    let exit = machine.exit().await;
    let text = fs::read_to_string(machine.workspace(&spec).join("findings")).unwrap_or_default();
    assert_eq!(exit, Exit { id: spec.id, reason: ExitReason::Exited(42) }, "{text}");
    assert!(text.contains(&format!("token: {}", spec.token)), "{text}");
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
    text.lines().filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.into(), v.trim().into())).collect()
}

fn assert_confined(findings: &BTreeMap<String, String>) {
    let three = "00000000000000e0";
    let nothing = "0000000000000000";
    let expected = [
        ("uid_map", "0 2000000000 65535"),
        ("gid_map", "0 2000000000 65535"),
        ("host_CapBnd", three),
        ("host_CapEff", three),
        ("host_CapInh", nothing),
        ("host_CapAmb", nothing),
        ("agent_CapBnd", three),
        ("agent_CapEff", nothing),
        ("agent_CapPrm", nothing),
        ("agent_CapAmb", nothing),
        ("agent_NoNewPrivs", "1"),
        ("agent_Seccomp", "2"),
        ("agent_Uid", "1000 1000 1000 1000"),
        ("pid", "1"),
        ("hostname", "box"),
        ("interfaces", "lo"),
        ("loopback", "works"),
        (
            "root_files",
            "bin dev etc home lib lib32 lib64 libx32 media mnt opt proc run sbin srv sys tmp usr var workspace",
        ),
        ("home", ""),
        ("shadow", "absent"),
        ("data_directory", "absent"),
        ("root_writable", "no"),
        ("etc_writable", "no"),
        ("usr_writable", "no"),
        ("host_program_writable", "no"),
        ("workspace_writable", "yes"),
        ("tmp_writable", "yes"),
        ("agent_tmp_writable", "yes"),
        ("proc_sys_writable", "no"),
        ("mount", "no"),
        ("unshare", "no"),
        ("sysrq", "0"),
        ("keys", "0"),
        ("keyctl", "EPERM"),
        ("io_uring_setup", "EPERM"),
        ("bpf", "EPERM"),
        ("perf_event_open", "EPERM"),
        ("userfaultfd", "EPERM"),
        ("open_tree", "EPERM"),
        ("clone3", "ENOSYS"),
        ("vsock", "EPERM"),
        ("vsock_disguised", "EPERM"),
        ("inet", "allowed"),
        ("tiocsti", "EPERM"),
        ("tiocsti_disguised", "EPERM"),
        ("tcgets", "ENOTTY"),
        ("user_name", "agent"),
        ("umask", "0022"),
        ("core", "0"),
        ("leaked_descriptors", ""),
    ];
    for (name, value) in expected {
        assert_eq!(findings.get(name).map(String::as_str), Some(value), "{name}: {findings:#?}");
    }
}

#[tokio::test]
async fn a_container_is_confined() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    assert_confined(&findings(&mut machine, 1).await);
}

#[tokio::test]
async fn a_container_of_runc_is_confined_the_same_way() {
    let Some(mut machine) = Machine::new(Some(RUNC)).await else {
        return;
    };
    assert_confined(&findings(&mut machine, 2).await);
}

async fn assert_limited(machine: &Machine, spec: &ContainerSpec) {
    machine.runtime().start(spec).await.unwrap();
    let value = |file| machine.cgroup_value(spec.id, file);
    assert_eq!(value("pids.max").as_deref(), Some("40"));
    if let Some(bytes) = value("memory.limit_in_bytes") {
        assert_eq!(bytes, (64 << 20).to_string());
        assert_eq!(value("memory.memsw.limit_in_bytes").unwrap_or(bytes.clone()), bytes);
        assert_eq!(value("cpu.cfs_quota_us").as_deref(), Some("150000"));
    } else {
        assert_eq!(value("memory.max"), Some((64 << 20).to_string()));
        assert_eq!(value("memory.swap.max").unwrap_or("0".into()), "0");
        assert_eq!(value("cpu.max").as_deref(), Some("150000 100000"));
    }
    // The first process is in each of those cgroups.
    for directory in machine.cgroups(spec.id).iter().filter(|path| path.join("pids.max").exists()) {
        assert_ne!(fs::read_to_string(directory.join("cgroup.procs")).unwrap(), "");
    }
    machine.stop(spec).await;
    machine.assert_gone(spec);
}

#[tokio::test]
async fn limits_are_on() {
    let Some(machine) = Machine::new(None).await else {
        return;
    };
    assert_limited(&machine, &machine.container(3, ENDLESS)).await;
}

#[tokio::test]
async fn limits_are_on_with_runc() {
    let Some(machine) = Machine::new(Some(RUNC)).await else {
        return;
    };
    assert_limited(&machine, &machine.container(4, ENDLESS)).await;
}

#[tokio::test]
async fn memory_that_is_used_up_is_told_apart() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(5, "exec perl -e '$x = \"x\" x (1 << 20); push @all, $x . $_ while $_ = ++$i'");
    machine.runtime().start(&spec).await.unwrap();
    assert_eq!(machine.exit().await, Exit { id: spec.id, reason: ExitReason::OutOfMemory });
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
}

#[tokio::test]
async fn a_kill_from_outside_is_told() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(6, ENDLESS);
    machine.runtime().start(&spec).await.unwrap();
    let pid: i32 = record(&machine, &spec).split(' ').next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(machine.exit().await, Exit { id: spec.id, reason: ExitReason::Signalled(9) });
    assert_eq!(machine.listed().await, [spec.id]);
    machine.stop(&spec).await;
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
    assert_eq!(machine.listed().await, []);
}

fn record(machine: &Machine, spec: &ContainerSpec) -> String {
    fs::read_to_string(machine.bundle(spec.id).join("process")).unwrap()
}

#[tokio::test]
async fn starting_twice_starts_once() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(7, ENDLESS);
    let (first, second) = tokio::join!(machine.runtime().start(&spec), machine.runtime().start(&spec));
    first.and(second).unwrap();
    let before = record(&machine, &spec);
    machine.runtime().start(&spec).await.unwrap();
    assert_eq!(record(&machine, &spec), before);
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
    assert!(!machine.exit_waits(), "a stopped container is not reported");
}

#[tokio::test]
async fn containers_outlive_the_runtime_and_are_adopted() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let specs: Vec<_> = (8..11).map(|number| machine.container(number, ENDLESS)).collect();
    for spec in &specs {
        machine.runtime().start(spec).await.unwrap();
    }
    let before = record(&machine, &specs[0]);
    machine.close();
    let pid: i32 = record(&machine, &specs[2]).split(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    machine.reopen().await;
    // One ended while nobody looked (or just now: how it ended was seen by nobody).
    assert_eq!(machine.exit().await, Exit { id: specs[2].id, reason: ExitReason::Unknown });
    let mut listed = machine.listed().await;
    listed.sort();
    assert_eq!(listed, specs.iter().map(|spec| spec.id).collect::<Vec<_>>());
    machine.runtime().start(&specs[0]).await.unwrap();
    assert_eq!(record(&machine, &specs[0]), before);
    // One ends while the new runtime watches.
    let pid: i32 = record(&machine, &specs[1]).split(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(machine.exit().await, Exit { id: specs[1].id, reason: ExitReason::Unknown });
    for spec in &specs {
        machine.stop(spec).await;
    }
    specs.iter().for_each(|spec| machine.assert_gone(spec));
}

#[tokio::test]
async fn leftovers_of_every_kind_are_found_and_removed() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(12, ENDLESS);
    let bundle = machine.bundle(spec.id);
    // As after a kill -9 in the middle of a start: a container that runs and was not assigned, and one without a record.
    for missing in ["assigned", "process"] {
        machine.runtime().start(&spec).await.unwrap();
        machine.close();
        fs::remove_file(bundle.join(missing)).unwrap();
        machine.reopen().await;
        assert_eq!(machine.listed().await, [spec.id], "without {missing}");
        assert!(!machine.exit_waits());
        // A start over leftovers is a start.
        machine.runtime().start(&spec).await.unwrap();
        machine.stop(&spec).await;
        machine.assert_gone(&spec);
        machine.assert_nothing_left();
    }
    // A cgroup whose bundle has gone is nobody's, and removed at once; so is a bundle that is none.
    machine.runtime().start(&spec).await.unwrap();
    machine.close();
    fs::remove_dir_all(&bundle).unwrap();
    fs::create_dir(&bundle).unwrap();
    machine.reopen().await;
    assert_eq!(machine.listed().await, []);
    machine.assert_gone(&spec);
    machine.assert_nothing_left();
}

/// Waits until the runtime has so many spare containers.
async fn until_spares(machine: &Machine, wanted: usize) {
    let all = async {
        while machine.runtime().spares() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

async fn spare_containers(runtime: Option<&str>) {
    let Some(mut machine) = Machine::new(runtime).await else {
        return;
    };
    machine.spares = 2;
    machine.reopen().await;
    until_spares(&machine, 2).await;
    assert_eq!(machine.listed().await, [], "they are nobody's");
    let prepared: Vec<_> = machine.all_cgroups();
    // They serve as well as any other, once.
    assert_confined(&findings_of(&mut machine, 20).await);
    let spec = machine.container(21, ENDLESS);
    machine.runtime().start(&spec).await.unwrap();
    assert!(machine.cgroups(spec.id).iter().all(|path| prepared.contains(path)), "it was there before");
    until_spares(&machine, 2).await;
    // Who wants something else gets something else.
    let mut other = machine.container(22, ENDLESS);
    other.resources.memory_bytes *= 2;
    machine.runtime().start(&other).await.unwrap();
    assert_eq!(machine.runtime().spares(), 2);
    // A server that ends takes them along; one that is killed leaves directories that the next removes.
    machine.stop(&other).await;
    machine.runtime().close().await;
    assert_eq!(machine.all_cgroups().len(), machine.cgroups(spec.id).len());
    machine.reopen().await;
    until_spares(&machine, 2).await;
    machine.spares = 0;
    machine.reopen().await;
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
    machine.assert_nothing_left();
}

#[tokio::test]
async fn spare_containers_serve_one_session_each() {
    spare_containers(None).await;
}

#[tokio::test]
async fn spare_containers_of_runc_serve_one_session_each() {
    spare_containers(Some(RUNC)).await;
}

#[tokio::test]
async fn a_spare_container_that_died_is_replaced() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    machine.spares = 1;
    machine.reopen().await;
    until_spares(&machine, 1).await;
    let cgroup = machine.all_cgroups().into_iter().find(|path| path.join("cgroup.procs").exists()).unwrap();
    // The worker that prepared it is on its way out for a moment.
    let alone = async {
        loop {
            match fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().trim().parse() {
                Ok(pid) => return pid,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let pid = tokio::time::timeout(PATIENCE, alone).await.unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let replaced = async {
        while cgroup.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.unwrap();
    until_spares(&machine, 1).await;
    let spec = machine.container(23, "exit 6");
    machine.runtime().start(&spec).await.unwrap();
    assert_eq!(machine.exit().await, Exit { id: spec.id, reason: ExitReason::Exited(6) });
    machine.stop(&spec).await;
    machine.runtime().close().await;
    machine.assert_nothing_left();
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing() {
    let Some(machine) = Machine::new(None).await else {
        return;
    };
    let mut spec = machine.container(13, "");
    spec.workspace.layers.push(LayerId(Uuid::from_u128(404)));
    let error = machine.runtime().start(&spec).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Start(text) if text.contains("workspace")), "{error:?}");
    machine.assert_gone(&spec);
    assert_eq!(machine.listed().await, []);
}

#[tokio::test]
async fn a_start_nobody_waits_for_can_be_stopped() {
    let Some(machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(14, ENDLESS);
    for micros in [0, 500, 2_000, 5_000, 10_000] {
        let started = tokio::time::timeout(Duration::from_micros(micros), machine.runtime().start(&spec)).await;
        drop(started);
        machine.stop(&spec).await;
        machine.assert_gone(&spec);
    }
}

#[tokio::test]
async fn a_container_gets_time_to_end_by_itself() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let script = "trap 'echo bye >/workspace/bye; exit 0' TERM; echo >/workspace/started; sleep 1000 & wait";
    let spec = machine.container(15, script);
    machine.runtime().start(&spec).await.unwrap();
    let started = machine.workspace(&spec).join("started");
    tokio::time::timeout(PATIENCE, async {
        while !started.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(!machine::processes(&spec.token).is_empty());
    machine.runtime().stop(spec.id, PATIENCE).await.unwrap();
    assert!(machine.workspace(&spec).join("bye").exists());
    machine.assert_gone(&spec);
    assert!(!machine.exit_waits());
}

#[tokio::test]
async fn the_launcher_is_started_again() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let spec = machine.container(16, ENDLESS);
    machine.runtime().start(&spec).await.unwrap();
    let pid = record(&machine, &spec).split(' ').next().unwrap().to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let launcher = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    let launcher = rustix::process::Pid::from_raw(launcher).unwrap();
    rustix::process::kill_process(launcher, rustix::process::Signal::KILL).unwrap();
    let other = machine.container(17, "exit 3");
    let started = tokio::time::timeout(PATIENCE, async {
        while machine.runtime().start(&other).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    started.await.unwrap();
    assert_eq!(machine.exit().await, Exit { id: other.id, reason: ExitReason::Exited(3) });
    // The first one ran on.
    machine.stop(&spec).await;
    machine.stop(&other).await;
    machine.assert_gone(&spec);
}

#[tokio::test]
async fn the_servers_socket_is_reached_also_after_a_restart() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let connect = "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); exit(connect(S, \
        sockaddr_un(\"/run/raworc/host.sock\")) ? 0 : 1)' || exit 1";
    let script = format!("{connect}; echo >/workspace/first; read line </workspace/pipe; {connect}; exit 42");
    let spec = machine.container(18, &script);
    let pipe = machine.workspace(&spec).join("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    let first = listen(&machine);
    machine.runtime().start(&spec).await.unwrap();
    tokio::time::timeout(PATIENCE, first.accept()).await.unwrap().unwrap();
    drop(first);
    machine.reopen().await;
    let second = listen(&machine);
    // A pipe is another one in each mount: this is the container's.
    let host = record(&machine, &spec).split(' ').next().unwrap().to_owned();
    let inside = format!("/proc/{host}/root/workspace/pipe");
    let write = tokio::task::spawn_blocking(move || fs::write(inside, "go\n"));
    tokio::time::timeout(PATIENCE, second.accept()).await.unwrap().unwrap();
    write.await.unwrap().unwrap();
    // The launcher that saw it start has gone with the first runtime.
    assert_eq!(machine.exit().await, Exit { id: spec.id, reason: ExitReason::Unknown });
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
}

fn listen(machine: &Machine) -> tokio::net::UnixListener {
    use std::os::unix::fs::PermissionsExt;
    let path = machine.runtime().host_socket();
    let _ = fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    listener
}

#[tokio::test]
async fn the_least_resources_are_enough_to_start() {
    let Some(mut machine) = Machine::new(None).await else {
        return;
    };
    let mut spec = machine.container(19, "exit 5");
    spec.resources = raworc_runtime::Resources { cpu: 0.05, memory_bytes: MEMORY_BYTES_MIN, pids: PIDS_MIN };
    machine.runtime().start(&spec).await.unwrap();
    assert_eq!(machine.exit().await, Exit { id: spec.id, reason: ExitReason::Exited(5) });
    machine.stop(&spec).await;
    machine.assert_gone(&spec);
}

#[tokio::test]
async fn many_at_once() {
    let Some(machine) = Machine::new(None).await else {
        return;
    };
    let machine = &machine;
    let specs: Vec<_> = (100..130).map(|number| machine.container(number, ENDLESS)).collect();
    let all = futures::future::join_all(specs.iter().map(|spec| machine.runtime().start(spec))).await;
    all.into_iter().for_each(Result::unwrap);
    assert_eq!(machine.listed().await.len(), specs.len());
    futures::future::join_all(specs.iter().map(|spec| machine.stop(spec))).await;
    specs.iter().for_each(|spec| machine.assert_gone(spec));
}
