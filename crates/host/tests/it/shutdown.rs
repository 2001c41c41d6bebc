//! Shutdown of a host.

use std::fs::File;
use std::io::Read;

use nix::sys::signal::Signal;
use raworc_core::link::{Ending, HostFrame, Report, ServerFrame};

use crate::server::{Connection, Server, message};

fn reads_the_cancelled_end(connection: &mut Connection) {
    let (n, report) = connection.report();
    let Report::Finished { ending, .. } = report else { panic!("{report:?}") };
    assert_eq!(ending, Ending::Cancelled);
    connection.send(&ServerFrame::Ack { n });
    assert_eq!(connection.try_receive(), None);
}

#[test]
fn an_idle_host_stops_at_once() {
    let (mut server, mut connection) = Server::ready();
    connection.send(&ServerFrame::Stop);
    assert_eq!(connection.try_receive(), None);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_stop_ends_work_and_says_so() {
    let (mut server, mut connection) = Server::ready();
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "echo ready; sleep 1000")));
    connection.expect_output(id, "ready\n");
    connection.send(&ServerFrame::Stop);
    reads_the_cancelled_end(&mut connection);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_signal_stops_as_a_frame_does() {
    let (mut server, mut connection) = Server::ready();
    let held = server.fifo("held");
    let id = message(1);
    // Neither it nor what it left running wants to.
    let script = "trap '' TERM; setsid sleep 1000 9>held & echo ready; sleep 1000; sleep 1000";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    let mut held = File::open(held).unwrap();
    connection.expect_output(id, "ready\n");
    server.signal(Signal::SIGTERM);
    reads_the_cancelled_end(&mut connection);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stop_without_a_server_is_a_stop() {
    let (mut server, mut connection) = Server::ready();
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "echo ready; sleep 1000")));
    connection.expect_output(id, "ready\n");
    drop(connection);
    let connection = server.accept();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    drop(connection);
}

#[test]
fn a_refused_host_ends_everything() {
    let (mut server, mut connection) = Server::ready();
    let held = server.fifo("held");
    let script = "sleep 1000 9>held";
    connection.send(&ServerFrame::Run(server.shell(message(1), script)));
    let mut held = File::open(held).unwrap();
    drop(connection);
    let mut connection = server.accept();
    assert_eq!(connection.hello(), [message(1)]);
    connection.send(&ServerFrame::Refused { code: "fenced".into() });
    assert_eq!(server.wait().code(), Some(3));
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stopping_host_takes_no_work() {
    let (mut server, mut connection) = Server::ready();
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "trap '' TERM; echo ready; sleep 1; sleep 1000")));
    connection.expect_output(id, "ready\n");
    connection.send(&ServerFrame::Stop);
    connection.send(&ServerFrame::Run(server.shell(message(2), "echo no")));
    reads_the_cancelled_end(&mut connection);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn heartbeats_come_by_themselves() {
    let (_server, mut connection) = Server::ready();
    assert_eq!([connection.heartbeat(), connection.heartbeat()], [0, 0]);
    connection.send(&ServerFrame::Stop);
    assert!(!matches!(connection.try_receive(), Some(HostFrame::Poll)));
}
