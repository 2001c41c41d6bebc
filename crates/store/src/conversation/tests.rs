use std::sync::Arc;

use futures::executor::block_on;
use serde_json::Map;
use uuid::Uuid;

use super::*;
use crate::messages;
use crate::{Store, events};

const PARENT: u128 = 1;
const HEIR: u128 = 2;
/// The parent's messages: place, the event that ended it, and which of them it answers.
const SAID: [(u64, Option<u64>, Option<u128>); 6] = [
    (2, Some(5), None),
    (3, Some(9), None),
    (4, Some(4), Some(1)),
    (8, Some(8), Some(2)),
    (10, None, None),
    (11, Some(12), None),
];

fn session(n: u128) -> SessionId {
    SessionId(Uuid::from_u128(n))
}

fn message_id(n: u128) -> MessageId {
    MessageId(Uuid::from_u128(100 + n))
}

fn said(n: u128, (seq, ended, answers): (u64, Option<u64>, Option<u128>)) -> MessageRow {
    MessageRow {
        id: message_id(n),
        session_id: session(PARENT),
        seq,
        role: if answers.is_some() { Role::Agent } else { Role::User },
        content: "x".repeat(100),
        agent: None,
        status: if ended.is_some() { Status::Done } else { Status::Queued },
        reply_to: answers.map(message_id),
        attempts: 0,
        losses: 0,
        started_seq: None,
        cancel_wanted: false,
        error: None,
        usage: None,
        metadata: Map::new(),
        created_at: Time(0),
        finished_at: ended.map(|_| Time(1)),
        finished_seq: ended,
    }
}

/// A parent that has said all that.
async fn store(directory: &std::path::Path) -> Store {
    let store = Store::open_sqlite(&directory.join("records.db"), Arc::new(|_| {})).unwrap();
    let write = store.write(|tx| {
        Box::pin(async move {
            sql("INSERT INTO accounts (id, name, role, created_at) VALUES ('a', 'a', 'admin', 0)").execute(tx).await?;
            for id in [PARENT, HEIR] {
                sql(
                    "INSERT INTO sessions (id, name, starting_prompt, owner_id, owner_name, settings, machine, state, \
                     container, last_seq, host_received, version, messages_ended, busy_micros, created_at, updated_at) \
                     VALUES ($1, '', '', 'a', 'a', '{}', '{}', 'IDLE', 'none', 0, 0, 0, 0, 0, 0, 0)",
                )
                .bind(session(id).to_string())
                .execute(tx)
                .await?;
            }
            for (n, message) in (1..).zip(SAID) {
                messages::insert(tx, &said(n, message)).await?;
            }
            Ok::<_, StoreError>(())
        })
    });
    write.await.unwrap();
    store
}

#[test]
fn what_had_ended_is_shared_and_nothing_else() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let mut connection = store.read().await.unwrap();
        type Case = (&'static [RangeInclusive<u64>], &'static [(RangeInclusive<u64>, u64)]);
        let cases: [Case; 8] = [
            (&[], &[]),
            (&[1..=1], &[]),
            (&[1..=2], &[]),
            (&[1..=4], &[(3..=3, 4)]),
            (&[1..=6], &[(1..=1, 6), (3..=3, 6)]),
            (&[1..=9], &[(1..=4, 9)]),
            (&[1..=20], &[(1..=4, 20), (6..=6, 20)]),
            (&[1..=4, 8..=20], &[(3..=3, 4), (4..=4, 20), (6..=6, 20)]),
        ];
        for (ranges, expected) in cases {
            let found = segments_in(&mut connection, session(PARENT), ranges).await.unwrap();
            let found: Vec<_> = found.into_iter().map(|segment| (segment.numbers, segment.until)).collect();
            assert_eq!(found, expected, "{ranges:?}");
        }
    });
}

