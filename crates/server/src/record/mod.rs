//! Records what is observed of containers, hosts and workspaces. It checks no permission, since verbs have done so for what people ask
//! for. What comes too late is dropped. Each change is one transaction.

pub mod backups;
pub mod damages;
pub mod looks;
pub mod model_calls;
pub mod observe;
pub mod save;
pub mod store_reports;
pub mod streams;
pub mod take_message;
pub mod turn_end;
pub mod turns;
