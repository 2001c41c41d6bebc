//! What is observed of containers, hosts and workspaces is recorded here. Nobody asks for it, so nobody has to be permitted, and
//! what comes too late is dropped. Each function is one transaction.

pub mod backups;
pub mod damages;
pub mod looks;
pub mod observe;
pub mod save;
pub mod store_reports;
pub mod streams;
pub mod take_message;