#[test]
fn what_is_shared_is_read_like_ones_own() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let write = store.write(|tx| {
            Box::pin(async move {
                let event = |seq| EventRow {
                    session_id: session(HEIR),
                    seq,
                    kind: "session.created".to_owned(),
                    at: Time(0),
                    actor: String::new(),
                    generation: 0,
                    data: Map::new(),
                };
                let mut seq = 2;
                for segment in segments_in(tx, session(PARENT), &[1..=4, 6..=20]).await? {
                    let (count, actor) = (segment.count(), "someone".to_owned());
                    let row = SegmentRow { session_id: session(HEIR), seq, segment, generation: 0, actor, at: Time(7) };
                    insert(tx, &row).await?;
                    seq += count;
                }
                events::insert(tx, &event(1)).await?;
                events::insert(tx, &event(seq)).await?;
                let own = MessageRow { session_id: session(HEIR), ..said(50, (9, Some(9), None)) };
                messages::insert(tx, &own).await?;
                Ok::<_, StoreError>(())
            })
        });
        write.await.unwrap();
        let mut connection = store.read().await.unwrap();
        let expected = [(3, 2), (4, 3), (6, 4), (50, 9)].map(|(n, seq)| (message_id(n), seq));
        for bounds in (1..6).flat_map(|rows| [0, 250, 100_000].map(|bytes| (rows, bytes))) {
            let (mut all, mut after, mut log) = (Vec::new(), 0, Vec::new());
            loop {
                let batch = messages::list(&mut connection, session(HEIR), None, after, bounds).await.unwrap();
                assert!(batch.rows.len() <= bounds.0 as usize && batch.damaged.is_empty());
                all.extend(batch.rows.iter().map(|row| (row.id, row.seq)));
                after = all.last().unwrap().1;
                if !batch.has_more {
                    break;
                }
            }
            assert_eq!(all, expected, "{bounds:?}");
            loop {
                let batch = events::batch(&mut connection, session(HEIR), log.len() as u64, bounds).await.unwrap();
                assert!((1..=bounds.0 as usize).contains(&batch.rows.len()), "{bounds:?}");
                log.extend(batch.rows.into_iter().map(|row| (row.seq, row.kind)));
                if !batch.has_more {
                    break;
                }
            }
            let kinds = ["session.created", "message.inherited", "message.inherited", "message.inherited"];
            let kinds = kinds.into_iter().chain(["session.created"]).map(str::to_owned);
            assert_eq!(log, (1..).zip(kinds).collect::<Vec<_>>(), "{bounds:?}");
        }
        let done = messages::list(&mut connection, session(HEIR), Some(Status::Queued), 0, (9, 9)).await.unwrap();
        assert_eq!(done.rows, []);
        for n in 1..=6 {
            let found = messages::find(&mut connection, session(HEIR), message_id(n)).await.unwrap();
            let place = expected.iter().find(|(id, _)| *id == message_id(n)).map(|(_, seq)| *seq);
            assert_eq!(found.map(|row| (row.seq, row.session_id)), place.map(|seq| (seq, session(HEIR))), "{n}");
        }
        let reply = messages::reply_to(&mut connection, session(HEIR), message_id(1)).await.unwrap();
        assert_eq!(reply.map(|row| row.id), Some(message_id(3)));
        for (bytes_max, expected) in [(0, 3), (1_000_000, 0)] {
            let ranges = [1..=5, 7..=9];
            let newest = messages::newest_ended_in(&mut connection, session(HEIR), &ranges, bytes_max).await;
            let (newest, older) = newest.unwrap();
            assert_eq!((newest.last().map(|row| row.id), older), (Some(message_id(50)), expected));
            assert!(newest.is_sorted_by_key(|row| row.seq), "{newest:#?}");
        }
        assert_eq!(last_seq(&mut connection, session(HEIR)).await.unwrap(), 4);
        assert_eq!(last_seq(&mut connection, session(PARENT)).await.unwrap(), 0);
    });
}

