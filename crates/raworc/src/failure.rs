//! Failures of commands: message and exit status.

use std::borrow::Cow;

use miette::{GraphicalReportHandler, GraphicalTheme, MietteDiagnostic, ThemeCharacters, ThemeStyles};
use raworc_api::client::ClientError;
use raworc_api::problem::{Code, Problem};
use serde_json::{Value, json};

use crate::connect;
use crate::context::Context;
use crate::text::{clean, clean_lines};

/// The task failed.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the input is invalid.
pub const EXIT_USAGE: u8 = 2;
/// No server answers.
pub const EXIT_NO_SERVER: u8 = 3;

/// The task took too long, as in timeout(1).
pub const EXIT_TIMED_OUT: u8 = 124;
/// The task could not be run, as in shells.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The task was killed by a signal, whose number is added, as in shells.
pub const EXIT_SIGNALLED: i32 = 128;
/// The task was cancelled or its session ended, as shells report Ctrl-C.
pub const EXIT_CANCELLED: u8 = 130;

/// The result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// A call to the server failed.
    Client(ClientError),
    /// Another failure.
    Message {
        /// The exit status.
        status: u8,
        /// What happened.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// A report of another part of the program.
    Report(miette::Report),
    /// Everything is reported already; only the exit status is left.
    Status(u8),
    /// Nobody reads our output any more, which is no error.
    PipeClosed,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure::Client(error)
    }
}

impl From<miette::Report> for Failure {
    fn from(report: miette::Report) -> Self {
        Failure::Report(report)
    }
}

impl Failure {
    /// The task failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Failure::Message { status: EXIT_FAILED, message: message.into(), help: None }
    }

    /// The command line or the input is invalid.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::Message { status: EXIT_USAGE, message: message.into(), help: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(self, text: impl Into<String>) -> Self {
        match self {
            Failure::Message { status, message, .. } => Failure::Message { status, message, help: Some(text.into()) },
            other @ (Failure::Client(_) | Failure::Report(_) | Failure::Status(_) | Failure::PipeClosed) => other,
        }
    }

    /// The exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Client(ClientError::Problem(problem)) => exit_status_of(problem.code),
            Failure::Client(ClientError::Input(_)) => EXIT_USAGE,
            Failure::Client(ClientError::Unreachable { .. } | ClientError::Protocol(_)) => EXIT_NO_SERVER,
            Failure::Message { status, .. } | Failure::Status(status) => *status,
            Failure::Report(_) => EXIT_FAILED,
            Failure::PipeClosed => 0,
        }
    }

    /// Prints it to standard error.
    pub fn report(&self, context: &Context) {
        if let Failure::Report(report) = self {
            return context.ui.error(render(report.as_ref(), context.ui.error_colour()));
        }
        let Some(said) = self.diagnostic(context) else { return };
        if context.ui.is_json() {
            context.ui.error(format!("{}\n", self.document(&said)));
        } else {
            context.ui.error(render(&said, context.ui.error_colour()));
        }
    }

    fn diagnostic(&self, context: &Context) -> Option<MietteDiagnostic> {
        match self {
            Failure::Client(ClientError::Problem(problem)) => Some(of_problem(problem)),
            Failure::Client(error @ ClientError::Unreachable { .. }) => {
                Some(plain(error.to_string(), Some(connect::what_to_do(&context.global))))
            }
            Failure::Client(error @ ClientError::Protocol(_)) => {
                let help = "Is this the URL of a Raworc server of the same version? `raworc version` shows both.";
                Some(plain(error.to_string(), Some(help.into())))
            }
            Failure::Client(ClientError::Input(message)) => Some(plain(message.clone(), None)),
            Failure::Message { message, help, .. } => Some(plain(message.clone(), help.clone())),
            Failure::Report(_) | Failure::Status(_) | Failure::PipeClosed => None,
        }
    }

    /// The document for programs: the server's problem, or one of the same shape.
    fn document(&self, said: &MietteDiagnostic) -> Value {
        if let Failure::Client(ClientError::Problem(problem)) = self {
            return serde_json::to_value(problem).unwrap_or(Value::Null);
        }
        let code = match self.exit_status() {
            EXIT_NO_SERVER => "no_server",
            EXIT_USAGE => "usage",
            _ => "failed",
        };
        json!({ "title": said.message, "detail": said.help.clone().unwrap_or_default(), "code": code })
    }
}

fn plain(message: String, help: Option<String>) -> MietteDiagnostic {
    let said = MietteDiagnostic::new(clean_lines(&message));
    match help {
        Some(help) => said.with_help(clean_lines(&help)),
        None => said,
    }
}

