//! What comes in and goes out: images, to and from registries and archives, and answers that take long.

pub mod credentials;
pub mod images;
pub mod outgoing;
pub mod pack;
pub mod registries;
pub mod unpack;
