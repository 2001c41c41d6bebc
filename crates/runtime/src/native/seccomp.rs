//! The system call filter of containers: what isn't listed is refused with `EPERM`.
//!
//! It allows what programs need, and nothing that makes namespaces or mounts, traces other processes, loads code into
//! the kernel or widens its surface (bpf, io_uring, userfaultfd, keyrings, perf). Only the machine's own architecture is
//! allowed: a second one means a second table of calls.

use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// `CLONE_NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET`.
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;
/// Put input into a terminal, as if typed.
const TIOCSTI: u64 = 0x5412;
/// Address families: unix, inet, inet6, netlink. Compared for equality: "all but vsock" could be got round with the upper
/// half of the register, which the kernel ignores.
const SOCKET_FAMILIES: [u64; 3] = [1, 2, 10];
/// netlink, with which programs ask for addresses (protocol 0, route). Through others, processes could send each other what
/// the kernel keeps and counts for nobody.
const NETLINK: u64 = 16;
/// Netlink's protocols beside that.
const NETLINK_OTHERS: std::ops::RangeInclusive<u64> = 1..=31;
const EPROTONOSUPPORT: u32 = 93;
/// Native, 32-bit reports, with and without fixed addresses; and the question which one is in force.
const PERSONALITIES: [u64; 6] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF, u64::MAX];

/// The filter as `linux.seccomp` of an OCI configuration.
pub fn profile() -> Value {
    let allow_if = |name: &str, index: u64, value: u64| {
        json!({ "names": [name], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": index, "value": value, "op": "SCMP_CMP_EQ" }] })
    };
    let mut rules = vec![
        json!({ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] }),
        // Its flags are in memory, where a filter can't look. C libraries fall back to clone.
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
        json!({ "names": ABSENT, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
    rules.push(netlink(0, "SCMP_ACT_ALLOW", None));
    rules.extend(NETLINK_OTHERS.map(|protocol| netlink(protocol, "SCMP_ACT_ERRNO", Some(EPROTONOSUPPORT))));
    rules.extend(SOCKET_FAMILIES.map(|family| allow_if("socket", 0, family)));
    rules.extend(PERSONALITIES.map(|personality| allow_if("personality", 0, personality)));
    rules.extend((0..32).map(ioctl_unless_tiocsti));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": [ARCHITECTURE],
        "syscalls": rules,
    })
}

fn netlink(protocol: u64, action: &str, error: Option<u32>) -> Value {
    let is = |index: u64, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let mut rule = json!({ "names": ["socket"], "action": action, "args": [is(0, NETLINK), is(2, protocol)] });
    if let Some(error) = error {
        rule["errnoRet"] = error.into();
    }
    rule
}

/// Allows an ioctl whose number differs from TIOCSTI in this bit. All 32 rules together say "is not TIOCSTI" about the
/// half of the register that the kernel looks at.
fn ioctl_unless_tiocsti(bit: u32) -> Value {
    let mask = 1u64 << bit;
    json!({ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 1, "value": mask, "valueTwo": !TIOCSTI & mask, "op": "SCMP_CMP_MASKED_EQ" }] })
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

/// Calls that programs do without where a kernel lacks them. The kernel has room for so much asynchronous input and output in
/// all (`fs.aio-max-nr`), and counts it for nobody; it tells whoever may read a file what others have read of it.
const ABSENT: [&str; 7] =
    ["cachestat", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit"];

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
    // talking to each other
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketpair", "mq_getsetattr",
    "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd",
    "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
];
