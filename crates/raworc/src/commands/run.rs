//! `raworc run`: runs one task, with or without a server.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;

use clap::Args;
use raworc_api::client::{Client, ClientError};
use raworc_api::session::{CreateSession, Session};
use raworc_core::session::State;
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Duration, Instant, sleep};

use crate::commands::image;
use crate::commands::serve::start_logging;
use crate::commands::session::create::Resources;
use crate::config::{ServeOptions, Settings};
use crate::connect;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::follow_message::{self, Ended, Watched};
use crate::input;
use crate::serve::{self, Running};
use crate::signals::Signals;
use crate::text::clean;

const EXAMPLES: &str = "\
Examples:
  raworc run 'uname -a; df -h /workspace'
  cat build.sh | raworc run -
  raworc run --memory 2Gi --cpu 2 --image registry.example:5000/tools:3 'make test'
  raworc run --keep --name demo 'date > file; ls -l'
  raworc run --output json 'echo hello' | jq -r .reply.content

Needs no server: where none answers, it starts one in its own process, on the same data directory.

Standard output and standard error of the work appear as they come. The exit status is 0 when it is done, else the \
script's own, or 1 where it has none (a signal, a timeout); 2 and 3 are as for every command unless the script ended so \
itself, which is then said on standard error. Ctrl-C cancels the work and ends with 130; pressed again, it does not wait \
for the work to end.";

/// How long to wait for a server that another run is starting.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait for the deletion of a session.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
const REMOVAL_INTERVAL: Duration = Duration::from_millis(20);
/// A server inside this process may use any port.
const ANY_PORT: &str = "127.0.0.1:0";

/// Options of `raworc run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Run {
    /// The task; for the shell agent, a script. '-' reads it from standard input.
    prompt: String,
    /// The agent that gets the task.
    #[arg(long, value_name = "AGENT", default_value = "shell")]
    agent: String,
    /// Keep the session and its workspace; otherwise they are deleted at the end.
    #[arg(long)]
    keep: bool,
    /// The session's name [default: generated].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The image for its container: one on this server, or REGISTRY/REPOSITORY:TAG to pull [default: the agent's, or
    /// the programs of the server's machine].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    resources: Resources,
}

/// Runs the task and exits with its status.
pub async fn run(context: &Context, args: Run) -> Result<()> {
    let prompt = input::prompt(&args.prompt)?;
    let mut signals = Signals::catch()?;
    // Until it is released, no other run stops the server that we use.
    let use_of_server = SharedServerGuard::begin(context).await?;
    let (client, own) = find_or_start(context).await?;
    let result = Box::pin(work(context, &client, &args, prompt, &mut signals, own.is_some())).await;
    if let Some(running) = own {
        use_of_server.until_alone(context).await?;
        Box::pin(running.shutdown()).await?;
    }
    result
}

/// A client for a running server, or for one started in this process.
async fn find_or_start(context: &Context) -> Result<(Client, Option<Running>)> {
    if let Some(client) = answering(context).await? {
        return Ok((client, None));
    }
    let settings = settings(context)?;
    start_logging(&settings.log, settings.log_format)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match Box::pin(serve::start(&settings)).await.map_err(Failure::from) {
            Ok(running) => return Ok((Client::new(&running.url, &running.token)?, Some(running))),
            // Another run is starting its server; it will answer soon.
            Err(Failure::Report(report)) if serve::is_in_use(&report) && Instant::now() < deadline => {
                sleep(REMOVAL_INTERVAL).await;
            }
            Err(failure) => return Err(failure),
        }
        if let Some(client) = answering(context).await? {
            return Ok((client, None));
        }
    }
}

/// Held while a run uses a data directory's server. Concurrent runs share one server, and the run that started it
/// must not stop it while others use it.
struct SharedServerGuard {
    file: Option<File>,
}

