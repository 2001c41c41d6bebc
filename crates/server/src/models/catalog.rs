//! The models that there are, in memory, with the keys of their providers.
//!
//! Commits that change a provider make it stale ([`Catalog::changed`]), before anyone hears of the commit; who asks next reads it anew. So
//! a new key is used from the next call on.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use raworc_core::ids::{ProviderId, SecretId};
use raworc_core::limits::PROVIDER_TIMEOUT_DEFAULT;
use raworc_core::models::{Model, NoModel, Offer, Price, ProviderKind, resolve};
use raworc_gateway::ports::{ListedModel, ProviderKey, Target};
use raworc_store::providers::{self, ProviderRow};
use raworc_store::secrets::{self, SecretRow};
use raworc_store::{Encrypted, Store, StoreError, encrypted};

use super::recordings::Recordings;
use crate::encryption::{KeyFile, KeyFileError, KeyRing, Place, Undecryptable};
use crate::sync::blocking;

/// The name of the provider that is always there, of kind `replay`.
pub const REPLAY: &str = "replay";
/// Where a provider's key could not be decrypted, the key file is read again after this long: it may have been put back.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Secrets that are encrypted anew in one transaction.
const RENEWED_AT_ONCE_MAX: u32 = 100;

/// Where the key of a provider is in the records.
pub fn place_of_key(id: &str) -> Place<'_> {
    Place { table: "providers", id, column: "api_key" }
}

/// Where the value of a secret is in the records.
pub fn place_of_secret(id: &str) -> Place<'_> {
    Place { table: "secrets", id, column: "value" }
}

/// A provider with its key.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// What it speaks.
    pub kind: ProviderKind,
    /// Where it is; none for kind `replay`.
    pub base_url: Option<String>,
    /// Its key; none where it has none.
    pub key: Result<Option<ProviderKey>, Undecryptable>,
    /// Its models.
    pub models: Vec<Model>,
    /// How long it may be silent.
    pub timeout: Duration,
}

/// Where calls of a model go, and what they cost.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Where they go.
    pub target: Target,
    /// What they cost; none where they are free.
    pub price: Option<Price>,
}

/// Why a name leads to no provider that can be called.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// It means no model.
    #[error(transparent)]
    NoModel(#[from] NoModel),
    /// The provider's key cannot be decrypted.
    #[error("the key of the provider {provider:?} {reason}; an administrator sees with `raworc health` what to do")]
    NoKey {
        /// The provider.
        provider: String,
        /// Why not.
        reason: Undecryptable,
    },
}

/// All providers at one moment.
#[derive(Debug)]
pub struct Models {
    /// By name.
    pub providers: Vec<Provider>,
    /// Ids of those whose record is damaged.
    pub damaged: Vec<String>,
    /// The recordings that providers of kind `replay` answer from.
    pub recordings: Recordings,
    /// Why the key file cannot be used, where it is needed.
    key_file: Option<Arc<KeyFileError>>,
    /// The names of the keys in the key file, where it is needed.
    keys: Vec<String>,
    /// When it was read.
    at: Instant,
}

impl Models {
    /// Where calls of the model of this name go.
    ///
    /// # Errors
    /// Where it means no model, or several; or where the provider's key cannot be decrypted.
    pub fn resolve(&self, name: &str) -> Result<Resolved, Unresolved> {
        let offers: Vec<Offer<'_>> = self
            .providers
            .iter()
            .map(|provider| Offer { provider: &provider.name, kind: provider.kind, models: &provider.models })
            .collect();
        let choice = resolve(name, &offers)?;
        let provider = &self.providers[choice.offer];
        let model = choice.model.map(|model| &provider.models[model]);
        let id = model.map_or(choice.id, |model| &model.id);
        let base_url = match (provider.kind, &provider.base_url) {
            (ProviderKind::Replay, _) => self.recordings.place(id).ok_or_else(|| NoModel::Unknown(name.to_owned()))?,
            (_, Some(url)) => url.clone(),
            (_, None) => return Err(NoModel::Unknown(name.to_owned()).into()),
        };
        let key =
            provider.key.clone().map_err(|reason| Unresolved::NoKey { provider: provider.name.clone(), reason })?;
        let target = Target {
            provider: provider.name.clone(),
            kind: provider.kind,
            base_url,
            key,
            model: id.to_owned(),
            max_output_tokens: model.and_then(|model| model.max_output_tokens),
            timeout: provider.timeout,
        };
        Ok(Resolved { target, price: model.and_then(|model| model.price) })
    }

