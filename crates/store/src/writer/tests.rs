use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use raworc_core::ids::SessionId;
use uuid::Uuid;

use super::*;
use crate::Store;
use crate::sql::sql;

/// A disk whose commits fail in this way, one after another; all after them succeed.
#[derive(Default)]
struct TestDisk(Mutex<VecDeque<StoreError>>);

impl Disk for TestDisk {
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.0.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    fn after(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What came of the jobs of one test.
#[derive(Clone, Default)]
struct Seen {
    /// Sessions that the listener was told of, once for each time.
    notices: Arc<Mutex<Vec<SessionId>>>,
    /// What jobs had done after the commit.
    effects: Arc<Mutex<Vec<usize>>>,
    /// Runs of all jobs.
    runs: Arc<AtomicUsize>,
    /// The ids that each run made.
    ids: Arc<Mutex<Vec<(usize, Uuid)>>>,
}

impl Seen {
    fn listener(&self) -> Listener {
        let notices = Arc::clone(&self.notices);
        Arc::new(move |notice| notices.lock().unwrap().extend(notice.sessions))
    }
}

/// How a job goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It does not.
    None,
    /// A statement of it meets a full disk.
    Full,
    /// The same, and it goes on all the same.
    FullUnnoticed,
    /// It fails by itself.
    Own,
    Panic,
}

/// A job that stores a row, and has something done after the commit.
async fn job(store: &Store, n: usize, fault: Fault, seen: Seen) -> Result<usize, StoreError> {
    store
        .write(move |tx| {
            Box::pin(async move {
                seen.runs.fetch_add(1, Ordering::SeqCst);
                let id = tx.new_id();
                seen.ids.lock().unwrap().push((n, id));
                insert(tx, &n.to_string(), id.to_string()).await?;
                tx.changed(SessionId(Uuid::from_u128(n as u128)));
                tx.after_commit(move || seen.effects.lock().unwrap().push(n));
                match fault {
                    Fault::None => {}
                    Fault::Full => insert(tx, "large", "x".repeat(1 << 20)).await?,
                    Fault::FullUnnoticed => {
                        assert!(insert(tx, "large", "x".repeat(1 << 20)).await.is_err());
                        // The transaction has ended: this would be committed by itself.
                        assert!(insert(tx, "after", "x".into()).await.is_err());
                    }
                    Fault::Own => return Err(StoreError::Conflict),
                    Fault::Panic => std::panic::resume_unwind(Box::new("a fault")),
                }
                Ok(n)
            })
        })
        .await
}

async fn insert(tx: &mut Tx, name: &str, value: String) -> Result<(), StoreError> {
    let text = "INSERT INTO settings (name, value) VALUES ($1, $2)";
    sql(text).bind(name).bind(value).execute(tx).await.map(drop)
}

async fn names(store: &Store) -> Vec<String> {
    let mut connection = store.read().await.unwrap();
    let rows = sql("SELECT name FROM settings ORDER BY name").fetch_all(&mut connection, |row| row.text("name"));
    rows.await.unwrap()
}

/// A store on memory that grows by a few pages at most.
async fn small_store(seen: &Seen, commits: impl IntoIterator<Item = StoreError>) -> Store {
    static STORES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("writer-test-{}", STORES.fetch_add(1, Ordering::SeqCst));
    let disk = Arc::new(TestDisk::default());
    let store = Store::open_memory(&name, seen.listener(), disk.clone()).unwrap();
    let limited = store.write(|tx| {
        Box::pin(async move {
            let pages = sql("SELECT page_count + 8 AS pages FROM pragma_page_count()");
            let pages = pages.fetch_optional(tx, |row| row.integer("pages")).await?.unwrap();
            let limit = sql(format!("PRAGMA max_page_count = {pages}"));
            limit.fetch_optional(tx, |_| Ok(())).await
        })
    });
    limited.await.unwrap();
    disk.0.lock().unwrap().extend(commits);
    store
}

/// Runs these jobs in one batch: all are in the queue before the writer looks at the first.
async fn run_batch(store: &Store, faults: &[Fault], seen: &Seen) -> Vec<Result<usize, StoreError>> {
    let jobs = faults.iter().enumerate().map(|(n, fault)| job(store, n, *fault, seen.clone()));
    futures::future::join_all(jobs).await
}

fn block_on_tokio(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test);
}

