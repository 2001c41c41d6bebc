//! The way of programs inside to the gateway.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use raworc_core::limits::GATEWAY_CONNECTIONS_MAX;
use raworc_core::link::{HostFrame, PROTOCOLS, ServerFrame, Versions};

use crate::server::{Connection, Server, TOKEN, exec, message};

/// What programs are told, by name.
const VARIABLES: &str = "for name in OPENAI_BASE_URL OPENAI_API_KEY ANTHROPIC_BASE_URL ANTHROPIC_API_KEY GOOGLE_GEMINI_BASE_URL \
                         GEMINI_API_KEY; do eval echo \"\\$$name\"; done";

/// A host with a gateway, its connection, and the gateway's address.
fn started() -> (Server, Connection, String) {
    let server = Server::with_gateway();
    let mut connection = server.welcome();
    let told = connection.run(server.shell(exec(), "echo ${ANTHROPIC_BASE_URL#http://}")).stdout;
    (server, connection, told.trim().to_owned())
}

/// Accepts the connection of a program, which begins with whose container it is.
fn accept(server: &Server) -> BufReader<UnixStream> {
    let mut connection = server.accept();
    let versions = Versions::OURS;
    assert_eq!(connection.receive(), HostFrame::Gateway { versions, token: TOKEN.into() });
    connection.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
    connection.into_reader()
}

fn read(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes that tell their place.
fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|at| u8::try_from((at / 251 + at + seed) % 256).unwrap()).collect()
}

#[test]
fn programs_are_told_where_the_gateway_is_and_who_they_are() {
    let server = Server::with_gateway();
    let mut connection = server.welcome();
    let command = connection.run(server.shell(exec(), VARIABLES)).stdout;
    assert_eq!(command.lines().nth(1), Some("raworc-session"));
    // What a session sets for itself prevails.
    let mut work = server.shell(exec(), VARIABLES);
    work.env.insert("OPENAI_BASE_URL".into(), "http://elsewhere".into());
    assert!(connection.run(work).stdout.starts_with("http://elsewhere\n"));
    let turn = connection.run(server.shell(message(7), VARIABLES)).stdout;
    let lines: Vec<&str> = turn.lines().collect();
    let root = lines[2];
    let key = "raworc-turn-00000000-0000-0000-0000-000000000007";
    assert!(root.starts_with("http://127.0.0.1:"), "{root}");
    assert_eq!(lines, [&format!("{root}/v1"), key, root, key, root, key]);
}

#[test]
fn without_a_gateway_programs_are_told_of_none() {
    let (server, mut connection) = Server::ready();
    assert_eq!(connection.run(server.shell(exec(), VARIABLES)).stdout, "\n".repeat(6));
}

#[test]
fn every_connection_of_a_program_is_one_to_the_server() {
    let (server, _connection, address) = started();
    let mut programs: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // They are dialled in the order in which they came.
    let mut servers: Vec<_> = programs.iter().map(|_| accept(&server)).collect();
    for (number, (program, server)) in programs.iter_mut().zip(&mut servers).enumerate() {
        program.write_all(format!("request {number}").as_bytes()).unwrap();
        assert_eq!(read(server, 9), format!("request {number}").as_bytes());
        server.get_mut().write_all(format!("answer {number}").as_bytes()).unwrap();
        assert_eq!(read(program, 8), format!("answer {number}").as_bytes());
    }
    // The end of one is told to its other side, whichever it is, and is nobody else's.
    programs[0].shutdown(Shutdown::Write).unwrap();
    assert_eq!(servers[0].read(&mut [0; 9]).unwrap(), 0, "the server hears that nothing follows");
    servers[0].get_mut().write_all(b"the rest").unwrap();
    assert_eq!(read(&mut programs[0], 8), b"the rest", "and still answers");
    servers.remove(0);
    assert_eq!(programs[0].read(&mut [0; 9]).unwrap(), 0);
    drop(programs.remove(1));
    assert_eq!(servers[0].read(&mut [0; 9]).unwrap(), 0, "a program has gone");
    programs[1].write_all(b"still there").unwrap();
    assert_eq!(read(&mut servers[1], 11), b"still there");
}

#[test]
fn bytes_arrive_as_they_were_sent_however_slowly_they_are_read() {
    let (server, _connection, address) = started();
    let mut slow = TcpStream::connect(&address).unwrap();
    let slow_server = accept(&server);
    let many = bytes(8 << 20, 3);
    let sent = many.clone();
    let mut writer = slow_server.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    // While one reads nothing, the others go on.
    let mut quick = TcpStream::connect(&address).unwrap();
    let mut quick_server = accept(&server);
    for round in 0..50 {
        let request = bytes(40_000, round);
        let mut quick_writer = quick.try_clone().unwrap();
        let sent = request.clone();
        let up = std::thread::spawn(move || quick_writer.write_all(&sent).unwrap());
        assert_eq!(read(&mut quick_server, request.len()), request);
        up.join().unwrap();
        quick_server.get_mut().write_all(&request[..1_000]).unwrap();
        assert_eq!(read(&mut quick, 1_000), &request[..1_000]);
    }
    assert!(read(&mut slow, many.len()) == many, "bytes were lost or changed");
    writer.join().unwrap();
}

#[test]
fn a_program_waits_for_a_server_that_is_away() {
    let (server, connection, address) = started();
    drop(connection);
    let mut again = server.accept();
    again.hello();
    let mut program = TcpStream::connect(&address).unwrap();
    program.write_all(b"request").unwrap();
    // The host finds the server again, and then the program does.
    again.send(&ServerFrame::Welcome { received: 0, protocol: *PROTOCOLS.end() });
    assert_eq!(again.receive(), HostFrame::Poll);
    let mut reached = accept(&server);
    assert_eq!(read(&mut reached, 7), b"request");
    // One that the server does not accept ends, and only that one does.
    let mut refused = TcpStream::connect(&address).unwrap();
    let mut connection = server.accept();
    assert!(matches!(connection.receive(), HostFrame::Gateway { .. }));
    connection.send(&ServerFrame::Refused { code: "fenced".into() });
    assert_eq!(refused.read(&mut [0; 9]).unwrap_or(0), 0);
    reached.get_mut().write_all(b"answer").unwrap();
    assert_eq!(read(&mut program, 6), b"answer");
    assert_eq!(again.run(server.shell(exec(), "echo works")).stdout, "works\n");
}

#[test]
fn too_many_connections_wait_and_the_host_goes_on() {
    let (server, mut connection, address) = started();
    let mut programs: Vec<TcpStream> = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..GATEWAY_CONNECTIONS_MAX {
        programs.push(TcpStream::connect(&address).unwrap());
        servers.push(accept(&server));
    }
    let mut waits = TcpStream::connect(&address).unwrap();
    waits.write_all(b"late").unwrap();
    assert_eq!(connection.run(server.shell(exec(), "echo works")).stdout, "works\n");
    drop((programs.pop(), servers.pop()));
    let mut late = accept(&server);
    assert_eq!(read(&mut late, 4), b"late");
}
