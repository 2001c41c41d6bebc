//! The system call filter of containers.
//!
//! It allows what programs need, and nothing that makes namespaces or mounts, loads code into the kernel or widens its
//! surface (bpf, io_uring, userfaultfd, keyrings, perf). Nor anything that the kernel has only so much of for the whole machine
//! (asynchronous input and output, `fs.aio-max-nr`), or that tells what others have read of a file (`cachestat`); programs do
//! without where a kernel lacks them. A call that is known and refused says `EPERM`; one that is not known
//! here, since it is newer or none at all, says `ENOSYS`, as on a kernel that hasn't got it, so that programs fall back to an
//! older one. So does `clone3`, whose flags are in memory, where a filter can't look: C libraries then use `clone`. Only the machine's own architecture is allowed: a second one means a second table of calls.
//!
//! Tracing is allowed: the kernel lets processes trace only others of the same user without more capabilities, and so agents
//! each other, but never the host. A tracer cannot lead a process past this filter (Linux 4.8 and later).

use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EPROTONOSUPPORT: u32 = 93;
/// `CLONE_NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET`.
const NAMESPACE_FLAGS: u32 = 0x7E02_0000;
/// Put input into a terminal, as if typed.
const TIOCSTI: u32 = 0x5412;
/// 32-bit reports (`UNAME26`, `PER_LINUX32` as its number), fixed addresses for debuggers (`ADDR_NO_RANDOMIZE`).
const PERSONALITIES: u32 = 0x0008 | 0x2_0000 | 0x4_0000;

/// Values of an argument: those that are the second number where the first one has bits. The kernel takes the lower half of
/// these registers only, so nothing here looks at the upper one, which could be used to disguise a value.
type Pattern = (u32, u32);

/// Every bit counts.
const EXACTLY: u32 = u32::MAX;

/// Address families: unix, inet, inet6, and netlink.
const FAMILIES: [Pattern; 4] = [(EXACTLY, 1), (EXACTLY, 2), (EXACTLY, 10), NETLINK];
/// With which programs ask for addresses (protocol 0, route). Through others, processes could send each other what the kernel
/// keeps and counts for nobody.
const NETLINK: Pattern = (EXACTLY, 16);
const ROUTE: Pattern = (EXACTLY, 0);

/// Calls that are allowed with some values of an argument, and refused with all others.
const CONDITIONAL: &[(&str, u32, &[Pattern])] = &[
    ("clone", 0, &[(NAMESPACE_FLAGS, 0)]),
    // And the question which one is in force.
    ("personality", 0, &[(!PERSONALITIES, 0), (EXACTLY, u32::MAX)]),
];

/// The filter as `linux.seccomp` of an OCI configuration.
pub fn profile() -> Value {
    let mut rules = vec![
        json!({ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM }),
    ];
    for (name, argument, allowed) in CONDITIONAL {
        rules.extend(allowed.iter().map(|pattern| allow(name, *argument, *pattern)));
        rules.extend(others(allowed).into_iter().map(|pattern| refuse(name, *argument, pattern)));
    }
    rules.extend(sockets());
    rules.extend(others(&[(EXACTLY, TIOCSTI)]).into_iter().map(|pattern| allow("ioctl", 1, pattern)));
    rules.push(refuse("ioctl", 1, (EXACTLY, TIOCSTI)));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": [ARCHITECTURE],
        "syscalls": rules,
    })
}

/// Sockets of the families above. Of netlink, other protocols are as on a kernel that hasn't got them.
fn sockets() -> Vec<Value> {
    let netlink = |protocol: Pattern, action: Value| {
        let mut rule = json!({ "names": ["socket"], "args": [condition(0, NETLINK), condition(2, protocol)] });
        if let (Some(rule), Value::Object(action)) = (rule.as_object_mut(), action) {
            rule.extend(action);
        }
        rule
    };
    let absent = json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": EPROTONOSUPPORT });
    let allowed = FAMILIES.into_iter().filter(|family| *family != NETLINK);
    let mut rules: Vec<Value> = allowed.map(|family| allow("socket", 0, family)).collect();
    rules.extend(others(&FAMILIES).into_iter().map(|family| refuse("socket", 0, family)));
    rules.push(netlink(ROUTE, json!({ "action": "SCMP_ACT_ALLOW" })));
    rules.extend(others(&[ROUTE]).into_iter().map(|protocol| netlink(protocol, absent.clone())));
    rules
}

fn allow(name: &str, argument: u32, pattern: Pattern) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition(argument, pattern)] })
}

fn refuse(name: &str, argument: u32, pattern: Pattern) -> Value {
    let condition = condition(argument, pattern);
    json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": [condition] })
}

