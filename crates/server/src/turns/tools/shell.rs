//! Tools that run a program in the container.

use std::time::Duration;

use raworc_core::ids::ContainerId;
use raworc_core::link::{Ending, OutputStream, Program, Report, TURN_KEY_PREFIX, WORKSPACE_PATH, Work, WorkId};
use raworc_core::turn::ToolUse;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Bench, Input, OUTPUT_BYTES_MAX, ToolError, ToolResult};
use crate::app::Shared;
use crate::link::hosts::ExecRejection;
use crate::verbs::exec;

/// Ends a script that names no timeout.
const TIMEOUT_SECONDS_DEFAULT: u64 = 120;
/// Longest timeout of a script.
const TIMEOUT_SECONDS_MAX: u64 = 3600;
/// Ends a search.
const SEARCH_TIMEOUT_SECONDS: u64 = 60;
/// Beyond its timeout, what a host gets to report the end.
const REPORT_GRACE: Duration = Duration::from_secs(10);

/// Runs a script.
pub(super) async fn bash(bench: &Bench<'_>, call: &ToolUse, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let script = input.text("command")?.to_owned();
    if script.contains('\0') {
        return Err(ToolError::Input("a script has no NUL characters".into()));
    }
    let timeout = input.optional_number("timeout_seconds")?.unwrap_or(TIMEOUT_SECONDS_DEFAULT).min(TIMEOUT_SECONDS_MAX);
    let ran = run(bench, call.id, Program::Shell { script }, timeout).await?;
    Ok(ran.map_or_else(ToolResult::lost, |ran| ran.result(timeout)))
}

/// Searches files.
pub(super) async fn search(bench: &Bench<'_>, call: &ToolUse, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let (pattern, path) = (input.text("pattern")?, input.optional_text("path")?.unwrap_or("."));
    if pattern.contains('\0') || path.contains('\0') {
        return Err(ToolError::Input("neither pattern nor path has NUL characters".into()));
    }
    let argv = ["grep", "-rnE", "-e", pattern, "--", path].map(str::to_owned).to_vec();
    let ran = run(bench, call.id, Program::Command { argv, stdin: String::new() }, SEARCH_TIMEOUT_SECONDS).await?;
    Ok(match ran {
        None => ToolResult::lost(),
        Some(Ran { ending: Ending::Exited(1), output, .. }) if output.is_empty() => ToolResult::done("no line matches"),
        Some(ran) => ran.result(SEARCH_TIMEOUT_SECONDS),
    })
}

/// What became of a program.
struct Ran {
    ending: Ending,
    /// Both of its streams, in the order in which they came.
    output: String,
    output_file: Option<String>,
}

impl Ran {
    fn result(self, timeout_seconds: u64) -> ToolResult {
        let Self { ending, mut output, output_file } = self;
        if let Some(file) = output_file {
            output.push_str(&format!("\n[the whole output is in {file}]"));
        }
        let end = match ending {
            Ending::Exited(0) if output.is_empty() => return ToolResult::done("[no output; exit status 0]"),
            Ending::Exited(0) => return ToolResult::done(output),
            Ending::Exited(code) => format!("[exit status {code}]"),
            Ending::Signalled(9) => "[killed by signal 9, often for the memory limit]".to_owned(),
            Ending::Signalled(signal) => format!("[ended by signal {signal}]"),
            Ending::TimedOut => format!("[ended after {timeout_seconds} seconds, its timeout_seconds]"),
            Ending::Cancelled => "[cancelled]".to_owned(),
            Ending::NotStarted => "[it could not be started]".to_owned(),
        };
        if !output.is_empty() && !output.ends_with('\n') {
            output.push('\n');
        }
        output.push_str(&end);
        ToolResult::failed(output)
    }
}

/// A program that runs. Dropped before its end, it is ended.
struct ProgramGuard<'a> {
    app: &'a Shared,
    container: ContainerId,
    id: Uuid,
    is_finished: bool,
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        self.app.hosts.end_exec(self.container, self.id, !self.is_finished);
    }
}

/// Runs a program to its end; none where nobody saw it.
async fn run(bench: &Bench<'_>, id: Uuid, program: Program, timeout: u64) -> Result<Option<Ran>, ToolError> {
    let Bench { app, turn, session, .. } = bench;
    // What runs in it speaks for the turn. (A session's own variables prevail.)
    let key = format!("{TURN_KEY_PREFIX}{}", turn.running.turn);
    let keys = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"];
    let mut env: std::collections::BTreeMap<String, String> = keys.map(|name| (name.to_owned(), key.clone())).into();
    env.extend(exec::environment(session, bench.env.clone()));
    env.insert("RAWORC_MESSAGE_ID".into(), turn.running.message.to_string());
    let work = Work {
        id: WorkId::Exec(id),
        program,
        env,
        directory: WORKSPACE_PATH.to_owned(),
        timeout_seconds: Some(timeout),
        output_bytes_max: OUTPUT_BYTES_MAX,
    };
    let container = turn.container;
    let reports = exec::when_ready(app, session.id, |current| match current == container {
        true => app.hosts.run_exec(container, id, work.clone()),
        false => Err(ExecRejection::Replaced),
    })
    .await?;
    let mut guard = ProgramGuard { app, container, id, is_finished: false };
    let mut ran = Box::pin(tokio::time::timeout(Duration::from_secs(timeout) + REPORT_GRACE, collect(reports)));
    let ran = tokio::select! {
        ran = &mut ran => ran.unwrap_or(None),
        () = bench.cancelled.cancelled() => {
            app.hosts.cancel_exec(container, id);
            tokio::time::timeout(REPORT_GRACE, ran).await.ok().and_then(|ran| ran.unwrap_or(None))
        }
    };
    guard.is_finished = ran.is_some();
    Ok(ran)
}

async fn collect(mut reports: mpsc::Receiver<Report>) -> Option<Ran> {
    let mut output = String::new();
    while let Some(report) = reports.recv().await {
        match report {
            Report::Output { stream: OutputStream::Stdout | OutputStream::Stderr, text, .. } => output.push_str(&text),
            Report::Finished { ending, output_file, .. } => return Some(Ran { ending, output, output_file }),
        }
    }
    None
}
