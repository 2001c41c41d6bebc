# Says, as an agent, what a session is like from inside: `name: value` lines. $DATA is the data directory outside, $PORT the
# server's port, $ABSTRACT an abstract Unix socket of the machine, $OTHER the id of another session.
say() { echo "$1: $(echo $2)"; }
try() { name=$1; shift; if "$@" >/dev/null 2>&1 </dev/null; then say "$name" yes; else say "$name" no; fi; }
listed() { for path in "$@"; do [ -e "$path" ] && echo "$path"; done; }
# The number of a system call and its arguments; "allowed" or the error.
call() {
  name=$1; shift
  say "$name" "$(perl -MErrno -e 'my @a = map { $_ + 0 } @ARGV; my $n = shift @a; my $r = syscall($n, @a);
    if ($r != -1) { print "allowed" } else { my $e = $! + 0; foreach (keys %!) { print $_ if $_ ne "EWOULDBLOCK" && exists &{"Errno::$_"} && &{"Errno::$_"}() == $e } }' "$@")"
}
# Connects to an address of the machine (TCP) or to a Unix socket; "connected" or the error.
dial() {
  say "$1" "$(perl -MSocket -e 'my ($to, $port) = @ARGV; my ($family, $address) = defined $port ?
      (PF_INET, pack_sockaddr_in($port, inet_aton($to))) : (PF_UNIX, pack_sockaddr_un($to =~ s/^\@/\0/r));
    socket(S, $family, SOCK_STREAM, 0) or die; print connect(S, $address) ? "connected" : $!' "${@:2}")"
}

# Who we are.
say uid "$(id -u):$(id -g):$(id -G | sed 's/ 61[0-9][0-9][0-9]$/ 61xxx/')"
say uid_map "$(cat /proc/self/uid_map)"
say hostname "$(cat /proc/sys/kernel/hostname)"
grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status | while IFS=: read -r name value; do say "$name" "$value"; done
say env "$(env | sed 's/=.*//' | grep -vE '^(_|SHLVL|OLDPWD)$' | sort)"

# Files. What is not listed as readable or writable is not.
say secrets "$(listed /etc/shadow /etc/gshadow /etc/ssh /etc/machine-id /etc/environment /etc/npmrc /etc/pip.conf /etc/gitconfig \
  /etc/apt /etc/docker /etc/maven/settings.xml /etc/ssl/private /var/lib/dpkg /root /boot /lost+found "$DATA")"
say empty "$(ls -A /home /mnt /media /srv /opt /var/log /var/cache /var/mail | grep -v :)"
say other "$(grep -c "$OTHER" /proc/self/mountinfo)"
say writable "$(find / \( -path /proc -o -path /workspace \) -prune -o -type d -writable -print 2>/dev/null | sort)"
say elsewhere "$(for path in /usr /usr/bin /run /run/raworc /dev /etc; do touch $path/file 2>/dev/null && echo $path; done)"
say host_program "$(for open in '>>' '>'; do eval ": $open /run/raworc/host" 2>/dev/null && echo $open; done)"
try remount mount -o remount,rw /usr
say devices "$(cd /dev && ls | sort)"
say not_nosuid "$(awk '$6 !~ /nosuid/ && $5 !~ /^\/(dev|proc)\// { print $5 }' /proc/self/mountinfo)"
say not_nodev "$(awk '$6 !~ /nodev/ && $5 !~ /^\/dev\/./ && $5 !~ /^\/proc\// { print $5 }' /proc/self/mountinfo)"
say not_read_only "$(awk '$6 !~ /^ro/ && $5 !~ /^\/(dev|proc)($|\/)/ { print $5 }' /proc/self/mountinfo | sort)"
say masked_directories "$(ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | grep .)"
say cgroup_mounts "$(grep ' - cgroup' /proc/self/mountinfo | grep -vc '^[^ ]* [^ ]* [^ ]* / /sys/fs/cgroup[^ ]* ro,')"
say cgroups_above "$(find /sys/fs/cgroup -mindepth 3 -type d | head -3)"
say own_cgroup "$(sed 's/.*://' /proc/self/cgroup | sort -u)"

# Processes.
say first_process "$(cat /proc/1/comm)"
say processes "$(ls /proc | grep -cE '^[0-9]+$' | awk '{ print ($1 < 10) ? "few" : $1 }')"
say secrets_of_1 "$(for file in environ mem root/etc/passwd cwd/ fd/0 maps; do head -c 1 /proc/1/$file 2>/dev/null; done | wc -c)"
try signal_1 kill -9 1
try stop_1 kill -STOP 1
try oom_of_1 sh -c 'echo 1000 >/proc/1/oom_score_adj'
try oom_of_self sh -c 'echo -1000 >/proc/self/oom_score_adj'

