//! Output of work, as it arrives at the server.

use std::fs;

use raworc_core::limits::{OUTPUT_CHUNK_BYTES_MAX, UNACKED_BYTES_MAX};
use raworc_core::link::{Ending, HostFrame, Program, Report, ServerFrame};

use crate::server::{Server, exec, message};

#[test]
fn streams_are_told_apart() {
    let (server, mut connection) = Server::ready();
    let outcome = connection.run(server.shell(exec(), "echo out; echo err >&2; echo out again"));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    assert_eq!(outcome.stdout, "out\nout again\n");
    assert_eq!(outcome.stderr, "err\n");
    assert!(outcome.duration_micros > 0);
}

#[test]
fn output_arrives_while_the_script_runs() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = message(1);
    let script = "echo one; cat gate; echo two";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    connection.expect_output(id, "one\n");
    fs::write(gate, "through the gate\n").unwrap();
    let outcome = connection.outcome(id);
    assert_eq!(outcome.stdout, "through the gate\ntwo\n");
    assert_eq!(connection.receive(), HostFrame::Poll);
}

#[test]
fn a_character_is_never_split() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let id = exec();
    // The euro sign is e2 82 ac; the second half comes when the first has been read.
    let script = r"printf 'a\342\202'; cat gate; printf '\254z'; printf '\377\342\202' >&2";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    connection.expect_output(id, "a");
    fs::write(gate, "").unwrap();
    let outcome = connection.outcome(id);
    assert_eq!(outcome.stdout, "€z");
    assert_eq!(outcome.stderr, "\u{fffd}\u{fffd}");
}

#[test]
fn binary_output_arrives_as_text() {
    let (server, mut connection) = Server::ready();
    let script = r"head -c 100000 /dev/zero; head -c 100000 /dev/zero | tr '\0' '\377'";
    let outcome = connection.run(server.shell(exec(), script));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    let expected = "\0".repeat(100_000) + &"\u{fffd}".repeat(100_000);
    assert!(outcome.stdout == expected);
    assert_eq!(outcome.dropped_bytes, 0);
}

#[test]
fn of_too_much_output_both_ends_are_kept_and_a_file_has_it_all() {
    let (server, mut connection) = Server::ready();
    for (middle, bytes) in
        [("head -c 8388608 /dev/zero | tr '\\0' x", 8_388_608), ("head -c 600000 /dev/zero | tr '\\0' x", 600_000)]
    {
        let mut work = server.shell(exec(), &format!("echo first; {middle}; echo; echo last; echo oops >&2; exit 3"));
        work.output_bytes_max = 500_000;
        let outcome = connection.run(work);
        assert_eq!(outcome.ending, Some(Ending::Exited(3)));
        let total = 6 + bytes + 1 + 5 + 5;
        assert_eq!(outcome.dropped_bytes, total - 500_000);
        let file = outcome.output_file.unwrap();
        let mark =
            format!("\n[raworc: {} bytes of standard output left out here; all of it is in {file}]\n", total - 500_000);
        let (head, tail) = outcome.stdout.split_once(&mark).unwrap();
        assert_eq!((head.len(), tail.len() + outcome.stderr.len()), (250_000, 250_000));
        assert!(head.starts_with("first\nxxx") && tail.ends_with("xxx\nlast\n"));
        assert_eq!(outcome.stderr, "oops\n");
        let whole = fs::read(server.path(&file)).unwrap();
        assert_eq!(whole.len() as u64, total);
        assert_eq!(fs::read_to_string(server.path(".raworc/.gitignore")).unwrap(), "*\n");
    }
    // What fits is whole, arrives as it was written, and leaves no file.
    let mut work = server.shell(exec(), "head -c 400000 /dev/zero | tr '\\0' y; echo e >&2");
    work.output_bytes_max = 500_000;
    let outcome = connection.run(work);
    assert!(outcome.stdout == "y".repeat(400_000));
    assert_eq!((outcome.stderr.as_str(), outcome.dropped_bytes, outcome.output_file), ("e\n", 0, None));
    assert_eq!(fs::read_dir(server.path(".raworc/output")).unwrap().count(), 2);
}

