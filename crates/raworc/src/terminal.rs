//! Attaches this process's terminal to one in a session: raw while attached, restored afterwards.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use raworc_api::client::{Client, ClientError, Received, Receiver, Sender};
use raworc_api::problem::Code;
use raworc_api::terminal::{CLOSE_LOST, CLOSE_TOO_SLOW, ClientFrame, OpenTerminal};
use raworc_core::limits::DETACHED_MAX;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};

use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::text::clean_lines;

/// Bytes per read of standard input.
const READ_BYTES: usize = 32 * 1024;
/// Chunks of standard input that are queued.
const INPUT_PIECES: usize = 4;
/// Bytes of input that were not sent yet; above that, nothing more is read.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// How often a ping is sent.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long a server may be silent; it sends something every 15 seconds.
pub const QUIET_MAX: Duration = Duration::from_secs(45);
/// The first delay before reconnecting; it doubles with each failure.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest delay before reconnecting.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Resets modes that an interrupted program may have left: alternate screen, hidden cursor, mouse, colours.
const RESET: &str = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m";
/// Clears the screen before output is replayed.
const CLEAR_SCREEN: &str = "\x1b[2J\x1b[H";
const ESCAPES: &str = "\r\n~.  detach\r\n~~  type ~\r\n~?  this list\r\n";

/// Options of this side.
#[derive(Clone, Copy, Debug)]
pub struct AttachOptions {
    /// `~.` detaches.
    pub has_escape: bool,
}

/// How a connection ended.
enum AttachOutcome {
    /// The program in the terminal has exited.
    Exited { code: i32, reason: Option<String> },
    /// The user detached.
    Detached,
    /// The connection was lost.
    Lost,
    /// The server rejected the request.
    Refused(ClientError),
    /// A signal ends this process.
    Signalled(u8),
}

/// Reads standard input, with `prefix` before each chunk. The channel closes at its end. A thread reads, because the
/// read blocks; the process does not wait for it at exit.
pub fn standard_input(prefix: &'static [u8]) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_PIECES);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send([prefix, &buffer[..count]].concat()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// RawMode mode of a terminal; restored on drop.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        let failed = |error: rustix::io::Errno| Failure::failed(format!("the terminal cannot be used: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Opens a terminal and stays attached until its program ends.
pub async fn run(context: &Context, session: &str, query: OpenTerminal, local: AttachOptions) -> Result<()> {
    let client = context.client()?;
    let query = with_local_terminal(query);
    let mut catch = Signals::catch()?;
    let (sender, receiver) = client.open_terminal(session, &query).await?;
    let raw = RawMode::enter()?;
    let mut attachment = Attachment {
        client: &client,
        session,
        query,
        escape: Escape::new(local.has_escape),
        input: standard_input(&[]),
    };
    let outcome = attachment.run_until_end(sender, receiver, &mut catch).await;
    if !matches!(outcome, AttachOutcome::Exited { .. }) {
        show(RESET.as_bytes());
    }
    drop(raw);
    let id = attachment.query.terminal.unwrap_or_default();
    let again = format!("raworc session shell {session} --attach {id}");
    match outcome {
        AttachOutcome::Exited { code, reason } => {
            if let Some(reason) = reason {
                context.ui.note(&clean_lines(&reason));
            }
            match u8::try_from(code).unwrap_or(EXIT_FAILED) {
                0 => Ok(()),
                status => Err(Failure::Status(status)),
            }
        }
        AttachOutcome::Detached => {
            context.ui.note(&format!("\ndetached; within a minute, this attaches again:\n  {again}"));
            Ok(())
        }
        AttachOutcome::Lost => Err(Failure::failed("the connection to the terminal was lost").help(again)),
        AttachOutcome::Refused(error) => Err(error.into()),
        AttachOutcome::Signalled(status) => Err(Failure::Status(status)),
    }
}

/// Adds size and type of our terminal.
fn with_local_terminal(mut query: OpenTerminal) -> OpenTerminal {
    (query.columns, query.rows) = size().unzip();
    if query.terminal.is_none() {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        query.term = std::env::var("TERM")
            .ok()
            .filter(|term| !term.is_empty() && term.len() <= 64 && term != "dumb" && term.chars().all(is_name));
    }
    query
}

fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

fn show(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    // A failure is ignored: if our terminal is gone, a signal follows.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Signals during an attachment.
struct Signals {
    resized: Signal,
    ending: Ending,
}

/// Signals that end the command.
struct Ending {
    terminate: Signal,
    hang_up: Signal,
    interrupt: Signal,
}

impl Ending {
    /// Waits for a signal and returns its exit status.
    async fn recv(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 143,
            _ = self.hang_up.recv() => 129,
            _ = self.interrupt.recv() => 130,
        }
    }
}

impl Signals {
    fn catch() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|error| Failure::failed(format!("signals can't be caught: {error}")));
        Ok(Self {
            resized: catch(SignalKind::window_change())?,
            ending: Ending {
                terminate: catch(SignalKind::terminate())?,
                hang_up: catch(SignalKind::hangup())?,
                interrupt: catch(SignalKind::interrupt())?,
            },
        })
    }
}

