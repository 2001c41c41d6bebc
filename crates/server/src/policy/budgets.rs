//! What requests may take of the server's memory: in all, and each account of it.
//!
//! Small things are not counted: as many as there may be connections fit in. What is large is counted for as long as its
//! client takes to read or to send it. Where there is no room, a request waits a while, or is refused with 429 (the account
//! has too much under way) or 503 (all have).

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use raworc_api::problem::Code;
use raworc_core::ids::AccountId;
use raworc_workspace::FileError;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;
use crate::sync::blocking;
use crate::sync::keyed_locks::KeyedSemaphore;

/// What is as short as this is not counted, in bytes.
pub const SMALL_BYTES: usize = 16 * 1024;
/// Answers that wait to be read, in bytes: in all, and of one account.
const ANSWERS_KIB: (usize, usize) = (64 * 1024, 24 * 1024);
/// Bodies that are being sent to the server, in bytes: in all, and of one account.
const BODIES_KIB: (usize, usize) = (32 * 1024, 16 * 1024);
/// Documents that are written at the same time: each takes what it is made from and what it is to be.
const WRITTEN_MAX: usize = 4;
/// Answers that are there and wait for room.
const WAITING_MAX: usize = 4;
/// How long a request waits for room.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Streams of events of one account at the same time.
pub const STREAMS_MAX: usize = 256;
/// Threads that wait for what clients send or take, of those that all work that blocks shares.
const THREADS_MAX: usize = 128;
/// Clients that are attached to terminals and commands at the same time, in all and of one account. Each takes 0.25 MiB at most.
const ATTACHED_MAX: (usize, usize) = (384, 192);
/// Archives that are made of directories at the same time, in all and of one account. Each takes 10 MiB, and of trees that are made for
/// it 40 MiB at most.
const DOWNLOADS_MAX: (usize, usize) = (16, 6);
/// Requests of one account at the same time, among them those that wait for something to end.
const REQUESTS_MAX: usize = 1024;

/// All of them.
#[derive(Debug)]
pub struct Budgets {
    /// Answers.
    pub answers: Budget,
    /// Bodies of requests.
    pub bodies: Budget,
    written: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    waiting: Semaphore,
    streams: KeyedSemaphore<AccountId>,
    attached: (Arc<Semaphore>, KeyedSemaphore<AccountId>),
    downloads: (Arc<Semaphore>, KeyedSemaphore<AccountId>),
    requests: KeyedSemaphore<AccountId>,
}

/// Memory for one purpose.
#[derive(Debug)]
pub struct Budget {
    all: Arc<Semaphore>,
    each: KeyedSemaphore<AccountId>,
    each_kib: usize,
    of: &'static str,
}

/// Some of it; given back when dropped.
#[derive(Debug)]
pub struct Charge {
    _of_account: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            answers: Budget::new(ANSWERS_KIB, "answers that are not read yet"),
            bodies: Budget::new(BODIES_KIB, "bodies that are being sent"),
            written: Arc::new(Semaphore::new(WRITTEN_MAX)),
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
            waiting: Semaphore::new(WAITING_MAX),
            streams: KeyedSemaphore::new(STREAMS_MAX),
            attached: (Arc::new(Semaphore::new(ATTACHED_MAX.0)), KeyedSemaphore::new(ATTACHED_MAX.1)),
            downloads: (Arc::new(Semaphore::new(DOWNLOADS_MAX.0)), KeyedSemaphore::new(DOWNLOADS_MAX.1)),
            requests: KeyedSemaphore::new(REQUESTS_MAX),
        }
    }
}

impl Budgets {
    /// A place for one more request of this account.
    ///
    /// # Errors
    /// 429 where it has too many under way.
    pub fn request(&self, account: AccountId) -> Result<OwnedSemaphorePermit, Failure> {
        self.requests.of(account).try_acquire_owned().map_err(|_| {
            let detail = format!("this account has {REQUESTS_MAX} requests under way; wait for some to end");
            Failure::new(Code::Busy, detail)
        })
    }

