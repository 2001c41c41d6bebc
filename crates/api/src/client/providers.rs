//! Calls about providers and models.

use reqwest::Method;

use super::path::Path;
use super::{Client, Result};
use crate::page::{Page, PageQuery};
use crate::provider::{Model, Provider, ProviderDefinition, ProviderTest};

impl Client {
    /// `POST /providers`.
    pub async fn create_provider(&self, definition: &ProviderDefinition) -> Result<Provider> {
        self.post(Path::new("providers"), definition).await
    }

    /// `GET /providers`.
    pub async fn list_providers(&self, query: &PageQuery) -> Result<Page<Provider>> {
        self.fetch(Path::new("providers"), query).await
    }

    /// `GET /providers/{name}`.
    pub async fn get_provider(&self, name: &str) -> Result<Provider> {
        self.fetch(Path::new("providers").id(name), &()).await
    }

    /// `PUT /providers/{name}`: replaces everything but the key, if that is absent.
    pub async fn update_provider(&self, name: &str, definition: &ProviderDefinition) -> Result<Provider> {
        self.put(Path::new("providers").id(name), definition).await
    }

    /// `DELETE /providers/{name}`.
    pub async fn delete_provider(&self, name: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, Path::new("providers").id(name))?).await
    }

    /// `POST /providers/{name}/test`.
    pub async fn test_provider(&self, name: &str) -> Result<ProviderTest> {
        self.post(Path::new("providers").id(name).then("test"), &()).await
    }

    /// `GET /models/{name}`.
    pub async fn get_model(&self, name: &str) -> Result<Model> {
        self.fetch(Path::new("models").id(name), &()).await
    }

    /// `GET /models`.
    pub async fn list_models(&self, query: &PageQuery) -> Result<Page<Model>> {
        self.fetch(Path::new("models"), query).await
    }
}