fn of_problem(problem: &Problem) -> MietteDiagnostic {
    let mut message = clean(&problem.title);
    if problem.errors.is_empty() {
        message = format!("{message}: {}", clean_lines(&problem.detail));
    }
    for field in &problem.errors {
        let name: Cow<str> = if field.field == "." { "the whole".into() } else { clean(&field.field).into() };
        message.push_str(&format!("\n{name}: {}", clean_lines(&field.message)));
    }
    let page = format!("docs/errors/{}.md", problem.code.as_str());
    let help = match command_for(problem.code) {
        Some(command) => format!("{command} More in {page}"),
        None => format!("More in {page}"),
    };
    MietteDiagnostic::new(message).with_code(problem.code.as_str()).with_help(help)
}

/// Problems name API calls; this is the command to type.
fn command_for(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => {
            Some("Name a token with --token or RAWORC_TOKEN; an administrator makes one with `raworc token create`.")
        }
        Code::AmbiguousName => {
            Some("`raworc session list` shows the ids of sessions, `raworc model list` the full names of models.")
        }
        Code::SessionTerminated => Some("`raworc session restore` brings it back."),
        Code::SessionDeleted => Some("`raworc session restore` brings it back, while its files are there."),
        Code::SessionPaused => Some("`raworc session resume` lets it work again."),
        Code::SessionFailed => Some("`raworc session restart` gives it a new container."),
        Code::RegistryRefused => Some(
            "Say who you are with --username and --password-stdin (of push, and of checkpoint pull and image pull: what was \
             pulled can be named then), or give the server a file with --registry-auth, which members use with \
             --registry-auth-shared only.",
        ),
        Code::RegistryNotAllowed => {
            Some("An administrator lets members use it: `raworc serve --registry-allow HOST:PORT`.")
        }
        Code::RecordDamaged => {
            Some("`raworc health`, as an administrator, says which record, and what is wrong with it.")
        }
        Code::KeyFileUnusable => Some("`raworc health`, as an administrator, says what is wrong with it."),
        Code::AgentInUse => Some("`raworc session agents assign` gives a session other agents."),
        _ => None,
    }
}

/// 2 if the request is wrong, 1 if it cannot be done now, and others as documented.
fn exit_status_of(code: Code) -> u8 {
    match code {
        Code::InvalidInput
        | Code::InvalidBody
        | Code::InvalidRequest
        | Code::Unauthenticated
        | Code::Forbidden
        | Code::NotFound
        | Code::MethodNotAllowed
        | Code::NotAcceptable
        | Code::AmbiguousName
        | Code::NameTaken
        | Code::FileConflict
        | Code::TooLarge
        | Code::ImageUnusable
        | Code::RegistryRefused
        | Code::RegistryNotAllowed
        | Code::RegistryNotFound
        | Code::UnsupportedMediaType
        | Code::PartialUpload
        | Code::PreconditionUnsupported
        | Code::RangeNotSatisfiable
        | Code::IdempotencyKeyReused => EXIT_USAGE,
        Code::SessionTerminated
        | Code::RecordDamaged
        | Code::SessionDeleted
        | Code::SessionPaused
        | Code::SessionFailed
        | Code::InvalidState
        | Code::CheckpointFailed
        | Code::WorkspaceDamaged
        | Code::RegistryUnavailable
        | Code::DiskQuotaExceeded
        | Code::KeyFileUnusable
        | Code::AgentInUse
        | Code::Stale
        | Code::Busy
        | Code::Internal
        | Code::Unavailable
        | Code::DiskFull => EXIT_FAILED,
    }
}

fn render(said: &dyn miette::Diagnostic, colour: bool) -> String {
    let styles = if colour { ThemeStyles::ansi() } else { ThemeStyles::none() };
    let theme = GraphicalTheme { characters: ThemeCharacters::unicode(), styles };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(110);
    let mut text = String::new();
    match handler.render_report(&mut text, said) {
        Ok(()) => text,
        Err(_) => format!("{said}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_status() {
        let problem = |code| Failure::Client(ClientError::Problem(Box::new(Problem::new(code, "x"))));
        let unreachable = ClientError::Unreachable { url: "http://x".into(), reason: "refused".into() };
        for (failure, status) in [
            (problem(Code::NotFound), 2),
            (problem(Code::InvalidInput), 2),
            (problem(Code::SessionPaused), 1),
            (problem(Code::Internal), 1),
            (Failure::Client(unreachable), 3),
            (Failure::Client(ClientError::Protocol("odd".into())), 3),
            (Failure::Client(ClientError::Input("..".into())), 2),
            (Failure::failed("x"), 1),
            (Failure::usage("x"), 2),
            (Failure::Status(42), 42),
            (Failure::PipeClosed, 0),
        ] {
            assert_eq!(failure.exit_status(), status, "{failure:?}");
        }
    }

    #[test]
    fn a_problem_is_told_with_its_fields_and_its_page() {
        let problem = Problem::field("resources.memory", "must be at least 16Mi, is \u{1b}[31m1");
        let text = render(&of_problem(&problem), false);
        assert!(text.contains("invalid_input"), "{text}");
        assert!(text.contains("resources.memory: must be at least 16Mi"), "{text}");
        assert!(text.contains("docs/errors/invalid_input.md"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert_eq!(text.matches("at least").count(), 1, "{text}");
    }
}
