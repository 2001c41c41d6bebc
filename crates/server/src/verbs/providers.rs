//! Providers of models.

use std::collections::BTreeSet;
use std::time::Duration;

use raworc_api::problem::Code;
use raworc_api::provider::ProviderTest;
use raworc_api::provider::{ApiKey, ProviderDefinition, ProviderModel};
use raworc_core::ids::ProviderId;
use raworc_core::known_providers;
use raworc_core::limits::{
    ALIASES_PER_MODEL_MAX, API_KEY_BYTES_MAX, BASE_URL_BYTES_MAX, MODEL_TOKENS, MODELS_PER_PROVIDER_MAX,
    PAGE_BYTES_MAX, PRICE_MICROS_MAX, PROVIDER_TIMEOUT_DEFAULT, PROVIDER_TIMEOUT_SECONDS, PROVIDERS_MAX,
};
use raworc_core::models::{Model, Price, ProviderKind};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor};
use raworc_core::time::Time;
use raworc_store::providers::{self, ProviderRow};
use raworc_store::{Batch, Encrypted, Read, StoreError, audit};
use url::Url;
use uuid::Uuid;

use super::check::Checks;
use super::idempotent::Key;
use crate::app::Shared;
use crate::conditions::Conditions;
use crate::encryption::KeyRing;
use crate::error::Failure;
use crate::models::catalog::{REPLAY, place_of_key};
use crate::policy::permit;

/// Millionths in one.
const MICROS: f64 = 1e6;

/// The provider that comes with Raworc.
pub fn builtin(now: Time) -> ProviderRow {
    ProviderRow {
        id: ProviderId(Uuid::now_v7()),
        name: REPLAY.to_owned(),
        kind: ProviderKind::Replay,
        base_url: None,
        api_key: None,
        models: Vec::new(),
        timeout: PROVIDER_TIMEOUT_DEFAULT,
        builtin: true,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

/// Adds a provider.
///
/// # Errors
/// 409 where the name is taken, or the key file cannot be used; 422 where the definition is wrong.
pub async fn create(
    app: &Shared,
    actor: &Actor,
    definition: ProviderDefinition,
    idempotency_key: Option<&str>,
) -> Result<ProviderRow, Failure> {
    permit(actor, Action::ManageProviders, "provider", &definition.name)?;
    let (settings, api_key) = check(definition)?;
    let api_key = api_key.flatten();
    let ring = keys(app, api_key.as_ref()).await?;
    let request = idempotency_key.map(|key| request(key, &settings, api_key.as_ref(), ring.as_ref())).transpose()?;
    let (actor, now) = (actor.clone(), app.now());
    let id = ProviderId(Uuid::now_v7());
    let mut row = ProviderRow { id, created_at: now, ..settings.onto(builtin(now), now) };
    row.api_key = encrypt(row.id, api_key.as_ref(), ring.as_ref())?;
    app.store
        .write(move |tx| {
            Box::pin(async move {
                if let Some(made) = made_before(tx, &actor, request.as_ref()).await? {
                    return Ok(made);
                }
                if providers::count(tx).await? >= PROVIDERS_MAX {
                    let detail = format!("there are {PROVIDERS_MAX} providers, and there cannot be more; delete one");
                    return Err(Failure::new(Code::InvalidState, detail));
                }
                audit::append(tx, now, &actor, "provider.create", &row.id.to_string()).await?;
                providers::insert(tx, &row).await.map_err(|e| taken(e, &row.name))?;
                if let Some(request) = &request {
                    request.remember(tx, &actor, row.id.to_string(), now).await?;
                }
                tx.providers_changed();
                Ok(row)
            })
        })
        .await
}

/// Replaces what a provider is; its key stays where none is given.
///
/// # Errors
/// 404, 409, 412 or 422.
pub async fn update(
    app: &Shared,
    actor: &Actor,
    name: String,
    definition: ProviderDefinition,
    conditions: Conditions,
) -> Result<ProviderRow, Failure> {
    permit(actor, Action::ManageProviders, "provider", &name)?;
    let (settings, api_key) = check(definition)?;
    let ring = keys(app, api_key.as_ref().and_then(Option::as_ref)).await?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let before = changeable(tx, &name).await?;
                conditions.check_version(before.version)?;
                let mut row = settings.onto(before, now);
                match &api_key {
                    Some(given) => row.api_key = encrypt(row.id, given.as_ref(), ring.as_ref())?,
                    None if row.kind == ProviderKind::Replay => row.api_key = None,
                    None => {}
                }
                audit::append(tx, now, &actor, "provider.update", &row.id.to_string()).await?;
                let name = row.name.clone();
                providers::update(tx, &mut row).await.map_err(|e| taken(e, &name))?;
                tx.providers_changed();
                Ok(row)
            })
        })
        .await
}

