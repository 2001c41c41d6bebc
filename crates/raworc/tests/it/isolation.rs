//! An agent sees, reaches and uses up only its own session.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::harness::PATIENCE;
use crate::server_or_skip;

const PROBE: &str = include_str!("isolation.sh");
/// Names of variables that agents may have.
const VARIABLES: &str = "ANTHROPIC_API_KEY ANTHROPIC_BASE_URL GEMINI_API_KEY GOMAXPROCS GOOGLE_GEMINI_BASE_URL HOME LANG LOGNAME \
                         OMP_NUM_THREADS OPENAI_API_KEY OPENAI_BASE_URL PATH PWD RAWORC_MESSAGE_ID RAWORC_SESSION_ID \
                         RAWORC_SESSION_NAME SHELL TERM USER";

#[tokio::test]
async fn an_agent_sees_and_reaches_nothing_but_its_session() {
    let server = server_or_skip!();
    let abstract_name = format!("raworc-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let other = server.session(json!({})).await;
    let id = server.session(json!({ "name": "My Session" })).await;
    let port = server.url.rsplit(':').next().unwrap();
    let data = server.data_dir();
    let variables = format!("DATA={} PORT={port} ABSTRACT={abstract_name} OTHER={other}\n", data.display());
    let text = server.output(&id, &(variables + PROBE)).await;
    let findings: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
    let none = "0000000000000000";
    let mut expected = vec![
        // The third is the group that tells which work a process belongs to; 61xxx stands for one of a range.
        ("uid", "1000:1000:1000 61xxx"),
        ("uid_map", "0 2000000000 65535"),
        ("hostname", "my-session"),
        ("CapEff", none),
        ("CapPrm", none),
        ("CapInh", none),
        ("CapAmb", none),
        // Kept by the host, to run agents as another user; without privileges to gain there is no way to them.
        ("CapBnd", "00000000000000e0"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("env", VARIABLES),
        ("secrets", ""),
        ("empty", ""),
        ("other", "0"),
        ("writable", "/dev/shm /run/lock /tmp /var/tmp"),
        ("elsewhere", ""),
        ("host_program", ""),
        ("devices", "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"),
        ("not_nosuid", ""),
        ("not_nodev", ""),
        ("not_read_only", "/run /tmp /var/tmp /workspace"),
        ("masked_directories", ""),
        ("cgroup_mounts", "0"),
        ("cgroups_above", ""),
        ("own_cgroup", "/"),
        ("first_process", "host"),
        ("processes", "few"),
        ("secrets_of_1", "0"),
        ("proc_writable", ""),
        ("masked", "0"),
        ("interfaces", "lo"),
        ("routes", "0"),
        ("server", "Connection refused"),
        ("outside", "Network is unreachable"),
        ("metadata", "Network is unreachable"),
        ("abstract", "Connection refused"),
        ("host_socket", "Permission denied"),
        ("control", "No such file or directory"),
        ("clone3", "ENOSYS"),
        ("unknown", "ENOSYS"),
        ("not_made_yet", "ENOSYS"),
        ("compat", "killed"),
    ];
    expected.extend(
        [
            "remount signal_1 stop_1 oom_of_1 oom_of_self sysrq hostname_set tmpfs bind user_namespace su passwd",
            "chroot block_device null_device give_away",
        ]
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|name| (name, "no")),
    );
    expected.extend(
        [
            "unshare clone_newuser attach_1 seize_1 read_1 write_1 descriptor_of_1 compare_1 keyctl add_key setns mount umount move_mount fsopen open_tree",
            "mount_setattr pivot_root bpf io_uring_setup perf_event_open userfaultfd name_to_handle_at",
            "open_by_handle_at kexec_load init_module finit_module reboot swapon settimeofday syslog acct personality personality_disguised",
            "vsock packet alg raw tiocsti",
        ]
        .into_iter()
        .flat_map(str::split_whitespace)
        .map(|name| (name, "EPERM")),
    );
    let wrong: Vec<_> = expected
        .iter()
        .filter(|(name, value)| findings.get(name) != Some(value))
        .map(|(name, value)| format!("{name}: {:?}, expected {value:?}", findings.get(name)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_container_is_limited_as_its_session_says_and_runs_as_nobody() {
    let server = server_or_skip!();
    let by_default = server.session(json!({})).await;
    let small = server.session(json!({ "resources": { "cpu": 0.5, "memory": "64Mi", "pids": 40 } })).await;
    let (_, session) = server.get(&format!("/sessions/{by_default}")).await;
    assert_eq!(session["resources"], json!({ "cpu": 1.0, "memory": 512 << 20, "pids": 256, "disk": null }));
    for (id, cpu, memory, pids) in [(&by_default, 100, 512 << 20, 256), (&small, 50, 64 << 20, 40)] {
        let container = server.container(id).await;
        let value = |files: &[&str]| server.cgroup_value(&container, files);
        assert_eq!(value(&["memory.max", "memory.limit_in_bytes"]), Some(memory.to_string()));
        assert_eq!(value(&["pids.max"]), Some(pids.to_string()));
        let quota = value(&["cpu.max", "cpu.cfs_quota_us"]).unwrap();
        assert_eq!(quota.split(' ').next().unwrap(), (cpu * 1000).to_string());
        let swap = value(&["memory.swap.max", "memory.memsw.limit_in_bytes"]);
        assert!(swap.is_none_or(|swap| swap == "0" || swap == memory.to_string()), "there is no swap on top");
    }
    server.output(&small, "sleep 600 >/dev/null 2>&1 &").await;
    let container = server.container(&small).await;
    let host = server.host_pid(&container);
    let of_container = server.container_processes();
    let field = |pid: i32, name: &str| -> String {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let sleeping = of_container.iter().find(|pid| field(**pid, "Name:") == "sleep").unwrap();
    assert_eq!(
        (field(host, "Uid:"), field(*sleeping, "Uid:"), field(*sleeping, "Gid:")),
        ("2000000000".into(), "2000001000".into(), "2000001000".into())
    );
}

#[tokio::test]
async fn a_fork_bomb_harms_only_its_message() {
    let server = server_or_skip!();
    let (status, agent) = server.post("/agents", json!({ "name": "bomber", "config": { "timeout_seconds": 2 } })).await;
    assert_eq!(status, 201, "{agent}");
    let body = json!({ "agent_ids": ["bomber"], "resources": { "cpu": 0.5, "pids": 64 } });
    let id = server.session(body.clone()).await;
    let bystander = server.session(json!({})).await;
    // It fills the limit and goes on trying, until its time is over.
    let message = server.send(&id, "exec perl -e 'while (1) { fork }'").await;
    assert_eq!((&message["status"], &message["error"]["code"]), (&json!("failed"), &json!("timeout")));
    assert_eq!(server.output(&id, "echo still here").await, "still here\n");
    assert_eq!(server.output(&bystander, "echo fine").await, "fine\n");
    // Everything that an agent may signal: its own processes only.
    assert_eq!(server.output(&id, "sleep 600 & disown; kill -9 -1; echo alive").await, "alive\n");

    // One that leaves its process group and its parents behind makes the session useless, but not stuck.
    let script =
        "perl -MPOSIX -e 'while (1) { if (fork == 0) { setsid; next } exit if rand() < 0.2 }' >/dev/null 2>&1 &";
    server.send(&id, script).await;
    let (status, session) = server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(status, 200, "{session}");
    server.until(&id, |session| session["generation"] == 2 && session["state"] == "READY").await;
    assert_eq!(server.output(&id, "echo again").await, "again\n");
}

#[tokio::test]
async fn files_that_an_agent_made_lead_nowhere_and_hold_nobody_up() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let data = server.data_dir();
    let script = format!(
        "ln -s /etc/shadow absolute; ln -s ../../../../../../etc/shadow relative; ln -s / root; ln -s {}/admin.token token
         mkfifo pipe; mkdir dir; ln -s ../../.. dir/up; perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0);
         bind(S, pack_sockaddr_un(\"socket\")) or die'; ln -s loop loop; echo inside >file; ln -s file fine",
        data.display()
    );
    server.output(&id, &script).await;
    let paths = [
        "absolute",
        "relative",
        "root/etc/passwd",
        "token",
        "pipe",
        "dir/up/etc/passwd",
        "socket",
        "loop",
        "../admin.token",
        "%2e%2e/admin.token",
        "dir/..%2f..%2f..%2fadmin.token",
        "/etc/passwd",
    ];
    for path in paths {
        let path = format!("/sessions/{id}/files/{path}");
        let read = tokio::time::timeout(PATIENCE, server.request(reqwest::Method::GET, &path).send()).await;
        let response = read.unwrap_or_else(|_| panic!("reading {path} hangs")).unwrap();
        assert!(response.status().is_client_error(), "{path}: {}", response.status());
        let write = server.request(reqwest::Method::PUT, &path).body("changed").send();
        let response = tokio::time::timeout(PATIENCE, write).await.unwrap_or_else(|_| panic!("writing {path} hangs"));
        let status = response.unwrap().status();
        assert!(status.is_client_error() || status.is_success(), "{path}: {status}");
    }
    assert_eq!(fs::read_to_string(data.join("admin.token")).unwrap().trim(), server.token);
    assert_ne!(fs::read_to_string("/etc/shadow").unwrap(), "changed");
}

/// A process that poses as a container's host.
struct FakeHost(BufReader<UnixStream>);

impl FakeHost {
    fn dial(data_dir: &Path) -> Self {
        let stream = UnixStream::connect(data_dir.join("run/host/host.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The server's answer; `None` if it closes the connection.
    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the server neither answers nor hangs up: {error}"),
        }
    }

    fn say(&mut self, text: &str) {
        // A server that has hung up already is what some of these want.
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    fn hello(data_dir: &Path, protocol: u32, token: &str) -> Self {
        let mut host = Self::dial(data_dir);
        host.say(&format!("{}\n", json!({ "hello": { "protocol": protocol, "token": token, "works": [] } })));
        host
    }
}

/// The token of a container's host, derived from the database as the server does.
fn token_of(data_dir: &Path, container: &str) -> String {
    let records = rusqlite::Connection::open(data_dir.join("raworc.db")).unwrap();
    let secret = "SELECT value FROM settings WHERE name = 'host_secret'";
    let secret: String = records.query_row(secret, [], |row| row.get(0)).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(container.as_bytes());
    format!("{container}.{}", hex::encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn only_the_current_host_of_a_session_is_heard() {
    let server = server_or_skip!();
    let data = server.data_dir();
    let mut silent = FakeHost::dial(&data);
    let id = server.session(json!({})).await;
    let old = token_of(&data, &server.container(&id).await);
    let refused = |code: &str| Some(json!({ "refused": { "code": code } }));

    assert_eq!(FakeHost::hello(&data, 99, &old).hear(), refused("unknown_protocol"));
    let forged = old.replace("-1.", "-2.");
    let stranger = format!("01a20744-0059-7211-9344-2252e1081cde-1.{}", old.split_once('.').unwrap().1);
    for token in ["", "x", ".", "é.é", &forged, &stranger, &old[..old.len() - 2], &old.repeat(1000)] {
        assert_eq!(FakeHost::hello(&data, 1, token).hear(), refused("unknown_token"), "{token}");
    }
    for garbage in ["\n", "hello\n", "{}\n", "\"poll\"\n", "{\"hello\":{}}\n", "\u{0}\u{1}\n", "[[[[[[\n"] {
        let mut host = FakeHost::dial(&data);
        host.say(garbage);
        assert_eq!(host.hear(), None, "{garbage:?}");
    }
    let mut endless = FakeHost::dial(&data);
    let mut stream = endless.0.get_ref().try_clone().unwrap();
    let writer = thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        (0..64).take_while(|_| stream.write_all(&chunk).is_ok()).count()
    });
    assert_eq!(endless.hear(), None, "a line without an end");
    assert!(writer.join().unwrap() < 64);

    // The true host is none the worse for all this; a later one fences it off.
    assert_eq!(server.output(&id, "echo fine").await, "fine\n");
    let (status, _) = server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(status, 200);
    server.until(&id, |session| session["generation"] == 2 && session["state"] == "READY").await;
    assert_eq!(FakeHost::hello(&data, 1, &old).hear(), refused("fenced"));
    assert_eq!(server.output(&id, "echo fine").await, "fine\n");
    let current = token_of(&data, &server.container(&id).await);
    let (status, _) = server.post(&format!("/sessions/{id}/terminate"), json!(null)).await;
    assert_eq!(status, 200);
    assert_eq!(FakeHost::hello(&data, 1, &current).hear(), refused("fenced"), "there is no host any more");
    assert_eq!(silent.hear(), None, "who says nothing is not waited for");
}