impl SharedServerGuard {
    async fn begin(context: &Context) -> Result<Self> {
        if context.global.url.as_ref().is_some_and(|url| !url.is_empty()) {
            return Ok(Self { file: None });
        }
        let data_dir = context.global.data_dir()?;
        serve::prepare(&data_dir)?;
        let path = data_dir.join("runs.lock");
        // Private, because anyone who can lock the file can block every run.
        let opened = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| Failure::usage(format!("{} can't be used: {error}", path.display())))?;
        lock(&file, FlockOperation::LockShared).await?;
        Ok(Self { file: Some(file) })
    }

    /// Waits for other runs that use this process's server.
    async fn until_alone(self, context: &Context) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        context.ui.note("other runs still use this one's server; waiting for them");
        lock(&file, FlockOperation::LockExclusive).await
    }
}

async fn lock(file: &File, operation: FlockOperation) -> Result<()> {
    let failed = |error: std::io::Error| Failure::failed(format!("the lock of the runs can't be taken: {error}"));
    let file = file.try_clone().map_err(failed)?;
    let locked = tokio::task::spawn_blocking(move || flock(&file, operation)).await;
    locked.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))
}

/// A client for a running server. If one is given explicitly, it must answer.
async fn answering(context: &Context) -> Result<Option<Client>> {
    let Some(target) = connect::find_here(&context.global)? else { return Ok(None) };
    let is_named = context.global.url.as_ref().is_some_and(|url| !url.is_empty());
    match target.anonymous()?.version().await {
        Ok(_) => target.client().map(Some),
        // The URL file is left over from a server that is gone.
        Err(ClientError::Unreachable { .. } | ClientError::Protocol(_)) if !is_named => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The settings of a server in this process.
fn settings(context: &Context) -> Result<Settings> {
    let any = ANY_PORT.parse().map_err(|_| Failure::failed("no loopback address"))?;
    let given = ServeOptions::from_variables()?;
    // Errors only, because people want to see the task's output.
    let log = given.log.or_else(|| Some("warn".into()));
    // There is only one session, so spare containers are useless.
    let options = ServeOptions { listen: Some(any), log, spares: Some(0), ..given };
    Settings::load(&context.global.data_dir()?, &options)
}

async fn work(
    context: &Context,
    client: &Client,
    args: &Run,
    prompt: String,
    signals: &mut Signals,
    is_own_server: bool,
) -> Result<()> {
    let body = CreateSession {
        name: args.name.clone(),
        starting_prompt: Some(prompt),
        agent_ids: Some(vec![args.agent.clone()]),
        image: args.image.clone(),
        resources: args.resources.wanted(),
        ..CreateSession::default()
    };
    if let Some(image) = &body.image {
        tokio::select! {
            pulled = image::ensure(context, client, image) => pulled?,
            status = signals.next() => return Err(Failure::Status(status)),
        }
    }
    let session = client.create_session(&body).await?;
    let watched = Watched { session: session.id, message: None, after: 0, deadline: None };
    let ended = follow_message::watch(context, client, watched, signals).await;
    let result = match ended {
        Ok(Ended::Message(message)) => follow_message::conclude(context.ui, &message),
        Ok(Ended::Interrupted(status)) => Err(Failure::Status(status)),
        Ok(Ended::Late) => Err(Failure::failed("the work has not ended in time")),
        Err(failure) => Err(failure),
    };
    if args.keep {
        let name = clean(&session.name);
        context.ui.note(&format!("kept as session {name}: raworc session send {name} '…'"));
        return result;
    }
    // The task's result matters more than a failed cleanup.
    let removed = remove(client, &session, is_own_server).await;
    result.and(removed)
}

async fn remove(client: &Client, session: &Session, wait: bool) -> Result<()> {
    let id = session.id.to_string();
    client.delete_session(&id).await?;
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    while wait && Instant::now() < deadline && !has_ended(client, &id).await? {
        sleep(REMOVAL_INTERVAL).await;
    }
    Ok(())
}

/// Whether a deleted session has ended; that continues after the answer.
async fn has_ended(client: &Client, id: &str) -> Result<bool> {
    match client.get_session(id).await {
        Ok(session) => Ok(matches!(session.state, State::Idle | State::Error)),
        Err(ClientError::Problem(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
