//! Terminals, and commands with attached streams.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use raworc_core::link::{
    Attach, Ending, FEATURE_ATTACH, HostFrame, Interactive, OutputStream, PROTOCOLS, Program, Report, ServerFrame,
    Size, Versions, WorkId,
};
use raworc_core::pieces::{Decoder, Ended, Piece};
use uuid::Uuid;

use crate::server::{Connection, Server, TOKEN, exec};

const SIZE: Size = Size { columns: 100, rows: 30 };

/// A client of a stream, seen from the server.
struct Client {
    stream: BufReader<UnixStream>,
    decoder: Decoder,
}

/// The output that a client received, and how it ended.
#[derive(Debug, Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: Option<Ended>,
    lagged: bool,
}

impl Client {
    fn send(&mut self, piece: &Piece) {
        let mut bytes = Vec::new();
        piece.encode(&mut bytes);
        self.stream.get_mut().write_all(&bytes).unwrap();
    }

    fn types(&mut self, text: &str) {
        self.send(&Piece::Input(text.into()));
    }

    /// The next piece; `None` at the end of the connection.
    fn piece(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.decoder.next_piece().unwrap() {
                return Some(piece);
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// Reads until the output contains this.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.piece() {
                Some(Piece::Output(_, bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("{other:?} before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    fn rest(mut self) -> Seen {
        let mut seen = Seen::default();
        while let Some(piece) = self.piece() {
            match piece {
                Piece::Output(OutputStream::Stdout, bytes) => seen.stdout.extend(bytes),
                Piece::Output(OutputStream::Stderr, bytes) => seen.stderr.extend(bytes),
                Piece::Ended(ended) => seen.ended = Some(ended),
                Piece::Lagged => seen.lagged = true,
                other => panic!("{other:?}"),
            }
        }
        seen
    }
}

fn start(server: &Server, program: Option<Program>, terminal: Option<Size>) -> Interactive {
    let directory = server.path("").to_str().unwrap().to_owned();
    let env = BTreeMap::from([("TERM".to_owned(), "xterm".to_owned()), ("PS1".to_owned(), "$ ".to_owned())]);
    Interactive { program, env, directory, timeout_seconds: None, terminal, linger_seconds: 60 }
}

fn shell(script: &str) -> Option<Program> {
    Some(Program::Shell { script: script.to_owned() })
}

fn attach(server: &Server, host: &mut Connection, work: Uuid, start: Option<Interactive>, watch: bool) -> Client {
    let attachment = Uuid::new_v4();
    host.send(&ServerFrame::Attach(Attach { attachment, work, start, watch, size: Some(SIZE) }));
    let mut stream = server.accept().into_reader();
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let first = serde_json::from_str::<HostFrame>(&line).unwrap();
    assert_eq!(first, HostFrame::Attached { versions: Versions::OURS, token: TOKEN.into(), attachment });
    stream.get_mut().write_all(b"{\"welcome\":{\"received\":0}}\n").unwrap();
    Client { stream, decoder: Decoder::default() }
}

/// Runs a script in a new terminal.
fn terminal(server: &Server, host: &mut Connection, script: &str) -> (Uuid, Client) {
    let WorkId::Exec(id) = exec() else { unreachable!() };
    let start = start(server, shell(script), Some(SIZE));
    (id, attach(server, host, id, Some(start), false))
}

/// Runs a script with pipes.
fn piped(server: &Server, host: &mut Connection, script: &str) -> (Uuid, Client) {
    let WorkId::Exec(id) = exec() else { unreachable!() };
    let start = start(server, shell(script), None);
    (id, attach(server, host, id, Some(start), false))
}

/// Waits for the report of its end.
fn finished(host: &mut Connection, id: Uuid) -> Ending {
    let (n, report) = host.report();
    host.send(&ServerFrame::Ack { n });
    match report {
        Report::Finished { work, ending, .. } if work == WorkId::Exec(id) => ending,
        other => panic!("{other:?}"),
    }
}

fn ended(ending: Ending) -> Option<Ended> {
    Some(Ended { ending, reason: None })
}

#[test]
fn a_host_says_that_it_can_attach() {
    let server = Server::start();
    let HostFrame::Hello { features, .. } = server.accept().receive() else { panic!("no hello") };
    assert_eq!(features, [FEATURE_ATTACH]);
}

#[test]
fn a_terminal_is_one_and_the_agents_own() {
    let (server, mut host) = Server::ready();
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM
                  stat -c %u $(tty) && echo through > /dev/tty && ps -o tpgid= -p $$ | grep -qx \" *$$\" && exit 7";
    let (id, client) = terminal(&server, &mut host, script);
    let seen = client.rest();
    let owner = if nix::unistd::geteuid().is_root() { "1000".to_owned() } else { nix::unistd::geteuid().to_string() };
    assert_eq!(String::from_utf8_lossy(&seen.stdout), format!("30 100\r\nxterm\r\n{owner}\r\nthrough\r\n"));
    assert_eq!(seen.ended, ended(Ending::Exited(7)));
    assert_eq!(finished(&mut host, id), Ending::Exited(7));
}

#[test]
fn keys_signal_jobs_are_controlled_and_sizes_change() {
    let (server, mut host) = Server::ready();
    let WorkId::Exec(id) = exec() else { unreachable!() };
    let start = start(&server, None, Some(SIZE));
    let mut client = attach(&server, &mut host, id, Some(start), false);
    client.types("trap 'printf win; echo ch' WINCH; echo rea''dy\r");
    client.until("ready\r\n");
    client.send(&Piece::Resize(Size { columns: 132, rows: 43 }));
    client.types("\r");
    client.until("winch\r\n");
    client.types("stty size\r");
    client.until("43 132");
    // What the job itself says tells that the terminal is the job's by then.
    client.types("sh -c \"echo go''ing; exec sleep 1000\"\r");
    client.until("going\r\n");
    client.types("\x03");
    client.types("echo aft''er\r");
    client.until("after\r\n");
    client.types("sh -c \"echo go''ing; exec sleep 1001\"\r");
    client.until("going\r\n");
    client.types("\x1a");
    client.until("Stopped");
    client.types("kill %1; fg; echo job-co''ntrol\r");
    client.until("job-control\r\n");
    client.types("exit 5\r");
    assert_eq!(client.rest().ended, ended(Ending::Exited(5)));
    assert_eq!(finished(&mut host, id), Ending::Exited(5));
}

#[test]
fn a_terminal_survives_its_connection_and_shows_again_what_it_showed() {
    let (server, mut host) = Server::ready();
    let (id, mut client) = terminal(&server, &mut host, "echo first; read line; echo got-$line; read line; exit 4");
    client.until("first");
    drop(client);
    let mut client = attach(&server, &mut host, id, None, false);
    client.until("first\r\n");
    client.types("x\r");
    client.until("got-x");
    // Another one sees it all from the beginning, and is not heard.
    let mut watcher = attach(&server, &mut host, id, None, true);
    watcher.until("got-x");
    watcher.types("ignored\r");
    client.types("y\r");
    let (seen, watched) = (client.rest(), watcher.rest());
    assert_eq!((seen.ended, watched.ended), (ended(Ending::Exited(4)), ended(Ending::Exited(4))));
    assert!(!String::from_utf8_lossy(&watched.stdout).contains("ignored"));
    assert_eq!(finished(&mut host, id), Ending::Exited(4));
    let late = attach(&server, &mut host, id, None, false).rest();
    assert_eq!(late.ended.map(|ended| ended.ending), Some(Ending::NotStarted), "it is no more");
}

#[test]
fn a_terminal_that_nobody_comes_back_to_is_hung_up() {
    let (server, mut host) = Server::ready();
    let WorkId::Exec(id) = exec() else { unreachable!() };
    // It waits without processes of its own, which a busy machine may be slow to start and to end.
    let script = shell("trap 'echo hung-up > hup; exit' HUP; mkfifo wait; exec 3<>wait; echo ready; read <&3");
    let start = Interactive { linger_seconds: 1, ..start(&server, script, Some(SIZE)) };
    let mut client = attach(&server, &mut host, id, Some(start), false);
    client.until("ready");
    drop(client);
    let left = Instant::now();
    assert_eq!(finished(&mut host, id), Ending::Cancelled);
    let told = std::fs::read_to_string(server.path("hup"));
    assert_eq!(told.ok().as_deref(), Some("hung-up\n"), "it ended {:?} after its client had left", left.elapsed());
}

#[test]
fn a_terminal_ends_with_its_program_whatever_holds_it() {
    let (server, mut host) = Server::ready();
    for (script, status) in [
        ("sleep 1000 & exit 3", 3),
        ("setsid sleep 1000 & exit 4", 4),
        ("trap '' HUP; sleep 1000 & exit 5", 5),
        ("exec 0<&- 1>&- 2>&-; sleep 0.2; exit 6", 6),
        ("(trap '' HUP; exec yes) & exit 7", 7),
    ] {
        let (id, client) = terminal(&server, &mut host, script);
        assert_eq!(client.rest().ended, ended(Ending::Exited(status)), "{script}");
        assert_eq!(finished(&mut host, id), Ending::Exited(status), "{script}");
    }
    // What it cannot hang up is killed when it is closed.
    let (id, mut client) = terminal(&server, &mut host, "trap '' HUP TERM; echo ready; while :; do sleep 1; done");
    client.until("ready");
    host.send(&ServerFrame::Cancel(WorkId::Exec(id)));
    assert_eq!(client.rest().ended, ended(Ending::Cancelled));
    assert_eq!(finished(&mut host, id), Ending::Cancelled);
}

#[test]
fn a_slow_watcher_holds_up_nobody() {
    let (server, mut host) = Server::ready();
    let script = "echo ready; read line; head -c 4000000 /dev/zero | tr '\\0' x; exit 9";
    let (id, mut client) = terminal(&server, &mut host, script);
    client.until("ready");
    let watcher = attach(&server, &mut host, id, None, true);
    client.types("\r");
    let seen = client.rest();
    assert_eq!(seen.stdout.iter().filter(|byte| **byte == b'x').count(), 4_000_000, "nothing of it is lost");
    assert_eq!(seen.ended, ended(Ending::Exited(9)));
    let watched = watcher.rest();
    assert!(watched.lagged && watched.stdout.len() < 4_000_000, "it is told that it was too slow");
    assert_eq!(finished(&mut host, id), Ending::Exited(9));
}

#[test]
fn a_program_waits_for_its_only_client() {
    let (server, mut host) = Server::ready();
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo end";
    let (terminal_id, slow) = terminal(&server, &mut host, script);
    let (piped_id, also_slow) = piped(&server, &mut host, script);
    // Meanwhile others are served: another command, work, and the heartbeat.
    let (id, client) = piped(&server, &mut host, "echo quick");
    assert_eq!(client.rest().stdout, b"quick\n");
    assert_eq!(finished(&mut host, id), Ending::Exited(0));
    let work = exec();
    assert_eq!(host.run(server.shell(work, "echo work")).stdout, "work\n");
    let count = |seen: &Seen| seen.stdout.iter().filter(|byte| **byte == b'x').count();
    let seen = slow.rest();
    assert_eq!((count(&seen), seen.ended.is_some()), (3_000_000, true));
    assert_eq!(finished(&mut host, terminal_id), Ending::Exited(0));
    let seen = also_slow.rest();
    assert_eq!((seen.stdout.len(), seen.ended.is_some()), (3_000_004, true));
    assert_eq!(finished(&mut host, piped_id), Ending::Exited(0));
}

#[test]
fn pipes_carry_any_bytes_both_ways() {
    let (server, mut host) = Server::ready();
    let (id, client) = piped(&server, &mut host, "cat; echo done >&2; exit 3");
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = client.stream.get_ref().try_clone().unwrap();
    let to_send = sent.clone();
    let feeding = std::thread::spawn(move || {
        for part in to_send.chunks(50_000) {
            let mut bytes = Vec::new();
            Piece::Input(part.to_vec()).encode(&mut bytes);
            writer.write_all(&bytes).unwrap();
        }
        let mut bytes = Vec::new();
        Piece::InputEnd.encode(&mut bytes);
        writer.write_all(&bytes).unwrap();
    });
    let seen = client.rest();
    feeding.join().unwrap();
    assert!(seen.stdout == sent, "{} bytes came back", seen.stdout.len());
    assert_eq!((seen.stderr, seen.ended), (b"done\n".to_vec(), ended(Ending::Exited(3))));
    assert_eq!(finished(&mut host, id), Ending::Exited(3));
}

#[test]
fn a_command_need_not_read_its_input_to_the_end() {
    let (server, mut host) = Server::ready();
    for script in ["head -c 1", "exec 0<&-; sleep 0.3; printf x"] {
        let (id, client) = piped(&server, &mut host, script);
        let mut writer = client.stream.get_ref().try_clone().unwrap();
        let feeding = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            Piece::Input(vec![b'x'; 50_000]).encode(&mut bytes);
            while writer.write_all(&bytes).is_ok() {}
        });
        let seen = client.rest();
        assert_eq!((seen.stdout, seen.ended), (b"x".to_vec(), ended(Ending::Exited(0))), "{script}");
        assert_eq!(finished(&mut host, id), Ending::Exited(0));
        feeding.join().unwrap();
    }
}

#[test]
fn a_command_ends_when_its_client_goes() {
    let (server, mut host) = Server::ready();
    let (id, mut client) = piped(&server, &mut host, "trap '' TERM; echo ready; sleep 1000 & wait; wait");
    client.until("ready");
    drop(client);
    assert_eq!(finished(&mut host, id), Ending::Cancelled);
}

#[test]
fn what_cannot_be_started_says_why() {
    let (server, mut host) = Server::ready();
    let WorkId::Exec(id) = exec() else { unreachable!() };
    let nothing = Some(Program::Command { argv: vec!["no-such-program".into()], stdin: String::new() });
    let client = attach(&server, &mut host, id, Some(start(&server, nothing.clone(), None)), false);
    let ended = client.rest().ended.unwrap();
    assert_eq!((ended.ending, ended.reason.as_deref()), (Ending::Exited(127), Some("no-such-program was not found")));
    assert_eq!(finished(&mut host, id), Ending::Exited(127));
    // A terminal shows it, as a shell would.
    let WorkId::Exec(id) = exec() else { unreachable!() };
    let seen = attach(&server, &mut host, id, Some(start(&server, nothing, Some(SIZE))), false).rest();
    assert!(String::from_utf8_lossy(&seen.stdout).contains("no-such-program was not found\r\n"), "{seen:?}");
    assert_eq!(seen.ended, self::ended(Ending::Exited(127)));
    assert_eq!(finished(&mut host, id), Ending::Exited(127));
}

#[test]
fn a_stream_is_named_to_a_new_server_and_ends_with_the_host() {
    let (mut server, mut host) = Server::ready();
    let (id, mut client) = terminal(&server, &mut host, "echo ready; sleep 1000");
    client.until("ready");
    drop(host);
    let mut host = server.accept();
    assert_eq!(host.hello(), [WorkId::Exec(id)]);
    host.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
    assert_eq!(host.receive(), HostFrame::Poll);
    host.send(&ServerFrame::Stop);
    assert_eq!(client.rest().ended, ended(Ending::Cancelled));
    assert_eq!(finished(&mut host, id), Ending::Cancelled);
    assert!(server.wait().success());
}