/// Removes a provider, and its key.
///
/// # Errors
/// 403 where it came with Raworc, 404, 412.
pub async fn delete(app: &Shared, actor: &Actor, name: String, conditions: Conditions) -> Result<(), Failure> {
    permit(actor, Action::ManageProviders, "provider", &name)?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = changeable(tx, &name).await?;
                conditions.check_version(row.version)?;
                audit::append(tx, now, &actor, "provider.delete", &row.id.to_string()).await?;
                providers::delete(tx, row.id).await?;
                tx.providers_changed();
                Ok(())
            })
        })
        .await
}

/// One provider.
///
/// # Errors
/// 404.
pub async fn get(app: &Shared, actor: &Actor, name: &str) -> Result<ProviderRow, Failure> {
    permit(actor, Action::ManageProviders, "provider", name)?;
    let mut connection = app.store.read().await?;
    find(&mut connection, name).await
}

/// Asks a provider once; how it went.
///
/// # Errors
/// 404 where there is none; 409 where its key cannot be decrypted.
pub async fn test(app: &Shared, actor: &Actor, name: &str) -> Result<ProviderTest, Failure> {
    let row = get(app, actor, name).await?;
    let models = app.catalog.models(&app.store).await?;
    let target = models.probed(&row.name).ok_or_else(|| Failure::not_found("provider", name))??;
    let asked = match app.gateway.probe(&target).await {
        Ok(report) => ProviderTest {
            works: true,
            duration_seconds: Some(report.duration.as_secs_f64()),
            models: report.models.map(|count| count as u64),
            error: None,
        },
        Err(error) => {
            ProviderTest { works: false, duration_seconds: None, models: None, error: Some(error.to_string()) }
        }
    };
    Ok(asked)
}

/// Providers by name, after the name `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list(app: &Shared, actor: &Actor, after: &str, limit: u32) -> Result<Batch<ProviderRow>, Failure> {
    permit(actor, Action::ManageProviders, "provider", "")?;
    let mut connection = app.store.read().await?;
    Ok(providers::list(&mut connection, after, (limit, PAGE_BYTES_MAX)).await?)
}

async fn find(connection: &mut Read, name: &str) -> Result<ProviderRow, Failure> {
    providers::find(connection, name).await?.ok_or_else(|| Failure::not_found("provider", name))
}

async fn changeable(connection: &mut Read, name: &str) -> Result<ProviderRow, Failure> {
    let row = find(connection, name).await?;
    if row.builtin {
        let detail = format!("the provider {:?} came with Raworc and cannot be changed", row.name);
        return Err(Failure::new(Code::Forbidden, detail));
    }
    Ok(row)
}

fn taken(error: StoreError, name: &str) -> Failure {
    match error {
        StoreError::Conflict => {
            Failure::new(Code::NameTaken, format!("there is a provider {name:?} already; choose another name"))
        }
        error => error.into(),
    }
}

/// The keys to encrypt a provider's key with, where it has one.
async fn keys(app: &Shared, api_key: Option<&ApiKey>) -> Result<Option<KeyRing>, Failure> {
    match api_key {
        Some(_) => Ok(Some(app.catalog.keys_or_new(&app.store).await?)),
        None => Ok(None),
    }
}

fn encrypt(id: ProviderId, api_key: Option<&ApiKey>, ring: Option<&KeyRing>) -> Result<Option<Encrypted>, Failure> {
    let (Some(ApiKey(text)), Some(ring)) = (api_key, ring) else { return Ok(None) };
    match ring.encrypt(place_of_key(&id.to_string()), text) {
        Some(encrypted) => Ok(Some(encrypted)),
        None => Err(Failure::new(Code::Internal, "the key could not be encrypted")),
    }
}

