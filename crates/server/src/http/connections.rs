//! The connections that people and programs have to the server: how many there are, and how long one may take for what it does.
//!
//! Descriptors are for containers and records first, so connections are bounded. One that has not shown a token yet is worth
//! less than one that has, and one that does nothing less than one with a request under way: where there is no room for a new
//! connection, the one that is worth least is closed, the oldest of its kind first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// A connection without a request under way is closed after this long: later than clients and proxies give one up themselves.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// A client that takes what is sent to it takes so much in each second at least, in bytes.
const READ_BYTES_PER_SECOND_MIN: u64 = 4 * 1024;
/// How often it is looked whether a connection is overdue.
const LOOK: Duration = Duration::from_secs(1);

/// How many connections there may be, and how patient the server is with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// In all.
    pub all: usize,
    /// From one address (of IPv6, one network of 64 bits). Proxies run on this machine, so loopback is not bounded.
    pub per_address: usize,
    /// How long a client may take for the head of a request, and take nothing of an answer.
    pub patience: Duration,
}

impl Bounds {
    /// Without a token that works: a quarter.
    fn strangers(&self) -> usize {
        (self.all / 4).max(1)
    }
}

/// Why there is no room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The server has as many as it may.
    All,
    /// Its address has.
    Address,
}

/// All connections.
#[derive(Debug)]
pub struct Connections {
    bounds: Bounds,
    table: Mutex<BTreeMap<u64, Arc<Connection>>>,
    /// The next one's number; none has the number of one that was there before.
    next: AtomicU64,
    strangers: AtomicUsize,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    number: u64,
    source: Option<IpAddr>,
    close: CancellationToken,
    course: Mutex<ConnectionState>,
}

#[derive(Clone, Copy, Debug)]
struct ConnectionState {
    is_known: bool,
    is_working: bool,
    /// It speaks something else than HTTP since, and is closed by those who do.
    is_upgraded: bool,
    /// When the last request ended, or the connection began.
    idle_since: Instant,
    /// When the first bytes of the next request came.
    head_since: Option<Instant>,
    /// Since when the client is slow to take what is sent to it, and how much it has taken since, in bytes.
    slow: Option<(Instant, u64)>,
    /// The last write had to wait.
    waits: bool,
}

impl ConnectionState {
    fn new() -> Self {
        let idle_since = Instant::now();
        Self {
            is_known: false,
            is_working: false,
            is_upgraded: false,
            idle_since,
            head_since: None,
            slow: None,
            waits: false,
        }
    }

    /// Whether the client takes too long for something; begins to count anew where it does not.
    fn is_overdue(&mut self, patience: Duration) -> bool {
        let now = Instant::now();
        if let Some((since, bytes)) = self.slow
            && now - since >= patience
        {
            if self.waits && bytes < READ_BYTES_PER_SECOND_MIN * patience.as_secs().max(1) {
                return true;
            }
            self.slow = self.waits.then_some((now, 0));
        }
        if self.is_working || self.is_upgraded {
            return false;
        }
        match self.head_since {
            Some(since) => now - since >= patience,
            None if self.is_known => now - self.idle_since >= IDLE_MAX,
            None => now - self.idle_since >= patience,
        }
    }
}

