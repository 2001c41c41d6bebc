//! Containers on this machine.
