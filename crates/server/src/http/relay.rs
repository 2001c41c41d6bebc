//! Between a client's WebSocket and the connection that its session's host has dialled for it.
//!
//! Each direction waits for whoever it leads to, so that nothing is kept here, and a slow client is slow alone.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use raworc_api::problem::{Code, Problem};
use raworc_api::terminal::{
    CHANNEL_STDERR, CHANNEL_STDIN, CHANNEL_STDOUT, CLOSE_LOST, CLOSE_TOO_SLOW, ClientFrame, Notice,
};
use raworc_core::limits::PIECE_BYTES_MAX;
use raworc_core::link::{Ending, OutputStream, Size};
use raworc_core::pieces::{Decoder, Ended, Piece};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};

use crate::app::Shared;
use crate::error::Failure;
use crate::link::attachments;
use crate::policy::lease::Lease;
use crate::verbs::streams::{Attached, SIZE_MAX};

/// How often a client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A terminal's client that says nothing for so long has gone.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// A terminal's client that takes nothing for so long loses its connection; the terminal goes on, and it may come back.
const TERMINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A command's client that takes nothing for so long has gone. Until then the program waits: someone may be reading.
const EXEC_WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// What is said last is given up after so long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Read at once from a host, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// A client's right to be attached, and its place among those who are.
pub struct Right {
    /// Until when it may be.
    pub lease: Lease,
    /// Its place.
    pub place: [OwnedSemaphorePermit; 2],
}

/// What a WebSocket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A terminal's bytes.
    Terminal,
    /// A command's streams, behind the byte that names each.
    Exec,
}

/// Why it ends.
enum End {
    /// The program has ended.
    Ended(Ended),
    /// The client fell behind what a terminal keeps.
    TooSlow,
    /// The way to the host is lost.
    Lost,
    /// The client has gone.
    Gone,
    /// The client has sent something that it may not.
    Refused(Problem),
    /// The client may be attached no longer.
    Over(Problem),
    /// The server stops.
    Stopping,
}

/// Relays until one of the two sides ends, or the client may no longer.
pub async fn relay(app: Shared, right: Right, socket: WebSocket, attached: Attached, kind: Kind) {
    let Right { lease, place: _place } = right;
    let (mut to_client, mut from_client) = socket.split();
    let mut decoder = Decoder::default();
    decoder.push(&attached.way.read);
    let (mut from_host, mut to_host) = tokio::io::split(attached.way.stream);
    let mut end = End::Gone;
    let notice = Notice { terminal: Some(attached.id.to_string()), ..Notice::default() };
    if kind == Kind::Exec || say(&mut to_client, &notice).await {
        end = tokio::select! {
            end = down(&mut from_host, &mut decoder, &mut to_client, kind) => end,
            end = up(&mut from_client, &mut to_host, kind) => end,
            failure = lease.ended_on(attached.session) => End::Over(failure.into_problem()),
            () = app.stopping.cancelled() => End::Stopping,
        };
    }
    drop((from_host, to_host));
    // How a command ended is for a client that may be slow to read what it wrote.
    let patience = match (kind, &end) {
        (Kind::Exec, End::Ended(_)) => EXEC_WRITE_TIMEOUT,
        _ => CLOSE_TIMEOUT,
    };
    tokio::select! {
        _ = timeout(patience, close(&mut to_client, &mut from_client, end)) => {}
        _ = lease.ended_on(attached.session), if patience > CLOSE_TIMEOUT => {}
        () = app.stopping.cancelled(), if patience > CLOSE_TIMEOUT => {}
    }
}

/// Tells a client that cannot be served why, and ends.
pub async fn refuse(socket: WebSocket, failure: Failure) {
    let (mut to_client, mut from_client) = socket.split();
    let end = End::Refused(failure.into_problem());
    let _ = timeout(CLOSE_TIMEOUT, close(&mut to_client, &mut from_client, end)).await;
}

async fn say(to_client: &mut SplitSink<WebSocket, Message>, notice: &Notice) -> bool {
    let text = serde_json::to_string(notice).unwrap_or_default();
    matches!(timeout(CLOSE_TIMEOUT, to_client.send(Message::Text(text.into()))).await, Ok(Ok(())))
}

