//! Calls about checkpoints.

use std::time::Duration;

use reqwest::Method;

use super::path::Path;
use super::{ANSWER_TIMEOUT, Client, Result};
use crate::checkpoint::{Checkpoint, CreateCheckpoint, Diff, DiffQuery, ListCheckpoints};
use crate::page::Page;
use crate::session::{RemixSession, Session};

/// How long the server waits for a checkpoint.
const TAKING: Duration = Duration::from_secs(60);

pub(super) fn checkpoints(id: &str) -> Path {
    Path::new("sessions").id(id).then("checkpoints")
}

impl Client {
    /// `POST /sessions/{id}/checkpoints`: answers when the checkpoint is safe on the disk, or has failed.
    pub async fn create_checkpoint(&self, id: &str, body: &CreateCheckpoint) -> Result<Checkpoint> {
        let request = self.request(Method::POST, checkpoints(id))?.json(body);
        let response = self.send(request.timeout(ANSWER_TIMEOUT + TAKING)).await?;
        self.document(response).await
    }

    /// `GET /sessions/{id}/checkpoints`.
    pub async fn list_checkpoints(&self, id: &str, query: &ListCheckpoints) -> Result<Page<Checkpoint>> {
        self.fetch(checkpoints(id), query).await
    }

    /// `GET /sessions/{id}/checkpoints/{n}`; `n` is a number or a label.
    pub async fn get_checkpoint(&self, id: &str, n: &str) -> Result<Checkpoint> {
        self.fetch(checkpoints(id).id(n), &()).await
    }

    /// `DELETE /sessions/{id}/checkpoints/{n}`.
    pub async fn delete_checkpoint(&self, id: &str, n: u64) -> Result<()> {
        self.done(self.request(Method::DELETE, checkpoints(id).id(n))?).await
    }

    /// `GET /sessions/{id}/checkpoints/{to}/diff`; `to` is a number or `now`.
    pub async fn diff(&self, id: &str, to: &str, query: &DiffQuery) -> Result<Diff> {
        let request = self.get(checkpoints(id).id(to).then("diff"))?.query(query);
        let response = self.send(request.timeout(ANSWER_TIMEOUT + TAKING)).await?;
        self.document(response).await
    }

    /// `POST /sessions/{id}/checkpoints/{n}/restore`.
    pub async fn restore_checkpoint(&self, id: &str, n: u64) -> Result<Session> {
        let request = self.request(Method::POST, checkpoints(id).id(n).then("restore"))?;
        let response = self.send(request.timeout(ANSWER_TIMEOUT + TAKING)).await?;
        self.document(response).await
    }

    /// `POST /sessions/{id}/remix`.
    pub async fn remix_session(&self, id: &str, body: &RemixSession) -> Result<Session> {
        let request = self.request(Method::POST, Path::new("sessions").id(id).then("remix"))?.json(body);
        let response = self.send(request.timeout(ANSWER_TIMEOUT + TAKING)).await?;
        self.document(response).await
    }
}
