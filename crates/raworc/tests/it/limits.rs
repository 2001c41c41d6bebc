//! Resources that no cgroup limits, and shared files: while one session uses all it can get, another one and the
//! machine's root still get theirs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::harness::{TestServer, eventually};
use crate::server_or_skip;

const TAKE: &str = include_str!("limits.pl");
const SOCKETS: &str = include_str!("limits_sockets.pl");
const WATCH: &str = include_str!("limits_watch.pl");
/// Resources of which the machine and a session must get one more, while another session uses all it can get.
const TAKEN: [&str; 7] = ["inotify", "terminals", "timers", "queues", "segments", "semaphores", "locked"];
/// Resources that sessions cannot have, with the errors.
const REFUSED: [(&str, &str); 4] =
    [("aio", "ENOSYS"), ("keys", "EPERM"), ("namespaces", "EPERM"), ("netlink", "EPROTONOSUPPORT")];
/// More than a session gets of any resource.
const MANY: u32 = 250_000;
const RUNC: &str = "/usr/sbin/runc";

async fn put(server: &TestServer, id: &str, name: &str, text: &str) {
    let path = format!("/sessions/{id}/files/{name}");
    let response = server.request(reqwest::Method::PUT, &path).body(text.to_owned()).send().await.unwrap();
    assert!(response.status().is_success(), "{path}: {}", response.status());
}

/// Allocates a resource as the machine's root.
struct OfRoot(Child);

