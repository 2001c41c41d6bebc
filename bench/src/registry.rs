//! Measures pushing a large workspace to a registry and pulling it: time, and memory of the server. Needs the program
//! `docker-registry`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::report::Report;
use crate::server::Server;

/// Size of the workspace in bytes; it is incompressible.
const BYTES: u64 = 1 << 30;
/// Bytes that change before the second push.
const CHANGED: u64 = 1 << 20;
/// How long the registry may take to start.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A local registry, killed on drop.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = directory.join("registry.yml");
        let data = directory.join("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: {address}\n  secret: of-a-benchmark\n",
                data.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: command.spawn()?, address };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            ensure!(begun.elapsed() < TIMEOUT, "the registry does not listen");
            std::thread::yield_now();
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs all measurements.
pub async fn measure(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    if Command::new("docker-registry").arg("--version").output().is_err() {
        eprintln!("docker-registry is not installed: pushes and pulls were not measured");
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let registry = Registry::start(scratch.path())?;
    let reference = format!("{}/bench:v1", registry.address);
    let here = Server::start(program, &scratch.path().join("here"), &["--spares", "0"]).await?;
    let id = here.session(&json!({})).await?;
    run(&here, &id, &format!("head -c {BYTES} /dev/urandom > data")).await?;
    push(&here, &id, &reference, "push of 1 GiB that cannot be compressed", report).await?;
    run(&here, &id, &format!("head -c {CHANGED} /dev/urandom > more")).await?;
    push(&here, &id, &reference, "push of the same with 1 MiB more", report).await?;
    report.figure("the server's memory (RSS) at its highest, pushing", highest(here.pid())?, "MiB");
    here.stop().await?;

    let there = Server::start(program, &scratch.path().join("there"), &["--spares", "0"]).await?;
    let before = highest(there.pid())?;
    let begun = Instant::now();
    let image = there.http().await?.post("/images", &json!({ "reference": reference })).await?;
    ensure!(image["id"].is_string(), "{image}");
    report.figure("pull of it by another server, unpacked and on the disk", begun.elapsed().as_secs_f64(), "s");
    report.figure("that server's memory (RSS) at its highest, pulling", highest(there.pid())?, "MiB");
    report.figure("the same before it pulled", before, "MiB");
    there.stop().await
}

async fn run(server: &Server, id: &str, script: &str) -> anyhow::Result<()> {
    let path = format!("/sessions/{id}/messages?wait_seconds=300");
    let message = server.http().await?.post(&path, &json!({ "content": script })).await?;
    ensure!(message["status"] == "done", "{message}");
    Ok(())
}

async fn push(
    server: &Server,
    id: &str,
    reference: &str,
    what: &'static str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let path = format!("/sessions/{id}/checkpoints/now/push");
    let begun = Instant::now();
    let pushed: Value = server.http().await?.post(&path, &json!({ "reference": reference })).await?;
    ensure!(pushed["digest"].is_string(), "{pushed}");
    report.figure(what, begun.elapsed().as_secs_f64(), "s");
    Ok(())
}

/// Peak memory of a process, in MiB.
fn highest(pid: i32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
