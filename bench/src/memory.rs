//! Measures memory of the server, its launcher and its containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::Context as _;
use serde_json::json;

use crate::report::Report;
use crate::server::Server;

/// Number of READY sessions.
const READY: usize = 50;
/// Number of idle sessions.
const IDLE: usize = 1_000;
/// Number of concurrent creates.
const AT_ONCE: usize = 20;

/// Memory of all processes per READY session.
pub async fn ready(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    // The first session causes one-time allocations, which are not counted.
    server.session(&json!({})).await?;
    let before = pss_of_tree(server.pid())?;
    for _ in 0..READY {
        server.session(&json!({})).await?;
    }
    let after = pss_of_tree(server.pid())?;
    report.figure("PSS for each READY session", (after - before) / READY as f64, "MiB");
    let charged: Vec<f64> = tree(server.pid())?.into_iter().filter_map(charged).collect();
    let mean = charged.iter().sum::<f64>() / charged.len().max(1) as f64;
    report.figure("memory charged to each READY session's cgroup, the kernel's part included", mean, "MiB");
    Ok(())
}

/// Memory that the kernel charges to the container of a process, in MiB: its pages, files it read first, and kernel
/// data. `None` if the process is in no container of ours.
fn charged(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}/memory.current")),
            "memory" => Some(format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes")),
            _ => None,
        }
    };
    let files = text.lines().filter(|line| line.contains("/slot-")).filter_map(path);
    let bytes = files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<f64>().ok()).next()?;
    Some(bytes / 1024.0 / 1024.0)
}

/// Memory of the server with 1 000 idle sessions, all of which have run.
pub async fn idle(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for _ in 0..IDLE / AT_ONCE {
        let mut batch = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let (mut http, events) = (server.http().await?, server.http().await?);
            batch.spawn(async move {
                let body = json!({ "waiting_timeout_seconds": 1 });
                let id = http.post("/sessions", &body).await?["id"].as_str().context("no id")?.to_owned();
                events.until_event(&id, 0, "\"to\":\"READY\"").await?;
                anyhow::Ok(id)
            });
        }
        while let Some(id) = batch.join_next().await {
            ids.push(id??);
        }
    }
    for id in ids {
        server.http().await?.until_event(&id, 0, "\"to\":\"IDLE\"").await?;
    }
    report.figure("server with 1 000 IDLE sessions, PSS with its launcher", pss_of_tree(server.pid())?, "MiB");
    Ok(())
}

/// A process and all its descendants.
fn tree(root: i32) -> anyhow::Result<BTreeSet<i32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut tree = BTreeSet::from([root]);
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| tree.contains(parent) && !tree.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        tree.extend(more);
    }
    Ok(tree)
}

/// The proportional set size of a process and all its descendants, in MiB.
fn pss_of_tree(root: i32) -> anyhow::Result<f64> {
    let pss = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_whitespace().next()?.parse::<f64>().ok()
    };
    let total: f64 = tree(root)?.iter().filter_map(pss).sum();
    Ok(total / 1024.0)
}
