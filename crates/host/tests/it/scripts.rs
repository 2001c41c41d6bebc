//! Scripts behave like script files.

use std::fs;

use raworc_core::limits::MESSAGE_BYTES_MAX;
use raworc_core::link::{Ending, Program};

use crate::server::{Server, exec};

#[test]
fn a_script_runs_as_a_file_does() {
    let (server, mut connection) = Server::ready();
    let here = server.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    for (script, code, stdout, stderr) in [
        ("echo \"$#\"; [ \"$0\" = \"$BASH_SOURCE\" ] && [ -r \"$0\" ] && echo same", 0, "0\nsame\n", ""),
        ("if [[ ${BASH_SOURCE[0]} == \"$0\" ]]; then echo main; fi", 0, "main\n", ""),
        ("-x() { echo dash; }; -x", 0, "dash\n", ""),
        ("-c echo", 127, "", "line 1: -c: command not found"),
        ("+x", 127, "", "line 1: +x: command not found"),
        ("--version", 127, "", "line 1: --version: command not found"),
        ("\n\nnope-nope", 127, "", "line 3: nope-nope: command not found"),
        ("echo a\necho b\nfi\necho c", 2, "a\nb\n", "line 3: syntax error near unexpected token"),
        ("return 3; echo on", 0, "on\n", "can only `return' from a function or sourced script"),
        ("set -e\nfalse\necho on", 1, "", ""),
        ("exit 7\nsyntax error (", 7, "", ""),
        ("cat; read -r x || echo none", 0, "none\n", ""),
        ("echo $LINENO\n: '\n\n'\necho $LINENO", 0, "1\n5\n", ""),
        ("cat <<'E'\n$x `y` \\\nE", 0, "$x `y` \\\n", ""),
        ("#!/bin/sh -e\nfalse\necho on", 1, "", ""),
        (
            "#!/usr/bin/env perl\nprint join(',', 1..3), qq(\\n); print __FILE__ eq $0 ? 'file' : '', qq(\\n);",
            0,
            "1,2,3\nfile\n",
            "",
        ),
        ("#! /usr/bin/perl -w\r\nprint \"crlf\\n\";\r\n", 0, "crlf\n", ""),
        ("pgrep -fc 'a-mark-of-its[-]own' # a-mark-of-its-own", 1, "0\n", ""),
        ("pkill -f 'a-mark-of-its[-]own'; echo alive # a-mark-of-its-own", 0, "alive\n", ""),
        (
            "for word in script message shell raworc agent exec tmp workspace 8080 host; do pkill -f $word; done; echo alive",
            0,
            "alive\n",
            "",
        ),
    ] {
        if script.contains("perl") && !std::path::Path::new("/usr/bin/perl").exists() {
            println!("SKIPPED: there is no perl here: {script}");
            continue;
        }
        if script.contains("pkill -f $word") && !raworc_alone() {
            println!("SKIPPED: this would reach other programs of this user: {script}");
            continue;
        }
        let outcome = connection.run(server.shell(exec(), script));
        assert_eq!(outcome.ending, Some(Ending::Exited(code)), "{script}: {outcome:?}");
        assert_eq!(outcome.stdout, stdout, "{script}: {outcome:?}");
        assert!(
            if stderr.is_empty() { outcome.stderr.is_empty() } else { outcome.stderr.contains(stderr) },
            "{outcome:?}"
        );
    }
    let outcome =
        connection.run(server.shell(exec(), "echo $PWD; echo ${USER:?} ${LOGNAME:?}; [ -x ${SHELL:?} ] && pwd"));
    assert_eq!(outcome.stderr, "");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!([lines[0], lines[2]], [&here, &here]);
}

/// Outside of a container, the agents' user may have other processes; they must not be killed.
fn raworc_alone() -> bool {
    false
}

#[test]
fn no_length_changes_how_a_script_runs() {
    let (server, mut connection) = Server::ready();
    // Around what an argument may have, and all that a message may have.
    for length in [1, 4096, 65_536, 98_303, 98_305, 131_071, 131_072, 131_073, MESSAGE_BYTES_MAX] {
        let end = "\ntr '\\0' ' ' </proc/$$/cmdline | wc -c; exit 3";
        let script = "#".repeat(length.saturating_sub(end.len())) + end;
        let outcome = connection.run(server.shell(exec(), &script));
        assert_eq!(outcome.ending, Some(Ending::Exited(3)), "{length}: {outcome:?}");
        let words: usize = outcome.stdout.trim().parse().unwrap();
        assert!(words < 100, "{length}: {words} bytes of arguments");
    }
    let left: Vec<_> = fs::read_dir(server.path("_")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_script_leaves_nothing_open_and_cannot_be_changed() {
    let (server, mut connection) = Server::ready();
    let outcome = connection.run(server.shell(exec(), "ls /proc/self/fd; bash -c 'ls /proc/self/fd'"));
    // The last one of each is how `ls` reads the directory.
    assert_eq!(outcome.stdout, "0\n1\n2\n3\n0\n1\n2\n3\n");
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: agents are somebody else only where the host is root");
        return;
    }
    let script = "echo x 2>/dev/null >>\"$0\" || rm -f \"$0\" 2>/dev/null || chmod u+w \"$0\" 2>/dev/null \
                  || touch \"${0%/*}/other\" 2>/dev/null || ls \"${0%/*}\" 2>/dev/null || echo safe";
    assert_eq!(connection.run(server.shell(exec(), script)).stdout, "safe\n");
}

#[test]
fn a_full_or_missing_temporary_directory_does_not_matter() {
    let (server, mut connection) = Server::ready();
    let mut work = server.shell(exec(), &("# ".to_owned() + &"x".repeat(200_000) + "\necho done"));
    work.env.insert("TMPDIR".into(), "/no/such/directory".into());
    assert_eq!(connection.run(work).stdout, "done\n");
}

#[test]
fn the_outputs_can_be_opened_by_name() {
    let (server, mut connection) = Server::ready();
    let script = "echo a >/dev/stdout; echo b >/dev/stderr; echo c | tee /dev/stderr; exec 3>/dev/stderr 4>>/proc/self/fd/1; \
                  echo d >&3; echo e >&4; echo f >/dev/fd/2; sh -c 'echo g >/proc/self/fd/1'; setsid -w sh -c 'echo h >/dev/stdout'";
    let outcome = connection.run(server.shell(exec(), script));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("a\nc\ne\ng\nh\n", "b\nc\nd\nf\n"));
    let words = ["sh", "-c", "cat /dev/stdin; cat </proc/self/fd/0; echo x >/dev/stdout"];
    let argv = words.map(str::to_owned).to_vec();
    let program = Program::Command { argv, stdin: "given\n".into() };
    let outcome = connection.run(server.work(exec(), program));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("given\nx\n", ""));
}