    /// Where a question to a provider of this name goes, about its first model, or without one about what it has; none where there is no
    /// such provider.
    ///
    /// # Errors
    /// Where its key cannot be decrypted.
    pub fn probed(&self, name: &str) -> Option<Result<Target, Unresolved>> {
        let provider = self.providers.iter().find(|provider| provider.name == name)?;
        let model = provider.models.first().map(|model| model.id.clone());
        let base_url = match provider.kind {
            ProviderKind::Replay => {
                let recording = self.recordings.names().into_iter().next()?;
                self.recordings.place(&recording)?
            }
            _ => provider.base_url.clone()?,
        };
        let key = provider.key.clone().map_err(|reason| Unresolved::NoKey { provider: name.to_owned(), reason });
        Some(key.map(|key| Target {
            provider: provider.name.clone(),
            kind: provider.kind,
            base_url,
            key,
            model: model.unwrap_or_default(),
            max_output_tokens: None,
            timeout: provider.timeout,
        }))
    }

    /// All that may be named: the models of every provider, and the recordings.
    pub fn listed(&self) -> Vec<ListedModel> {
        let of_provider = |provider: &Provider| -> Vec<ListedModel> {
            let names = match provider.kind {
                ProviderKind::Replay => self.recordings.names(),
                _ => provider.models.iter().map(|model| model.id.clone()).collect(),
            };
            let named = |name| ListedModel { id: format!("{}/{name}", provider.name), provider: provider.name.clone() };
            names.into_iter().map(named).collect()
        };
        self.providers.iter().flat_map(of_provider).collect()
    }

    /// Names of providers whose key cannot be decrypted, and why.
    pub fn locked(&self) -> Vec<(&str, Undecryptable)> {
        let locked = self.providers.iter().filter_map(|provider| {
            let reason = provider.key.as_ref().err()?;
            Some((provider.name.as_str(), *reason))
        });
        locked.collect()
    }
}

/// Whether what is encrypted can be decrypted.
#[derive(Debug)]
pub struct Inspection {
    /// The providers.
    pub models: Arc<Models>,
    /// Why the key file cannot be used, where it is needed.
    pub key_file: Option<KeyFileError>,
    /// Whether secrets of accounts are encrypted with other keys than those of the file.
    pub has_locked_secrets: bool,
}

/// What is there, read when it is asked for.
pub struct Catalog {
    /// The file with the keys that the records are encrypted with.
    pub key_file: Arc<KeyFile>,
    recordings: Recordings,
    /// Counts the commits that changed providers.
    changes: AtomicU64,
    /// What was read last, and at which of these commits.
    current: RwLock<Option<(u64, Arc<Models>)>>,
    reading: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("changes", &self.changes).finish_non_exhaustive()
    }
}

