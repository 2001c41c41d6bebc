//! Secrets of accounts.

use raworc_api::problem::Code;
use raworc_api::secret::{SecretDefinition, SecretValue};
use raworc_core::ids::{AccountId, SecretId};
use raworc_core::limits::{PAGE_BYTES_MAX, SECRET_HOSTS_MAX, SECRET_VALUE_BYTES_MAX, SECRETS_PER_ACCOUNT_MAX};
use raworc_core::names;
use raworc_core::permissions::{Action, Actor};
use raworc_core::secrets::{FORMAT_DEFAULT, HEADER_DEFAULT, Target, check_env, check_format, check_header, check_host};
use raworc_store::secrets::{self, SecretRow};
use raworc_store::{Batch, Encrypted, Read, StoreError, audit};
use uuid::Uuid;

use super::check::Checks;
use super::idempotent::Key;
use crate::app::Shared;
use crate::conditions::Conditions;
use crate::encryption::KeyRing;
use crate::error::Failure;
use crate::models::catalog::place_of_secret;
use crate::policy::permit;

/// Adds a secret of one's own.
///
/// # Errors
/// 409 where the name is taken, or the key file cannot be used; 422 where the definition is wrong.
pub async fn create(
    app: &Shared,
    actor: &Actor,
    definition: SecretDefinition,
    idempotency_key: Option<&str>,
) -> Result<SecretRow, Failure> {
    permit(actor, Action::ManageSecret { owner: actor.account }, "secret", &definition.name)?;
    let (name, target, value) = check(definition, true)?;
    let Some(SecretValue(value)) = value else { return Err(Failure::new(Code::Internal, "there is no value")) };
    let ring = app.catalog.keys_or_new(&app.store).await?;
    let request = match idempotency_key {
        Some(key) => Some(Key::new(key, "POST /secrets", &(&name, format!("{target:?}"), ring.stand_in(&value)))?),
        None => None,
    };
    let (actor, now, id) = (actor.clone(), app.now(), SecretId(Uuid::now_v7()));
    let (owner_id, value) = (actor.account, encrypt(&ring, id, &value)?);
    let row = SecretRow { id, owner_id, name, target, value, version: 1, created_at: now, updated_at: now };
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let connection = tx;
                if let Some(request) = &request
                    && let Some(made) = request.made_before(connection, &actor).await?
                {
                    return find(connection, &actor, &made).await;
                }
                if secrets::count(connection, owner_id).await? >= SECRETS_PER_ACCOUNT_MAX {
                    let detail =
                        format!("you have {SECRETS_PER_ACCOUNT_MAX} secrets, and cannot have more; delete one");
                    return Err(Failure::new(Code::InvalidState, detail));
                }
                audit::append(connection, now, &actor, "secret.create", &row.id.to_string()).await?;
                secrets::insert(connection, &row).await.map_err(|error| taken(error, &row.name))?;
                if let Some(request) = &request {
                    request.remember(connection, &actor, row.id.to_string(), now).await?;
                }
                Ok(row)
            })
        })
        .await
}

/// Replaces what a secret is; its value stays where none is given.
///
/// # Errors
/// 404, 409, 412 or 422.
pub async fn update(
    app: &Shared,
    actor: &Actor,
    name: String,
    definition: SecretDefinition,
    conditions: Conditions,
) -> Result<SecretRow, Failure> {
    get(app, actor, &name).await?;
    let (new_name, target, value) = check(definition, false)?;
    let value = match value {
        Some(SecretValue(value)) => Some((app.catalog.keys_or_new(&app.store).await?, value)),
        None => None,
    };
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let connection = tx;
                let mut row = find(connection, &actor, &name).await?;
                conditions.check_version(row.version)?;
                if let Some((ring, value)) = &value {
                    row.value = encrypt(ring, row.id, value)?;
                }
                (row.name, row.target, row.updated_at) = (new_name, target, now);
                audit::append(connection, now, &actor, "secret.update", &row.id.to_string()).await?;
                let name = row.name.clone();
                secrets::update(connection, &mut row).await.map_err(|error| taken(error, &name))?;
                Ok(row)
            })
        })
        .await
}

