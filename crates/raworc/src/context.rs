//! What every command needs: the options they all share, a way to the server, and a place to write to.

use raworc_api::client::Client;

use crate::config::Global;
use crate::connect;
use crate::failure::Result;
use crate::output::Ui;

/// The surroundings of a command.
#[derive(Debug)]
pub struct Context {
    /// Options that every command takes.
    pub global: Global,
    /// Where to write.
    pub ui: Ui,
}

impl Context {
    /// For these options.
    pub fn new(global: Global) -> Self {
        let ui = Ui::new(global.output);
        Self { global, ui }
    }

    /// The server to talk to.
    pub fn client(&self) -> Result<Client> {
        connect::find(&self.global).and_then(|target| target.client())
    }
}
