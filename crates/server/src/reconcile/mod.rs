//! Loops that carry out what was recorded, and record what they observe. Each can be cut off anywhere and begun again.

/// Sessions that a loop tells something at the same time: their commits become one.
const TOLD_AT_ONCE: usize = 64;

pub mod backups;
pub mod checkpoints;
pub mod containers;
pub mod deadlines;
pub mod every;
pub mod exits;
pub mod layers;
pub mod leases;
pub mod live;
pub mod quotas;
pub mod records;
pub mod sweep;
mod trouble;
