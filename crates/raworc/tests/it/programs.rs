//! Programs of the machine in a session: their configuration, names, limits, and tracing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::TestServer;
use crate::server_or_skip;

const LANGUAGES: &str = include_str!("languages.sh");
/// Files in the machine's `/etc` that sessions must not have, even if links in `/usr` lead to them.
const KEPT_BACK: [&str; 4] = ["/etc/environment", "/etc/maven/settings.xml", "/etc/shadow", "/etc/ssl/private"];

#[tokio::test]
async fn every_language_of_the_machine_runs() {
    let server = server_or_skip!();
    // The rest is as in any other session: 512 MiB of memory, too.
    let id = server.session(json!({ "resources": { "cpu": 2.0 } })).await;
    let text = server.output(&id, LANGUAGES).await;
    let named =
        |word: &str| -> Vec<&str> { text.lines().filter_map(|line| line.strip_prefix(word)).map(str::trim).collect() };
    assert_eq!(named("failed "), Vec::<&str>::new());
    let (ran, missing) = (named("ok "), named("missing "));
    assert!(["bash", "sh", "sed", "awk", "perl"].iter().all(|name| ran.contains(name)), "{text}");
    if !missing.is_empty() {
        let names = missing.join(", ");
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} ran; not installed here: {names}", ran.len());
    }
}

/// Broken links below `/usr`.
const DANGLING: &str = "find /usr -xdev -xtype l -print0 | sort -z | tr '\\0' '\\n'";

#[tokio::test]
async fn links_of_usr_lead_to_what_they_lead_to_outside() {
    let server = server_or_skip!();
    let id = server.session(json!({})).await;
    let lines = |text: &str| -> BTreeSet<PathBuf> { text.lines().map(PathBuf::from).collect() };
    let inside = lines(&server.output(&id, DANGLING).await);
    let outside = Command::new("sh").args(["-c", DANGLING]).output().unwrap();
    let outside = lines(&String::from_utf8(outside.stdout).unwrap());
    let lost: Vec<_> = inside.difference(&outside).filter_map(|link| fs::canonicalize(link).ok()).collect();
    let is_public = |path: &Path| fs::metadata(path).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o004 != 0);
    let wrong: Vec<_> = lost
        .iter()
        .filter(|path| path.starts_with("/etc") && is_public(path))
        .filter(|path| !KEPT_BACK.iter().any(|kept| path.starts_with(kept)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_is_configured_later_is_there_for_the_next_session() {
    let server = server_or_skip!();
    let name = format!("raworc-test-{}", std::process::id());
    let (place, secret) = (Path::new("/etc/alternatives").join(&name), Path::new("/etc/alternatives/x.key"));
    struct Made<'a>(Vec<&'a Path>);
    impl Drop for Made<'_> {
        fn drop(&mut self) {
            self.0.iter().for_each(|path| drop(fs::remove_file(path)));
        }
    }
    let _made = Made(vec![&place, secret]);
    std::os::unix::fs::symlink("/usr/bin/perl", &place).unwrap();
    fs::write(secret, "secret").unwrap();
    // Not one of the spare containers, which may have been there before.
    let id = server.session(json!({ "resources": { "pids": 255 } })).await;
    let script = format!("{} -e 'print 42'; ls /etc/alternatives | grep -c x.key", place.display());
    assert_eq!(server.send(&id, &script).await["reply"]["content"], "420\n");
}

/// Each line is a condition; those that fail are printed.
const PLACES: &str = r#"
is() { [ "$2" = "$3" ] || echo "$1: $2, expected $3"; }
for path in /tmp /var/tmp /dev/shm /run/lock /var/lock; do
  is "$path" "$(stat -Lc %a $path)" 1777; touch $path/file && rm $path/file || echo "$path: not writable"
done
for path in /opt /srv /mnt /media /home /var/cache /var/log /var/opt /var/mail; do
  [ -d $path ] || echo "$path: missing"; is "$path" "$(ls -A $path)" ''
done
is /var/run "$(readlink -f /var/run)" /run
mv /etc/hosts /tmp/hosts 2>/dev/null && echo 'hosts: can be moved'
(: >/run/hosts) 2>/dev/null && echo 'hosts: can be changed'
is passwd "$(getent passwd 1000 | cut -d: -f1)" agent
"#;