impl Catalog {
    /// Of this data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            key_file: Arc::new(KeyFile::of(data_dir)),
            recordings: Recordings::of(data_dir),
            changes: AtomicU64::new(0),
            current: RwLock::new(None),
            reading: tokio::sync::Mutex::new(()),
        }
    }

    /// Providers changed: what was read is stale.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// All models there are now.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn models(&self, store: &Store) -> Result<Arc<Models>, StoreError> {
        if let Some(models) = self.fresh() {
            return Ok(models);
        }
        let _reading = self.reading.lock().await;
        match self.fresh() {
            Some(models) => Ok(models),
            None => self.read(store).await,
        }
    }

    fn fresh(&self) -> Option<Arc<Models>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let (change, models) = current.as_ref()?;
        let is_whole = models.locked().is_empty() || models.at.elapsed() < AGAIN_AFTER;
        (*change == self.changes.load(Ordering::SeqCst) && is_whole).then(|| models.clone())
    }

    async fn read(&self, store: &Store) -> Result<Arc<Models>, StoreError> {
        // What changes while it is being read makes it stale again.
        let change = self.changes.load(Ordering::SeqCst);
        let (models, old) = self.look(store).await?;
        let models = Arc::new(models);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some((change, models.clone()));
        if let Some(error) = &models.key_file {
            tracing::error!(%error, "the key file of the data directory cannot be used: providers are without their keys; see docs/errors/key_file_unusable.md");
        }
        renew(store, old).await;
        Ok(models)
    }

    /// Reads everything, whether or not it is stale; and which keys of providers are to be encrypted anew.
    ///
    /// # Errors
    /// Where the store fails.
    async fn look(&self, store: &Store) -> Result<(Models, Vec<Renewal>), StoreError> {
        let found = {
            let mut connection = store.read().await?;
            providers::all(&mut connection).await?
        };
        let ring = match found.rows.iter().any(|row| row.api_key.is_some()) {
            true => Some(self.keys().await),
            false => None,
        };
        let ring = ring.transpose().map_err(Arc::new);
        let usable = ring.as_ref().ok().and_then(Option::as_ref);
        let old = usable.map(|ring| found.rows.iter().filter_map(|row| Renewal::of(row, ring)).collect());
        let mut providers: Vec<Provider> = found.rows.into_iter().map(|row| provider(row, usable)).collect();
        if !providers.iter().any(|provider| provider.name == REPLAY) {
            // Its record is damaged.
            providers.push(replay());
        }
        let damaged = found.damaged.into_iter().map(|damage| damage.id).collect();
        let keys = usable.map(KeyRing::names).unwrap_or_default();
        let (recordings, key_file) = (self.recordings.clone(), ring.err());
        let models = Models { providers, damaged, recordings, key_file, keys, at: Instant::now() };
        Ok((models, old.unwrap_or_default()))
    }

    /// Whether everything encrypted can be decrypted with the key file as it is now. If its keys are others than before, they are used
    /// from now on, and what older ones encrypt is encrypted anew; if it cannot be used any more, calls go on with what is in memory.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn inspect(&self, store: &Store) -> Result<Inspection, StoreError> {
        let mut models = self.models(store).await?;
        let secret_keys = {
            let mut connection = store.read().await?;
            secrets::keys(&mut connection).await?
        };
        let has_keys = models.providers.iter().any(|provider| !matches!(provider.key, Ok(None)));
        if !has_keys && secret_keys.is_empty() {
            return Ok(Inspection { models, key_file: None, has_locked_secrets: false });
        }
        let ring = match self.keys().await {
            Ok(ring) => ring,
            Err(error) => {
                let models = Arc::new(self.look(store).await?.0);
                return Ok(Inspection { models, key_file: Some(error), has_locked_secrets: !secret_keys.is_empty() });
            }
        };
        let names = ring.names();
        if has_keys && names != models.keys {
            self.changed();
            models = self.models(store).await?;
        }
        for old in secret_keys.iter().filter(|key| names[1..].contains(key)) {
            renew_secrets(store, &ring, old).await?;
        }
        let has_locked_secrets = secret_keys.iter().any(|key| !names.contains(key));
        Ok(Inspection { models, key_file: None, has_locked_secrets })
    }

    /// The keys in the key file.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub async fn keys(&self) -> Result<KeyRing, KeyFileError> {
        let file = self.key_file.clone();
        blocking(move || file.read()).await?
    }

    /// The keys in the key file, which is made where nothing needs an older one.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub async fn keys_or_new(&self, store: &Store) -> Result<KeyRing, KeysError> {
        let mut connection = store.read().await?;
        let is_needed = encrypted::any(&mut connection).await?;
        drop(connection);
        let file = self.key_file.clone();
        let read = blocking(move || if is_needed { file.read() } else { file.read_or_make() }).await;
        Ok(read.map_err(KeyFileError::Io)??)
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn provider(row: ProviderRow, ring: Option<&KeyRing>) -> Provider {
    let id = row.id.to_string();
    let key = row.api_key.map(|encrypted| match ring {
        Some(ring) => ring.decrypt(place_of_key(&id), &encrypted).map(ProviderKey),
        None => Err(Undecryptable::NoKeyFile),
    });
    Provider {
        name: row.name,
        kind: row.kind,
        base_url: row.base_url,
        key: key.transpose(),
        models: row.models,
        timeout: row.timeout,
    }
}

fn replay() -> Provider {
    Provider {
        name: REPLAY.to_owned(),
        kind: ProviderKind::Replay,
        base_url: None,
        key: Ok(None),
        models: Vec::new(),
        timeout: PROVIDER_TIMEOUT_DEFAULT,
    }
}

/// A provider's key that an older key of the file encrypts, and the same encrypted with the present one.
struct Renewal {
    id: ProviderId,
    old: Encrypted,
    new: Encrypted,
}