fn condition(argument: u32, (mask, value): Pattern) -> Value {
    json!({ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
}

/// Patterns that have together all values that none of `patterns` has. A filter knows no "otherwise" for one argument, and
/// its rules must not contradict each other.
fn others(patterns: &[Pattern]) -> Vec<Pattern> {
    let mut found = Vec::new();
    split((0, 0), patterns.to_vec(), &mut found);
    found
}

/// Goes through the values of `here`, in halves, down to where they are in one of `patterns`, or in none.
fn split(here: Pattern, patterns: Vec<Pattern>, found: &mut Vec<Pattern>) {
    let (mask, value) = here;
    let overlapping: Vec<Pattern> =
        patterns.into_iter().filter(|(other, wanted)| (value ^ wanted) & mask & other == 0).collect();
    let undecided = overlapping.iter().fold(0, |bits, (other, _)| bits | other & !mask);
    if overlapping.is_empty() {
        found.push(here);
    } else if !overlapping.iter().any(|(other, _)| other & !mask == 0) {
        let bit = 1 << (31 - undecided.leading_zeros());
        for half in [0, bit] {
            split((mask | bit, value | half), overlapping.clone(), found);
        }
    }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // files
    "access", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown",
    "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat",
    "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat",
    "lchown", "lgetxattr", "link", "linkat", "listmount", "listxattr", "listxattrat", "llistxattr", "lremovexattr",
    "lseek", "lsetxattr", "lstat", "memfd_create", "mkdir", "mkdirat", "mknod", "mknodat", "newfstatat", "open",
    "openat", "openat2", "pipe", "pipe2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read",
    "readahead", "readlink", "readlinkat", "readv", "removexattr", "removexattrat", "rename", "renameat", "renameat2",
    "rmdir", "sendfile", "setxattr", "setxattrat", "splice", "stat", "statfs", "statmount", "statx", "symlink",
    "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink", "unlinkat", "utime",
    "utimensat", "utimes", "vmsplice", "write", "writev",
    // waiting
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "inotify_add_watch", "inotify_init", "inotify_init1",
    "inotify_rm_watch", "poll", "ppoll", "pselect6", "select", "signalfd", "signalfd4", "timerfd_create",
    "timerfd_gettime", "timerfd_settime",
    // memory
    "brk", "madvise", "map_shadow_stack", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect",
    "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
    "remap_file_pages", "process_mrelease", "memfd_secret",
    // processes and threads
    "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
    "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getegid", "geteuid",
    "getgid", "getgroups", "getitimer", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom",
    "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "ioprio_get", "ioprio_set",
    "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "modify_ldt", "pause",
    "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending",
    "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid",
    "setfsuid", "setgid", "setgroups", "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid",
    "setreuid", "setrlimit", "setsid", "setuid", "sigaltstack", "tgkill", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_settime", "times", "tkill", "vfork", "wait4", "waitid", "alarm",
    "uname", "sysinfo", "clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep",
    "adjtimex", "clock_adjtime",
    // tracing one's own processes: debuggers, sanitizers
    "kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    // talking to each other
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketpair", "mq_getsetattr",
    "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd",
    "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
];

/// Known, and refused: the machine's own affairs, and what has been a way out of containers.
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    // mounts, namespaces, roots
    "chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
    "open_tree_attr", "pivot_root", "setns", "umount", "umount2", "unshare",
    // files by handles, quotas, whole file systems
    "fanotify_init", "lookup_dcookie", "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd", "swapoff",
    "swapon", "sysfs", "ustat",
    // the kernel: its modules, clock, log, power and name
    "acct", "clock_settime", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "reboot",
    "setdomainname", "sethostname", "settimeofday", "stime", "syslog", "vhangup",
    // large interfaces to it
    "add_key", "bpf", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl", "perf_event_open", "request_key",
    "userfaultfd",
    // hardware, and where memory is
    "get_mempolicy", "ioperm", "iopl", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node",
    "vm86", "vm86old",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_condition_has_one_answer() {
        let sets = CONDITIONAL.iter().map(|(_, _, patterns)| patterns.to_vec()).chain([
            vec![(EXACTLY, TIOCSTI)],
            FAMILIES.to_vec(),
            vec![ROUTE],
        ]);
        for patterns in sets {
            let others = others(&patterns);
            assert!(others.len() < 80, "{} rules", others.len());
            let has = |patterns: &[Pattern], value: u32| patterns.iter().filter(|(mask, v)| value & mask == *v).count();
            let bits = (0..32).map(|bit| 1u32 << bit);
            let near = bits.clone().flat_map(|a| bits.clone().map(move |b| a | b));
            let exact = patterns.iter().flat_map(|(_, v)| bits.clone().map(move |b| v ^ b).chain([*v]));
            let mixed = (0..100_000u32).map(|n| n.wrapping_mul(0x9E37_79B9));
            for value in (0..0x6000).chain(near.clone()).chain(near.map(|v| !v)).chain(exact).chain(mixed) {
                let (allowed, refused) = (has(&patterns, value), has(&others, value));
                assert!(refused == usize::from(allowed == 0), "{value:#x}: {allowed} allow it, {refused} refuse it");
            }
        }
    }

    #[test]
    fn a_call_is_allowed_or_refused_once() {
        let mut names: Vec<_> =
            ALLOWED.iter().chain(REFUSED).chain(CONDITIONAL.iter().map(|(name, ..)| name)).collect();
        names.extend([&"ioctl", &"socket"]);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
