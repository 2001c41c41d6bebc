//! Calls about sessions, messages and events.

use std::time::Duration;

use raworc_core::ids::MessageId;
use raworc_core::limits::START_TIMEOUT;
use reqwest::{Method, StatusCode};

use super::path::Path;
use super::{ANSWER_TIMEOUT, Client, Result};
use crate::event::{Event, ListEvents};
use crate::message::{ListMessages, Message, MessageWithReply, SendMessage, WaitQuery};
use crate::page::Page;
use crate::session::{AssignAgents, AssignedAgent, CreateSession, ListSessions, Session, UpdateSession};
use crate::workspace::{Exec, ExecResult};

/// The server's timeout for an exec without `timeout_seconds`.
const EXEC_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

fn session(id: &str) -> Path {
    Path::new("sessions").id(id)
}

impl Client {
    /// `POST /sessions`. Answers at once, in INIT; use [`follow`](Self::follow) to wait for READY.
    pub async fn create_session(&self, body: &CreateSession) -> Result<Session> {
        self.post(Path::new("sessions"), body).await
    }

    /// `GET /sessions`.
    pub async fn list_sessions(&self, query: &ListSessions) -> Result<Page<Session>> {
        self.fetch(Path::new("sessions"), query).await
    }

    /// `GET /sessions/{id}`.
    pub async fn get_session(&self, id: &str) -> Result<Session> {
        self.fetch(session(id), &()).await
    }

    /// `PUT /sessions/{id}`: absent fields stay unchanged.
    pub async fn update_session(&self, id: &str, body: &UpdateSession) -> Result<Session> {
        self.put(session(id), body).await
    }

    /// `DELETE /sessions/{id}`: terminates and hides it. `None` if its record is damaged and cannot be shown.
    pub async fn delete_session(&self, id: &str) -> Result<Option<Session>> {
        let request = self.request(Method::DELETE, session(id))?;
        let response = self.accepted(request.timeout(ANSWER_TIMEOUT)).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => self.document(response).await.map(Some),
        }
    }

    /// `POST /sessions/{id}/pause`.
    pub async fn pause_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "pause").await
    }

    /// `POST /sessions/{id}/resume`: also starts a container.
    pub async fn resume_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "resume").await
    }

    /// `POST /sessions/{id}/terminate`: the workspace is kept.
    pub async fn terminate_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "terminate").await
    }

    /// `POST /sessions/{id}/restart`: replaces the container.
    pub async fn restart_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "restart").await
    }

    /// `POST /sessions/{id}/restore`: undoes a termination or deletion.
    pub async fn restore_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "restore").await
    }

    /// `POST /sessions/{id}/cancel`: cancels the running message.
    pub async fn cancel_session(&self, id: &str) -> Result<Session> {
        self.lifecycle(id, "cancel").await
    }

    async fn lifecycle(&self, id: &str, action: &'static str) -> Result<Session> {
        self.call(self.request(Method::POST, session(id).then(action))?).await
    }

    /// `GET /sessions/{id}/agents`.
    pub async fn session_agents(&self, id: &str) -> Result<Vec<AssignedAgent>> {
        self.fetch(session(id).then("agents"), &()).await
    }

    /// `PUT /sessions/{id}/agents`.
    pub async fn assign_agents(&self, id: &str, body: &AssignAgents) -> Result<Vec<AssignedAgent>> {
        self.put(session(id).then("agents"), body).await
    }

    /// `POST /sessions/{id}/messages`. With an `idempotency_key`, repeating the call is safe. With `wait_seconds`, it
    /// answers when the message has ended or the time is over; check its status.
    pub async fn send_message(
        &self,
        id: &str,
        body: &SendMessage,
        idempotency_key: Option<&str>,
        wait: WaitQuery,
    ) -> Result<MessageWithReply> {
        let mut request = self.request(Method::POST, session(id).then("messages"))?.query(&wait).json(body);
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        let response = self.send(request.timeout(patience(wait))).await?;
        self.document(response).await
    }

    /// `GET /sessions/{id}/messages`.
    pub async fn list_messages(&self, id: &str, query: &ListMessages) -> Result<Page<Message>> {
        self.fetch(session(id).then("messages"), query).await
    }

    /// `GET /sessions/{id}/messages/{message}`.
    pub async fn get_message(&self, id: &str, message: MessageId, wait: WaitQuery) -> Result<MessageWithReply> {
        let request = self.get(session(id).then("messages").id(message))?.query(&wait);
        let response = self.send(request.timeout(patience(wait))).await?;
        self.document(response).await
    }

    /// `POST /sessions/{id}/messages/{message}/cancel`.
    pub async fn cancel_message(&self, id: &str, message: &str, wait: WaitQuery) -> Result<MessageWithReply> {
        let path = session(id).then("messages").id(message).then("cancel");
        let response = self.send(self.request(Method::POST, path)?.query(&wait).timeout(patience(wait))).await?;
        self.document(response).await
    }

    /// `GET /sessions/{id}/events` as a page; [`follow`](Self::follow) streams them.
    pub async fn list_events(&self, id: &str, query: &ListEvents) -> Result<Page<Event>> {
        self.fetch(session(id).then("events"), query).await
    }

    /// `POST /sessions/{id}/exec`.
    pub async fn exec(&self, id: &str, body: &Exec) -> Result<ExecResult> {
        let asked = body.timeout_seconds.map_or(EXEC_TIMEOUT_DEFAULT, Duration::from_secs);
        // The session's container may have to start first.
        let timeout = asked + START_TIMEOUT + ANSWER_TIMEOUT;
        let request = self.request(Method::POST, session(id).then("exec"))?.json(body);
        let response = self.send(request.timeout(timeout)).await?;
        self.document(response).await
    }
}

fn patience(wait: WaitQuery) -> Duration {
    ANSWER_TIMEOUT + Duration::from_secs(wait.wait_seconds.unwrap_or_default())
}