impl Renewal {
    fn of(row: &ProviderRow, ring: &KeyRing) -> Option<Self> {
        let old = row.api_key.as_ref().filter(|encrypted| ring.is_old(encrypted))?;
        let id = row.id.to_string();
        let text = ring.decrypt(place_of_key(&id), old).ok()?;
        Some(Self { id: row.id, old: old.clone(), new: ring.encrypt(place_of_key(&id), &text)? })
    }
}

/// Stores what was encrypted anew. What fails is done when the providers are read again.
async fn renew(store: &Store, renewals: Vec<Renewal>) {
    for Renewal { id, old, new } in renewals {
        let write = store.write(move |tx| Box::pin(async move { providers::replace_key(tx, id, &old, &new).await }));
        match write.await {
            Ok(_) => tracing::info!(provider = %id, "its key is encrypted with the present key of the key file now"),
            Err(error) => tracing::error!(provider = %id, %error, "its key could not be encrypted anew"),
        }
    }
}

/// Encrypts the secrets that `old` encrypts with the first key of the ring.
async fn renew_secrets(store: &Store, ring: &KeyRing, old: &str) -> Result<(), StoreError> {
    loop {
        let rows = {
            let mut connection = store.read().await?;
            secrets::encrypted_with(&mut connection, old, RENEWED_AT_ONCE_MAX).await?
        };
        let renewals: Vec<_> = rows.iter().filter_map(|row| renewed(row, ring)).collect();
        let write = store.write(move |tx| {
            Box::pin(async move {
                let mut count = 0;
                for (id, old, new) in &renewals {
                    let is_done = secrets::replace_value(tx, *id, old, new).await?;
                    count += usize::from(is_done);
                }
                Ok::<_, StoreError>(count)
            })
        });
        let count = write.await?;
        if count == 0 {
            return Ok(());
        }
        tracing::info!(count, "secrets are encrypted with the present key of the key file now");
    }
}

fn renewed(row: &SecretRow, ring: &KeyRing) -> Option<(SecretId, Encrypted, Encrypted)> {
    let id = row.id.to_string();
    let text = ring.decrypt(place_of_secret(&id), &row.value).ok()?;
    Some((row.id, row.value.clone(), ring.encrypt(place_of_secret(&id), &text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(providers: Vec<Provider>) -> Models {
        let recordings = Recordings::of(Path::new("nowhere"));
        Models { providers, damaged: Vec::new(), recordings, key_file: None, keys: Vec::new(), at: Instant::now() }
    }

    fn model(id: &str, alias: &str) -> Model {
        let aliases = vec![alias.to_owned()];
        Model { id: id.to_owned(), aliases, context_tokens: None, max_output_tokens: Some(100), price: None }
    }

    #[test]
    fn a_name_leads_to_a_provider_with_its_key() {
        let provider = |name: &str, key, models| Provider {
            name: name.to_owned(),
            kind: ProviderKind::Openai,
            base_url: Some(format!("http://{name}.test/v1")),
            key,
            models,
            timeout: Duration::from_secs(7),
        };
        let key = Ok(Some(ProviderKey("sk-secret".to_owned())));
        let all = models(vec![
            provider("big", key, vec![model("gpt-4o", "gpt-4")]),
            provider("free", Ok(None), Vec::new()),
            provider("locked", Err(Undecryptable::Altered), vec![model("lost", "l")]),
            replay(),
        ]);
        let target = all.resolve("gpt-4").unwrap().target;
        assert_eq!((target.provider.as_str(), target.model.as_str()), ("big", "gpt-4o"), "the provider knows no alias");
        assert_eq!((target.base_url.as_str(), target.timeout.as_secs()), ("http://big.test/v1", 7));
        assert_eq!(
            (target.key.clone().map(|key| key.0), target.max_output_tokens),
            (Some("sk-secret".into()), Some(100))
        );
        let target = all.resolve("free/any/thing").unwrap().target;
        assert_eq!((target.model.as_str(), target.key.is_none(), target.max_output_tokens), ("any/thing", true, None));
        // A call without the key that belongs to it would be another call.
        assert!(matches!(all.resolve("lost"), Err(Unresolved::NoKey { .. })));
        assert!(matches!(all.resolve("replay/none"), Err(Unresolved::NoModel(NoModel::Unknown(_)))));
        assert_eq!(all.locked(), [("locked", Undecryptable::Altered)]);
        assert!(!format!("{all:?}").contains("sk-secret"));
    }
}
