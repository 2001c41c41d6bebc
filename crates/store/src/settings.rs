//! Values the installation keeps for itself.

use crate::StoreError;
use crate::sql::{Connection, sql};

/// The value of `name`; where there is none yet, `made` becomes it.
///
/// # Errors
/// Where the store fails.
pub async fn get_or_insert(connection: &mut Connection, name: &str, made: String) -> Result<String, StoreError> {
    sql("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(made)
        .execute(&mut *connection)
        .await?;
    let value = sql("SELECT value FROM settings WHERE name = $1").bind(name);
    let value = value.fetch_optional(connection, |row| row.text("value")).await?;
    value.ok_or_else(|| StoreError::Damaged(format!("the setting {name} is gone")))
}
