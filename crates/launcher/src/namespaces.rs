//! Namespaces of a container, entered by a worker.

use std::fs::File;

use nix::sched::{CloneFlags, setns};

/// Opens a namespace of the process `process`. `kind` is its name below `/proc/PID/ns`.
pub fn open(process: i32, kind: &str) -> Result<File, String> {
    File::open(format!("/proc/{process}/ns/{kind}")).map_err(|e| format!("its {kind} namespace can't be opened: {e}"))
}

/// Enters a namespace that [`open`] has opened, whose flag is `flag`.
pub fn enter(namespace: File, kind: &str, flag: CloneFlags) -> Result<(), String> {
    setns(namespace, flag).map_err(|e| format!("its {kind} namespace can't be entered: {e}"))
}
