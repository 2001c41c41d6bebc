//! Runs commands with attached streams.

use std::io::{self, Write as _};

use raworc_api::client::{ClientError, Received, Sender};
use raworc_api::terminal::{CHANNEL_STDERR, CHANNEL_STDIN, CHANNEL_STDOUT, ClientFrame, Notice};
use raworc_api::workspace::Exec;
use raworc_core::limits::START_BYTES_MAX;
use tokio::time::timeout;

use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::output::Style;
use crate::terminal::{QUIET_MAX, standard_input};

/// Size of the frame that starts a command, without the command, in bytes.
const FRAME_BYTES: usize = 64;

/// Runs a command until it ends and exits with its status. `feeds`: send it standard input.
pub async fn run(context: &Context, session: &str, body: Exec, feeds: bool) -> Result<()> {
    if serde_json::to_vec(&body).is_ok_and(|bytes| bytes.len() > START_BYTES_MAX - FRAME_BYTES) {
        return Err(Failure::usage("the command is too long")
            .help("Put it into a file of the session with `raworc session files put`, and run that."));
    }
    let (sender, mut receiver) = context.client()?.open_exec(session, body).await?;
    // A separate task: the command may read input while its output is blocked, and vice versa.
    let feeding = tokio::spawn(feed(sender, feeds));
    let status = loop {
        let received = timeout(QUIET_MAX, receiver.next()).await.unwrap_or(Some(Received::Closed(None)));
        match received {
            Some(Received::Bytes(bytes)) => write(context, &bytes)?,
            Some(Received::Notice(notice)) => {
                if let Some(problem) = notice.problem {
                    return Err(ClientError::Problem(Box::new(problem)).into());
                }
                if let Some(code) = notice.exit_code {
                    show_notice(context, &notice);
                    break u8::try_from(code).unwrap_or(EXIT_FAILED);
                }
            }
            Some(Received::Closed(_)) => {
                return Err(Failure::failed("the connection to the command was lost")
                    .help("The command is ended with it. See the session's state: raworc session get SESSION"));
            }
            None => {}
        }
    };
    feeding.abort();
    if status == 0 { Ok(()) } else { Err(Failure::Status(status)) }
}

/// Sends standard input while the command accepts it.
async fn feed(mut sender: Sender, feeds: bool) {
    if feeds {
        let mut input = standard_input(&[CHANNEL_STDIN]);
        while let Some(bytes) = input.recv().await {
            if !sender.bytes(bytes).await {
                return;
            }
        }
    }
    sender.frame(&ClientFrame::EndOfInput {}).await;
    // Keeps answering pings.
    std::future::pending::<()>().await;
}

fn write(context: &Context, bytes: &[u8]) -> Result<()> {
    match bytes.split_first() {
        Some((&CHANNEL_STDOUT, bytes)) => context.ui.out(bytes),
        Some((&CHANNEL_STDERR, bytes)) => {
            // It is no error if nobody reads standard error.
            let _ = io::stderr().lock().write_all(bytes);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn show_notice(context: &Context, notice: &Notice) {
    let signal = notice.signal.map(|signal| format!("signal {signal} ended it"));
    if let Some(why) = notice.reason.clone().or(signal) {
        let why = crate::text::clean_lines(&why);
        context.ui.error(format!("{}\n", context.ui.paint_error(Style::Bad, &why)));
    }
}
