//! How containers are run here, and with which ids.

use std::path::PathBuf;

use raworc_core::link::AGENT_UID;
use raworc_workspace::Mounter;

use crate::Resources;

/// How to run containers here.
#[derive(Clone, Debug)]
pub struct NativeConfig {
    /// The server's data directory; `run` below it is the runtime's.
    pub data_dir: PathBuf,
    /// The host program, for any root filesystem: statically linked.
    pub host_binary: Vec<u8>,
    /// Mounts workspaces and images.
    pub mounter: Mounter,
    /// The program that, given the argument `launcher`, is [`raworc_launcher::main`]: normally `/proc/self/exe`.
    pub launcher: PathBuf,
    /// Another OCI runtime to use in place of the embedded one.
    pub oci_runtime: Option<PathBuf>,
    /// Containers that are kept prepared for sessions to come; each costs about as much memory as one that rests READY.
    pub spares: usize,
    /// What the spare ones may use: only sessions that want the same can have one.
    pub spare_resources: Resources,
}

/// The ids outside, of users and of groups, that a container has: 0 inside is `base` outside, and so on upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The id outside that is 0 inside.
    pub base: u32,
}

impl Ids {
    /// How many a container has: 0 to 65534, which is nobody.
    pub const COUNT: u32 = 65_535;
    /// The first one where this process is root of the machine. So far up nothing else gives out ids: useradd and systemd
    /// stay far below.
    pub const BASE_OF_ROOT: u32 = 2_000_000_000;

    /// The id outside of agents, to whom the files of workspaces belong.
    #[must_use]
    pub fn agent(self) -> u32 {
        self.base + AGENT_UID
    }
}
