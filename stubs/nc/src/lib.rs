//! Stands in for nc: the one system call that libcontainer takes from it, refused. See `stubs/README.md`.

/// `ENOSYS`.
const NOT_IMPLEMENTED: i32 = 38;

/// The argument of [`sched_setattr`], as in sched_setattr(2).
#[allow(non_camel_case_types, missing_docs)]
pub struct sched_attr_t {
    pub size: u32,
    pub sched_policy: u32,
    pub sched_flags: u64,
    pub sched_nice: i32,
    pub sched_priority: u32,
    pub sched_runtime: u64,
    pub sched_deadline: u64,
    pub sched_period: u64,
    pub sched_util_min: u32,
    pub sched_util_max: u32,
}

/// Fails with `ENOSYS`.
///
/// # Safety
/// It does nothing.
///
/// # Errors
/// Always.
pub unsafe fn sched_setattr(_pid: i32, _attributes: &sched_attr_t, _flags: u32) -> Result<(), i32> {
    Err(NOT_IMPLEMENTED)
}
