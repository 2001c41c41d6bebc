//! The environment of agents, and its isolation.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use raworc_core::link::{AGENT_UID, Ending, Program, WORK_GIDS};

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
        assert_eq!(lines[..2], [&id, &id]);
        // And the group that tells which work this is.
        let groups: Vec<u32> = lines[2].split(' ').map(|group| group.parse().unwrap()).collect();
        assert!(groups.len() == 2 && groups[0] == AGENT_UID && WORK_GIDS.contains(&groups[1]), "{groups:?}");
        let script =
            "grep -E '^(Cap...|Uid|Gid)' /proc/self/status; grep -cE '^Cap(Inh|Prm|Eff|Amb):.0+$' /proc/self/status";
        let outcome = connection.run(server.shell(exec(), script));
        assert!(outcome.stdout.ends_with("4\n"), "{}", outcome.stdout);
        let ids = format!("{AGENT_UID}\t{AGENT_UID}\t{AGENT_UID}\t{AGENT_UID}\n");
        assert!(outcome.stdout.contains(&format!("Uid:\t{ids}Gid:\t{ids}")), "{}", outcome.stdout);
        // The host is as it was.
        let host = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        assert!(host.contains("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"), "{host}");
        let groups = host.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        assert_eq!(groups.trim(), "", "{host}");
        let sets: Vec<&str> =
            host.lines().filter(|line| line.starts_with("CapPrm") || line.starts_with("CapEff")).collect();
        assert_eq!(sets[0][7..], sets[1][7..], "{host}");
    }
}

#[test]
fn every_process_has_the_group_of_its_work() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: only root has groups to give");
        return;
    }
    let (server, mut connection) = Server::ready();
    let script = "setsid sh -c '(id -G &) & wait' | cat; id -G; exec 3<&-; env -i id -G";
    let mut groups = |script: &str| -> Vec<String> {
        let outcome = connection.run(server.shell(exec(), script));
        outcome.stdout.lines().map(str::to_owned).collect()
    };
    let (one, other) = (groups(script), groups(script));
    assert!(one.len() == 3 && one.iter().all(|line| *line == one[0]), "{one:?}");
    assert!(other.len() == 3 && other.iter().all(|line| *line == other[0]), "{other:?}");
    assert_ne!(one[0], other[0]);
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