# The kernel.
say proc_writable "$(find /proc/sys /proc/irq /proc/bus /proc/fs -type f -writable 2>/dev/null | while read -r file; do (: >>"$file") 2>/dev/null && echo "$file"; done | head -5)"
say masked "$(for name in kcore keys timer_list sysrq-trigger interrupts sched_debug latency_stats; do [ -e /proc/$name ] && head -c 1 /proc/$name 2>/dev/null; done | wc -c)"
try sysrq sh -c 'echo h >/proc/sysrq-trigger'
try hostname_set hostname other
try tmpfs mount -t tmpfs tmpfs /tmp
try bind mount --bind /workspace /tmp
try user_namespace unshare --user true
try su su root -c true
try passwd passwd -S root
try chroot chroot / true
try block_device mknod /workspace/sda b 8 0
try null_device mknod /tmp/null c 1 3
try give_away chown 0:0 /workspace

# The network.
say interfaces "$(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev)"
say routes "$(tail -n +2 /proc/net/route | wc -l)"
dial server 127.0.0.1 "$PORT"
dial outside 192.0.2.1 80
dial metadata 169.254.169.254 80
dial abstract "@$ABSTRACT"
dial host_socket /run/raworc/host.sock
dial control "$DATA/run/host/host.sock"

# System calls that are not there. Many would say EPERM for want of a capability; those marked with ! say something else
# to anyone who gets past the filter.
call unshare 272 512                       # ! CLONE_FS
call clone_newuser 56 268435473 0 0 0 0    # !
call clone3 435 0 0                        # ! ENOSYS, so that C libraries use clone
call unknown 999 0
call not_made_yet 600 0
call attach_1 101 16 1 0 0                 # PTRACE_ATTACH
call seize_1 101 16902 1 0 0               # PTRACE_SEIZE
call compare_1 312 1 $$ 0 0 0
memory() {
  say $1 "$(perl -e '$text = "x" x 8; $here = pack("QQ", unpack("Q", pack("p", $text)), 8); $there = pack("QQ", 0x400000, 8);
    print syscall($ARGV[0] + 0, 1, $here, 1, $there, 1, 0) != -1 ? "allowed" : $!{EPERM} ? "EPERM" : $!' $2)"
}
memory read_1 310
memory write_1 311
say descriptor_of_1 "$(perl -e '$fd = syscall(434, 1, 0); print syscall(438, $fd, 0, 0) != -1 ? "allowed" : $!{EPERM} ? "EPERM" : $!')"
call keyctl 250 0 0 0 0 0                  # !
call add_key 248 0 0 0 0 0                 # !
call setns 308 -1 0                        # !
call mount 165 0 0 0 0 0
call umount 166 0 0
call move_mount 429 -1 0 -1 0 0
call fsopen 430 0 0
call open_tree 428 -1 0 0
call mount_setattr 442 -1 0 0 0 0
call pivot_root 155 0 0
call bpf 321 99 0 0
call io_uring_setup 425 1 0                # !
call perf_event_open 298 0 0 0 0 0         # !
call userfaultfd 323 1                     # !
call name_to_handle_at 303 -1 0 0 0 0      # !
call open_by_handle_at 304 -1 0 0
call kexec_load 246 0 0 0 0
call init_module 175 0 0 0
call finit_module 313 -1 0 0
call reboot 169 0 0 0 0
call swapon 167 0 0
call settimeofday 164 0 0
call syslog 103 3 0 0
call acct 163 0
call personality 135 4194304               # ! READ_IMPLIES_EXEC
call personality_disguised 135 4299161600  # ! the same, and a bit that the kernel does not look at
call vsock 41 40 1 0                       # !
call packet 41 17 3 0
call alg 41 38 5 0                         # !
call raw 41 2 3 1
call tiocsti 16 0 21522 0                  # !
# 64-bit programs may not use the tables of 32-bit ones: int 0x80 with mkdir(39), then exit with its result.
perl -e 'my $code = "\xb8\x27\x00\x00\x00\xbb\x90\x00\x40\x00\xb9\xff\x01\x00\x00\xcd\x80\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05";
  my $size = 120 + 24 + 2 + length $code;
  print pack("A4C5x7v2Vq3Vv6", "\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, 0x400092, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    pack("V2q6", 1, 5, 0, 0x400000, 0x400000, $size, $size, 4096), "\0" x 24, "x\0", $code' >/tmp/compat
chmod +x /tmp/compat; cd /tmp; ./compat 2>/dev/null; say compat "$([ $? -gt 128 ] && [ ! -e /tmp/x ] && echo killed)"