/// A caller's `Idempotency-Key` with what stands for the request, in which the provider's key does not appear.
fn request(key: &str, settings: &Settings, api_key: Option<&ApiKey>, ring: Option<&KeyRing>) -> Result<Key, Failure> {
    let stand_in = api_key.zip(ring).map(|(ApiKey(text), ring)| ring.stand_in(text));
    let Settings { name, kind, base_url, models, timeout } = settings;
    Key::new(key, "POST /providers", &(name, kind, base_url, models, timeout.as_secs(), stand_in))
}

/// The provider that an earlier request of this key made.
async fn made_before(
    connection: &mut Read,
    actor: &Actor,
    request: Option<&Key>,
) -> Result<Option<ProviderRow>, Failure> {
    let Some(request) = request else { return Ok(None) };
    match request.made_before(connection, actor).await? {
        Some(made) => find(connection, &made).await.map(Some),
        None => Ok(None),
    }
}

/// A definition without its key, checked.
#[derive(Debug, Clone)]
struct Settings {
    name: String,
    kind: ProviderKind,
    base_url: Option<String>,
    models: Vec<Model>,
    timeout: Duration,
}

impl Settings {
    fn onto(self, row: ProviderRow, now: Time) -> ProviderRow {
        let Self { name, kind, base_url, models, timeout } = self;
        ProviderRow { name, kind, base_url, models, timeout, builtin: false, updated_at: now, ..row }
    }
}

fn check(definition: ProviderDefinition) -> Result<(Settings, Option<Option<ApiKey>>), Failure> {
    let ProviderDefinition { name, kind, base_url, api_key, models, timeout_seconds } = definition;
    let mut checks = Checks::default();
    checks.check("name", names::check_handle(&name));
    checks.range("timeout_seconds", timeout_seconds, &PROVIDER_TIMEOUT_SECONDS);
    check_key(&mut checks, kind, api_key.as_ref().and_then(Option::as_ref));
    let base_url = check_base_url(&mut checks, kind, base_url);
    let models = check_models(&mut checks, models);
    checks.done()?;
    let timeout = timeout_seconds.map_or(PROVIDER_TIMEOUT_DEFAULT, Duration::from_secs);
    Ok((Settings { name, kind, base_url, models, timeout }, api_key))
}

fn check_key(checks: &mut Checks, kind: ProviderKind, api_key: Option<&ApiKey>) {
    let Some(ApiKey(key)) = api_key else { return };
    if kind == ProviderKind::Replay {
        checks.fault("api_key", "must be absent: recordings need no key");
    } else if key.is_empty() || key.len() > API_KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        checks.fault(
            "api_key",
            format!("must be 1 to {API_KEY_BYTES_MAX} printable ASCII characters without spaces; null removes the key"),
        );
    }
}

/// The URL as it is stored: without a slash at its end.
fn check_base_url(checks: &mut Checks, kind: ProviderKind, base_url: Option<String>) -> Option<String> {
    if kind == ProviderKind::Replay {
        if base_url.is_some() {
            checks.fault("base_url", "must be absent: recordings are files of the server");
        }
        return None;
    }
    let Some(text) = base_url else { return known_providers::base_url(kind).map(str::to_owned) };
    match parse_base_url(&text) {
        Ok(url) => return Some(url),
        Err(message) => checks.fault("base_url", message),
    }
    None
}

