//! Terminals and commands over WebSockets.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::header::{CONNECTION, UPGRADE};
use reqwest::{Method, StatusCode, Upgraded};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, handshake::client::generate_key};

use super::path::Path;
use super::{ANSWER_TIMEOUT, Client, ClientError, Result};
use crate::page::Page;
use crate::terminal::{ClientFrame, Notice, OpenTerminal, Terminal};
use crate::workspace::Exec;

/// A frame or the end of a connection.
#[derive(Debug)]
pub enum Received {
    /// Bytes of a terminal; or of a command, preceded by a byte for the channel.
    Bytes(Bytes),
    /// A notice.
    Notice(Box<Notice>),
    /// The connection was closed, with the server's code and reason if it sent them.
    Closed(Option<(u16, String)>),
}

/// The sending half of a connection.
pub struct Sender(SplitSink<WebSocketStream<Upgraded>, Message>);

/// The receiving half of a connection.
pub struct Receiver(SplitStream<WebSocketStream<Upgraded>>);

impl Sender {
    /// Sends bytes, and waits while the server does not read. Returns false if the connection is closed.
    pub async fn bytes(&mut self, bytes: Vec<u8>) -> bool {
        self.0.send(Message::Binary(bytes.into())).await.is_ok()
    }

    /// Sends a text frame. Returns false if the connection is closed.
    pub async fn frame(&mut self, frame: &ClientFrame) -> bool {
        match serde_json::to_string(frame) {
            Ok(text) => self.0.send(Message::Text(text.into())).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Sends a ping, which the server answers. Returns false if the connection is closed.
    pub async fn ping(&mut self) -> bool {
        self.0.send(Message::Ping(Bytes::new())).await.is_ok()
    }

    /// Closes the sending half.
    pub async fn close(&mut self) {
        let _ = self.0.close().await;
    }
}

impl Receiver {
    /// The next frame; `None` for a ping or pong.
    pub async fn next(&mut self) -> Option<Received> {
        match self.0.next().await {
            Some(Ok(Message::Binary(bytes))) => Some(Received::Bytes(bytes)),
            // An unknown notice is from a newer server.
            Some(Ok(Message::Text(text))) => {
                serde_json::from_str(&text).ok().map(|notice| Received::Notice(Box::new(notice)))
            }
            Some(Ok(Message::Close(frame))) => {
                Some(Received::Closed(frame.map(|frame| (frame.code.into(), frame.reason.to_string()))))
            }
            Some(Ok(_)) => None,
            Some(Err(_)) | None => Some(Received::Closed(None)),
        }
    }
}

impl Client {
    /// `GET /sessions/{id}/terminal`: opens a terminal, or attaches to one.
    pub async fn open_terminal(&self, id: &str, query: &OpenTerminal) -> Result<(Sender, Receiver)> {
        self.upgrade(Path::new("sessions").id(id).then("terminal"), query).await
    }

    /// `GET /sessions/{id}/exec`: runs a command with attached streams.
    pub async fn open_exec(&self, id: &str, body: Exec) -> Result<(Sender, Receiver)> {
        let (mut sender, receiver) = self.connect_exec(id).await?;
        // If it cannot be sent, the receiver returns the reason.
        sender.frame(&ClientFrame::Start(body)).await;
        Ok((sender, receiver))
    }

    /// `GET /sessions/{id}/exec`: opens the WebSocket; its first frame must say what to run.
    pub async fn connect_exec(&self, id: &str) -> Result<(Sender, Receiver)> {
        self.upgrade(Path::new("sessions").id(id).then("exec"), &()).await
    }

    /// `GET /sessions/{id}/terminals`.
    pub async fn terminals(&self, id: &str) -> Result<Page<Terminal>> {
        self.fetch(Path::new("sessions").id(id).then("terminals"), &()).await
    }

    /// `DELETE /sessions/{id}/terminals/{terminal}`.
    pub async fn close_terminal(&self, id: &str, terminal: &str) -> Result<()> {
        let path = Path::new("sessions").id(id).then("terminals").id(terminal);
        self.done(self.request(Method::DELETE, path)?).await
    }

    async fn upgrade(&self, path: Path, query: &impl serde::Serialize) -> Result<(Sender, Receiver)> {
        let request = self.request(Method::GET, path)?.query(query);
        let request = request.header(CONNECTION, "Upgrade").header(UPGRADE, "websocket");
        let request = request.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", generate_key());
        let response = match tokio::time::timeout(ANSWER_TIMEOUT * 2, self.send(request)).await {
            Ok(response) => response?,
            Err(_) => return Err(ClientError::Protocol("the server did not answer in time".into())),
        };
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {}
            status if status.is_success() => {
                return Err(ClientError::Protocol("the server did not open a WebSocket".into()));
            }
            _ => return Err(self.refused(response).await),
        }
        let stream = response.upgrade().await.map_err(|error| self.broken(&error))?;
        let (sender, receiver) = WebSocketStream::from_raw_socket(stream, Role::Client, None).await.split();
        Ok((Sender(sender), Receiver(receiver)))
    }
}