#[test]
fn files_of_outputs_are_few_and_lead_nowhere() {
    let (server, mut connection) = Server::ready();
    let mut run = |script: &str| {
        let mut work = server.shell(exec(), script);
        work.output_bytes_max = 1000;
        connection.run(work)
    };
    for _ in 0..12 {
        assert!(run("head -c 5000 /dev/zero").output_file.is_some());
    }
    assert_eq!(fs::read_dir(server.path(".raworc/output")).unwrap().count(), 10);
    // Where something else is in the way, there is no file, nothing else is touched, and the rest is as ever.
    for (way, target) in [
        ("rm -rf .raworc; mkdir other; ln -s $PWD/other .raworc", "other"),
        ("rm -rf .raworc other; mkdir .raworc other; ln -s $PWD/other .raworc/output", "other"),
        ("rm -rf .raworc; mkfifo .raworc", "other"),
        ("rm -rf .raworc; echo none > .raworc", "other"),
        ("rm -rf .raworc; ln -s /proc/self/fd .raworc", "other"),
        ("rm -rf .raworc; mkdir -p .raworc/output; chmod 0 .raworc/output", "other"),
    ] {
        let outcome = run(&format!("{way}; echo begin; head -c 5000 /dev/zero; echo end"));
        let is_root = nix::unistd::geteuid().is_root();
        if is_root || !way.contains("chmod") {
            assert_eq!(outcome.output_file, None, "{way}");
        }
        assert!(outcome.stdout.starts_with("begin\n") && outcome.stdout.ends_with("end\n"), "{way}");
        assert!(outcome.dropped_bytes > 4000, "{way}");
        assert_eq!(fs::read_dir(server.path(target)).unwrap().count(), 0, "{way}");
    }
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::fs::MetadataExt;
        let outcome = run("chmod 755 .raworc/output; rm -rf .raworc; head -c 5000 /dev/zero");
        let file = fs::symlink_metadata(server.path(&outcome.output_file.unwrap())).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (1000, 1000, 0o644));
    }
}

#[test]
fn text_is_cut_between_characters() {
    let (server, mut connection) = Server::ready();
    for bytes_max in [1000, 1001, 1002, 1003] {
        let mut work = server.shell(exec(), "yes '€é😀' | head -c 100000");
        work.output_bytes_max = bytes_max;
        let outcome = connection.run(work);
        // The last one is cut by `head`.
        assert!(!outcome.stdout.trim_end_matches('\u{fffd}').contains('\u{fffd}'), "{bytes_max}");
        assert!(outcome.dropped_bytes > 98_000);
    }
}

#[test]
fn many_small_writes_make_few_reports() {
    let (server, mut connection) = Server::ready();
    let id = exec();
    let script = "i=0; while [ $i -lt 5000 ]; do echo line; i=$((i+1)); done";
    connection.send(&ServerFrame::Run(server.shell(id, script)));
    let mut reports = 0;
    let mut text = String::new();
    loop {
        reports += 1;
        match connection.report() {
            (_, Report::Output { text: more, .. }) => text += &more,
            (_, Report::Finished { .. }) => break,
        }
    }
    assert_eq!(text, "line\n".repeat(5000));
    assert!(reports < 1000, "{reports}");
}

#[test]
fn unstored_output_holds_the_script_back() {
    let (server, mut connection) = Server::ready();
    let id = exec();
    let total = 4 * 1024 * 1024;
    let script = format!("head -c {total} /dev/zero | tr '\\0' x");
    let mut work = server.shell(id, &script);
    work.output_bytes_max = 2 * total;
    connection.send(&ServerFrame::Run(work));
    // Nothing is acknowledged: what comes before the host has nothing to say but that it lives is all that comes.
    let mut received = 0;
    let mut last = 0;
    let mut silent = 0;
    while silent < 2 {
        match connection.receive_any() {
            Some(HostFrame::Report { n, report }) => {
                let Report::Output { text, .. } = report else { panic!("{report:?}") };
                received += text.len();
                last = n;
                silent = 0;
            }
            Some(HostFrame::Heartbeat { .. }) => silent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(received >= UNACKED_BYTES_MAX / 2, "{received}");
    let slack = 4 * OUTPUT_CHUNK_BYTES_MAX;
    assert!(received <= UNACKED_BYTES_MAX + slack, "{received}");
    connection.send(&ServerFrame::Ack { n: last });
    let rest = connection.outcome(id);
    assert_eq!(received + rest.stdout.len(), total);
    assert_eq!(rest.ending, Some(Ending::Exited(0)));
}

#[test]
fn a_command_reads_its_standard_input() {
    let (server, mut connection) = Server::ready();
    let text = "0123456789abcde\n".repeat(60_000);
    let program = |argv: &[&str], stdin: &str| Program::Command {
        argv: argv.iter().map(ToString::to_string).collect(),
        stdin: stdin.into(),
    };
    let outcome = connection.run(server.work(exec(), program(&["cat"], &text)));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    assert!(outcome.stdout == text);
    // One that does not want it all, and one that is given none.
    let outcome = connection.run(server.work(exec(), program(&["head", "-c", "3"], &text)));
    assert_eq!(outcome.stdout, "012");
    let outcome = connection.run(server.work(exec(), program(&["cat"], "")));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
}

#[test]
fn processes_left_behind_neither_hold_the_end_nor_die() {
    let (server, mut connection) = Server::ready();
    let gate = server.fifo("gate");
    let answer = server.fifo("answer");
    let script = "(cat gate; head -c 1000000 /dev/zero; echo alive > answer) & echo started";
    let id = message(1);
    let outcome = connection.run(server.shell(id, script));
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    assert_eq!(outcome.stdout, "started\n");
    assert_eq!(connection.receive(), HostFrame::Poll);
    assert!(connection.heartbeat() >= 1);
    fs::write(gate, "").unwrap();
    assert_eq!(fs::read_to_string(answer).unwrap(), "alive\n");
}
