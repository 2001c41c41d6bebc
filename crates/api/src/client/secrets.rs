//! Calls about secrets.

use reqwest::Method;

use super::path::Path;
use super::{Client, Result};
use crate::page::{Page, PageQuery};
use crate::secret::{Secret, SecretDefinition};

impl Client {
    /// `POST /secrets`.
    pub async fn create_secret(&self, definition: &SecretDefinition) -> Result<Secret> {
        self.post(Path::new("secrets"), definition).await
    }

    /// `GET /secrets`.
    pub async fn list_secrets(&self, query: &PageQuery) -> Result<Page<Secret>> {
        self.fetch(Path::new("secrets"), query).await
    }

    /// `GET /secrets/{name}`.
    pub async fn get_secret(&self, name: &str) -> Result<Secret> {
        self.fetch(Path::new("secrets").id(name), &()).await
    }

    /// `PUT /secrets/{name}`: replaces everything but the value, if that is absent.
    pub async fn update_secret(&self, name: &str, definition: &SecretDefinition) -> Result<Secret> {
        self.put(Path::new("secrets").id(name), definition).await
    }

    /// `DELETE /secrets/{name}`.
    pub async fn delete_secret(&self, name: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, Path::new("secrets").id(name))?).await
    }
}