impl Connections {
    /// With these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, table: Mutex::default(), next: AtomicU64::new(0), strangers: AtomicUsize::new(0) }
    }

    /// Lets one in, in the place of one that is worth less where there are too many.
    ///
    /// # Errors
    /// Where all there are are worth more.
    pub fn enter(self: &Arc<Self>, address: SocketAddr) -> Result<Guard, Full> {
        let source = source(address.ip());
        let mut table = lock(&self.table);
        let of_source = |other: &&Arc<Connection>| source.is_some() && other.source == source;
        if source.is_some() && table.values().filter(of_source).count() >= self.bounds.per_address {
            self.evict(&mut table, |other| other.source == source).ok_or(Full::Address)?;
        }
        if self.strangers.load(Ordering::SeqCst) >= self.bounds.strangers() {
            self.evict(&mut table, |other| !lock(&other.course).is_known).ok_or(Full::All)?;
        }
        if table.len() >= self.bounds.all {
            self.evict(&mut table, |_| true).ok_or(Full::All)?;
        }
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let (close, course) = (CancellationToken::new(), Mutex::new(ConnectionState::new()));
        let connection = Arc::new(Connection { number, source, close, course });
        table.insert(number, Arc::clone(&connection));
        self.strangers.fetch_add(1, Ordering::SeqCst);
        Ok(Guard { connections: Arc::clone(self), connection })
    }

    /// Closes one that is worth little, whatever its address, for the sake of its descriptor.
    pub fn shed(&self) -> bool {
        self.evict(&mut lock(&self.table), |_| true).is_some()
    }

    /// Closes the one that is worth least of those that are `meant`: strangers with nothing under way, strangers, then those with
    /// nothing under way.
    fn evict(&self, table: &mut BTreeMap<u64, Arc<Connection>>, meant: impl Fn(&Connection) -> bool) -> Option<()> {
        let mut worth: Option<((u8, Instant), u64)> = None;
        for other in table.values().filter(|other| meant(other)) {
            let course = *lock(&other.course);
            let class = match (course.is_known, course.is_working || course.is_upgraded) {
                (false, false) => 0,
                (false, true) => 1,
                (true, false) => 2,
                (true, true) => continue,
            };
            let candidate = ((class, course.idle_since), other.number);
            if worth.is_none_or(|least| candidate < least) {
                worth = Some(candidate);
            }
        }
        let (_, number) = worth?;
        let closed = table.remove(&number)?;
        closed.close.cancel();
        self.count_out(&closed);
        Some(())
    }

    fn count_out(&self, connection: &Connection) {
        if !lock(&connection.course).is_known {
            self.strangers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A connection that is let in; there is room for another one when it is dropped.
#[derive(Debug)]
pub struct Guard {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

impl Guard {
    /// For the requests on it.
    pub fn tracked(&self) -> Tracked {
        Tracked { connections: Arc::clone(&self.connections), connection: Arc::clone(&self.connection) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if lock(&self.connections.table).remove(&self.connection.number).is_some() {
            self.connections.count_out(&self.connection);
        }
    }
}

/// What requests say of their connection.
#[derive(Clone, Debug)]
pub struct Tracked {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
}

impl Tracked {
    /// A token that works was shown on it.
    pub fn known(&self) {
        let table = lock(&self.connections.table);
        let mut course = lock(&self.connection.course);
        if !course.is_known && table.contains_key(&self.connection.number) {
            course.is_known = true;
            self.connections.strangers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// A request has come.
    pub fn begin(&self) -> Working {
        let mut course = lock(&self.connection.course);
        (course.is_working, course.head_since) = (true, None);
        Working(Arc::clone(&self.connection))
    }

    /// It is about to speak something else than HTTP.
    pub fn upgraded(&self) {
        lock(&self.connection.course).is_upgraded = true;
    }

    /// Waits until it is to be closed: it is overdue, or another one needs its place.
    pub async fn over(&self) {
        let look = async {
            loop {
                tokio::time::sleep(LOOK.min(self.connections.bounds.patience)).await;
                if lock(&self.connection.course).is_overdue(self.connections.bounds.patience) {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.connection.close.cancelled() => {}
            () = look => {}
        }
    }
}

/// A request under way, until its answer is written.
#[derive(Debug)]
pub struct Working(Arc<Connection>);

impl Drop for Working {
    fn drop(&mut self) {
        let mut course = lock(&self.0.course);
        (course.is_working, course.idle_since) = (false, Instant::now());
    }
}

/// Whose connection it is; nobody's in particular where it comes from this machine.
fn source(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Some(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
        }
    }
}

/// A stream that tells its connection what comes and goes.
#[derive(Debug)]
pub struct Watched {
    stream: TcpStream,
    guard: Guard,
}

impl Watched {
    /// Of this connection, for as long as the stream is there.
    pub fn new(stream: TcpStream, guard: Guard) -> Self {
        Self { stream, guard }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        let mut course = lock(&self.guard.connection.course);
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                course.waits = false;
                if let Some((_, written)) = &mut course.slow {
                    *written += *bytes as u64;
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                course.waits = true;
                course.slow.get_or_insert((Instant::now(), 0));
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let mut course = lock(&self.guard.connection.course);
            if !course.is_working {
                course.head_since.get_or_insert_with(Instant::now);
            }
        }
        outcome
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(all: usize, per_address: usize) -> Arc<Connections> {
        Arc::new(Connections::new(Bounds { all, per_address, patience: Duration::from_secs(10) }))
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    fn is_closed(guard: &Guard) -> bool {
        guard.connection.close.is_cancelled()
    }

    #[tokio::test]
    async fn what_is_worth_least_makes_room() {
        let all = connections(8, 100);
        let known: Vec<Guard> = (0..6)
            .map(|_| {
                let guard = all.enter(from("127.0.0.1")).unwrap();
                guard.tracked().known();
                guard
            })
            .collect();
        // One that goes does not take another one's place along.
        drop(all.enter(from("127.0.0.1")).unwrap());
        let working: Vec<Working> = known[..5].iter().map(|guard| guard.tracked().begin()).collect();
        // Two strangers are a quarter; a third one takes the place of the first.
        let strangers: Vec<Guard> = (0..3).map(|_| all.enter(from("127.0.0.1")).unwrap()).collect();
        assert_eq!(strangers.iter().map(is_closed).collect::<Vec<_>>(), [true, false, false]);
        strangers.iter().skip(1).for_each(|guard| guard.tracked().known());
        // Now all eight are known: the one that has been idle for longest goes.
        let ninth = all.enter(from("127.0.0.1")).unwrap();
        assert!(is_closed(&known[5]) && !is_closed(&strangers[1]));
        ninth.tracked().known();
        let rest: Vec<Working> = strangers[1..].iter().chain([&ninth]).map(|guard| guard.tracked().begin()).collect();
        assert_eq!(all.enter(from("127.0.0.1")).unwrap_err(), Full::All, "all have a request under way");
        drop((working, rest, known, strangers, ninth));
        for _ in 0..3 {
            let newest: Vec<Guard> = (0..5).map(|_| all.enter(from("127.0.0.1")).unwrap()).collect();
            assert_eq!(newest.iter().map(is_closed).collect::<Vec<_>>(), [true, true, true, false, false]);
            // The one that was closed first is dropped last, or the other way round.
            newest.into_iter().rev().for_each(drop);
        }
        assert_eq!((lock(&all.table).len(), all.strangers.load(Ordering::SeqCst)), (0, 0));
    }

    #[tokio::test]
    async fn an_address_has_its_share() {
        let all = connections(100, 2);
        let known = |guard: &Guard| guard.tracked().known();
        let first: Vec<Guard> = (0..2).map(|_| all.enter(from("192.0.2.1")).unwrap()).collect();
        first.iter().for_each(known);
        let work: Vec<Working> = first.iter().map(|guard| guard.tracked().begin()).collect();
        assert_eq!(all.enter(from("192.0.2.1")).unwrap_err(), Full::Address);
        assert_eq!(all.enter(from("::ffff:192.0.2.1")).unwrap_err(), Full::Address);
        let others = ["192.0.2.2", "127.0.0.1", "127.0.0.1", "127.0.0.1", "::1", "2001:db8::1", "2001:db8:0:1::1"];
        let others: Vec<Guard> = others.iter().map(|address| all.enter(from(address)).unwrap()).collect();
        assert!(!others.iter().any(is_closed));
        let network: Vec<Guard> = (2..4).map(|n| all.enter(from(&format!("2001:db8::{n}"))).unwrap()).collect();
        assert!(is_closed(&others[5]) && !is_closed(&network[1]), "a network of 64 bits is one address");
        drop(work);
        let again = all.enter(from("192.0.2.1")).unwrap();
        assert!(is_closed(&first[0]) && !is_closed(&again));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_has_an_end() {
        let all = connections(10, 10);
        let over = async |guard: &Guard, after: u64| {
            let tracked = guard.tracked();
            tokio::time::timeout(Duration::from_secs(after), tracked.over()).await.is_ok()
        };
        let silent = all.enter(from("127.0.0.1")).unwrap();
        assert!(!over(&silent, 9).await && over(&silent, 3).await, "a stranger that says nothing");
        let known = all.enter(from("127.0.0.1")).unwrap();
        known.tracked().known();
        assert!(!over(&known, 80).await, "one that is known may be idle for a while");
        lock(&known.connection.course).head_since = Some(Instant::now());
        assert!(!over(&known, 9).await && over(&known, 3).await, "half a head");
        let working = known.tracked().begin();
        assert!(!over(&known, 3600).await, "a request may take its time");
        let slow = |bytes| {
            let mut course = lock(&known.connection.course);
            (course.slow, course.waits) = (Some((Instant::now(), bytes)), true);
        };
        slow(10 * READ_BYTES_PER_SECOND_MIN);
        assert!(!over(&known, 19).await, "one that takes enough begins anew");
        slow(0);
        assert!(over(&known, 12).await, "one that takes nothing");
        drop(working);
    }
}
