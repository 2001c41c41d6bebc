//! Layers, images, layouts, archives and registries, verified with Debian's tools.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod archives;
mod broken_registries;
mod daemon;
mod hostile;
mod layers;
mod layouts;
mod memory;
mod property;
mod proxy;
mod registries;
mod support;
