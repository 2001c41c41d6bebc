//! Broken connections, repeated frames, and invalid frames.

use std::fs;

use raworc_core::limits::FRAME_BYTES_MAX;
use raworc_core::link::{Ending, HostFrame, PROTOCOLS, Report, ServerFrame};

use crate::server::{Connection, Server, exec, message};

/// Accepts the host again and checks that it continues.
fn works_again(server: &Server) -> Connection {
    let mut connection = server.accept();
    assert_eq!(connection.hello(), []);
    connection.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
    assert_eq!(connection.receive(), HostFrame::Poll);
    connection
}

#[test]
fn what_is_not_stored_is_sent_again() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    let script = "echo 1; cat gate; echo 2 >&2; cat gate; echo 3; cat gate";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    let output = |connection: &mut Connection| match connection.report() {
        (n, Report::Output { text, .. }) => (n, text),
        other => panic!("{other:?}"),
    };
    assert_eq!(output(&mut connection), (1, "1\n".into()));
    fs::write(&gate, "").unwrap();
    assert_eq!(output(&mut connection), (2, "2\n".into()));
    // The server stored the first, and breaks before it stores the second.
    drop(connection);
    let mut connection = server.accept();
    assert_eq!(connection.hello(), [id]);
    // Meanwhile the script goes on.
    fs::write(&gate, "").unwrap();
    connection.send(&ServerFrame::Welcome { received: 1, protocol: *PROTOCOLS.end() });
    assert_eq!(output(&mut connection), (2, "2\n".into()));
    assert_eq!(output(&mut connection), (3, "3\n".into()));
    fs::write(&gate, "").unwrap();
    let finished = connection.report();
    assert!(matches!(finished, (4, Report::Finished { .. })));
    // It ended, but that is not stored yet: the host has to name it, and it is not run again.
    drop(connection);
    let mut connection = server.accept();
    assert_eq!(connection.hello(), [id]);
    connection.send(&ServerFrame::Welcome { received: 3, protocol: *PROTOCOLS.end() });
    assert_eq!(connection.report(), finished);
    assert_eq!(connection.receive(), HostFrame::Poll);
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    connection.send(&ServerFrame::Ack { n: 4 });
    let next = exec();
    let outcome = connection.run(server.shell(next, "echo next"));
    assert_eq!(outcome.stdout, "next\n");
    drop(connection);
    assert_eq!(server.accept().hello(), []);
}

#[test]
fn work_that_runs_is_not_run_again() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    let work = server.shell(id, "echo once; cat gate");
    connection.send(&ServerFrame::Run(work.clone()));
    connection.expect_output(id, "once\n");
    connection.send(&ServerFrame::Run(work));
    // Frames are handled in order: once this one has ended, the one before has been ignored.
    assert_eq!(connection.run(server.shell(exec(), "true")).stdout, "");
    fs::write(gate, "").unwrap();
    let outcome = connection.outcome(id);
    assert_eq!((outcome.stdout.as_str(), outcome.ending), ("", Some(Ending::Exited(0))));
    assert_eq!(connection.receive(), HostFrame::Poll);
}

#[test]
fn a_second_message_at_the_same_time_is_not_started() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "echo one; cat gate")));
    connection.expect_output(id, "one\n");
    let outcome = connection.run(server.shell(message(2), "echo two"));
    assert_eq!(outcome.ending, Some(Ending::NotStarted));
    fs::write(gate, "").unwrap();
    assert_eq!(connection.outcome(id).ending, Some(Ending::Exited(0)));
}

#[test]
fn a_frame_that_is_none_ends_the_connection() {
    let (server, mut connection) = Server::ready();
    connection.send_raw(b"{\"dance\":{}}\n");
    assert_eq!(connection.try_receive(), None);
    let mut connection = works_again(&server);
    connection.send_raw(b"\xff\xfe\n");
    assert_eq!(connection.try_receive(), None);
    let mut connection = works_again(&server);
    let outcome = connection.run(server.shell(exec(), "true"));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
}

#[test]
fn a_frame_without_an_end_ends_the_connection() {
    let (server, mut connection) = Server::ready();
    connection.send_raw(&vec![b' '; FRAME_BYTES_MAX]);
    connection.send(&ServerFrame::Ack { n: 0 });
    assert_eq!(connection.try_receive(), None);
    works_again(&server);
}

#[test]
fn a_large_frame_arrives() {
    let (server, mut connection) = Server::ready();
    let text = "\u{1}".repeat(1024 * 1024);
    let program = raworc_core::link::Program::Command { argv: vec!["wc".into(), "-c".into()], stdin: text };
    let outcome = connection.run(server.work(exec(), program));
    assert_eq!(outcome.stdout.trim(), "1048576");
}

#[test]
fn reports_wait_for_the_welcome() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "cat gate; echo said")));
    fs::write(gate, "").unwrap();
    let first = connection.report();
    drop(connection);
    let mut connection = server.accept();
    assert_eq!(connection.hello(), [id]);
    // The connection breaks again before anything was said; the host has heard nothing and keeps all it has.
    drop(connection);
    let mut connection = server.accept();
    assert_eq!(connection.hello(), [id]);
    connection.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
    assert_eq!(connection.report(), first);
}
