//! Measures how long containers take to start and to stop here: `measure [N] [OCI-RUNTIME]`, as root.
//! The launcher is expected beside it: `cargo build --release -p raworc-runtime --bins --examples`.

use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use raworc_core::ids::{ContainerId, SessionId};
use raworc_runtime::native::{ID_BASE, NativeConfig, NativeRuntime};
use raworc_runtime::{ContainerSpec, Resources, Runtime};

/// A host that says when it runs, then waits.
const HOST: &str = "#!/bin/sh\n: >/workspace/pipe\nexec sleep 1000\n";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().map_or(Ok(50), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let launcher = std::env::current_exe()?.with_file_name("../raworc-launcher");
    let runtime = NativeRuntime::open(NativeConfig {
        data_dir: directory.path().join("data"),
        host_binary: HOST.into(),
        launcher,
        oci_runtime: arguments.next().map(PathBuf::from),
    })
    .await?;
    let _socket = UnixListener::bind(runtime.host_socket())?;
    let workspace = directory.path().join("workspace");
    std::fs::create_dir(&workspace)?;
    chown(&workspace, Some(ID_BASE), Some(ID_BASE))?;
    let pipe = workspace.join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    chown(&pipe, Some(ID_BASE), Some(ID_BASE))?;
    let (mut starts, mut runs, mut stops) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let spec = ContainerSpec {
            id: ContainerId { session: SessionId(uuid::Uuid::from_u128(number as u128)), generation: 1 },
            workspace: workspace.clone(),
            resources: Resources { cpu: 1.0, memory_bytes: 512 << 20, pids: 256 },
            token: "token".into(),
            hostname: "box".into(),
        };
        let opened = tokio::task::spawn_blocking({
            let pipe = pipe.clone();
            move || std::fs::File::open(pipe).map(|_| Instant::now())
        });
        let begin = Instant::now();
        runtime.start(&spec).await?;
        starts.push(begin.elapsed());
        runs.push(tokio::time::timeout(Duration::from_secs(10), opened).await??? - begin);
        let begin = Instant::now();
        runtime.stop(spec.id, Duration::ZERO).await?;
        stops.push(begin.elapsed());
        // As on a machine that is not under load.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, mut times) in [("start", starts), ("start to first open", runs), ("stop", stops)] {
        times.sort();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        let (low, median, high) = (at(0.0), at(0.5), at(0.95));
        eprintln!("{name}: least {low:.1?}, median {median:.1?}, 95% {high:.1?}");
    }
    Ok(())
}
