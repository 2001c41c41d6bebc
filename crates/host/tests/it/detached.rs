//! Processes that detach from their work in every way: they end with it, and no others do.

use std::fs::File;
use std::io::Read;

use raworc_core::link::{Ending, ServerFrame, WorkId};

use crate::server::{Connection, Server, exec, message};

/// Ways to detach. Each runs a process `$hold`, which reports that it runs and never ends by itself.
const WAYS: [&str; 12] = [
    "setsid bash -c \"$hold\" &",
    "nohup bash -c \"$hold\" >/dev/null 2>&1 &",
    "bash -c \"$hold\" & disown",
    "(setsid bash -c \"$hold\" &)",
    "( (setsid bash -c \"$hold\" &) & ) &",
    "setsid -f bash -c \"$hold\"",
    "setsid -f setsid -f bash -c \"$hold\"",
    "setsid -f env -i PATH=$PATH bash -c \"$hold\"",
    "setsid -f bash -c \"exec -a other bash -c '$hold'\"",
    "setsid -f bash -c \"(setsid -f bash -c '$hold')\" </dev/null >/dev/null 2>&1",
    "setsid -f bash -c \"kill -STOP \\$\\$; $hold\" & bash -c \"$hold\" &",
    "perl -MPOSIX -e 'fork and exit; setsid; fork and exit; exec q(bash), q(-c), $ENV{hold}'",
];

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: only a host that is root tells whose process is whose");
    }
    is_root
}

/// A script that starts a detached process of each kind, then runs `last`. Each has the pipe `held` open for writing.
fn script(held: &str, last: &str) -> String {
    let there = format!("{held}.there");
    let mut script =
        format!("export hold=\"trap '' TERM; exec 9>{held}; echo >{there}; while :; do sleep 1000; done\"\n");
    for way in WAYS {
        script += way;
        script += "\n";
    }
    // Each says so once it is there.
    script +=
        &format!("exec 8<>{there}; for i in {}; do read -r x <&8; done; echo ready\n", ["1"; WAYS.len()].join(" "));
    script + last
}

fn pipes(server: &Server, name: &str) -> File {
    let held = server.fifo(name);
    server.fifo(&format!("{name}.there"));
    // Read and write, so that opening it does not wait; a handle that only reads comes from it.
    let both = File::options().read(true).write(true).open(&held).unwrap();
    let reader = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&both))).unwrap();
    drop(both);
    reader
}

/// Waits until no process has the pipe open for writing.
fn ended(mut held: File) {
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
}

/// Whether a process has the pipe open for writing.
fn is_held(held: &File) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut held = [PollFd::new(std::os::fd::AsFd::as_fd(held), PollFlags::POLLIN)];
    poll(&mut held, PollTimeout::ZERO).unwrap();
    !held[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

fn begin(server: &Server, connection: &mut Connection, id: WorkId, script: &str) {
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    connection.expect_output(id, "ready\n");
}

#[test]
fn a_cancel_reaches_every_process_however_it_left() {
    if !is_root() {
        return;
    }
    let (server, mut connection) = Server::ready();
    let held = pipes(&server, "held");
    begin(&server, &mut connection, message(1), &script("held", "trap '' TERM; while :; do sleep 1000; done"));
    assert!(is_held(&held));
    connection.send(&ServerFrame::Cancel(message(1)));
    assert_eq!(connection.outcome(message(1)).ending, Some(Ending::Cancelled));
    assert!(!is_held(&held), "it has ended when all of it has");
    ended(held);
    assert_eq!(connection.receive(), raworc_core::link::HostFrame::Poll);
    assert_eq!(connection.heartbeat(), 0);
}

#[test]
fn a_timeout_reaches_them_too_and_spares_what_is_not_its_own() {
    if !is_root() {
        return;
    }
    let (server, mut connection) = Server::ready();
    // What an earlier message has left running, which goes on forking, a command beside, and the message that is ended.
    let (earlier, beside, ours) = (pipes(&server, "earlier"), pipes(&server, "beside"), pipes(&server, "ours"));
    begin(
        &server,
        &mut connection,
        message(1),
        &script("earlier", "setsid -f sh -c 'while :; do setsid -f sleep 1; sleep 0.01; done'"),
    );
    assert_eq!(connection.outcome(message(1)).ending, Some(Ending::Exited(0)));
    assert_eq!(connection.receive(), raworc_core::link::HostFrame::Poll);
    let command = exec();
    begin(&server, &mut connection, command, &script("beside", "trap '' TERM; while :; do sleep 1000; done"));
    let mut work = server.shell(message(2), &script("ours", "while :; do sleep 1000; done"));
    work.timeout_seconds = Some(3);
    connection.send(&ServerFrame::Run(work));
    connection.expect_output(message(2), "ready\n");
    assert_eq!(connection.outcome(message(2)).ending, Some(Ending::TimedOut));
    ended(ours);
    assert!(is_held(&earlier) && is_held(&beside));
    assert_eq!(connection.receive(), raworc_core::link::HostFrame::Poll);
    // A command is ended as a message is.
    connection.send(&ServerFrame::Cancel(command));
    assert_eq!(connection.outcome(command).ending, Some(Ending::Cancelled));
    ended(beside);
    assert!(is_held(&earlier));
    assert!(connection.heartbeat() >= 12);
}

#[test]
fn stopped_processes_hear_that_they_are_to_end() {
    let (server, mut connection) = Server::ready();
    let child = "trap 'echo bye; exit' TERM; kill -STOP \\$\\$; sleep 1000";
    let script = format!("sh -c \"{child}\" & while ! grep -q ' T ' /proc/$!/stat; do :; done; echo ready; wait");
    begin(&server, &mut connection, message(1), &script);
    connection.send(&ServerFrame::Cancel(message(1)));
    let outcome = connection.outcome(message(1));
    assert_eq!((outcome.ending, outcome.stdout.as_str()), (Some(Ending::Cancelled), "bye\n"));
}

#[test]
fn whatever_ends_work_gives_it_the_same_grace() {
    for way in [ServerFrame::Cancel(message(1)), ServerFrame::Stop] {
        let (server, mut connection) = Server::ready();
        // Longer than half of what is promised, and shorter than that.
        let script = "trap 'sleep 1.4; echo tidied; exit' TERM; echo ready; while :; do sleep 0.01; done";
        begin(&server, &mut connection, message(1), script);
        connection.send(&way);
        let outcome = connection.outcome(message(1));
        assert_eq!((outcome.ending, outcome.stdout.as_str()), (Some(Ending::Cancelled), "tidied\n"), "{way:?}");
    }
}