    /// A place for one more stream of events of this account.
    ///
    /// # Errors
    /// 429 where it has too many.
    pub fn stream(&self, account: AccountId) -> Result<OwnedSemaphorePermit, Failure> {
        self.streams.of(account).try_acquire_owned().map_err(|_| {
            let detail = format!("this account follows {STREAMS_MAX} streams of events already; end some");
            Failure::new(Code::Busy, detail)
        })
    }

    /// A place for one more client of this account that is attached to a terminal or a command.
    ///
    /// # Errors
    /// 429 where the account has too many, 503 where all have.
    pub fn attached(&self, account: AccountId) -> Result<[OwnedSemaphorePermit; 2], Failure> {
        let (all, each) = &self.attached;
        let of_account = each.of(account).try_acquire_owned().map_err(|_| {
            let most = ATTACHED_MAX.1;
            let detail = format!("this account is attached to {most} terminals and commands already; end some");
            Failure::new(Code::Busy, detail)
        })?;
        let of_all = Arc::clone(all).try_acquire_owned().map_err(|_| {
            let detail = "as many clients as may be are attached to terminals and commands; try again soon";
            Failure::new(Code::Unavailable, detail)
        })?;
        Ok([of_account, of_all])
    }

    /// A place for one more archive of a directory for this account, which may be waited for.
    ///
    /// # Errors
    /// 429 where the account has too many, 503 where all have.
    pub async fn download(&self, account: AccountId) -> Result<[OwnedSemaphorePermit; 2], Failure> {
        let (all, each) = &self.downloads;
        let Ok(Ok(of_account)) = tokio::time::timeout(WAIT_MAX, each.of(account).acquire_owned()).await else {
            let detail =
                format!("this account reads {} directories as archives already; wait for some to end", DOWNLOADS_MAX.1);
            return Err(Failure::new(Code::Busy, detail));
        };
        let Ok(Ok(of_all)) = tokio::time::timeout(WAIT_MAX, Arc::clone(all).acquire_owned()).await else {
            let detail = "the server makes as many archives of directories as it may; try again soon";
            return Err(Failure::new(Code::Unavailable, detail));
        };
        Ok([of_account, of_all])
    }

    /// A thread that waits for what a client sends or takes.
    ///
    /// # Errors
    /// 503 where there is none for a while.
    pub async fn thread(&self) -> Result<OwnedSemaphorePermit, Failure> {
        match tokio::time::timeout(WAIT_MAX, Arc::clone(&self.threads).acquire_owned()).await {
            Ok(Ok(thread)) => Ok(thread),
            Ok(Err(_)) | Err(_) => {
                let detail = "the server has too many uploads and exports under way; try again soon";
                Err(Failure::new(Code::Unavailable, detail))
            }
        }
    }

    /// A document as an answer. A long one is written where nobody has to wait for it.
    ///
    /// # Errors
    /// Where writing it panicked.
    pub async fn json<T: Serialize + Send + 'static>(&self, document: T) -> Result<Response, Failure> {
        let mut short = Short(Vec::with_capacity(512));
        let text = if serde_json::to_writer(&mut short, &document).is_ok() {
            short.0
        } else {
            drop(short);
            let turn = Arc::clone(&self.written).acquire_owned().await;
            let written = blocking(move || {
                let text = serde_json::to_vec(&document);
                drop((document, turn));
                text
            });
            written.await.map_err(FileError::Io)?.map_err(|error| FileError::Io(error.into()))?
        };
        let mut response = text.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// Room for an answer that is there.
    ///
    /// # Errors
    /// 429 or 503 where there is none.
    pub async fn answer(&self, account: AccountId, bytes: usize) -> Result<Charge, Failure> {
        match self.answers.try_take(account, bytes) {
            Ok(charge) => Ok(charge),
            Err(refused) => {
                let Ok(_place) = self.waiting.try_acquire() else { return Err(refused) };
                self.answers.take(account, bytes).await
            }
        }
    }
}

impl Budget {
    fn new((all, each): (usize, usize), of: &'static str) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each: KeyedSemaphore::new(each), each_kib: each, of }
    }