fn parse_base_url(text: &str) -> Result<String, String> {
    if text.len() > BASE_URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must have at most {BASE_URL_BYTES_MAX} printable ASCII characters without spaces"));
    }
    let url = Url::parse(text).map_err(|_| "must be a URL, such as http://127.0.0.1:11434/v1")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("must begin with http:// or https:// and a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || text.contains('@') {
        return Err("must not contain a user or a password: the key belongs into api_key".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not contain '?' or '#': what is called is added to its end".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn check_models(checks: &mut Checks, models: Vec<ProviderModel>) -> Vec<Model> {
    if models.len() > MODELS_PER_PROVIDER_MAX {
        checks.fault("models", format!("{} models, at most {MODELS_PER_PROVIDER_MAX} are allowed", models.len()));
        return Vec::new();
    }
    let mut named = BTreeSet::new();
    let checked = models.into_iter().enumerate().map(|(place, model)| {
        let field = |name: &str| format!("models[{place}].{name}");
        if model.aliases.len() > ALIASES_PER_MODEL_MAX {
            checks.fault(&field("aliases"), format!("at most {ALIASES_PER_MODEL_MAX} are allowed"));
        }
        let aliases = model.aliases.iter().take(ALIASES_PER_MODEL_MAX).enumerate();
        let aliases = aliases.map(|(n, alias)| (field(&format!("aliases[{n}]")), alias));
        for (field, name) in std::iter::once((field("id"), &model.id)).chain(aliases) {
            checks.check(&field, names::check_model(name));
            if !named.insert(name.clone()) {
                checks.fault(&field, format!("{name:?} is there twice: each name means one model"));
            }
        }
        checks.range(&field("context_tokens"), model.context_tokens, &MODEL_TOKENS);
        checks.range(&field("max_output_tokens"), model.max_output_tokens, &MODEL_TOKENS);
        let price = model.price.map(|price| Price {
            input_micros_per_million: micros(checks, &field("price.input_per_million"), price.input_per_million),
            output_micros_per_million: micros(checks, &field("price.output_per_million"), price.output_per_million),
        });
        let ProviderModel { id, aliases, context_tokens, max_output_tokens, .. } = model;
        Model { id, aliases, context_tokens, max_output_tokens, price }
    });
    checked.collect()
}

/// A price in millionths.
fn micros(checks: &mut Checks, field: &str, price: f64) -> u64 {
    let micros = (price * MICROS).round();
    let most = PRICE_MICROS_MAX as f64;
    if !(0.0..=most).contains(&micros) || price.is_sign_negative() && price != 0.0 {
        checks.fault(field, format!("must be 0 to {}", most / MICROS));
        return 0;
    }
    // Up to the highest price, both are exact: the quotient is the number that these digits stand for.
    if micros / MICROS != price {
        checks.fault(field, "must have at most six digits after the point");
    }
    micros as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_servers() {
        for (text, expected) in [
            ("http://127.0.0.1:11434/v1", Some("http://127.0.0.1:11434/v1")),
            ("https://API.test/", Some("https://api.test")),
            ("https://api.test/openai/v1///", Some("https://api.test/openai/v1")),
            ("http://[::1]:80/v1", Some("http://[::1]/v1")),
            ("https://api.test", Some("https://api.test")),
            ("api.test/v1", None),
            ("ftp://api.test", None),
            ("file:///etc/passwd", None),
            ("http://", None),
            ("http:///v1", Some("http://v1")),
            ("https://me:secret@api.test", None),
            ("https://me@api.test", None),
            ("https://@api.test", None),
            ("https://api.test?a=b", None),
            ("https://api.test/#", None),
            ("https://api.test/ v1", None),
            ("https://größe.test", None),
            ("", None),
        ] {
            assert_eq!(parse_base_url(text).ok().as_deref(), expected, "{text:?}");
        }
        let long = format!("https://api.test/{}", "x".repeat(BASE_URL_BYTES_MAX));
        assert!(parse_base_url(&long).is_err());
    }

    #[test]
    fn prices_are_exact_or_refused() {
        for (price, expected) in [
            (0.0, Some(0)),
            (-0.0, Some(0)),
            (2.5, Some(2_500_000)),
            (0.1, Some(100_000)),
            (0.000_001, Some(1)),
            (0.3, Some(300_000)),
            (123.456_789, Some(123_456_789)),
            (1e6, Some(PRICE_MICROS_MAX)),
            (0.000_000_1, None),
            (2.500_000_1, None),
            (-1.0, None),
            (-0.000_000_01, None),
            (1_000_000.1, None),
            (1e300, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            let mut checks = Checks::default();
            let found = micros(&mut checks, "price", price);
            let found = checks.done().ok().map(|()| found);
            assert_eq!(found, expected, "{price}");
            if let Some(micros) = found {
                let price = Price { input_micros_per_million: micros, output_micros_per_million: 0 };
                assert_eq!((crate::view::price(price).input_per_million * MICROS).round() as u64, micros);
            }
        }
    }
}
