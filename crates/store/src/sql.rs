//! Statements on a connection.
//!
//! The functions are async, since a database in another process has to be waited for. SQLite is not: a statement runs
//! where it is called, in tens of microseconds. Handing each to another thread and waiting for it, as asynchronous
//! wrappers of SQLite do, costs several times the statement itself.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::CachedStatement;
use rusqlite::types::{ToSql, ToSqlOutput};

use crate::damages::DamageRegistry;
use crate::rows::Row;
use crate::tx::Tx;
use crate::{Damage, StoreError};

/// How long a statement waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Prepared statements that a connection keeps: more than there are different ones.
const STATEMENTS: usize = 128;

/// A connection that rows are read from: one of the pool, or a transaction's. Nothing can be changed through it.
#[derive(Debug)]
pub struct Read {
    sqlite: rusqlite::Connection,
    damages: Arc<DamageRegistry>,
}

impl Read {
    pub(crate) fn new(sqlite: rusqlite::Connection, damages: Arc<DamageRegistry>) -> Self {
        sqlite.set_prepared_statement_cache_capacity(STATEMENTS);
        Self { sqlite, damages }
    }

    /// Whether a transaction has begun and not ended. SQLite ends one by itself where, for example, the disk is full.
    pub(crate) fn is_in_transaction(&self) -> bool {
        !self.sqlite.is_autocommit()
    }

    /// Begins, ends or divides a transaction.
    pub(crate) fn control(&mut self, text: &'static str) -> Result<(), StoreError> {
        Ok(self.sqlite.prepare_cached(text)?.raw_execute().map(drop)?)
    }

    pub(crate) fn close(self) -> Result<(), StoreError> {
        self.sqlite.close().map_err(|(_, error)| error.into())
    }
}

/// A value for a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Null,
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Text(text) => text.as_str().into(),
            Self::Integer(number) => (*number).into(),
            Self::Null => rusqlite::types::Null.into(),
        })
    }
}

/// Rows that are as they must be, and what is wrong with the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Sound<T> {
    /// Those that are.
    pub rows: Vec<T>,
    /// What is wrong with the others.
    pub damaged: Vec<Damage>,
}

/// The first of many rows, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<T> {
    /// Those that are as they must be.
    pub rows: Vec<T>,
    /// What is wrong with the others between them.
    pub damaged: Vec<Damage>,
    /// How long their texts are.
    pub bytes: usize,
    /// More come after them.
    pub has_more: bool,
}

impl<T> Batch<T> {
    /// Of no rows.
    pub(crate) const fn empty() -> Self {
        Self { rows: Vec::new(), damaged: Vec::new(), bytes: 0, has_more: false }
    }
}

/// A statement and its values.
pub(crate) struct Statement {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

/// A statement. `$1`, `$2`, … stand for the values bound to it, in that order.
pub(crate) fn sql(text: impl Into<Cow<'static, str>>) -> Statement {
    Statement { text: text.into(), values: Vec::new() }
}

impl Statement {
    /// The next value.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// How many rows it changed. What changes something takes a transaction, and goes through here only.
    pub(crate) async fn execute(self, tx: &mut Tx) -> Result<usize, StoreError> {
        Ok(self.prepare(tx.writable()?)?.raw_execute()?)
    }

    /// Its first row.
    pub(crate) async fn fetch_optional<T>(
        self,
        connection: &mut Read,
        decode: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let damages = Arc::clone(&connection.damages);
        let mut statement = self.prepare_read(connection)?;
        let mut rows = statement.raw_query();
        rows.next()?.map(|row| decode(&Row(row)).inspect_err(|error| damages.note(error))).transpose()
    }

    /// All its rows. For what is of no use in parts: where one is damaged, there are none.
    pub(crate) async fn fetch_all<T>(
        self,
        connection: &mut Read,
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut sound = self.fetch_sound(connection, decode).await?;
        match sound.damaged.pop() {
            None => Ok(sound.rows),
            Some(damage) => Err(StoreError::Damaged(Box::new(damage))),
        }
    }