struct Attachment<'a> {
    client: &'a Client,
    session: &'a str,
    query: OpenTerminal,
    escape: Escape,
    input: mpsc::Receiver<Vec<u8>>,
}

impl Attachment<'_> {
    async fn run_until_end(
        &mut self,
        mut sender: Sender,
        mut receiver: Receiver,
        signals: &mut Signals,
    ) -> AttachOutcome {
        loop {
            let Self { query, escape, input, .. } = self;
            let outcome = tokio::select! {
                outcome = receive_output(&mut receiver, &mut query.terminal) => outcome,
                outcome = send_input(&mut sender, input, escape, signals) => outcome,
            };
            if !matches!(outcome, AttachOutcome::Lost) || self.query.terminal.is_none() {
                return outcome;
            }
            show(b"\r\n[the connection is lost; it is being made again]\r\n");
            (sender, receiver) = match self.reconnect(signals).await {
                Ok(way) => way,
                Err(outcome) => return outcome,
            };
            show(RESET.as_bytes());
            show(CLEAR_SCREEN.as_bytes());
        }
    }

    /// Reconnects, as long as the terminal may still exist.
    async fn reconnect(&mut self, signals: &mut Signals) -> std::result::Result<(Sender, Receiver), AttachOutcome> {
        let (deadline, mut wait) = (Instant::now() + DETACHED_MAX, BACKOFF);
        let terminal = self.query.terminal.clone();
        self.query = with_local_terminal(OpenTerminal { terminal, watch: self.query.watch, ..OpenTerminal::default() });
        loop {
            let attached = tokio::select! {
                attached = self.client.open_terminal(self.session, &self.query) => attached,
                status = signals.ending.recv() => return Err(AttachOutcome::Signalled(status)),
            };
            match attached {
                Ok(way) => return Ok(way),
                Err(error) if !is_transient(&error) => return Err(AttachOutcome::Refused(error)),
                Err(_) if Instant::now() > deadline => return Err(AttachOutcome::Lost),
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }
}

fn is_transient(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Protocol(_) => true,
        ClientError::Problem(problem) => matches!(problem.code, Code::Busy | Code::Unavailable | Code::DiskFull),
        ClientError::Input(_) => false,
    }
}

/// Copies output from the session to our terminal.
async fn receive_output(receiver: &mut Receiver, terminal: &mut Option<String>) -> AttachOutcome {
    loop {
        let Ok(received) = timeout(QUIET_MAX, receiver.next()).await else { return AttachOutcome::Lost };
        match received {
            Some(Received::Bytes(bytes)) => show(&bytes),
            Some(Received::Notice(notice)) => {
                if let Some(problem) = notice.problem {
                    return AttachOutcome::Refused(ClientError::Problem(Box::new(problem)));
                }
                if let Some(code) = notice.exit_code {
                    return AttachOutcome::Exited { code, reason: notice.reason };
                }
                *terminal = notice.terminal.or(terminal.take());
            }
            Some(Received::Closed(Some((code, reason)))) if !matches!(code, 1001 | CLOSE_LOST | CLOSE_TOO_SLOW) => {
                return AttachOutcome::Refused(ClientError::Protocol(reason));
            }
            Some(Received::Closed(_)) => return AttachOutcome::Lost,
            None => {}
        }
    }
}

