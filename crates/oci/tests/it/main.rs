//! Layers, images, layouts, archives and registries, with Debian's own tools as judges.

mod archives;
mod daemon;
mod hostile;
mod layers;
mod layouts;
mod property;
mod proxy;
mod registries;
mod support;
