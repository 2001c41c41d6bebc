//! Loops that carry out what was recorded, and record what they observe. Each can be cut off anywhere and begun again.

pub mod containers;
pub mod deadlines;
pub mod exits;
pub mod leases;
pub mod sweep;
