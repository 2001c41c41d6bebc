//! The commands, one module for each noun.

pub mod account;
pub mod agent;
pub mod audit;
pub mod checkpoint;
pub mod completions;
pub mod doctor;
pub mod health;
pub mod image;
pub mod list;
pub mod provider;
pub mod run;
pub mod secret;
pub mod serve;
pub mod session;
pub mod system;
pub mod token;
