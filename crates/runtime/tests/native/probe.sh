# Says what a container is like from inside. $DATA is the data directory outside.
exec >/workspace/findings 2>/workspace/errors
say() { echo "$1: $(echo $2)"; }
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then say "$name" yes; else say "$name" no; fi; }
seen() { if [ -e "$2" ]; then say "$1" present; else say "$1" absent; fi; }
# The number of a system call and its arguments; "allowed" or the error.
call() {
  name=$1; shift
  say "$name" "$(perl -MErrno -e 'my @a = map { $_ + 0 } @ARGV; my $n = shift @a; my $r = syscall($n, @a);
    if ($r != -1) { print "allowed" } else { my $e = $! + 0; foreach (keys %!) { print $_ if $_ ne "EWOULDBLOCK" && exists &{"Errno::$_"} && &{"Errno::$_"}() == $e } }' "$@")"
}

say pid $$
say hostname "$(cat /proc/sys/kernel/hostname)"
say uid_map "$(cat /proc/self/uid_map)"
say gid_map "$(cat /proc/self/gid_map)"
say umask "$(umask)"
say core "$(ulimit -c)"
say token "$TOKEN"
ls -l /proc/1/fd >/workspace/descriptors
say leaked_descriptors "$(sed -n 's/.* -> //p' /workspace/descriptors | grep -v -e '^/dev/null$' -e '^/workspace/')"
grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status | while IFS=: read -r name value; do say "host_$name" "$value"; done
setpriv --reuid 1000 --regid 1000 --clear-groups grep -E '^(Cap...|NoNewPrivs|Seccomp|Uid):' /proc/self/status \
  | while IFS=: read -r name value; do say "agent_$name" "$value"; done
say user_name "$(setpriv --reuid 1000 --regid 1000 --clear-groups id -un)"

say interfaces "$(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev)"
say loopback "$(perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in(4242, INADDR_LOOPBACK)) && listen(S, 1)
  && socket(C, AF_INET, SOCK_STREAM, 0) && connect(C, sockaddr_in(4242, INADDR_LOOPBACK)) && print "works"')"
for name in bin lib lib32 lib64 libx32 sbin; do [ -e /$name ] || missing="$missing $name"; done
say root_files "$( (ls /; echo $missing | tr ' ' '\n') | sort | grep .)"
say home "$(ls -A /home)"
seen shadow /etc/shadow
seen data_directory "$DATA"
try root_writable touch /file
try etc_writable touch /etc/file
try usr_writable touch /usr/file
try host_program_writable touch /run/raworc/host
try workspace_writable touch /workspace/file
try tmp_writable touch /tmp/file
try agent_tmp_writable setpriv --reuid 1000 --regid 1000 --clear-groups touch /tmp/agent
try proc_sys_writable sh -c 'echo 1 >/proc/sys/kernel/core_uses_pid'
try mount mount -t tmpfs tmpfs /tmp
try unshare unshare --user true
# Not every kernel has it.
if [ -e /proc/sysrq-trigger ]; then say sysrq "$(wc -c </proc/sysrq-trigger)"; else say sysrq 0; fi
say keys "$(wc -c </proc/keys)"

call keyctl 250 0 0 0 0 0
call io_uring_setup 425 1 0
call bpf 321 0 0 0
call unknown 999 0
call perf_event_open 298 0 0 0 0 0
call userfaultfd 323 0
call open_tree 428 0 0 0
call clone3 435 0 0
call vsock 41 40 1 0
call vsock_disguised 41 4294967336 1 0
call inet 41 2 1 0
call tiocsti 16 0 21522 0
call tiocsti_disguised 16 0 4294988818 0
call tcgets 16 0 21505 0
exit 42