const NAMES: &str = r#"
is() { [ "$2" = "$3" ] || echo "$1: $2, expected $3"; }
name=$(cat /proc/sys/kernel/hostname)
is hostname "$name" "$WANTED"
is /etc/hostname "$(cat /etc/hostname)" "$name"
has() { command -v $1 >/dev/null; }
address() { while read -r address names; do case " $names " in *" $1 "*) echo "$address"; return ;; esac; done </etc/hosts; }
is hosts "$(address "$name")" 127.0.0.1
is localhost "$(address localhost)" 127.0.0.1
if has getent; then
  is resolved "$(getent hosts "$name" | cut -d' ' -f1)" 127.0.0.1
  is local "$(getent hosts localhost | cut -d' ' -f1)" ::1
  is reverse "$(getent hosts 127.0.0.1 | tr -s ' ' | cut -d' ' -f2)" localhost
fi
if has hostname && has awk; then is full "$(hostname -f)" "$name"; fi
is user "$(id -un)" agent
"#;

const NETWORK: &str = r#"
perl -MSocket -MSocket=inet_pton,pack_sockaddr_in6 -e '
  for ([AF_INET, pack_sockaddr_in(80, INADDR_LOOPBACK)], [AF_INET6, pack_sockaddr_in6(443, inet_pton(AF_INET6, "::1"))]) {
    socket(S, $_->[0], SOCK_STREAM, 0) && bind(S, $_->[1]) && listen(S, 1) && socket(C, $_->[0], SOCK_STREAM, 0)
      && connect(C, $_->[1]) && accept(A, S) or print "port of family $_->[0]: $!\n" }
  socket(S, AF_INET, SOCK_DGRAM, 1) && send(S, pack("CCnnn", 8, 0, 0xf7ff, 0, 0), 0, pack_sockaddr_in(0, INADDR_LOOPBACK))
    && defined(recv(S, my $answer, 100, 0)) or print "ping: $!\n";
  socket(S, AF_INET6, SOCK_DGRAM, 58) or print "ping6: $!\n";'
(: >/proc/sys/net/ipv4/ip_unprivileged_port_start) 2>/dev/null && echo 'sysctl: can be changed'
:
"#;

#[tokio::test]
async fn places_names_and_ports_are_as_programs_expect() {
    let server = server_or_skip!();
    // One is prepared ahead of need, the other for its session.
    for resources in [json!(null), json!({ "memory": "64Mi" })] {
        let id = server.session(json!({ "name": "Mine & Yours", "resources": resources })).await;
        assert_eq!(server.output(&id, PLACES).await, "");
        assert_eq!(server.output(&id, &format!("WANTED=mine---yours{NAMES}")).await, "");
        assert_eq!(server.output(&id, NETWORK).await, "");
        assert_eq!(server.delete(&format!("/sessions/{id}")).await.0, 200);
    }
}

#[tokio::test]
async fn programs_of_an_image_find_their_names_whatever_it_left_empty() {
    let server = server_or_skip!();
    let kinds: [(&str, &str); 6] = [
        ("missing", "rm -f $file"),
        ("empty", ": >$file"),
        ("dangling", "ln -sf /run/systemd/nowhere/$(basename $file) $file"),
        ("elsewhere", "ln -sf /proc/1/environ $file"),
        ("loop", "ln -sf $(basename $file) $file"),
        ("pipe", "rm -f $file; mkfifo $file"),
    ];
    for (kind, command) in kinds {
        let image = image(kind, command);
        let output = server.cli(&["image", "import", image.path().join("image.tar").to_str().unwrap(), "--name", kind]);
        assert!(output.status.success(), "{output:?}");
        let name = format!("of-{kind}");
        let id = server.session(json!({ "name": name, "image": kind })).await;
        assert_eq!(server.output(&id, &format!("WANTED={name}{NAMES}")).await, "", "{kind}");
        let script = "echo $RAWORC_SESSION_NAME $FORGED$RAWORC_FORGED; touch /var/tmp/file && echo written";
        assert_eq!(server.output(&id, script).await, format!("{name} yes\nwritten\n"), "{kind}");
    }
}

/// An image archive with the programs that [`NAMES`] needs, in which a command has changed every file of `/etc`.
fn image(kind: &str, command: &str) -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let script = format!(
        r#"cd "$1"; mkdir -p root/usr/bin root/etc root/bin
        for program in sh cat id getent head tr cut touch; do
          install -D "$(command -v $program)" root/usr/bin/$program
          ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r library; do install -D $library root$library; done
        done
        for library in /lib/*/libnss_files.so.2 /lib/*/libnss_dns.so.2; do [ ! -e $library ] || install -D $library root$library; done
        ln -s /usr/bin/sh root/bin/sh
        for name in passwd group hosts hostname resolv.conf nsswitch.conf; do file=root/etc/$name; {command}; done
        tar -C root --owner=0 --group=0 -cf layer.tar .
        printf '{{"architecture":"{arch}","os":"linux","config":{{"Env":["FORGED=yes","RAWORC_FORGED=no","RAWORC_SESSION_NAME=no"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:%s"]}}}}' \
          "$(sha256sum <layer.tar | cut -c1-64)" >config.json
        echo '[{{"Config":"config.json","RepoTags":["{kind}:1"],"Layers":["layer.tar"]}}]' >manifest.json
        tar -cf image.tar manifest.json config.json layer.tar"#,
        arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
    );
    let status = Command::new("bash").args(["-euc", &script, "bash"]).arg(scratch.path()).status().unwrap();
    assert!(status.success());
    scratch
}