fn expect_once(kept: &[usize], seen: &Seen, names: &[String], context: &str) {
    let expected: Vec<String> = kept.iter().map(usize::to_string).collect();
    assert_eq!(names, expected, "rows: {context}");
    assert_eq!(*seen.effects.lock().unwrap(), kept, "effects: {context}");
    let notices: Vec<_> = kept.iter().map(|n| SessionId(Uuid::from_u128(*n as u128))).collect();
    assert_eq!(*seen.notices.lock().unwrap(), notices, "notices: {context}");
    let ids = seen.ids.lock().unwrap();
    for (n, id) in ids.iter() {
        let is_same = ids.iter().all(|(other_n, other)| (n == other_n) == (id == other));
        assert!(is_same, "a job makes the same ids in each run: {context}: {ids:?}");
    }
}

#[test]
fn a_job_that_fails_makes_no_other_fail_and_all_others_are_done_once() {
    const JOBS: usize = 4;
    block_on_tokio(async {
        for fault in [Fault::Full, Fault::FullUnnoticed, Fault::Own, Fault::Panic] {
            for place in 0..JOBS {
                let context = format!("{fault:?} in job {place}");
                let seen = Seen::default();
                let store = small_store(&seen, []).await;
                let mut faults = [Fault::None; JOBS];
                faults[place] = fault;
                let outcomes = run_batch(&store, &faults, &seen).await;
                for (n, outcome) in outcomes.into_iter().enumerate() {
                    match outcome {
                        Ok(done) => assert!(n == done && n != place, "{context}"),
                        Err(error) => {
                            assert_eq!(n, place, "{context}: {error}");
                            let is_own = match fault {
                                Fault::None => false,
                                Fault::Full => matches!(error, StoreError::DiskFull),
                                Fault::FullUnnoticed => matches!(error, StoreError::Unavailable(_)),
                                Fault::Own => matches!(error, StoreError::Conflict),
                                Fault::Panic => matches!(error, StoreError::Failed(_)),
                            };
                            assert!(is_own, "{context}: {error}");
                        }
                    }
                }
                let others: Vec<usize> = (0..JOBS).filter(|n| *n != place).collect();
                expect_once(&others, &seen, &names(&store).await, &context);
                // A job that did not end the transaction of the others had none of them run again.
                let runs = match fault {
                    Fault::Full | Fault::FullUnnoticed => place + 1 + others.len(),
                    _ => JOBS,
                };
                assert_eq!(seen.runs.load(Ordering::SeqCst), runs, "{context}");
                store.close().await;
            }
        }
    });
}

#[test]
fn jobs_whose_commit_failed_are_run_again_and_done_once() {
    let away = || StoreError::Unavailable("for a moment".into());
    // How commits go, one after another; jobs in the batch; those that are done; runs in all.
    let cases: [(Vec<StoreError>, usize, &[usize], usize); 7] = [
        (vec![], 3, &[0, 1, 2], 3),
        (vec![StoreError::DiskFull], 3, &[0, 1, 2], 6),
        (vec![StoreError::DiskFull, StoreError::DiskFull], 3, &[1, 2], 6),
        (vec![StoreError::DiskFull], 1, &[], 1),
        (vec![away()], 1, &[0], 2),
        (vec![away(), away()], 2, &[0, 1], 5),
        (vec![away(), away(), away()], 1, &[], RUNS_MAX),
    ];
    block_on_tokio(async {
        for (commits, jobs, done, runs) in cases {
            let context = format!("{commits:?} of {jobs} jobs");
            let seen = Seen::default();
            let store = small_store(&seen, commits).await;
            let outcomes = run_batch(&store, &vec![Fault::None; jobs], &seen).await;
            let found: Vec<usize> = outcomes.into_iter().flatten().collect();
            assert_eq!(found, done, "{context}");
            expect_once(done, &seen, &names(&store).await, &context);
            assert_eq!(seen.runs.load(Ordering::SeqCst), runs, "{context}");
            store.close().await;
        }
    });
}

