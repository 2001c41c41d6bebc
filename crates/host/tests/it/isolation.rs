//! What agents find around them, and what they do not.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use raworc_core::link::{AGENT_UID, Ending, Program};

use crate::server::{Server, TOKEN, exec};

#[test]
fn the_token_stays_with_the_host() {
    let (server, mut connection) = Server::ready();
    let mut work = server.shell(exec(), "env; cat /proc/self/environ; echo \"$GREETING\"");
    work.env.insert("GREETING".into(), "hello".into());
    let outcome = connection.run(work);
    assert!(!outcome.stdout.contains(TOKEN), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("PATH="));
    assert!(outcome.stdout.ends_with("hello\n"));
    if nix::unistd::geteuid().is_root() {
        let script = format!("cat /proc/{}/environ", server.pid());
        let outcome = connection.run(server.shell(exec(), &script));
        assert_eq!(outcome.ending, Some(Ending::Exited(1)));
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn agents_are_nobody_special() {
    let (server, mut connection) = Server::ready();
    if nix::unistd::geteuid().is_root() {
        let outcome = connection.run(server.shell(exec(), "id -u; id -g; id -G"));
        let id = AGENT_UID.to_string();
        let lines: Vec<&str> = outcome.stdout.lines().collect();
        assert_eq!(lines, [&id, &id, &id]);
    }
}

#[test]
fn no_descriptor_leaks() {
    // As a careless runtime would do it: open in the host, too.
    let file = std::fs::File::open("/dev/null").unwrap();
    fcntl(file.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let (server, mut connection) = Server::ready();
    drop(file);
    let program = Program::Command { argv: vec!["ls".into(), "/proc/self/fd".into()], stdin: String::new() };
    let outcome = connection.run(server.work(exec(), program));
    // The last one is how `ls` reads the directory.
    assert_eq!(outcome.stdout, "0\n1\n2\n3\n");
}

#[test]
fn signals_are_as_new() {
    let (server, mut connection) = Server::ready();
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let outcome = connection.run(server.shell(exec(), script));
    // The C library keeps the two signals after these for itself, and some ancestors of ours ignore them.
    let of_names = |mask: &str| u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff;
    let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!([words[0], words[2]], ["SigBlk:", "SigIgn:"]);
    // What whoever runs these tests ignores (a shell does so for what it runs in the background) is not the host's doing.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ours = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_eq!([of_names(words[1]), of_names(words[3]) & !of_names(ours)], [0, 0], "{words:?}");
}

#[test]
fn errors_of_a_script_read_well() {
    let (server, mut connection) = Server::ready();
    let outcome = connection.run(server.shell(exec(), "echo \"$0\"; no-such-program"));
    assert_eq!(outcome.stdout, "shell\n");
    assert!(outcome.stderr.starts_with("shell: "), "{}", outcome.stderr);
}
