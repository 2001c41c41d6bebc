//! `raworc session send`.

use clap::Args;
use raworc_api::message::{SendMessage, WaitQuery};
use serde_json::{Map, Value};
use tokio::time::{Duration, Instant};

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::follow_message::{self, Ended, Watched};
use crate::input;
use crate::signals::Signals;
use crate::text::{clean, span};

const EXAMPLES: &str = "\
Examples:
  raworc session send demo 'make test'
  raworc session send demo - < script.sh
  raworc session send demo 'sleep 60' --no-wait
  raworc session send demo 'make' --wait 10m --output json

Ends as `raworc run` and `session exec` do: 0 when it is done, else with the script's own exit status; 128 and the signal's \
number where a signal ended it; 124 where it took too long; 130 where it was cancelled; 1 where it failed otherwise. \
Ctrl-C cancels the work and ends with 130; a message that still waits for its turn stays in the queue.";

/// Options of `raworc session send`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Send {
    /// The session's id or name.
    session: String,
    /// The message; for the shell agent, a script. '-' reads it from standard input.
    text: String,
    /// The agent that answers [default: the session's first].
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Your own data, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = input::object)]
    metadata: Option<Map<String, Value>>,
    /// A key that makes repeating the command safe: the message is sent only once.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait at most this long, such as 90 or 10m; exits with 1 if it takes longer [default: no limit].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    wait: Option<u64>,
    /// Return as soon as it is queued.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

/// Sends a message and follows it.
pub async fn run(context: &Context, args: Send) -> Result<()> {
    let content = input::prompt(&args.text)?;
    let client = context.client()?;
    let body = SendMessage { content, agent: args.agent, metadata: args.metadata };
    let key = args.idempotency_key.as_deref();
    let sent = client.send_message(&args.session, &body, key, WaitQuery::default()).await?;
    let (id, name) = (sent.message.id, clean(&args.session));
    if args.no_wait {
        return context.ui.show(&sent, |_| format!("Queued message {id}"));
    }
    let session = client.get_session(&sent.message.session_id.to_string()).await?;
    if session.paused_at.is_some() {
        context.ui.note(&format!("the session is paused: the message waits for `raworc session resume {name}`"));
    }
    let mut signals = Signals::catch()?;
    let watched = Watched {
        session: sent.message.session_id,
        message: Some(id),
        after: sent.message.seq,
        deadline: args.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
    };
    match follow_message::watch(context, &client, watched, &mut signals).await? {
        Ended::Message(ended) => follow_message::conclude(context.ui, &ended),
        Ended::Interrupted(status) => Err(Failure::Status(status)),
        Ended::Late => {
            let waited = span(args.wait.unwrap_or_default() as f64);
            Err(Failure::failed(format!("the message has not ended within {waited}; it goes on")).help(format!(
                "Watch it with `raworc session follow {name}`, stop it with `raworc session cancel {name}`."
            )))
        }
    }
}
