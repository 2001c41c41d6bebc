//! Compiles the system call filter, once for all containers: libseccomp needs milliseconds for it.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

/// A filter that the kernel takes.
pub type Filter = Vec<sock_filter>;

/// Compiles `profile`. What it doesn't understand is an error, never ignored.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, String> {
    build(profile).map_err(|error| format!("the system call filter does not compile: {error}"))
}

fn build(profile: &LinuxSeccomp) -> Result<Filter, Box<dyn std::error::Error>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default)?;
    for each in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*each)?)?;
    }
    // A binary search over system call numbers in place of a linear one: each call made inside gets cheaper.
    context.set_ctl_optimize(2)?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let comparisons = rule.args().iter().flatten().map(comparison).collect::<Result<Vec<_>, _>>()?;
        for name in rule.names() {
            // A name that libseccomp doesn't know is a call of another architecture or of a newer kernel: the default
            // action, as for a call that isn't there, applies to it.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            context.add_rule_conditional(action, call, &comparisons)?;
        }
    }
    decode(&context)
}

fn decode(context: &ScmpFilterContext) -> Result<Filter, Box<dyn std::error::Error>> {
    use std::io::{Read, Seek};
    let mut file = std::fs::File::from(rustix::fs::memfd_create("filter", rustix::fs::MemfdFlags::CLOEXEC)?);
    context.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let instruction = |b: &[u8]| sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    };
    Ok(bytes.chunks_exact(size_of::<sock_filter>()).map(instruction).collect())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => Ok(ScmpAction::Errno(errno.map_or(nix::libc::EPERM, |e| e as i32))),
        LinuxSeccompAction::ScmpActKillProcess => Ok(ScmpAction::KillProcess),
        other => Err(format!("action {other:?}")),
    }
}

fn architecture(architecture: Arch) -> Result<ScmpArch, String> {
    match architecture {
        Arch::ScmpArchX86_64 => Ok(ScmpArch::X8664),
        Arch::ScmpArchX86 => Ok(ScmpArch::X86),
        Arch::ScmpArchX32 => Ok(ScmpArch::X32),
        Arch::ScmpArchAarch64 => Ok(ScmpArch::Aarch64),
        Arch::ScmpArchArm => Ok(ScmpArch::Arm),
        other => Err(format!("architecture {other:?}")),
    }
}

fn comparison(argument: &LinuxSeccompArg) -> Result<ScmpArgCompare, String> {
    let index = u32::try_from(argument.index()).map_err(|_| "argument index")?;
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0))
        }
        other => return Err(format!("comparison {other:?}")),
    };
    Ok(ScmpArgCompare::new(index, operator, datum))
}
