//! A minimal server for one host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raworc_core::ids::TurnId;
use raworc_core::link::{
    Ending, HostFrame, OutputStream, PROTOCOLS, Program, Report, ServerFrame, Versions, Work, WorkId,
};
use tempfile::TempDir;
use uuid::Uuid;

/// Timeout of every wait, so that a hanging test fails.
const PATIENCE: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "a-secret-token";

/// A host, and the socket that it connects to.
pub struct Server {
    directory: TempDir,
    listener: UnixListener,
    host: Child,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A host with a port for the gateway, which its programs' variables tell.
    pub fn with_gateway() -> Self {
        Self::start_with(&["127.0.0.1:0"])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // As root the host runs its agents as somebody else.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let socket = directory.path().join("host.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // Signals that are ignored around it, as under nohup(1), have their default action in programs all the same.
        let ignoring = "trap '' HUP QUIT USR1; exec \"$0\" \"$@\"";
        let mut host = Command::new("sh");
        let mut host = host
            .args(["-c", ignoring, env!("CARGO_BIN_EXE_raworc-host")])
            .arg(socket)
            .arg(directory.path().join("_"))
            .arg(directory.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(host.stdin.take().unwrap(), "{TOKEN}").unwrap();
        Self { directory, listener, host }
    }

    /// A host that was welcomed and has asked for work.
    pub fn ready() -> (Self, Connection) {
        let server = Self::start();
        let connection = server.welcome();
        (server, connection)
    }

    /// Accepts the host's connection, on which it then asks for work.
    pub fn welcome(&self) -> Connection {
        let mut connection = self.accept();
        assert_eq!(connection.hello(), []);
        connection.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
        assert_eq!(connection.receive(), HostFrame::Poll);
        connection
    }

    pub fn accept(&self) -> Connection {
        let mut listener = [PollFd::new(std::os::fd::AsFd::as_fd(&self.listener), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut listener, patience), Ok(1), "the host did not dial");
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream) }
    }

    /// A path in the work's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A named pipe in the work's directory, with which tests wait for scripts: opening it blocks until the other
    /// side opens it.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let everyone = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::unistd::mkfifo(&path, everyone).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        path
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.host.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.host.wait().unwrap()
    }

    pub fn work(&self, id: WorkId, program: Program) -> Work {
        Work {
            id,
            program,
            env: BTreeMap::new(),
            directory: self.directory.path().to_str().unwrap().into(),
            timeout_seconds: None,
            output_bytes_max: 1024 * 1024,
        }
    }

    pub fn shell(&self, id: WorkId, script: &str) -> Work {
        let script = script.into();
        self.work(id, Program::Shell { script })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends what it has started, within its grace.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let _ = self.host.wait();
    }
}

/// The result of one work.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub ending: Option<Ending>,
    pub dropped_bytes: u64,
    pub output_file: Option<String>,
    pub duration_micros: u64,
}

/// One connection from the host.
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    pub fn send(&mut self, frame: &ServerFrame) {
        let mut line = serde_json::to_string(frame).unwrap();
        line.push('\n');
        self.send_raw(line.as_bytes());
    }

    /// The socket, for data after the frames.
    pub fn into_reader(self) -> BufReader<UnixStream> {
        self.reader
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    pub fn receive_any(&mut self) -> Option<HostFrame> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            // A host that leaves without having read everything resets the connection.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next frame that is not a heartbeat.
    pub fn receive(&mut self) -> HostFrame {
        self.try_receive().expect("the host closed the connection")
    }

    pub fn try_receive(&mut self) -> Option<HostFrame> {
        loop {
            match self.receive_any() {
                Some(HostFrame::Heartbeat { .. }) => {}
                other => return other,
            }
        }
    }

    /// The number of background processes in the next heartbeat, which must be the next frame.
    pub fn heartbeat(&mut self) -> u32 {
        match self.receive_any() {
            Some(HostFrame::Heartbeat { background_processes }) => background_processes,
            other => panic!("{other:?}"),
        }
    }

    /// The works in the host's first frame.
    pub fn hello(&mut self) -> Vec<WorkId> {
        match self.receive() {
            HostFrame::Hello { versions, token, works, .. } => {
                assert_eq!((versions, token.as_str()), (Versions::OURS, TOKEN));
                works
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn report(&mut self) -> (u64, Report) {
        match self.receive() {
            HostFrame::Report { n, report } => (n, report),
            other => panic!("{other:?}"),
        }
    }

    /// Acknowledges the next report, which must be output with this text.
    pub fn expect_output(&mut self, id: WorkId, expected: &str) {
        let (n, report) = self.report();
        let Report::Output { work, text, .. } = report else { panic!("{report:?}") };
        assert_eq!((work, text.as_str()), (id, expected));
        self.send(&ServerFrame::Ack { n });
    }

    /// Collects and acknowledges reports until this work, the only one that reports, has finished.
    pub fn outcome(&mut self, id: WorkId) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (n, report) = self.report();
            self.send(&ServerFrame::Ack { n });
            match report {
                Report::Output { work, stream, text } => {
                    assert_eq!(work, id);
                    assert!(text.len() <= raworc_core::limits::OUTPUT_CHUNK_BYTES_MAX);
                    match stream {
                        OutputStream::Stdout => outcome.stdout += &text,
                        OutputStream::Stderr => outcome.stderr += &text,
                    }
                }
                Report::Finished { work, ending, duration_micros, dropped_bytes, output_file } => {
                    outcome.output_file = output_file;
                    assert_eq!(work, id);
                    outcome.ending = Some(ending);
                    outcome.duration_micros = duration_micros;
                    outcome.dropped_bytes = dropped_bytes;
                    return outcome;
                }
            }
        }
    }

    /// Runs work to its end.
    pub fn run(&mut self, work: Work) -> Outcome {
        let id = work.id;
        self.send(&ServerFrame::Run(work));
        self.outcome(id)
    }
}

pub fn message(number: u128) -> WorkId {
    WorkId::Turn(TurnId(Uuid::from_u128(number)))
}

/// An exec with a unique id, because files in `/tmp` are named after it.
pub fn exec() -> WorkId {
    WorkId::Exec(Uuid::new_v4())
}
