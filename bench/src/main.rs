//! `cargo run --release -p raworc-bench`: measures Raworc on this machine over HTTP, and other installed container
//! runtimes in the same run. docs/performance.md explains each line.

mod conversations;
mod durable;
mod http;
mod latency;
mod many;
mod memory;
mod models;
mod peers;
mod registry;
mod remixes;
mod report;
mod server;
mod workspaces;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use report::Report;
use server::Server;

/// Measure Raworc on this machine. Prints medians, 99th percentiles and ratios.
#[derive(Parser)]
struct Options {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// The program to measure [default: that of this workspace, built first].
    #[arg(long, value_name = "PATH")]
    raworc: Option<PathBuf>,
    /// Repetitions of each measurement in the range of milliseconds.
    #[arg(long, default_value_t = 100, value_name = "N")]
    rounds: usize,
    /// Run only these: latency, workspaces, conversations, models, registry, burst, durable, memory, idle, scale.
    #[arg(long, value_delimiter = ',', value_name = "PART,…")]
    only: Vec<String>,
    /// Use and keep this data directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let program = match &options.raworc {
        Some(path) => path.clone(),
        None => server::build().context("the program could not be built")?,
    };
    let temporary = tempfile::tempdir()?;
    let data_dir = options.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let mut report = Report::new();
    let result = measure(&options, &program, &data_dir, &mut report).await;
    // Printed even if the rest failed.
    report.print(options.json)?;
    result
}

async fn measure(
    options: &Options,
    program: &std::path::Path,
    data_dir: &std::path::Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    if options.wants("latency") {
        let server = Server::start(program, data_dir, &["--spares", "2"]).await?;
        latency::measure(&server, options.rounds, report).await?;
        server.stop().await?;
        let server = Server::start(program, data_dir, &["--spares", "0"]).await?;
        latency::without_spares(&server, options.rounds, report).await?;
        server.stop().await?;
    }
    if options.wants("workspaces") {
        let server = Server::start(program, data_dir, &["--spares", "2"]).await?;
        workspaces::measure(&server, options.rounds, report).await?;
        server.stop().await?;
    }
    if options.wants("conversations") {
        let server = Server::start(program, data_dir, &["--spares", "2"]).await?;
        conversations::measure(&server, options.rounds, report).await?;
        server.stop().await?;
    }
    if options.wants("models") {
        let server = Server::start(program, data_dir, &["--spares", "0"]).await?;
        models::measure(&server, options.rounds, report).await?;
        server.stop().await?;
    }
    if options.wants("registry") {
        registry::measure(program, report).await?;
    }
    if options.wants("burst") {
        let server = Server::start(program, data_dir, &[]).await?;
        many::burst(&server, report).await?;
        server.stop().await?;
    }
    if options.wants("durable") {
        let server = Server::start(program, data_dir, &[]).await?;
        durable::measure(&server, report).await?;
        server.stop().await?;
    }
    if options.wants("memory") {
        let server = Server::start(program, data_dir, &["--spares", "0"]).await?;
        memory::ready(&server, report).await?;
        server.stop().await?;
    }
    if options.wants("idle") {
        let server = Server::start(program, data_dir, &["--spares", "0"]).await?;
        memory::idle(&server, report).await?;
        server.stop().await?;
    }
    if options.wants("scale") {
        many::scale(program, report).await?;
    }
    Ok(())
}
