//! Providers of models.

use std::time::Duration;

use raworc_core::ids::ProviderId;
use raworc_core::limits::PROVIDER_TIMEOUT_SECONDS;
use raworc_core::models::{Model, Price, ProviderKind};
use raworc_core::names;
use raworc_core::time::Time;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::Tx;
use crate::encrypted::Encrypted;
use crate::rows::{Row, bigint, damaged, word};
use crate::sql::{Batch, Read, Sound, sql};

/// A provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderRow {
    /// Its id.
    pub id: ProviderId,
    /// What it is called; unique.
    pub name: String,
    /// What it speaks.
    pub kind: ProviderKind,
    /// Where it is. None for kind `replay` only.
    pub base_url: Option<String>,
    /// Its key; none where it needs none.
    pub api_key: Option<Encrypted>,
    /// Its models; none: it takes every name.
    pub models: Vec<Model>,
    /// How long it may be silent.
    pub timeout: Duration,
    /// It came with Raworc.
    pub builtin: bool,
    /// Grows with each change.
    pub version: i64,
    /// When it was added.
    pub created_at: Time,
    /// When it last changed.
    pub updated_at: Time,
}

/// A model as it is stored. It may have fields that this release does not know: a newer one may have written it.
#[derive(Serialize, Deserialize)]
struct StoredModel {
    id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    price: Option<StoredPrice>,
}

/// A price as it is stored, in millionths of the currency for a million tokens.
#[derive(Serialize, Deserialize)]
struct StoredPrice {
    input_micros: u64,
    output_micros: u64,
}

impl From<&Model> for StoredModel {
    fn from(model: &Model) -> Self {
        let Model { id, aliases, context_tokens, max_output_tokens, price } = model.clone();
        let price = price.map(|price| StoredPrice {
            input_micros: price.input_micros_per_million,
            output_micros: price.output_micros_per_million,
        });
        Self { id, aliases, context_tokens, max_output_tokens, price }
    }
}

impl From<StoredModel> for Model {
    fn from(stored: StoredModel) -> Self {
        let StoredModel { id, aliases, context_tokens, max_output_tokens, price } = stored;
        let price = price.map(|price| Price {
            input_micros_per_million: price.input_micros,
            output_micros_per_million: price.output_micros,
        });
        Self { id, aliases, context_tokens, max_output_tokens, price }
    }
}

fn models_text(models: &[Model]) -> Result<String, StoreError> {
    Ok(serde_json::to_string(&models.iter().map(StoredModel::from).collect::<Vec<_>>())?)
}

fn name(row: &Row<'_>) -> Result<String, StoreError> {
    let name = row.text("name")?;
    names::check_handle(&name).map_err(|_| damaged("name", "is no name of a provider"))?;
    Ok(name)
}

fn base_url(row: &Row<'_>, kind: ProviderKind) -> Result<Option<String>, StoreError> {
    let url = row.optional_text("base_url")?;
    let is_url = |url: &str| url.starts_with("http://") || url.starts_with("https://");
    match (kind, url) {
        (ProviderKind::Replay, None) => Ok(None),
        (ProviderKind::Replay, Some(_)) => Err(damaged("base_url", "is there, and recordings have none")),
        (_, Some(url)) if is_url(&url) => Ok(Some(url)),
        _ => Err(damaged("base_url", "is no URL")),
    }
}

fn api_key(row: &Row<'_>) -> Result<Option<Encrypted>, StoreError> {
    let text = row.optional_text("api_key")?;
    text.map(|text| text.parse().map_err(|_| damaged("api_key", "is not an encrypted text"))).transpose()
}

fn timeout(row: &Row<'_>) -> Result<Duration, StoreError> {
    let seconds = Some(row.count("timeout_seconds")?).filter(|seconds| PROVIDER_TIMEOUT_SECONDS.contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| damaged("timeout_seconds", "is out of range"))
}

pub(crate) fn provider(row: &Row<'_>) -> Result<ProviderRow, StoreError> {
    row.record("providers", |row| {
        let kind = row.word("kind")?;
        let models: Vec<StoredModel> = row.json("models")?;
        Ok(ProviderRow {
            id: row.id("id")?,
            name: name(row)?,
            kind,
            base_url: base_url(row, kind)?,
            api_key: api_key(row)?,
            models: models.into_iter().map(Model::from).collect(),
            timeout: timeout(row)?,
            builtin: row.boolean("builtin")?,
            version: row.count("version")?,
            created_at: row.time("created_at")?,
            updated_at: row.time("updated_at")?,
        })
    })
}