impl OfRoot {
    fn take(what: &str) -> String {
        let mut child = Command::new("perl")
            .args(["-e", TAKE, what, "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        drop(Self(child));
        line.trim().to_owned()
    }
}

impl Drop for OfRoot {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_one_session_takes_others_and_the_machine_still_have() {
    let server = server_or_skip!();
    let greedy = server.session(json!({})).await;
    let other = server.session(json!({})).await;
    for id in [&greedy, &other] {
        put(&server, id, "take", TAKE).await;
    }
    for what in TAKEN {
        // It keeps what it has until it is killed: a pipe that is open for both ends on one side never ends.
        let script = format!(
            "cd /tmp; rm -f end out; mkfifo end out; perl /workspace/take {what} {MANY} <>end >out 2>/dev/null &
             echo $! >keeper; read -r n why <out; echo $n $why; disown"
        );
        let taken = server.output(&greedy, &script).await;
        let taken: Vec<&str> = taken.split_whitespace().collect();
        assert!(taken[0].parse::<u32>().unwrap() > 1, "{what}: {taken:?}");
        let theirs = server.output(&other, &format!("perl take {what} 1 </dev/null")).await;
        assert_eq!(theirs, "1 enough\n", "{what}: the greedy one has {taken:?}");
        assert_eq!(OfRoot::take(what), "1 enough", "{what}: the greedy one has {taken:?}");
        server.output(&greedy, "kill -9 $(cat /tmp/keeper)").await;
    }
    for (what, error) in REFUSED {
        assert_eq!(server.output(&greedy, &format!("perl take {what} 1 </dev/null")).await, format!("0 {error}\n"));
    }
    // All of its processes together cannot open what the machine has.
    let machine: u64 = fs::read_to_string("/proc/sys/fs/file-max").unwrap().trim().parse().unwrap();
    let files: u64 = server.output(&greedy, "ulimit -Hn").await.trim().parse().unwrap();
    assert!(files * 256 <= (machine / 4).max(1024 * 256), "{files} files for each of 256 processes, of {machine}");
}

#[tokio::test]
async fn what_waits_in_sockets_counts_as_memory() {
    let server = server_or_skip!();
    let memory: u64 = 64 << 20;
    let id = server.session(json!({ "resources": { "memory": memory } })).await;
    put(&server, &id, "fill", SOCKETS).await;
    for kind in ["tcp", "udp", "unix"] {
        let message = server.send(&id, &format!("ulimit -n $(ulimit -Hn); perl fill {kind} || echo killed")).await;
        let text = message["reply"]["content"].as_str().unwrap_or_default().trim().to_owned();
        let queued: u64 =
            if text.ends_with("killed") { 0 } else { text.parse().unwrap_or_else(|_| panic!("{message:#}")) };
        assert!(queued <= memory, "{kind}: {queued} bytes");
        // It has none the less.
        server
            .output(&id, "perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) && syswrite(A, q(x)) or die'")
            .await;
    }
}

async fn nothing_shared_tells_or_blocks(server: TestServer) {
    let curious = server.session(json!({})).await;
    let other = server.session(json!({})).await;
    put(&server, &curious, "watch", WATCH).await;
    // Nothing else runs there from now on: what it is told, others have done.
    let path = format!("/sessions/{curious}/messages");
    let (_, message) = server.post(&path, json!({ "content": "exec perl watch" })).await;
    let path = format!("{path}/{}?wait_seconds=60", message["id"].as_str().unwrap());
    let ready = format!("/sessions/{curious}/files/ready");
    let is_ready = async || server.request(reqwest::Method::GET, &ready).send().await.unwrap().status().is_success();
    eventually("it watches", is_ready).await;
    let work = "/usr/bin/true; cat /etc/passwd /dev/null >/dev/null; ls /usr/bin >/dev/null; head -c 1 /dev/urandom >/dev/null
        for file in /usr/bin/true /etc/passwd /usr /etc / /dev/null; do
          perl -e 'use Fcntl \":flock\"; open(F, \"<\", $ARGV[0]) && flock(F, LOCK_EX | LOCK_NB) or print qq($ARGV[0]: $!\\n)' $file
        done";
    assert_eq!(server.output(&other, work).await, "", "the other one is not held up");
    for path in ["/usr/bin/true", "/usr", "/dev/null", "/dev/zero"] {
        let file = File::open(path).unwrap();
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        assert!(locked.is_ok(), "nor is the machine's root, at {path}: {locked:?}");
    }
    assert!(Command::new("/usr/bin/true").status().unwrap().success());
    put(&server, &curious, "go", "").await;
    let (_, message) = server.get(&path).await;
    let text = message["reply"]["content"].as_str().unwrap_or_else(|| panic!("{message:#}"));
    let lines: Vec<&str> = text.lines().collect();
    // What belongs to all containers' hosts is not theirs to watch.
    assert!(matches!(&lines[..], ["watches ", _, "told: "]), "{text}");
    let locks: u32 = lines[1].strip_prefix("locks ").unwrap().parse().unwrap();
    assert!(locks > 5, "{text}");
    // Nor do reads tell what is in the machine's memory already: of files of /usr, only those that wait are possible.
    let probe = "perl -e 'open(F, \"<\", \"/usr/bin/true\"); my $b = \"x\" x 16; my $v = pack(\"pQ\", $b, 16);
        print syscall(327, fileno(F), $v, 1, 0, 0, 8) == -1 ? ($!{EOPNOTSUPP} ? \"no\" : $!) : \"yes\"'";
    assert_eq!(server.output(&other, probe).await, "no");
}

#[tokio::test]
async fn shared_files_tell_nothing_and_hold_nobody_up() {
    nothing_shared_tells_or_blocks(server_or_skip!()).await;
}

#[tokio::test]
async fn nor_do_they_with_another_runtime() {
    if !crate::harness::can_run_containers() {
        return;
    }
    if !std::path::Path::new(RUNC).exists() {
        eprintln!("SKIPPED: there is no {RUNC}; apt-get install runc");
        return;
    }
    nothing_shared_tells_or_blocks(TestServer::start(&["--oci-runtime", RUNC])).await;
}

/// Options of a server with low ceilings.
const LITTLE: [&str; 8] = [
    "--max-cpu-per-session",
    "0.5",
    "--max-memory-per-session",
    "64Mi",
    "--max-pids-per-session",
    "50",
    "--max-disk-per-session",
    "40Mi",
];

#[tokio::test]
async fn nobody_gets_more_than_the_server_gives() {
    let mut server = server_or_skip!();
    // By default, that is what the machine has.
    for (field, value) in
        [("cpu", json!(1e9)), ("memory", json!("100Ti")), ("pids", json!(1_000_000)), ("disk", json!("1000Ti"))]
    {
        let (status, problem) = server.post("/sessions", json!({ "resources": { field: value } })).await;
        assert_eq!((status.as_u16(), &problem["errors"][0]["field"]), (422, &json!(format!("resources.{field}"))));
    }
    let large = json!({ "cpu": 1, "memory": "128Mi", "pids": 200, "disk": "100Mi" });
    let before = server.session(json!({ "resources": large })).await;
    let unlimited = server.session(json!({})).await;
    for id in [&before, &unlimited] {
        let (status, _) = server.post(&format!("/sessions/{id}/pause"), json!(null)).await;
        assert!(status.is_success());
    }
    server.stop();
    server.set_arguments(&LITTLE);
    server.start_again();

    // Whoever asks for more is told how much there is, on every way.
    let member = crate::accounts::member(&server, "member").await;
    let own = server.session(json!({})).await;
    let (_, session) = server.get(&format!("/sessions/{own}")).await;
    assert_eq!(session["resources"], json!({ "cpu": 0.5, "memory": 64 << 20, "pids": 50, "disk": 40 << 20 }));
    let more = [
        ("cpu", json!(0.6), "0.5"),
        ("memory", json!("65Mi"), "67108864"),
        ("pids", json!(51), "50"),
        ("disk", json!("41Mi"), "41943040"),
        ("disk", json!(0), "41943040"),
    ];
    for (field, value, bound) in more {
        let body = json!({ "resources": { field: value } });
        let ways = [
            server.request(reqwest::Method::POST, "/sessions"),
            server.request_as(&member, reqwest::Method::POST, "/sessions"),
            server.request(reqwest::Method::PUT, &format!("/sessions/{own}")),
            server.request(reqwest::Method::POST, &format!("/sessions/{own}/remix")),
        ];
        for way in ways {
            let response = way.json(&body).send().await.unwrap();
            let (url, status) = (response.url().clone(), response.status().as_u16());
            let problem: serde_json::Value = response.json().await.unwrap();
            let error = &problem["errors"][0];
            assert_eq!((status, &error["field"]), (422, &json!(format!("resources.{field}"))), "{url} {problem:#}");
            assert!(error["message"].as_str().unwrap().contains(bound), "{url} {problem:#}");
        }
    }

    // What was given before starts, with what there is now; so does what comes from it.
    for (id, is_running) in [(&before, true), (&unlimited, true)] {
        let (status, _) = server.post(&format!("/sessions/{id}/resume"), json!(null)).await;
        assert!(status.is_success() && is_running);
        assert_eq!(server.output(id, "echo fine").await, "fine\n");
        let container = server.container(id).await;
        let value = |files: &[&str]| server.cgroup_value(&container, files);
        assert_eq!(value(&["pids.max"]), Some("50".into()));
        assert_eq!(value(&["memory.max", "memory.limit_in_bytes"]), Some((64 << 20).to_string()));
        assert_eq!(value(&["cpu.max", "cpu.cfs_quota_us"]).unwrap().split(' ').next(), Some("50000"));
        let (status, remix) = server.post(&format!("/sessions/{id}/remix"), json!({})).await;
        assert_eq!(status, 201, "{remix:#}");
        assert_eq!(remix["resources"], json!({ "cpu": 0.5, "memory": 64 << 20, "pids": 50, "disk": 40 << 20 }));
    }
    assert!(server.log().contains("more than the server gives"), "it is said");
}