/// Copies input from our terminal to the session.
async fn send_input(
    sender: &mut Sender,
    input: &mut mpsc::Receiver<Vec<u8>>,
    escape: &mut Escape,
    signals: &mut Signals,
) -> AttachOutcome {
    let mut pings = interval(PING_INTERVAL);
    let mut typed = PendingInput { escape, has_more: true, waiting: Vec::new() };
    loop {
        let bytes = std::mem::take(&mut typed.waiting);
        let is_there = if bytes.is_empty() {
            tokio::select! {
                bytes = input.recv(), if typed.has_more => match typed.take(bytes) {
                    Some(outcome) => return outcome,
                    None => true,
                },
                _ = signals.resized.recv() => match size() {
                    Some((columns, rows)) => sender.frame(&ClientFrame::Resize { columns, rows }).await,
                    None => true,
                },
                code = signals.ending.recv() => return AttachOutcome::Signalled(code),
                _ = pings.tick() => sender.ping().await,
            }
        } else {
            // Sending blocks if the program does not read; the escape sequence must still work then.
            let mut sending = std::pin::pin!(sender.bytes(bytes));
            loop {
                tokio::select! {
                    is_sent = &mut sending => break is_sent,
                    bytes = input.recv(), if typed.has_more && typed.waiting.len() < WAITING_BYTES_MAX => {
                        if let Some(outcome) = typed.take(bytes) {
                            return outcome;
                        }
                    }
                    code = signals.ending.recv() => return AttachOutcome::Signalled(code),
                }
            }
        };
        if !is_there {
            return AttachOutcome::Lost;
        }
    }
}

/// Input that was not sent yet.
struct PendingInput<'e> {
    escape: &'e mut Escape,
    /// Standard input has not ended.
    has_more: bool,
    waiting: Vec<u8>,
}

impl PendingInput<'_> {
    /// Adds input, or records its end. Returns an outcome if the user asked for one.
    fn take(&mut self, bytes: Option<Vec<u8>>) -> Option<AttachOutcome> {
        let Some(bytes) = bytes else {
            self.has_more = false;
            return None;
        };
        let (typed, action) = self.escape.typed(&bytes);
        self.waiting.extend(typed);
        match action {
            Some(EscapeAction::Detach) => return Some(AttachOutcome::Detached),
            Some(EscapeAction::Help) => show(ESCAPES.as_bytes()),
            None => {}
        }
        None
    }
}

/// What an escape sequence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EscapeAction {
    Detach,
    Help,
}

/// Recognizes `~.` at the beginning of a line, as ssh does.
struct Escape {
    is_on: bool,
    at_start: bool,
    has_tilde: bool,
}

impl Escape {
    fn new(is_on: bool) -> Self {
        Self { is_on, at_start: true, has_tilde: false }
    }

    /// Removes escape sequences from input.
    fn typed(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<EscapeAction>) {
        if !self.is_on {
            return (bytes.to_vec(), None);
        }
        let (mut typed, mut action) = (Vec::with_capacity(bytes.len() + 1), None);
        for &byte in bytes {
            if std::mem::take(&mut self.has_tilde) {
                self.at_start = matches!(byte, b'\r' | b'\n');
                match byte {
                    b'.' => return (typed, Some(EscapeAction::Detach)),
                    b'?' => {
                        action = Some(EscapeAction::Help);
                        self.at_start = true;
                    }
                    b'~' => typed.push(b'~'),
                    _ => typed.extend([b'~', byte]),
                }
            } else if byte == b'~' && self.at_start {
                self.has_tilde = true;
            } else {
                typed.push(byte);
                self.at_start = matches!(byte, b'\r' | b'\n');
            }
        }
        (typed, action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (typed, passed, action) in [
            (&b"ls\r"[..], &b"ls\r"[..], None),
            (b"~.", b"", Some(EscapeAction::Detach)),
            (b"ls\r~.rest", b"ls\r", Some(EscapeAction::Detach)),
            (b"a~.", b"a~.", None),
            (b"cd ~.\r", b"cd ~.\r", None),
            (b"~~", b"~", None),
            (b"\r~~.", b"\r~.", None),
            (b"~?~.", b"", Some(EscapeAction::Detach)),
            (b"~/x\r", b"~/x\r", None),
            (b"~", b"", None),
        ] {
            assert_eq!(Escape::new(true).typed(typed), (passed.to_vec(), action), "{typed:?}");
            // However the input is split.
            let mut escape = Escape::new(true);
            let (mut whole, mut last) = (Vec::new(), None);
            for byte in typed {
                let (passed, action) = escape.typed(&[*byte]);
                whole.extend(passed);
                last = last.or(action.filter(|action| *action == EscapeAction::Detach));
                if last.is_some() {
                    break;
                }
            }
            assert_eq!((whole, last), (passed.to_vec(), action), "{typed:?}");
        }
        assert_eq!(Escape::new(false).typed(b"~."), (b"~.".to_vec(), None));
    }
}
