//! `raworc serve`.

use clap::Args;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ServeOptions, Settings};
use crate::connect::TOKEN_FILE;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::serve;
use crate::signals::Signals;
use crate::text::clean;

const EXAMPLES: &str = "\
Examples:
  raworc serve
  raworc serve --data-dir ./raworc-data --listen 127.0.0.1:9100
  raworc serve --oci-runtime /usr/sbin/runc --log debug

Every option has a RAWORC_* variable, and all but the data directory a key in DIR/raworc.toml; the command line wins \
over the variable, and that over the file:
  listen = \"127.0.0.1:9000\"
  oci_runtime = \"/usr/sbin/runc\"
  spares = 2
  log = \"info\"
  log_format = \"json\"

The first start makes an administrator and writes the token to DIR/admin.token. Ctrl-C or SIGTERM ends the server; \
the containers of its sessions go on and are found again by the next start.";

/// Options of `raworc serve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Serve {
    #[command(flatten)]
    options: ServeOptions,
}

/// Runs the server until a signal.
pub async fn run(context: &Context, args: &Serve) -> Result<()> {
    let data_dir = context.global.data_dir()?;
    let settings = Settings::load(&data_dir, &args.options)?;
    start_logging(&settings.log, settings.log_format)?;
    let running = Box::pin(serve::start(&settings)).await?;
    // Before anyone can see the server and stop it.
    let mut signals = Signals::catch()?;
    if context.ui.is_json() {
        context.ui.json_line(&json!({ "url": running.url, "data_dir": data_dir }))?;
    } else {
        let token = data_dir.join(TOKEN_FILE);
        context.ui.line(&format!("Raworc {} listens at {}", env!("CARGO_PKG_VERSION"), clean(&running.url)))?;
        context.ui.line(&format!("The administrator's token is in {}", clean(&token.display().to_string())))?;
    }
    signals.next().await;
    // Containers keep running; the next server adopts them.
    Ok(Box::pin(running.shutdown()).await?)
}

/// Starts logging to standard error.
pub fn start_logging(filter: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("{filter:?} is not a log filter: {error}"))
            .help("Write error, warn, info, debug or trace, also for single parts: info,raworc_server=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    installed.map_err(|error| Failure::failed(format!("the log could not be started: {error}")))
}