#[test]
fn a_job_that_failed_on_what_was_rolled_back_is_run_again() {
    block_on_tokio(async {
        let seen = Seen::default();
        let store = small_store(&seen, []).await;
        // The second finds the name taken by the first, which then turns out not to be done.
        let taken = |fault: Fault| {
            store.write(move |tx| {
                Box::pin(async move {
                    insert(tx, "name", String::new()).await?;
                    match fault {
                        Fault::None => Ok(()),
                        _ => insert(tx, "large", "x".repeat(1 << 20)).await,
                    }
                })
            })
        };
        let first = taken(Fault::Full);
        let second = taken(Fault::None);
        let (first, second) = futures::future::join(first, second).await;
        assert!(matches!(first, Err(StoreError::DiskFull)), "{first:?}");
        second.unwrap();
        assert_eq!(names(&store).await, ["name"]);
        store.close().await;
    });
}

#[test]
fn a_reader_changes_nothing() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_sqlite(&directory.path().join("records.db"), Arc::new(|_| {})).unwrap();
        let text = "INSERT INTO settings (name, value) VALUES ('a', 'b')";
        let returning = "INSERT INTO settings (name, value) VALUES ('a', 'b') RETURNING name";
        {
            let mut reader = store.read().await.unwrap();
            for text in [text, returning, "DELETE FROM settings"] {
                let refused = sql(text).fetch_optional(&mut reader, |_| Ok(())).await;
                assert!(matches!(refused, Err(StoreError::Failed(_))), "{text}: {refused:?}");
                // And where the code is wrong about a statement, SQLite refuses it.
                let refused = reader.control(text);
                assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{text}: {refused:?}");
            }
        }
        // In a transaction, what changes something goes through where that can be seen.
        let refused =
            store.write(move |tx| Box::pin(async move { sql(returning).fetch_optional(tx, |_| Ok(())).await }));
        assert!(matches!(refused.await, Err(StoreError::Failed(_))));
        assert_eq!(names(&store).await, Vec::<String>::new());
        store.close().await;
    });
}

#[test]
fn a_job_that_panics_is_taken_back_and_others_go_on() {
    block_on(panics());
}

async fn panics() {
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    let listener: Listener = Arc::new(move |_| {
        *count.lock().unwrap() += 1;
        std::panic::resume_unwind(Box::new("so does whoever listens"));
    });
    let store = Store::open_sqlite(&directory.path().join("records.db"), listener).unwrap();
    let broken = store.write(|tx| {
        Box::pin(async move {
            insert(tx, "a", "b".into()).await?;
            if tx.is_in_transaction() {
                std::panic::resume_unwind(Box::new("a fault"));
            }
            Ok::<_, StoreError>(())
        })
    });
    assert!(matches!(broken.await, Err(StoreError::Failed(_))));
    for _ in 0..2 {
        let effects = Arc::clone(&told);
        let works = store.write(|tx| {
            Box::pin(async move {
                tx.changed(SessionId(Uuid::nil()));
                tx.after_commit(|| std::panic::resume_unwind(Box::new("so does what follows")));
                tx.after_commit(move || *effects.lock().unwrap() += 1);
                let text = "SELECT COUNT(*) AS n FROM settings";
                sql(text).fetch_optional(tx, |row| row.integer("n")).await
            })
        });
        assert_eq!(works.await.unwrap(), Some(0));
    }
    // The listener and an effect, once for each that changed something, though something panics each time.
    store.close().await;
    assert_eq!(*told.lock().unwrap(), 4);
}
