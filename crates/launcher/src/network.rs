//! A container's network: a loopback interface, and settings of the kernel that belong to the network namespace.

use std::collections::HashMap;
use std::fs;

use nix::sched::CloneFlags;

use crate::mounts::outside;
use crate::{namespaces, sys};

/// It is about ids, which the kernel takes as those of the process that writes.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Enters the network namespace of the container whose first process this is, and does there what libcontainer leaves undone, or
/// does with many system calls. `base` is the id outside that is 0 inside.
pub fn prepare(process: i32, sysctls: &HashMap<String, String>, base: u32) -> Result<(), String> {
    namespaces::enter(namespaces::open(process, "net")?, "net", CloneFlags::CLONE_NEWNET)?;
    sys::loopback_up().map_err(|e| format!("its loopback interface can't be brought up: {e}"))?;
    for (name, value) in sysctls {
        // All others would be those of the machine.
        if !name.starts_with("net.") {
            return Err(format!("{name} is no setting of a network namespace"));
        }
        let value = match name.as_str() {
            PING_GROUPS => {
                let ids = value.split(' ').map(|id| outside(id, base).map(|id| id.to_string()));
                ids.collect::<Result<Vec<_>, _>>()?.join(" ")
            }
            _ => value.clone(),
        };
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&file, value).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}
