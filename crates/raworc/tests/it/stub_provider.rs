//! A provider of models that answers as a test says, and remembers what it was asked.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The first line and the headers, in lower case.
    pub head: String,
    pub body: Value,
}

/// What it answers.
pub enum Answer {
    /// A whole answer: status, and a body of JSON.
    Json(u16, Value),
    /// A stream of these events, and its end.
    Stream(Vec<String>),
    /// The beginning of a stream, and then nothing until the other side goes.
    Hang(Vec<String>),
}

/// It runs until it is dropped.
pub struct StubProvider {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// How many of its connections the other side has given up while it hung.
    pub left: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for StubProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StubProvider {
    /// `answer` says what is answered to a request.
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (sender, left) = watch::channel(0);
        let (kept, answer) = (Arc::clone(&asked), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, answer, sender) = (Arc::clone(&kept), Arc::clone(&answer), sender.clone());
                tokio::spawn(async move { serve(stream, &kept, &*answer, &sender).await });
            }
        });
        Self { url, asked, left, task }
    }

    /// All that it was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    stream: TcpStream,
    kept: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(&Asked) -> Answer + Send + Sync),
    left: &watch::Sender<usize>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match stream.read_line(&mut head).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let asked = Asked { head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        kept.lock().unwrap().push(asked.clone());
        let events = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        match answer(&asked) {
            Answer::Json(status, body) => {
                let body = body.to_string();
                let text = format!(
                    "HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Answer::Stream(parts) => {
                let _ = stream.write_all(format!("{events}{}", parts.concat()).as_bytes()).await;
                return;
            }
            Answer::Hang(parts) => {
                let _ = stream.write_all(format!("{events}{}", parts.concat()).as_bytes()).await;
                // Nothing comes from there any more but its end.
                let _ = stream.read(&mut [0; 64]).await;
                left.send_modify(|count| *count += 1);
                return;
            }
        }
    }
}
