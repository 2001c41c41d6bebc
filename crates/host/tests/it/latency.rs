//! How long the shortest script takes, from the frame that asks for it to the frame that says it has ended.

use std::time::{Duration, Instant};

use raworc_core::link::{Report, ServerFrame};

use crate::server::{Server, exec};

#[test]
fn the_shortest_script_is_timed() {
    let (server, mut connection) = Server::ready();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let work = server.shell(exec(), "true");
            let begun = Instant::now();
            connection.send(&ServerFrame::Run(work));
            let (n, report) = connection.report();
            let time = begun.elapsed();
            assert!(matches!(report, Report::Finished { .. }));
            connection.send(&ServerFrame::Ack { n });
            time
        })
        .collect();
    times.sort();
    println!("run to finished: median {:?}, p95 {:?}, least {:?}", times[100], times[190], times[0]);
}
