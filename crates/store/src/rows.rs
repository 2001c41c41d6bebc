//! Between columns and types.

use std::ops::RangeInclusive;
use std::str::FromStr;

use raworc_core::time::Time;
use rusqlite::types::ValueRef;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Damage, StoreError};

/// Columns that name a record of some table, the first of which are all there.
const IDENTITIES: [&[&str]; 7] = [
    &["id"],
    &["session_id", "seq"],
    &["session_id", "n"],
    &["session_id", "place"],
    &["account_id", "key"],
    &["name"],
    &["rowid"],
];
/// Of what a record is named by, so much is shown.
const IDENTITY_CHARS_MAX: usize = 64;
/// Nothing is counted so far.
pub(crate) const COUNT_MAX: i64 = 1 << 60;
/// Microseconds from the year 1900 to 9999.
const TIMES: RangeInclusive<i64> = -2_208_988_800_000_000..=253_402_300_799_999_999;

/// A row that was found: its columns by name.
pub(crate) struct Row<'r>(pub(crate) &'r rusqlite::Row<'r>);

impl Row<'_> {
    /// How long the texts in it are.
    pub(crate) fn bytes(&self) -> Result<usize, StoreError> {
        let mut bytes = 0_usize;
        for column in 0..self.0.as_ref().column_count() {
            bytes += self.0.get_ref(column)?.as_bytes().map_or(0, <[u8]>::len);
        }
        Ok(bytes)
    }

    /// The whole of a record, read by `decode`. What is wrong with it is told with the record's table and id.
    pub(crate) fn record<T>(
        &self,
        table: &'static str,
        decode: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        decode(self).map_err(|error| match error {
            StoreError::Damaged(damage) if damage.table.is_empty() => {
                StoreError::Damaged(Box::new(Damage { table, id: self.identity(), ..*damage }))
            }
            error => error,
        })
    }

    /// What the record is called, as far as that can be read.
    pub(crate) fn identity(&self) -> String {
        let shown = |name: &str| self.0.get_ref(name).ok().map(shown);
        for names in IDENTITIES {
            let parts: Vec<String> = names.iter().filter_map(|name| shown(name)).collect();
            if parts.len() == names.len() {
                return parts.join("/");
            }
        }
        "?".to_owned()
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, StoreError> {
        self.get(name)
    }

    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.get(name)
    }

    pub(crate) fn integer(&self, name: &str) -> Result<i64, StoreError> {
        self.get(name)
    }

    pub(crate) fn optional_integer(&self, name: &str) -> Result<Option<i64>, StoreError> {
        self.get(name)
    }

    /// A number that is counted up from 0.
    pub(crate) fn count<N: TryFrom<i64>>(&self, name: &str) -> Result<N, StoreError> {
        let number = Some(self.integer(name)?).filter(|number| (0..=COUNT_MAX).contains(number));
        number.and_then(|number| N::try_from(number).ok()).ok_or_else(|| damaged(name, "is out of range"))
    }

    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.optional_integer(name)?.map(|_| self.count(name)).transpose()
    }

    /// 0 or 1.
    pub(crate) fn boolean(&self, name: &str) -> Result<bool, StoreError> {
        match self.integer(name)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(damaged(name, "is neither 0 nor 1")),
        }
    }

    pub(crate) fn time(&self, name: &str) -> Result<Time, StoreError> {
        let number = Some(self.integer(name)?).filter(|number| TIMES.contains(number));
        number.map(Time).ok_or_else(|| damaged(name, "is no time between the years 1900 and 9999"))
    }

    pub(crate) fn optional_time(&self, name: &str) -> Result<Option<Time>, StoreError> {
        self.optional_integer(name)?.map(|_| self.time(name)).transpose()
    }

    pub(crate) fn id<I: FromStr>(&self, name: &str) -> Result<I, StoreError> {
        parse(&self.text(name)?, name)
    }

    pub(crate) fn optional_id<I: FromStr>(&self, name: &str) -> Result<Option<I>, StoreError> {
        self.optional_text(name)?.map(|text| parse(&text, name)).transpose()
    }

    /// A document.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        document(&self.text(name)?, name)
    }

    pub(crate) fn optional_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.optional_text(name)?.map(|text| document(&text, name)).transpose()
    }

    pub(crate) fn optional_word<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        self.optional_text(name)?.map(|_| self.word(name)).transpose()
    }

    /// One word of an enumeration that serde writes as a string.
    pub(crate) fn word<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        serde_json::from_value(serde_json::Value::String(self.text(name)?))
            .map_err(|_| damaged(name, "is not a word that this release knows"))
    }

    fn get<T: rusqlite::types::FromSql>(&self, name: &str) -> Result<T, StoreError> {
        self.0.get(name).map_err(|error| match error {
            rusqlite::Error::InvalidColumnType(..) => damaged(name, "is not of the right type"),
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::Utf8Error(..) => {
                damaged(name, "is not UTF-8 text")
            }
            error => error.into(),
        })
    }
}

/// A value that a record cannot have. The value itself is not told: it may be someone's secret.
pub(crate) fn damaged(column: &str, reason: &str) -> StoreError {
    StoreError::Damaged(Box::new(Damage {
        table: "",
        id: String::new(),
        column: column.to_owned(),
        reason: reason.to_owned(),
    }))
}

fn document<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            damaged(name, "is a JSON document of another kind than this release stores there")
        } else {
            damaged(name, "is not JSON")
        }
    })
}

fn parse<I: FromStr>(text: &str, name: &str) -> Result<I, StoreError> {
    text.parse().map_err(|_| damaged(name, "is not an id"))
}

/// A value to find a record by.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).chars().take(IDENTITY_CHARS_MAX).collect(),
        ValueRef::Blob(bytes) => {
            let hex = bytes.iter().take(IDENTITY_CHARS_MAX / 2).map(|byte| format!("{byte:02x}"));
            format!("x'{}'", hex.collect::<String>())
        }
    }
}

/// The word that serde writes for a variant without fields.
pub(crate) fn word(value: impl Serialize) -> Result<String, StoreError> {
    match serde_json::to_value(value)? {
        serde_json::Value::String(text) => Ok(text),
        other => Err(StoreError::Failed(format!("{other} is not a word"))),
    }
}

/// A number for a BIGINT column; what does not fit is as large as can be.
pub(crate) fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
