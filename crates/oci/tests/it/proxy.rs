//! A proxy that breaks its first connections after a number of bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A proxy with counters.
pub struct Proxy {
    pub address: SocketAddr,
    cuts_left: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Breaks `cuts` connections after `bytes` in either direction.
    pub fn start(to: SocketAddr, bytes: u64, cuts: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cuts_left = Arc::new(AtomicU64::new(cuts));
        let passed = Arc::new(AtomicU64::new(0));
        let (left, total) = (Arc::clone(&cuts_left), Arc::clone(&passed));
        // Ends with the process: it holds nothing but its listener.
        thread::spawn(move || {
            for inner in listener.incoming().flatten() {
                let Ok(outer) = TcpStream::connect(to) else { continue };
                for (mut from, mut to) in [(inner.try_clone().unwrap(), outer.try_clone().unwrap()), (outer, inner)] {
                    let (left, total) = (Arc::clone(&left), Arc::clone(&total));
                    thread::spawn(move || pass(&mut from, &mut to, bytes, &left, &total));
                }
            }
        });
        Self { address, cuts_left, passed }
    }

    /// Connections still to be broken.
    pub fn cuts_left(&self) -> u64 {
        self.cuts_left.load(Ordering::SeqCst)
    }

    /// Bytes passed in both directions.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: u64, cuts_left: &AtomicU64, total: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    let mut done = 0;
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        done += count as u64;
        total.fetch_add(count as u64, Ordering::SeqCst);
        let cut = |left: u64| left.checked_sub(1);
        if done >= bytes && cuts_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut).is_ok() {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
