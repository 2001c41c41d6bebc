//! How work ends, and how that is reported.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use raworc_core::link::{Ending, HostFrame, Program, ServerFrame};

use crate::server::{Server, exec, message};

#[test]
fn the_exit_status_is_told() {
    let (server, mut connection) = Server::ready();
    for (script, ending) in [
        ("true", Ending::Exited(0)),
        ("exit 7", Ending::Exited(7)),
        ("exit 255", Ending::Exited(255)),
        ("no-such-program-anywhere", Ending::Exited(127)),
        ("kill -TERM $$", Ending::Signalled(15)),
        ("kill -KILL $$", Ending::Signalled(9)),
        // A real-time signal: those have no names.
        ("kill -40 $$", Ending::Signalled(40)),
    ] {
        let outcome = connection.run(server.shell(exec(), script));
        assert_eq!(outcome.ending, Some(ending), "{script}");
    }
}

#[test]
fn what_cannot_be_started_says_why() {
    let (server, mut connection) = Server::ready();
    let command = |argv: Vec<String>| Program::Command { argv, stdin: String::new() };
    let missing = server.work(message(1), command(vec!["/no/such/program".into()]));
    let outcome = connection.run(missing);
    assert_eq!(outcome.ending, Some(Ending::Exited(127)));
    assert!(outcome.stderr.contains("/no/such/program was not found"), "{}", outcome.stderr);
    assert_eq!(connection.receive(), HostFrame::Poll);

    fs::write(server.path("plain"), "x").unwrap();
    fs::write(server.path("orphan"), "#!/no/such/interpreter\n").unwrap();
    let make = "mkdir -p directory closed; chmod 0 closed";
    fs::set_permissions(server.path("orphan"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(connection.run(server.shell(exec(), make)).ending, Some(Ending::Exited(0)));
    for (name, code, why) in [
        ("no-such-program", 127, "no-such-program was not found"),
        ("./missing", 127, "was not found"),
        ("./plain", 126, "ermission denied"),
        ("./directory", 126, "ermission denied"),
        (server.path("orphan").to_str().unwrap(), 127, "what it needs to run is not there"),
    ] {
        let outcome = connection.run(server.work(exec(), command(vec![name.into(), "-x".into()])));
        assert_eq!(outcome.ending, Some(Ending::Exited(code)), "{name}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(why), "{name}: {}", outcome.stderr);
    }
    let outcome = connection.run(server.shell(exec(), "#!/no/such/interpreter -x\necho no"));
    assert_eq!(outcome.ending, Some(Ending::Exited(127)));
    assert!(outcome.stderr.contains("/no/such/interpreter was not found"), "{}", outcome.stderr);

    let outcome = connection.run(server.work(exec(), command(Vec::new())));
    assert_eq!(outcome.ending, Some(Ending::NotStarted));
    assert!(outcome.stderr.contains("empty"), "{}", outcome.stderr);

    for directory in ["/no/such/directory", "/etc/passwd", server.path("closed").to_str().unwrap()] {
        let mut nowhere = server.shell(exec(), "true");
        nowhere.directory = directory.into();
        let outcome = connection.run(nowhere);
        assert_eq!(outcome.ending, Some(Ending::Exited(126)), "{directory}");
        let why = format!("the directory {directory} cannot be used: ");
        assert!(outcome.stderr.contains(&why), "{}", outcome.stderr);
    }

    let mut odd = server.shell(exec(), "true");
    odd.env.insert("A".into(), "with\0nul".into());
    assert_eq!(connection.run(odd).ending, Some(Ending::NotStarted));
    // And it still works.
    let outcome = connection.run(server.shell(exec(), "true"));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
}

#[test]
fn a_cancelled_script_ends_even_against_its_will() {
    let (server, mut connection) = Server::ready();
    let id = message(1);
    let script = "trap '' TERM; echo ready; while :; do sleep 1000; done";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    connection.expect_output(id, "ready\n");
    connection.send(&ServerFrame::Cancel(id));
    assert_eq!(connection.outcome(id).ending, Some(Ending::Cancelled));
    assert_eq!(connection.receive(), HostFrame::Poll);
}

#[test]
fn a_cancel_reaches_those_that_left_the_group() {
    let (server, mut connection) = Server::ready();
    let held = server.fifo("held");
    let id = message(1);
    // It holds the pipe open for as long as it lives, in a session of its own, and its parent ends at once.
    let script = "setsid sh -c 'trap \"\" TERM; exec 9>held; echo ready; exec sleep 1000' & wait";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    let mut held = File::open(held).unwrap();
    connection.expect_output(id, "ready\n");
    connection.send(&ServerFrame::Cancel(id));
    assert_eq!(connection.outcome(id).ending, Some(Ending::Cancelled));
    assert_eq!(held.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_cancelled_script_may_say_its_last_words() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    // The shell itself ends at once; what it started takes a moment. It forks nothing: a process that is just being
    // forked may miss the signal.
    let child = "trap 'read word < gate; echo $word; exit' TERM; echo ready; while :; do :; done";
    connection.send(&ServerFrame::Run(server.shell(id, &format!("sh -c \"{}\" & wait", child.replace('$', "\\$")))));
    connection.expect_output(id, "ready\n");
    connection.send(&ServerFrame::Cancel(id));
    fs::write(gate, "bye\n").unwrap();
    let outcome = connection.outcome(id);
    assert_eq!(outcome.ending, Some(Ending::Cancelled));
    assert_eq!(outcome.stdout, "bye\n");
}

#[test]
fn work_that_takes_too_long_is_ended() {
    let (server, mut connection) = Server::ready();
    let mut work = server.shell(exec(), "echo begun; sleep 1000");
    work.timeout_seconds = Some(1);
    let outcome = connection.run(work);
    assert_eq!(outcome.ending, Some(Ending::TimedOut));
    assert_eq!(outcome.stdout, "begun\n");
    assert!(outcome.duration_micros >= 1_000_000);
}

#[test]
fn a_cancel_of_unknown_work_is_nothing() {
    let (server, mut connection) = Server::ready();
    connection.send(&ServerFrame::Cancel(message(9)));
    let outcome = connection.run(server.shell(exec(), "true"));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
}

#[test]
fn an_exec_runs_beside_a_message() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    connection.send(&ServerFrame::Run(server.shell(id, "echo m; cat gate")));
    connection.expect_output(id, "m\n");
    assert_eq!(connection.run(server.shell(exec(), "echo hi")).stdout, "hi\n");
    fs::write(gate, "").unwrap();
    assert_eq!(connection.outcome(id).ending, Some(Ending::Exited(0)));
    assert_eq!(connection.receive(), HostFrame::Poll);
}

#[test]
fn orphans_do_not_stay_as_zombies() {
    let (server, mut connection) = Server::ready();
    connection.run(server.shell(exec(), "for i in 1 2 3 4 5 6 7 8; do (sleep 0 & sleep 0 &) ; done"));
    // Each takes a moment to end; a host that does not collect them never passes.
    let script = format!(
        "while grep -s '^PPid:.{}$' $(grep -ls '^State:.Z' /proc/[0-9]*/status /dev/null) /dev/null; do :; done",
        server.pid()
    );
    let mut work = server.shell(exec(), &script);
    work.timeout_seconds = Some(20);
    assert_eq!(connection.run(work).ending, Some(Ending::Exited(0)));
}
