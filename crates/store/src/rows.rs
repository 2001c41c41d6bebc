//! Between columns and types.

use std::str::FromStr;

use raworc_core::time::Time;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

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

    pub(crate) fn text(&self, name: &str) -> Result<String, StoreError> {
        Ok(self.0.get::<_, String>(name)?)
    }

    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.0.get::<_, Option<String>>(name)?)
    }

    pub(crate) fn integer(&self, name: &str) -> Result<i64, StoreError> {
        Ok(self.0.get::<_, i64>(name)?)
    }

    pub(crate) fn optional_integer(&self, name: &str) -> Result<Option<i64>, StoreError> {
        Ok(self.0.get::<_, Option<i64>>(name)?)
    }

    pub(crate) fn count<N: TryFrom<i64>>(&self, name: &str) -> Result<N, StoreError> {
        N::try_from(self.integer(name)?).map_err(|_| StoreError::Damaged(format!("{name} is out of range")))
    }

    pub(crate) fn time(&self, name: &str) -> Result<Time, StoreError> {
        self.integer(name).map(Time)
    }

    pub(crate) fn optional_time(&self, name: &str) -> Result<Option<Time>, StoreError> {
        Ok(self.optional_integer(name)?.map(Time))
    }

    pub(crate) fn id<I: FromStr>(&self, name: &str) -> Result<I, StoreError> {
        parse(&self.text(name)?, name)
    }

    pub(crate) fn optional_id<I: FromStr>(&self, name: &str) -> Result<Option<I>, StoreError> {
        self.optional_text(name)?.map(|text| parse(&text, name)).transpose()
    }

    /// A document.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(name)?).map_err(|error| StoreError::Damaged(format!("{name}: {error}")))
    }

    pub(crate) fn optional_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(text) = self.optional_text(name)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map_err(|error| StoreError::Damaged(format!("{name}: {error}")))
    }

    /// One word of an enumeration that serde writes as a string.
    pub(crate) fn word<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        serde_json::from_value(serde_json::Value::String(self.text(name)?))
            .map_err(|error| StoreError::Damaged(format!("{name}: {error}")))
    }
}

fn parse<I: FromStr>(text: &str, name: &str) -> Result<I, StoreError> {
    text.parse().map_err(|_| StoreError::Damaged(format!("{name} is not an id")))
}

/// The word that serde writes for a variant without fields.
pub(crate) fn word(value: impl Serialize) -> Result<String, StoreError> {
    match serde_json::to_value(value)? {
        serde_json::Value::String(text) => Ok(text),
        other => Err(StoreError::Damaged(format!("{other} is not a word"))),
    }
}

/// A number for a BIGINT column; what does not fit is as large as can be.
pub(crate) fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