/// How programs query limits, with the expected answers. $CPUS and $MIB are the limits.
const LIMITS: &str = r#"
is() { [ "$2" = "$3" ] || echo "$1: $2, expected $3"; }
has() { command -v $1 >/dev/null; }
is nproc "$(nproc)" $CPUS
is getconf "$(getconf _NPROCESSORS_ONLN)" $CPUS
is cpuinfo "$(grep -c ^processor /proc/cpuinfo)" $CPUS
is stat "$(grep -c '^cpu[0-9]' /proc/stat)" $CPUS
is meminfo "$(awk '/^(MemTotal|MemAvailable|SwapTotal):/ { printf "%s ", $2 / 1024 }' /proc/meminfo)" "$MIB $MIB 0 "
has free && is free "$(free -m | awk '/^Mem:/ { print $2 }')" $MIB
has lscpu && is lscpu "$(lscpu | sed -n 's/^CPU(s): *//p')" $CPUS
python=/usr/bin/python3
[ -e $python ] && is python "$($python -c 'import os; print(os.cpu_count())')" $CPUS
has node && is node "$(node -p 'const o = require("os"); [o.cpus().length, o.totalmem() >> 20, process.constrainedMemory() / 1048576].join()')" $CPUS,$MIB,$MIB
if has java; then
  is java "$(java -XshowSettings:system -version 2>&1 | sed -n 's/^ *\(Effective CPU Count\|Memory Limit\): //p' | tr '\n' ' ')" "$CPUS $JAVA "
fi
cgroups=/sys/fs/cgroup
if [ -e $cgroups/cgroup.controllers ]; then
  is memory "$(cat $cgroups/memory.max)" $((MIB << 20)); is pids "$(cat $cgroups/pids.max)" $PIDS
  is cpu "$(cat $cgroups/cpu.max)" "$QUOTA 100000"
else
  is memory "$(cat $cgroups/memory/memory.limit_in_bytes)" $((MIB << 20)); is pids "$(cat $cgroups/pids/pids.max)" $PIDS
  is cpu "$(cat $cgroups/cpu/cpu.cfs_quota_us)" $QUOTA
fi
# Nothing beside or above it is there, nothing can be changed, and it counts what goes on.
is below "$(find $cgroups -mindepth 3 -type d)" ''
is writable "$(find /sys -writable 2>/dev/null; for file in $(find $cgroups -type f); do (echo 1 >$file) 2>/dev/null && echo $file; done)" ''
is processes "$(cat $cgroups/cgroup.procs $cgroups/pids/cgroup.procs 2>/dev/null | grep -cx $$)" 1
used() { cat $cgroups/memory.current $cgroups/memory/memory.usage_in_bytes 2>/dev/null; }
before=$(used); head -c 8000000 /dev/zero >/tmp/used; after=$(used); rm /tmp/used
[ $((after - before)) -gt 4000000 ] || echo "used: $before, then $after"
:
"#;

#[tokio::test]
async fn programs_are_told_the_limits_of_their_session() {
    let server = server_or_skip!();
    let machine: usize = std::thread::available_parallelism().unwrap().into();
    // One is prepared ahead of need, the others for their sessions.
    for (cpu, memory, pids) in [(1.0, 512, 256), (1.2, 256, 100), (0.5, 300, 90), (1000.0, 200, 80)] {
        let resources = json!({ "cpu": cpu, "memory": format!("{memory}Mi"), "pids": pids });
        let (status, session) = server.post("/sessions", json!({ "resources": resources })).await;
        if status != 201 && cpu > machine as f64 {
            continue; // More than the machine has may be refused.
        }
        let id = session["id"].as_str().unwrap().to_owned();
        let cpus = (cpu.ceil() as usize).min(machine);
        let variables = format!("CPUS={cpus} MIB={memory} PIDS={pids} QUOTA={} JAVA={memory}.00M", cpu * 100_000.0);
        assert_eq!(server.output(&id, &(variables + LIMITS)).await, "", "{cpu} {memory}");
    }
}