    /// Room for so much, which may be waited for.
    ///
    /// # Errors
    /// 429 or 503 where there is none for a while.
    pub async fn take(&self, account: AccountId, bytes: usize) -> Result<Charge, Failure> {
        match tokio::time::timeout(WAIT_MAX, self.wait(account, bytes)).await {
            Ok(Some(charge)) => Ok(charge),
            Ok(None) => Err(self.none()),
            Err(_) => self.try_take(account, bytes),
        }
    }

    /// Room for so much, however long it takes; none where the server ends.
    pub async fn wait(&self, account: AccountId, bytes: usize) -> Option<Charge> {
        let kib = self.kib(bytes);
        let of_account = self.each.of(account).acquire_many_owned(kib).await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_many_owned(kib).await.ok()?;
        Some(Charge { _of_account: of_account, _of_all: of_all })
    }

    fn try_take(&self, account: AccountId, bytes: usize) -> Result<Charge, Failure> {
        let kib = self.kib(bytes);
        let of_account = self.each.of(account).try_acquire_many_owned(kib).map_err(|_| {
            let detail = format!("this account has too many {} under way; wait for some to end", self.of);
            Failure::new(Code::Busy, detail)
        })?;
        let of_all = Arc::clone(&self.all).try_acquire_many_owned(kib).map_err(|_| self.none())?;
        Ok(Charge { _of_account: of_account, _of_all: of_all })
    }

    fn none(&self) -> Failure {
        Failure::new(Code::Unavailable, format!("the server has no room for more {}; try again soon", self.of))
    }

    /// What is longer than an account may have is all it may have.
    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1024).min(self.each_kib)).unwrap_or(u32::MAX)
    }
}

/// Takes no more than what is short.
struct Short(Vec<u8>);

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > SMALL_BYTES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test(start_paused = true)]
    async fn an_account_has_its_share_and_all_have_no_more_than_there_is() {
        let budget = Budget::new((100, 40), "things");
        let account = |n| AccountId(Uuid::from_u128(n));
        let code = |outcome: Result<Charge, Failure>| outcome.map(drop).map_err(|failure| failure.into_problem().code);
        let all_of_one = budget.take(account(1), usize::MAX).await.unwrap();
        assert_eq!(code(budget.take(account(1), 1).await), Err(Code::Busy));
        let others =
            [budget.take(account(2), 40 << 10).await.unwrap(), budget.take(account(3), 20 << 10).await.unwrap()];
        assert_eq!(code(budget.take(account(3), 1).await), Err(Code::Unavailable));
        drop(all_of_one);
        assert_eq!(code(budget.take(account(3), 20 << 10).await), Ok(()));
        drop(others);
        assert_eq!((budget.all.available_permits(), budget.each.of(account(1)).available_permits()), (100, 40));
    }

    #[tokio::test(start_paused = true)]
    async fn downloads_have_places_of_their_own_and_a_share_per_account() {
        let budgets = Budgets::default();
        let account = |n| AccountId(Uuid::from_u128(n));
        let mut held = Vec::new();
        for n in 0..DOWNLOADS_MAX.0 {
            held.push(budgets.download(account((n / DOWNLOADS_MAX.1) as u128)).await.unwrap());
        }
        let code = |failure: Failure| failure.into_problem().code;
        assert_eq!(code(budgets.download(account(0)).await.unwrap_err()), Code::Busy);
        assert_eq!(code(budgets.download(account(9)).await.unwrap_err()), Code::Unavailable);
        assert!(budgets.answer(account(0), ANSWERS_KIB.1 << 10).await.is_ok(), "they take nothing of long answers");
        drop(held);
        assert!(budgets.download(account(9)).await.is_ok());
    }

    #[tokio::test]
    async fn a_document_is_the_same_however_long_it_is() {
        let budgets = Budgets::default();
        for length in [0, SMALL_BYTES - 2, SMALL_BYTES - 1, SMALL_BYTES * 3] {
            let document = "x".repeat(length);
            let response = budgets.json(document.clone()).await.unwrap();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), document);
        }
    }
}
