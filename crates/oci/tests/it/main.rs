//! Layers, images, layouts, archives and registries, with Debian's own tools as judges.

mod hostile;
mod layers;
mod property;
mod support;
