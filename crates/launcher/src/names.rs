//! What a container gets together with its name: files in its own `/run`, which `/etc` has links to, so that an `/etc` that
//! many share, or that is an image's, needs no change.

use std::fs::{DirBuilder, File, Permissions, metadata, set_permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::protocol::{HOSTNAME_FILE, HOSTS_FILE};

const RUN: &str = "/run";
/// Where programs put their lock files (`/var/lock` is a link to it).
const LOCKS: &str = "/run/lock";

/// Writes them, from inside the container's mount namespace, before anything of a session runs there.
pub fn write(hostname: &str) -> io::Result<()> {
    let owner = metadata(RUN)?;
    // Nobody outside of the container's ids can own anything in there.
    let before = (setfsuid(Uid::from_raw(owner.uid())), setfsgid(Gid::from_raw(owner.gid())));
    let written = write_all(hostname);
    setfsgid(before.1);
    setfsuid(before.0);
    written
}

fn write_all(hostname: &str) -> io::Result<()> {
    create(HOSTS_FILE, &hosts(hostname))?;
    create(HOSTNAME_FILE, &format!("{hostname}\n"))?;
    match DirBuilder::new().mode(0o755).create(LOCKS) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    set_permissions(LOCKS, Permissions::from_mode(0o1777))
}

/// The name has a line of its own, so that it is its own full name.
fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.0.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n")
}

fn create(path: &str, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    // Whatever the umask was.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())
}
