//! The way to the server: dialled again and again, for as long as it takes.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use raworc_core::limits::FRAME_BYTES_MAX;
use raworc_core::link::ServerFrame;

use crate::host::Event;
use crate::signals::STACK_BYTES;

/// Wait before dialling again, doubled with each failure.
const BACKOFF: Duration = Duration::from_millis(10);
/// Longest wait before dialling again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A server that takes no bytes for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the thread that dials and reads.
pub fn start(socket: PathBuf, events: Sender<Event>) -> io::Result<()> {
    let run = move || {
        let mut backoff = BACKOFF;
        loop {
            match connect(&socket, &events) {
                Ok(true) => backoff = BACKOFF,
                Ok(false) => return,
                Err(_) => backoff = (backoff * 2).min(BACKOFF_MAX),
            }
            thread::sleep(backoff);
        }
    };
    thread::Builder::new().name("connection".into()).stack_size(STACK_BYTES).spawn(run)?;
    Ok(())
}

/// One connection, from its beginning to its end. False where nobody listens any more; an error where it never came about
/// or was of no use.
fn connect(socket: &Path, events: &Sender<Event>) -> io::Result<bool> {
    let stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    if events.send(Event::Connected(stream.try_clone()?)).is_err() {
        return Ok(false);
    }
    let mut reader = BufReader::new(stream);
    let mut is_of_use = false;
    // A frame that is none ends the connection as much as its end does.
    while let Ok(Some(frame)) = read_frame(&mut reader) {
        is_of_use = true;
        if events.send(Event::Frame(frame)).is_err() {
            return Ok(false);
        }
    }
    if events.send(Event::Disconnected).is_err() {
        return Ok(false);
    }
    if is_of_use { Ok(true) } else { Err(io::ErrorKind::ConnectionReset.into()) }
}

fn read_frame(reader: &mut impl BufRead) -> io::Result<Option<ServerFrame>> {
    let mut line = Vec::new();
    let limit = u64::try_from(FRAME_BYTES_MAX).unwrap_or(u64::MAX);
    reader.take(limit).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
