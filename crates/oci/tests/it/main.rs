//! Layers, images, layouts, archives and registries, with Debian's own tools as judges.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod archives;
mod daemon;
mod hostile;
mod layers;
mod layouts;
mod memory;
mod property;
mod proxy;
mod registries;
mod support;
