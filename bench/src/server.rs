//! The measured server: a child process that is killed on drop.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::http::Http;

/// Timeout for starting and stopping.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Builds the program of this workspace and returns its path.
pub fn build() -> anyhow::Result<PathBuf> {
    eprintln!("building raworc …");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "raworc"])
        .arg("--manifest-path")
        .arg(manifest)
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    // In the same directory as this program.
    Ok(std::env::current_exe()?.with_file_name("raworc"))
}

/// A running server.
pub struct Server {
    process: tokio::process::Child,
    /// `HOST:PORT`.
    pub address: String,
    /// The administrator's token.
    pub token: String,
}

impl Server {
    /// Starts a server on a free port.
    pub async fn start(program: &Path, data_dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let mut process = tokio::process::Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--output", "json", "--data-dir"])
            .arg(data_dir)
            .args(options)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let stdout = process.stdout.take().context("no stdout")?;
        let mut line = String::new();
        let read = tokio::time::timeout(TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
        read.context("the server did not start")??;
        let said: Value = serde_json::from_str(&line).context("the server did not start")?;
        let url = said["url"].as_str().context("the server did not say where it is")?;
        let address = url.trim_start_matches("http://").to_owned();
        let token = std::fs::read_to_string(data_dir.join("admin.token"))?.trim().to_owned();
        Ok(Self { process, address, token })
    }

    /// Opens a connection.
    pub async fn http(&self) -> anyhow::Result<Http> {
        Http::connect(&self.address, &self.token).await
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0)
    }

    /// Waits until the runtime has `wanted` spare containers.
    pub async fn until_spares(&self, wanted: usize) -> anyhow::Result<()> {
        let line = format!("raworc_spare_containers {wanted}");
        let mut http = self.http().await?;
        let all = async {
            loop {
                let text = http.call(hyper::Method::GET, "/metrics", bytes::Bytes::new()).await?;
                if String::from_utf8_lossy(&text).lines().any(|other| other == line) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, all).await.context("there are no spare containers")?
    }

    /// Creates a READY session.
    pub async fn session(&self, body: &Value) -> anyhow::Result<String> {
        let id = self.http().await?.post("/sessions", body).await?;
        let id = id["id"].as_str().context("no id")?.to_owned();
        self.http().await?.until_event(&id, 0, "\"to\":\"READY\"").await?;
        Ok(id)
    }

    /// Deletes a session and waits until its container is gone.
    pub async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let mut http = self.http().await?;
        http.json(hyper::Method::DELETE, &format!("/sessions/{id}"), &Value::Null).await?;
        self.until_containers_are_gone(&mut http).await
    }

    /// Waits until no container is connected.
    async fn until_containers_are_gone(&self, http: &mut Http) -> anyhow::Result<()> {
        let gone = async {
            loop {
                let text = http.call(hyper::Method::GET, "/metrics", bytes::Bytes::new()).await?;
                if String::from_utf8_lossy(&text).lines().any(|line| line == "raworc_hosts_connected 0") {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.context("containers do not end")?
    }

    /// Deletes every session.
    pub async fn delete_all(&self) -> anyhow::Result<()> {
        let mut http = self.http().await?;
        loop {
            let page = http.get("/sessions?limit=500").await?;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            if items.is_empty() {
                return self.until_containers_are_gone(&mut http).await;
            }
            for item in items {
                let path = format!("/sessions/{}", item["id"].as_str().unwrap_or_default());
                http.json(hyper::Method::DELETE, &path, &json!(null)).await?;
            }
        }
    }

    /// Deletes every session and stops the server.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.delete_all().await?;
        self.quit().await
    }

    /// Stops the server gracefully.
    pub async fn quit(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        let status = tokio::time::timeout(TIMEOUT, self.process.wait()).await.context("the server does not end")??;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}