    /// All its rows that are as they must be, and what is wrong with the others.
    pub(crate) async fn fetch_sound<T>(
        self,
        connection: &mut Read,
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Sound<T>, StoreError> {
        let damages = Arc::clone(&connection.damages);
        let mut statement = self.prepare_read(connection)?;
        let mut rows = statement.raw_query();
        let mut sound = Sound { rows: Vec::new(), damaged: Vec::new() };
        while let Some(row) = rows.next()? {
            match decode(&Row(row)).inspect_err(|error| damages.note(error)) {
                Ok(row) => sound.rows.push(row),
                Err(StoreError::Damaged(damage)) => sound.damaged.push(*damage),
                Err(error) => return Err(error),
            }
        }
        Ok(sound)
    }

    /// Its first `limit` rows that are as they must be, and what is wrong with those between them. (They come on top: who reads
    /// a list page by page gets to its end, however many are damaged.)
    pub(crate) async fn fetch_page<T>(
        self,
        connection: &mut Read,
        limit: u32,
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Sound<T>, StoreError> {
        let text = format!("{} LIMIT ${}", self.text, self.values.len() + 1);
        let mut most = limit;
        loop {
            let page = Statement { text: Cow::Owned(text.clone()), values: self.values.clone() };
            let mut sound = page.bind(i64::from(most)).fetch_sound(connection, &decode).await?;
            let found = sound.rows.len() + sound.damaged.len();
            if sound.rows.len() >= limit as usize || found < most as usize {
                sound.rows.truncate(limit as usize);
                return Ok(sound);
            }
            most = most.saturating_mul(2);
        }
    }

    /// Its first row that is as it must be.
    pub(crate) async fn fetch_first<T>(
        self,
        connection: &mut Read,
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.fetch_page(connection, 1, decode).await?.rows.pop())
    }

    /// The first `limit` of its rows that are as they must be, or fewer where these are longer than `bytes_max` together, but at
    /// least one. The statement has no limit of its own: rows are read as long as they are wanted.
    pub(crate) async fn fetch_batch<T>(
        self,
        connection: &mut Read,
        bounds: (u32, usize),
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Batch<T>, StoreError> {
        let mut batch = Batch::empty();
        self.extend_batch(connection, &mut batch, bounds, decode).await?;
        Ok(batch)
    }

    /// As [`Statement::fetch_batch`], where the batch has rows of other statements already. One that is full is left as it is.
    pub(crate) async fn extend_batch<T>(
        self,
        connection: &mut Read,
        batch: &mut Batch<T>,
        (limit, bytes_max): (u32, usize),
        decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<(), StoreError> {
        if batch.has_more {
            return Ok(());
        }
        let damages = Arc::clone(&connection.damages);
        let mut statement = self.prepare_read(connection)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let row = Row(row);
            let bytes = batch.bytes.saturating_add(row.bytes()?);
            batch.has_more = batch.rows.len() >= limit as usize || (bytes > bytes_max && !batch.rows.is_empty());
            if batch.has_more {
                break;
            }
            match decode(&row).inspect_err(|error| damages.note(error)) {
                Ok(row) => {
                    batch.bytes = bytes;
                    batch.rows.push(row);
                }
                Err(StoreError::Damaged(damage)) => batch.damaged.push(*damage),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Refuses a statement that changes something: it would do so on a reader, or unseen by who reads the code.
    fn prepare_read<'c>(&self, connection: &'c mut Read) -> Result<CachedStatement<'c>, StoreError> {
        let statement = self.prepare(connection)?;
        match statement.readonly() {
            true => Ok(statement),
            false => Err(StoreError::Failed(format!("a statement that is to read changes something: {}", self.text))),
        }
    }

    /// To SQLite `$2` is a name, numbered by where it first occurs.
    fn prepare<'c>(&self, connection: &'c mut Read) -> Result<CachedStatement<'c>, StoreError> {
        let mut statement = connection.sqlite.prepare_cached(&self.text)?;
        for place in 1..=statement.parameter_count() {
            let number = statement.parameter_name(place).and_then(|name| name.get(1..)?.parse::<usize>().ok());
            let value = number.and_then(|number| self.values.get(number.checked_sub(1)?));
            let value = value.ok_or_else(|| StoreError::Failed(format!("no value for parameter {place}")))?;
            statement.raw_bind_parameter(place, value)?;
        }
        Ok(statement)
    }
}

/// Conditions that grow, with their values; the text never contains anything a caller wrote.
#[derive(Default)]
pub(crate) struct WhereClause {
    text: String,
    values: Vec<Value>,
}

impl WhereClause {
    /// Adds a condition; each `?` in it stands for one of `values`.
    pub(crate) fn and<const N: usize>(&mut self, condition: &str, values: [Value; N]) {
        self.text.push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        let mut values = values.into_iter();
        for c in condition.chars() {
            match (c, if c == '?' { values.next() } else { None }) {
                ('?', Some(value)) => {
                    self.values.push(value);
                    self.text.push_str(&format!("${}", self.values.len()));
                }
                _ => self.text.push(c),
            }
        }
    }

    /// A statement with these conditions: `SELECT … FROM …`, and an `ORDER BY …`.
    pub(crate) fn select(self, from: &str, order: &str) -> Statement {
        let text = format!("{from}{} {order}", self.text);
        self.values.into_iter().fold(sql(text), Statement::bind)
    }
}

/// A connection that nothing can be changed through, whatever statement it is given. (It is not opened read-only: whichever connection is
/// closed last has to bring the log of the database into its file, where a copy of it is taken from.)
pub fn open_reader(path: &Path) -> Result<rusqlite::Connection, StoreError> {
    let connection = open(path)?;
    connection.pragma_update(None, "query_only", "ON")?;
    Ok(connection)
}

/// What every connection to SQLite needs. `synchronous=FULL` flushes each commit to the disk before it is answered.
pub fn open(path: &Path) -> Result<rusqlite::Connection, StoreError> {
    let connection = rusqlite::Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    Ok(connection)
}