/// From the host to the client.
async fn down(
    from_host: &mut ReadHalf<Box<dyn attachments::Stream>>,
    decoder: &mut Decoder,
    to_client: &mut SplitSink<WebSocket, Message>,
    kind: Kind,
) -> End {
    let patience = if kind == Kind::Terminal { TERMINAL_WRITE_TIMEOUT } else { EXEC_WRITE_TIMEOUT };
    let mut buffer = vec![0; READ_BYTES];
    let mut ping_at = Instant::now() + PING_INTERVAL;
    loop {
        let piece = if ping_at <= Instant::now() { Ok(None) } else { decoder.next_piece() };
        let message = match piece {
            Ok(Some(Piece::Output(stream, bytes))) => Message::Binary(outgoing(kind, stream, bytes)),
            Ok(Some(Piece::Ended(ended))) => return End::Ended(ended),
            Ok(Some(Piece::Lagged)) => return End::TooSlow,
            Ok(Some(Piece::Input(_) | Piece::InputEnd | Piece::Resize(_))) | Err(_) => return End::Lost,
            Ok(None) => tokio::select! {
                biased;
                () = sleep_until(ping_at) => {
                    ping_at = Instant::now() + PING_INTERVAL;
                    Message::Ping(Bytes::new())
                }
                read = from_host.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return End::Lost,
                    Ok(count) => {
                        decoder.push(&buffer[..count]);
                        continue;
                    }
                },
            },
        };
        match timeout(patience, to_client.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Gone,
            Err(_) => return End::TooSlow,
        }
    }
}

fn outgoing(kind: Kind, stream: OutputStream, bytes: Vec<u8>) -> Bytes {
    if kind == Kind::Terminal {
        return bytes.into();
    }
    let channel = match stream {
        OutputStream::Stdout => CHANNEL_STDOUT,
        OutputStream::Stderr => CHANNEL_STDERR,
    };
    let mut framed = Vec::with_capacity(bytes.len() + 1);
    framed.push(channel);
    framed.extend_from_slice(&bytes);
    framed.into()
}

