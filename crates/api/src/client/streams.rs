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

/// What comes from the server.
#[derive(Debug)]
pub enum Received {
    /// Bytes: of a terminal as they are, of a command behind the byte that names their channel.
    Bytes(Bytes),
    /// Something about them.
    Notice(Box<Notice>),
    /// Nothing more comes: the code and the reason that the server gave, if it gave one.
    Closed(Option<(u16, String)>),
}

/// The way to the server.
pub struct Sender(SplitSink<WebSocketStream<Upgraded>, Message>);

/// The way from the server.
pub struct Receiver(SplitStream<WebSocketStream<Upgraded>>);

impl Sender {
    /// Sends bytes; waits where the program takes none. False where the connection is no more.
    pub async fn bytes(&mut self, bytes: Vec<u8>) -> bool {
        self.0.send(Message::Binary(bytes.into())).await.is_ok()
    }

    /// Sends a text frame. False where the connection is no more.
    pub async fn frame(&mut self, frame: &ClientFrame) -> bool {
        match serde_json::to_string(frame) {
            Ok(text) => self.0.send(Message::Text(text.into())).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Asks whether the server is there: something comes back where it is. False where the connection is no more.
    pub async fn ping(&mut self) -> bool {
        self.0.send(Message::Ping(Bytes::new())).await.is_ok()
    }

    /// Says that nothing more is sent.
    pub async fn close(&mut self) {
        let _ = self.0.close().await;
    }
}

impl Receiver {
    /// What comes next; none where it says only that the server is there.
    pub async fn next(&mut self) -> Option<Received> {
        match self.0.next().await {
            Some(Ok(Message::Binary(bytes))) => Some(Received::Bytes(bytes)),
            // What is no notice of ours is of a newer server.
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

    /// `GET /sessions/{id}/exec`: runs a command whose streams are attached.
    pub async fn open_exec(&self, id: &str, body: Exec) -> Result<(Sender, Receiver)> {
        let (mut sender, receiver) = self.connect_exec(id).await?;
        // Where it can't be sent, the receiver says why.
        sender.frame(&ClientFrame::Start(body)).await;
        Ok((sender, receiver))
    }

    /// `GET /sessions/{id}/exec`: the WebSocket, over which the first frame says what to run.
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
