//! HTTP: connections, what every request goes through, and the routes, one file per noun.

pub mod connections;
pub mod extract;
mod file_path;
mod leased;
pub mod listen;
pub mod negotiate;
mod page;
mod problems;
mod relay;
pub mod routes;
mod unread;
