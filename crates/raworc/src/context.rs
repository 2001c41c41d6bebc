//! The context of a command: common options, the server and the output.

use raworc_api::client::Client;

use crate::config::Global;
use crate::connect;
use crate::failure::Result;
use crate::output::Ui;

/// The context of a command.
#[derive(Debug)]
pub struct Context {
    /// Options of every command.
    pub global: Global,
    /// The output.
    pub ui: Ui,
}

impl Context {
    /// The context for these options.
    pub fn new(global: Global) -> Self {
        let ui = Ui::new(global.output);
        Self { global, ui }
    }

    /// A client for the server.
    pub fn client(&self) -> Result<Client> {
        connect::find(&self.global).and_then(|target| target.client())
    }
}