/// From the client to the host.
async fn up(
    from_client: &mut SplitStream<WebSocket>,
    to_host: &mut WriteHalf<Box<dyn attachments::Stream>>,
    kind: Kind,
) -> End {
    let mut pieces = Vec::new();
    loop {
        let next = match kind {
            Kind::Terminal => match timeout(QUIET_MAX, from_client.next()).await {
                Ok(next) => next,
                Err(_) => return End::Gone,
            },
            Kind::Exec => from_client.next().await,
        };
        pieces.clear();
        match next {
            Some(Ok(Message::Binary(bytes))) => {
                if let Err(problem) = input(kind, &bytes, &mut pieces) {
                    return End::Refused(problem);
                }
            }
            Some(Ok(Message::Text(text))) => match control(kind, &text) {
                Ok(piece) => piece.encode(&mut pieces),
                Err(problem) => return End::Refused(problem),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Gone,
        }
        if !pieces.is_empty() && to_host.write_all(&pieces).await.is_err() {
            // The host's last words may still be on their way.
            std::future::pending::<()>().await;
        }
    }
}

fn input(kind: Kind, bytes: &[u8], pieces: &mut Vec<u8>) -> Result<(), Problem> {
    let content = match (kind, bytes) {
        (Kind::Terminal, bytes) => bytes,
        (Kind::Exec, [CHANNEL_STDIN, content @ ..]) => content,
        (Kind::Exec, _) => return Err(malformed("a binary frame begins with the byte 0, which names standard input")),
    };
    for part in content.chunks(PIECE_BYTES_MAX) {
        Piece::Input(part.to_vec()).encode(pieces);
    }
    Ok(())
}

fn control(kind: Kind, text: &str) -> Result<Piece, Problem> {
    match (kind, serde_json::from_str(text)) {
        (Kind::Terminal, Ok(ClientFrame::Resize { columns, rows }))
            if [columns, rows].iter().all(|count| (1..=SIZE_MAX).contains(count)) =>
        {
            Ok(Piece::Resize(Size { columns, rows }))
        }
        (Kind::Exec, Ok(ClientFrame::EndOfInput {})) => Ok(Piece::InputEnd),
        (Kind::Terminal, _) => Err(malformed(r#"a text frame must be {"resize": {"columns": 80, "rows": 24}}"#)),
        (Kind::Exec, _) => Err(malformed(r#"a text frame after the first must be {"end_of_input": {}}"#)),
    }
}

fn malformed(detail: &str) -> Problem {
    Problem::new(Code::InvalidBody, detail)
}

async fn close(to_client: &mut SplitSink<WebSocket, Message>, from_client: &mut SplitStream<WebSocket>, end: End) {
    let (notice, code, reason) = match end {
        End::Ended(ended) => (Some(last_words(ended)), 1000, ""),
        End::TooSlow => (None, CLOSE_TOO_SLOW, "too slow; attach again"),
        End::Lost => (None, CLOSE_LOST, "the way to the container is lost"),
        End::Refused(problem) | End::Over(problem) => {
            (Some(Notice { problem: Some(problem), ..Notice::default() }), 1008, "refused")
        }
        End::Stopping => (None, 1001, "the server stops"),
        End::Gone => return,
    };
    let speak = async {
        if let Some(notice) = notice {
            let text = serde_json::to_string(&notice).unwrap_or_default();
            to_client.send(Message::Text(text.into())).await?;
        }
        to_client.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await
    };
    // A connection that is closed before everything is read is reset, and the client would not hear the last words.
    let listen = async { while let Some(Ok(_)) = from_client.next().await {} };
    let _ = tokio::join!(speak, listen);
}

/// How a program ended, in the numbers of a shell.
fn last_words(ended: Ended) -> Notice {
    let reason = |text: &str| Some(text.to_owned());
    let (exit_code, signal, why) = match ended.ending {
        Ending::Exited(code) => (code, None, None),
        Ending::Signalled(signal) => (128 + signal, Some(signal), None),
        Ending::TimedOut => (124, None, reason("it took too long and was ended")),
        Ending::NotStarted => (126, None, reason("it could not be started")),
        Ending::Cancelled => (130, None, reason("it was closed")),
    };
    Notice { exit_code: Some(exit_code), signal, reason: ended.reason.or(why), ..Notice::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_frames() {
        let resize = r#"{"resize": {"columns": 100, "rows": 30}}"#;
        let end = r#"{"end_of_input": {}}"#;
        assert_eq!(control(Kind::Terminal, resize), Ok(Piece::Resize(Size { columns: 100, rows: 30 })));
        assert_eq!(control(Kind::Exec, end), Ok(Piece::InputEnd));
        for (kind, wrong) in [
            (Kind::Terminal, end),
            (Kind::Exec, resize),
            (Kind::Terminal, r#"{"resize": {"columns": 0, "rows": 30}}"#),
            (Kind::Terminal, r#"{"resize": {"columns": 4097, "rows": 30}}"#),
            (Kind::Terminal, r#"{"resize": {"columns": 100000, "rows": 30}}"#),
            (Kind::Terminal, r#"{"resize": {}}"#),
            (Kind::Terminal, "{}"),
            (Kind::Terminal, ""),
            (Kind::Exec, r#"{"end_of_input": {"x": 1}}"#),
        ] {
            assert!(control(kind, wrong).is_err(), "{kind:?} {wrong}");
        }
    }

    #[test]
    fn binary_frames() {
        let pieces = |kind, bytes: &[u8]| {
            let mut encoded = Vec::new();
            input(kind, bytes, &mut encoded).ok()?;
            let mut decoder = Decoder::default();
            decoder.push(&encoded);
            Some(std::iter::from_fn(|| decoder.next_piece().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(pieces(Kind::Terminal, b"\0x"), Some(vec![Piece::Input(b"\0x".to_vec())]));
        assert_eq!(pieces(Kind::Exec, b"\0x"), Some(vec![Piece::Input(b"x".to_vec())]));
        assert_eq!((pieces(Kind::Exec, b"\0"), pieces(Kind::Terminal, b"")), (Some(vec![]), Some(vec![])));
        assert_eq!((pieces(Kind::Exec, b""), pieces(Kind::Exec, b"\x01x")), (None, None));
        assert_eq!(pieces(Kind::Terminal, &vec![7; PIECE_BYTES_MAX + 1]).map(|pieces| pieces.len()), Some(2));
    }

    #[test]
    fn last_words_are_those_of_a_shell() {
        let code = |ending| last_words(Ended { ending, reason: None }).exit_code;
        let endings =
            [Ending::Exited(3), Ending::Signalled(9), Ending::TimedOut, Ending::NotStarted, Ending::Cancelled];
        assert_eq!(endings.map(code), [3, 137, 124, 126, 130].map(Some));
    }
}