/// Tracing with common tools, of own and other processes.
const TRACING: &str = r#"
has() { command -v $1 >/dev/null; }
cd /tmp
cat >good.c <<'END'
#include <stdlib.h>
int answer = 42;
int main(void) { char *volatile kept = malloc(10); free(kept); return 0; }
END
if has gcc; then
  gcc -g -O0 good.c -o good || echo 'gcc: failed'
  if gcc -g -fsanitize=address good.c -o asan 2>/dev/null; then
    ./asan >out 2>&1 || { echo "asan: $?"; head -n 5 out; }
    sed 's/free(kept);/kept = 0;/' good.c >leak.c; gcc -g -O0 -fsanitize=address leak.c -o leak
    ./leak >out 2>&1; grep -q 'detected memory leaks' out || echo 'asan: finds no leak'
  else echo 'missing: asan' >&2; fi
  if has gdb; then
    gdb -q -batch -nx -ex 'break main' -ex run -ex 'print answer' -ex continue ./good >out 2>&1
    grep -q '= 42' out && grep -q 'exited normally' out || { echo 'gdb: fails'; cat out; }
    grep -i 'randomization' out
    sleep 100 & gdb -q -batch -nx -p $! -ex 'info registers' >out 2>&1; grep -q rip out || { echo 'gdb: attaches not'; cat out; }
    kill $!
    gdb -q -batch -nx -p 1 >out 2>&1; grep -q 'not permitted' out || { echo 'gdb: attaches to the host'; cat out; }
  else echo 'missing: gdb' >&2; fi
fi
if has strace; then
  strace -f -o out sh -c 'true; /bin/true' && grep -q execve out || echo 'strace: fails'
  strace -p 1 -o out 2>err; grep -q 'not permitted' err || { echo 'strace: attaches to the host'; cat err; }
else echo 'missing: strace' >&2; fi
has valgrind && { valgrind -q --error-exitcode=9 /bin/true >out 2>&1 || { echo 'valgrind: fails'; cat out; }; }
rm -f good* asan leak* out err
:
"#;

#[tokio::test]
async fn ones_own_processes_can_be_traced_and_no_others() {
    let server = server_or_skip!();
    let id = server.session(json!({ "env": { "LSAN_OPTIONS": "" } })).await;
    let message = server.send(&id, TRACING).await;
    let text = message["reply"]["content"].as_str().unwrap();
    let (missing, wrong): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("missing: "));
    assert_eq!(wrong, Vec::<&str>::new());
    if !missing.is_empty() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: not installed here: {}", missing.join(", "));
    }
    // Whoever traces the script keeps nobody from ending it.
    let holds = "perl -e '$p = getppid; unless (fork) { POSIX::setsid() if eval { require POSIX };
        syscall(101, 0x4206, $p, 0, 0) == 0 or die \"$!\"; sleep 600 }'; sleep 0.1; exit 3";
    let (status, agent) = server.post("/agents", json!({ "name": "held", "config": { "timeout_seconds": 2 } })).await;
    assert_eq!(status, 201, "{agent}");
    let id = server.session(json!({ "agent_ids": ["held"] })).await;
    let message = server.send(&id, &format!("exec >/dev/null 2>&1; {holds}")).await;
    assert_eq!(message["status"], "failed", "{message:#}");
    let (status, _) = server.post(&format!("/sessions/{id}/restart"), json!(null)).await;
    assert_eq!(status, 200);
    server.until(&id, |session| session["generation"] == 2 && session["state"] == "READY").await;
    assert_eq!(server.output(&id, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn the_same_is_so_with_another_oci_runtime() {
    const RUNC: &str = "/usr/sbin/runc";
    if !crate::harness::can_run_containers() {
        return;
    }
    if !Path::new(RUNC).exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {RUNC} is not installed");
        return;
    }
    let server = TestServer::start(&["--oci-runtime", RUNC]);
    let id =
        server.session(json!({ "name": "other", "resources": { "cpu": 1.0, "memory": "300Mi", "pids": 90 } })).await;
    assert_eq!(server.output(&id, PLACES).await, "");
    assert_eq!(server.output(&id, &format!("WANTED=other{NAMES}")).await, "");
    assert_eq!(server.output(&id, NETWORK).await, "");
    let variables = "CPUS=1 MIB=300 PIDS=90 QUOTA=100000 JAVA=300.00M";
    assert_eq!(server.output(&id, &format!("{variables}{LIMITS}")).await, "");
}
