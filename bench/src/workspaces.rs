//! Measures versions of a large workspace: remixing it, and a checkpoint of a small change; and the same change with
//! `restic`, if installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::remixes::{self, Until};
use crate::report::{Report, Samples};
use crate::server::Server;

/// Files of the workspace, in directories of a hundred, and the bytes of each: 1 GiB.
const FILES: usize = 10_000;
const FILE_BYTES: usize = (1 << 30) / FILES;
/// Files that are written anew before each checkpoint: 1 MiB.
const CHANGED: usize = 10;
/// Number of checkpoints.
const CHECKPOINTS: usize = 20;

/// A script that creates the tree, or changes it in round `n`. The current directory is the workspace.
fn script(n: Option<usize>) -> String {
    let files = match n {
        None => format!("0..{}", FILES - 1),
        Some(n) => format!("map {{ $_ * 997 % {FILES} }} {}..{}", n * CHANGED, (n + 1) * CHANGED - 1),
    };
    let content = n.map_or(0, |n| n + 1);
    format!(
        "perl -e 'for ({files}) {{ my $d = int($_ / 100); mkdir \"d$d\"; open(F, \">\", \"d$d/f$_\") or die; \
         print F pack(\"N\", $_ * 1000 + {content}) x {} }}'",
        FILE_BYTES / 4
    )
}

/// Runs all measurements.
pub async fn measure(server: &Server, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let parent = server.session(&json!({ "checkpoints": { "policy": "manual" } })).await?;
    work(server, &parent, &script(None)).await?;
    let first = checkpoint(server, &parent).await?;
    ensure!(first["files"] == FILES, "{first}");
    report.figure("the workspace", bytes(&first["size_bytes"]), "MiB");
    // Paused, because each round waits until all containers are gone.
    server.http().await?.post(&format!("/sessions/{parent}/pause"), &json!(null)).await?;
    server.http().await?.until_event(&parent, 0, "\"to\":\"IDLE\"").await?;
    let (empty, remix) = remixes::beside_empty(server, &parent, rounds, Until::Ready).await?;
    report.times("raworc: create → READY, beside the next", empty);
    report.times("raworc: remix of 1 GiB in 10 000 files → READY", remix);
    server.http().await?.post(&format!("/sessions/{parent}/resume"), &json!(null)).await?;
    checkpoints(server, &parent, report).await?;
    server.delete_all().await?;
    tokio::task::block_in_place(|| restic(report))
}

async fn work(server: &Server, id: &str, script: &str) -> anyhow::Result<()> {
    let path = format!("/sessions/{id}/messages?wait_seconds=300");
    let message = server.http().await?.post(&path, &json!({ "content": script })).await?;
    ensure!(message["status"] == "done", "{message}");
    Ok(())
}

async fn checkpoint(server: &Server, id: &str) -> anyhow::Result<Value> {
    let taken = server.http().await?.post(&format!("/sessions/{id}/checkpoints"), &json!({})).await?;
    ensure!(taken["status"] == "ready", "{taken}");
    Ok(taken)
}

/// Takes a checkpoint after each change.
async fn checkpoints(server: &Server, id: &str, report: &mut Report) -> anyhow::Result<()> {
    let (mut done, mut frozen) = (Samples::default(), Samples::default());
    for n in 0..CHECKPOINTS {
        work(server, id, &script(Some(n))).await?;
        let begun = Instant::now();
        let taken = checkpoint(server, id).await?;
        done.push(begun.elapsed());
        frozen.push(Duration::from_secs_f64(taken["frozen_seconds"].as_f64().context("no time")?));
    }
    report.times("raworc: checkpoint of 1 MiB in 10 of those files: done", done);
    report.times("raworc: checkpoint of 1 MiB in 10 of those files: standing still", frozen);
    Ok(())
}

fn restic(report: &mut Report) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (tree, repository) = (directory.path().join("tree"), directory.path().join("repository"));
    let run = |words: &[&str]| -> anyhow::Result<()> {
        let mut command = Command::new("restic");
        command.args(words).env("RESTIC_REPOSITORY", &repository).env("RESTIC_PASSWORD", "bench");
        command.env("RESTIC_CACHE_DIR", directory.path().join("cache")).current_dir(directory.path());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("restic")?;
        ensure!(status.success(), "restic ended with {status}");
        Ok(())
    };
    if let Err(error) = run(&["init"]) {
        eprintln!("restic is left out: {error:#}");
        return Ok(());
    }
    fs::create_dir(&tree)?;
    shell(&tree, &script(None))?;
    run(&["backup", "tree"])?;
    let mut samples = Samples::default();
    for n in 0..CHECKPOINTS {
        shell(&tree, &script(Some(n)))?;
        let begun = Instant::now();
        run(&["backup", "tree"])?;
        samples.push(begun.elapsed());
    }
    report.times("restic backup of the same change", samples);
    Ok(())
}

fn shell(directory: &Path, script: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-c", script]).current_dir(directory).status()?;
    ensure!(status.success(), "{script} ended with {status}");
    Ok(())
}

fn bytes(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default() / f64::from(1 << 20)
}