/// Removes a secret.
///
/// # Errors
/// 404, 412.
pub async fn delete(app: &Shared, actor: &Actor, name: String, conditions: Conditions) -> Result<(), Failure> {
    get(app, actor, &name).await?;
    let (actor, now) = (actor.clone(), app.now());
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let row = find(tx, &actor, &name).await?;
                conditions.check_version(row.version)?;
                audit::append(tx, now, &actor, "secret.delete", &row.id.to_string()).await?;
                secrets::delete(tx, row.id).await?;
                Ok(())
            })
        })
        .await
}

/// One secret, by its owner's name for it, or by its id.
///
/// # Errors
/// 404.
pub async fn get(app: &Shared, actor: &Actor, name: &str) -> Result<SecretRow, Failure> {
    let mut connection = app.store.read().await?;
    find(&mut connection, actor, name).await
}

/// One's own secrets by name, after the name `after`.
///
/// # Errors
/// Where the store fails.
pub async fn list(app: &Shared, actor: &Actor, after: &str, limit: u32) -> Result<Batch<SecretRow>, Failure> {
    permit(actor, Action::ManageSecret { owner: actor.account }, "secret", "")?;
    let mut connection = app.store.read().await?;
    Ok(secrets::list(&mut connection, actor.account, after, (limit, PAGE_BYTES_MAX)).await?)
}

async fn find(connection: &mut Read, actor: &Actor, name: &str) -> Result<SecretRow, Failure> {
    let owner: AccountId = actor.account;
    let row = secrets::find(connection, owner, name).await?.ok_or_else(|| Failure::not_found("secret", name))?;
    permit(actor, Action::ManageSecret { owner: row.owner_id }, "secret", name)?;
    Ok(row)
}

fn taken(error: StoreError, name: &str) -> Failure {
    match error {
        StoreError::Conflict => {
            Failure::new(Code::NameTaken, format!("you have a secret {name:?} already; choose another name"))
        }
        error => error.into(),
    }
}

fn encrypt(ring: &KeyRing, id: SecretId, value: &str) -> Result<Encrypted, Failure> {
    let encrypted = ring.encrypt(place_of_secret(&id.to_string()), value);
    encrypted.ok_or_else(|| Failure::new(Code::Internal, "the value could not be encrypted"))
}

fn check(definition: SecretDefinition, is_new: bool) -> Result<(String, Target, Option<SecretValue>), Failure> {
    let SecretDefinition { name, value, hosts, header, format, env } = definition;
    let mut checks = Checks::default();
    checks.check("name", names::check_handle(&name));
    match &value {
        Some(SecretValue(value)) => checks.check("value", check_value(value, env.is_some())),
        None if is_new => checks.fault("value", "must be there"),
        None => {}
    }
    let target = match env {
        Some(env) => {
            checks.check("env", check_env(&env));
            for (field, is_there) in
                [("hosts", !hosts.is_empty()), ("header", header.is_some()), ("format", format.is_some())]
            {
                if is_there {
                    checks.fault(field, "must be absent beside `env`: a secret goes to hosts or into the container");
                }
            }
            Target::Env(env)
        }
        None => {
            if hosts.is_empty() || hosts.len() > SECRET_HOSTS_MAX {
                checks.fault("hosts", format!("must name 1 to {SECRET_HOSTS_MAX} hosts, unless there is `env`"));
            }
            for (place, host) in hosts.iter().take(SECRET_HOSTS_MAX).enumerate() {
                checks.check(&format!("hosts[{place}]"), check_host(host));
            }
            let header = header.unwrap_or_else(|| HEADER_DEFAULT.to_owned());
            checks.check("header", check_header(&header));
            let format = format.unwrap_or_else(|| FORMAT_DEFAULT.to_owned());
            checks.check("format", check_format(&format));
            Target::Hosts { hosts, header, format }
        }
    };
    checks.done()?;
    Ok((name, target, value))
}

fn check_value(value: &str, is_env: bool) -> Result<(), String> {
    if value.is_empty() || value.len() > SECRET_VALUE_BYTES_MAX {
        return Err(format!("must have 1 to {SECRET_VALUE_BYTES_MAX} bytes"));
    }
    if is_env && value.contains('\0') {
        return Err("must not contain a NUL byte".into());
    }
    // A header's value ends at a line break.
    if !is_env && value.chars().any(|c| !(c.is_ascii_graphic() || c == ' ')) {
        return Err("must be printable ASCII, because it goes into a header".into());
    }
    Ok(())
}