/// Adds a provider.
///
/// # Errors
/// [`StoreError::Conflict`] where the name is taken.
pub async fn insert(tx: &mut Tx, row: &ProviderRow) -> Result<(), StoreError> {
    sql("INSERT INTO providers (id, name, kind, base_url, api_key, models, timeout_seconds, builtin, version, created_at, \
         updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
    .bind(row.id.to_string())
    .bind(row.name.clone())
    .bind(word(row.kind)?)
    .bind(row.base_url.clone())
    .bind(row.api_key.as_ref().map(Encrypted::as_str))
    .bind(models_text(&row.models)?)
    .bind(bigint(row.timeout.as_secs()))
    .bind(i64::from(row.builtin))
    .bind(row.version)
    .bind(row.created_at.0)
    .bind(row.updated_at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores a changed provider and counts its version up.
///
/// # Errors
/// [`StoreError::Conflict`] where the new name is taken.
pub async fn update(tx: &mut Tx, row: &mut ProviderRow) -> Result<(), StoreError> {
    row.version += 1;
    sql("UPDATE providers SET name = $1, kind = $2, base_url = $3, api_key = $4, models = $5, timeout_seconds = $6, \
         version = $7, updated_at = $8 WHERE id = $9")
    .bind(row.name.clone())
    .bind(word(row.kind)?)
    .bind(row.base_url.clone())
    .bind(row.api_key.as_ref().map(Encrypted::as_str))
    .bind(models_text(&row.models)?)
    .bind(bigint(row.timeout.as_secs()))
    .bind(row.version)
    .bind(row.updated_at.0)
    .bind(row.id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores a key that was encrypted anew, in place of `old`; nothing where it is another one by now. To people it is the same key, so that
/// the version stays.
///
/// # Errors
/// Where the store fails.
pub async fn replace_key(tx: &mut Tx, id: ProviderId, old: &Encrypted, new: &Encrypted) -> Result<bool, StoreError> {
    let done = sql("UPDATE providers SET api_key = $1 WHERE id = $2 AND api_key = $3")
        .bind(new.as_str())
        .bind(id.to_string())
        .bind(old.as_str())
        .execute(tx)
        .await?;
    Ok(done > 0)
}

/// Removes a provider.
///
/// # Errors
/// Where the store fails.
pub async fn delete(tx: &mut Tx, id: ProviderId) -> Result<(), StoreError> {
    sql("DELETE FROM providers WHERE id = $1").bind(id.to_string()).execute(tx).await?;
    Ok(())
}

/// The provider of this id or name.
///
/// # Errors
/// Where the store fails.
pub async fn find(connection: &mut Read, id_or_name: &str) -> Result<Option<ProviderRow>, StoreError> {
    sql("SELECT * FROM providers WHERE id = $1 OR name = $1")
        .bind(id_or_name)
        .fetch_optional(connection, provider)
        .await
}

/// Providers by name, after the name `after`: at most `limit`, and about so many bytes.
///
/// # Errors
/// Where the store fails.
pub async fn list(connection: &mut Read, after: &str, bounds: (u32, usize)) -> Result<Batch<ProviderRow>, StoreError> {
    let all = sql("SELECT * FROM providers WHERE name > $1 ORDER BY name").bind(after);
    all.fetch_batch(connection, bounds, provider).await
}

/// All providers by name, and those whose record is damaged.
///
/// # Errors
/// Where the store fails.
pub async fn all(connection: &mut Read) -> Result<Sound<ProviderRow>, StoreError> {
    sql("SELECT * FROM providers ORDER BY name").fetch_sound(connection, provider).await
}

/// How many there are, damaged ones included.
///
/// # Errors
/// Where the store fails.
pub async fn count(connection: &mut Read) -> Result<usize, StoreError> {
    let found = sql("SELECT COUNT(*) AS n FROM providers").fetch_optional(connection, |row| row.count::<u64>("n"));
    Ok(found.await?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX))
}
