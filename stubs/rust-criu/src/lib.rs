//! Stands in for rust-criu: [`Criu::new`] fails, so nothing else can be called. See `stubs/README.md`.

use std::fmt;
use std::os::fd::RawFd;

/// How CRIU would restore cgroups. It has no value here.
#[derive(Clone)]
pub enum CgMode {}

/// The error of every call.
#[derive(Debug)]
pub struct Absent;

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this build has no support for CRIU")
    }
}

impl std::error::Error for Absent {}

/// A connection to CRIU. It has no value here, so its methods are never entered.
pub enum Criu {}

impl Criu {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn new() -> Result<Self, Absent> {
        Err(Absent)
    }

    /// Never entered.
    ///
    /// # Errors
    /// None.
    pub fn get_criu_version(&mut self) -> Result<u32, Absent> {
        match *self {}
    }

    /// Never entered.
    ///
    /// # Errors
    /// None.
    pub fn dump(&mut self) -> Result<(), Absent> {
        match *self {}
    }

    /// Never entered.
    pub fn set_external_mount(&mut self, _key: String, _value: String) {
        match *self {}
    }

    /// Never entered.
    pub fn cgroups_mode(&mut self, _mode: CgMode) {
        match *self {}
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty),* $(,)?) => {
        impl Criu {
            $(
                /// Never entered.
                pub fn $name(&mut self, _value: $type) {
                    match *self {}
                }
            )*
        }
    };
}

setters! {
    add_external: String,
    set_ext_unix_sk: bool,
    set_file_locks: bool,
    set_images_dir_fd: RawFd,
    set_leave_running: bool,
    set_link_remap: bool,
    set_log_file: String,
    set_log_level: i32,
    set_manage_cgroups: bool,
    set_orphan_pts_master: bool,
    set_pid: i32,
    set_root: String,
    set_shell_job: bool,
    set_tcp_established: bool,
    set_work_dir_fd: RawFd,
}

/// The key under which CRIU would know a namespace.
pub fn criu_ns_to_key(name: &str) -> String {
    name.to_owned()
}
