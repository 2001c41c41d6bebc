//! Values the installation keeps for itself.

use crate::StoreError;
use crate::rows::{Row, damaged};
use crate::sql::sql;
use crate::tx::Tx;

const TABLE: &str = "settings";

/// The value of a setting.
pub(crate) fn value_of(row: &Row<'_>) -> Result<String, StoreError> {
    row.record(TABLE, |row| {
        row.text("name")?;
        row.text("value")
    })
}

/// The value of `name`; where there is none yet, `made` becomes it. Where what there is cannot be one, as `is_sound` says, `made`
/// is used, and the record stays as it is.
///
/// # Errors
/// Where the store fails.
pub async fn get_or_insert(
    tx: &mut Tx,
    name: &str,
    made: String,
    is_sound: impl Fn(&str) -> bool,
) -> Result<String, StoreError> {
    sql("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(made.clone())
        .execute(tx)
        .await?;
    let value = sql("SELECT * FROM settings WHERE name = $1").bind(name);
    let read = |row: &Row<'_>| match value_of(row) {
        Ok(value) if is_sound(&value) => Ok(value),
        Ok(_) => row.record(TABLE, |_| Err(damaged("value", "is not as this release makes it"))),
        Err(error) => Err(error),
    };
    match value.fetch_optional(tx, read).await {
        Ok(value) => Ok(value.unwrap_or(made)),
        Err(StoreError::Damaged(_)) => Ok(made),
        Err(error) => Err(error),
    }
}
