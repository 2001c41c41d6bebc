//! Which models there are, and which one a name means.

use raworc_api::page::Page;
use raworc_api::problem::Code;
use raworc_api::provider::Model;
use raworc_core::limits::PAGE_BYTES_MAX;
use raworc_core::models;
use raworc_core::models::{NoModel, ProviderKind};
use raworc_core::permissions::{Action, Actor};

use crate::app::Shared;
use crate::error::Failure;
use crate::models::catalog::{Provider, Unresolved};
use crate::policy::permit;
use crate::sync::blocking;
use crate::view;

/// Models by id, after the id `after`. Providers that take every name are not among them, apart from recordings.
///
/// # Errors
/// Where the store fails.
pub async fn list(app: &Shared, actor: &Actor, after: &str, limit: u32) -> Result<Page<Model>, Failure> {
    permit(actor, Action::ReadModels, "model", "")?;
    let all = app.catalog.models(&app.store).await?;
    let recordings = all.recordings.clone();
    // A directory that cannot be read has none.
    let recordings = blocking(move || recordings.names()).await.unwrap_or_default();
    let mut items: Vec<Model> = all
        .providers
        .iter()
        .flat_map(|provider| offered(provider, &recordings))
        .filter(|model| *model.id > *after)
        .collect();
    items.sort_by(|a, b| a.id.cmp(&b.id));
    let mut bytes = 0;
    let fitting = items.iter().take_while(|model| {
        bytes += model.id.len() * 2 + model.aliases.iter().map(String::len).sum::<usize>();
        bytes <= PAGE_BYTES_MAX
    });
    // One that is longer is a page by itself.
    let count = fitting.count().clamp(1, limit as usize);
    let has_more = items.len() > count;
    items.truncate(count);
    let next_cursor = items.last().filter(|_| has_more).map(|model| model.id.clone());
    Ok(Page { items, next_cursor, damaged: all.damaged.clone() })
}

/// The model that calls go to which name it like this.
///
/// # Errors
/// 404 where there is none; 409 where there are several, or the provider's key cannot be decrypted.
pub async fn get(app: &Shared, actor: &Actor, name: &str) -> Result<Model, Failure> {
    permit(actor, Action::ReadModels, "model", name)?;
    let all = app.catalog.models(&app.store).await?;
    let target = all.resolve(name)?.target;
    let provider = all.providers.iter().find(|provider| provider.name == target.provider);
    let provider = provider.ok_or_else(|| Failure::not_found("model", name))?;
    let listed = provider.models.iter().find(|model| model.id == target.model);
    Ok(shown(provider, &listed.cloned().unwrap_or_else(|| unlisted(&target.model))))
}

impl From<Unresolved> for Failure {
    fn from(error: Unresolved) -> Self {
        match error {
            Unresolved::NoModel(NoModel::Unknown(name)) => {
                let detail = format!("there is no model {name:?}; GET /models lists those that there are");
                Failure::new(Code::NotFound, detail)
            }
            Unresolved::NoModel(error @ NoModel::Ambiguous { .. }) => {
                Failure::new(Code::AmbiguousName, error.to_string())
            }
            Unresolved::NoKey { .. } => Failure::new(Code::KeyFileUnusable, error.to_string()),
        }
    }
}

/// A model of which no more than its name is known.
fn unlisted(id: &str) -> models::Model {
    models::Model { id: id.to_owned(), aliases: Vec::new(), context_tokens: None, max_output_tokens: None, price: None }
}

fn offered(provider: &Provider, recordings: &[String]) -> Vec<Model> {
    if provider.kind == ProviderKind::Replay && provider.models.is_empty() {
        return recordings.iter().map(|id| shown(provider, &unlisted(id))).collect();
    }
    provider.models.iter().map(|model| shown(provider, model)).collect()
}

fn shown(provider: &Provider, model: &models::Model) -> Model {
    Model {
        id: format!("{}/{}", provider.name, model.id),
        provider: provider.name.clone(),
        kind: provider.kind,
        model: model.id.clone(),
        aliases: model.aliases.clone(),
        context_tokens: model.context_tokens,
        max_output_tokens: model.max_output_tokens,
        price: model.price.map(view::price),
    }
}