#[test]
fn messages_of_an_older_database_get_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let mut older = rusqlite::Connection::open(&path).unwrap();
    rusqlite_migration::Migrations::from_slice(&crate::MIGRATIONS[..12]).to_latest(&mut older).unwrap();
    older.pragma_update(None, "foreign_keys", false).unwrap();
    // Two sessions by turns; one message that waits, one that was taken back, and one with a status that is none.
    let rows = [
        (1, PARENT, 2, "done", 0),
        (2, HEIR, 5, "done", 0),
        (3, PARENT, 4, "damaged", 0),
        (4, PARENT, 3, "done", 1),
        (5, HEIR, 9, "queued", 0),
    ];
    for (n, id, seq, status, rewound) in rows {
        let text = "INSERT INTO messages (id, session_id, seq, role, content, status, attempts, cancel_wanted, metadata, created_at, \
                    finished_at, finished_seq, rewound) VALUES (?1, ?2, ?3, 'user', 'x', ?4, 0, 0, '{}', 0, ?5, ?5, ?6)";
        let ended = (status != "queued").then_some(seq);
        let (message, session) = (message_id(n).to_string(), session(id).to_string());
        older.execute(text, rusqlite::params![message, session, seq, status, ended, rewound]).unwrap();
    }
    drop(older);
    block_on(async {
        let store = Store::open_sqlite(&path, Arc::new(|_| {})).unwrap();
        let mut connection = store.read().await.unwrap();
        for (id, numbers) in [(PARENT, [(1, 1), (4, 2), (3, 3)].as_slice()), (HEIR, &[(2, 1), (5, 2)])] {
            let found = sql("SELECT id, n FROM messages WHERE session_id = $1 ORDER BY n")
                .bind(session(id).to_string())
                .fetch_all(&mut connection, |row| Ok((row.id::<MessageId>("id")?, row.count::<u64>("n")?)))
                .await
                .unwrap();
            let expected: Vec<_> = numbers.iter().map(|(message, n)| (message_id(*message), *n)).collect();
            assert_eq!(found, expected);
            assert_eq!(next_number(&mut connection, session(id)).await.unwrap(), numbers.len() as u64 + 1);
        }
    });
}

#[test]
fn what_is_damaged_is_neither_passed_on_nor_counted_with() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path()).await;
        let damage = |text: &'static str| {
            store.write(move |tx| {
                Box::pin(async move {
                    sql(text).bind(session(PARENT).to_string()).execute(tx).await?;
                    Ok::<_, StoreError>(())
                })
            })
        };
        // The number of the newest message; it keeps its place for when it is mended.
        damage("UPDATE messages SET n = 'x' WHERE session_id = $1 AND n = 6").await.unwrap();
        let mut connection = store.read().await.unwrap();
        assert_eq!(next_number(&mut connection, session(PARENT)).await.unwrap(), 7);
        drop(connection);
        damage("UPDATE messages SET n = 1000000000000 WHERE session_id = $1 AND n = 4").await.unwrap();
        let mut connection = store.read().await.unwrap();
        let found = segments_in(&mut connection, session(PARENT), &[1..=9]).await.unwrap();
        assert!(found.iter().all(|segment| *segment.numbers.end() <= 3), "{found:?}");
        drop(connection);
        // A part that would have more messages than its source had events.
        damage(
            "INSERT INTO conversation_segments (session_id, seq, source_id, from_n, to_n, to_seq, generation, actor, at) \
             VALUES ($1, 2, $1, 1, 1000000000000, 20, 1, 'a', 0)",
        )
        .await
        .unwrap();
        let mut connection = store.read().await.unwrap();
        assert_eq!(of_session(&mut connection, session(PARENT), 0).await.unwrap().damaged.len(), 1);
        assert_eq!(last_seq(&mut connection, session(PARENT)).await.unwrap(), 0);
        let refused = segments_in(&mut connection, session(PARENT), &[1..=20]).await;
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{refused:?}");
    });
}
