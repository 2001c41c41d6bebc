//! Values the installation keeps for itself.

use sqlx::AnyConnection;

use crate::StoreError;
use crate::rows::Columns;

/// The value of `name`; where there is none yet, `made` becomes it.
///
/// # Errors
/// Where the store fails.
pub async fn get_or_insert(connection: &mut AnyConnection, name: &str, made: String) -> Result<String, StoreError> {
    sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(made)
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(name).fetch_one(connection).await?;
    Columns(&row).text("value")
}
