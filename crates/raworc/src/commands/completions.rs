//! `raworc completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::context::Context;
use crate::failure::Result;

/// Prints the completion script of a shell.
pub fn run<C: CommandFactory>(context: &Context, shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut C::command(), "raworc", &mut script);
    context.ui.out(script)
}
