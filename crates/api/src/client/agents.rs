//! Calls about agents.

use reqwest::Method;

use super::path::Path;
use super::{Client, Result};
use crate::agent::{Agent, AgentDefinition};
use crate::page::{Page, PageQuery};

impl Client {
    /// `POST /agents`.
    pub async fn create_agent(&self, definition: &AgentDefinition) -> Result<Agent> {
        self.post(Path::new("agents"), definition).await
    }

    /// `GET /agents`.
    pub async fn list_agents(&self, query: &PageQuery) -> Result<Page<Agent>> {
        self.fetch(Path::new("agents"), query).await
    }

    /// `GET /agents/{id}`.
    pub async fn get_agent(&self, id: &str) -> Result<Agent> {
        self.fetch(Path::new("agents").id(id), &()).await
    }

    /// `PUT /agents/{id}`: replaces the definition.
    pub async fn update_agent(&self, id: &str, definition: &AgentDefinition) -> Result<Agent> {
        self.put(Path::new("agents").id(id), definition).await
    }

    /// `DELETE /agents/{id}`.
    pub async fn delete_agent(&self, id: &str) -> Result<()> {
        self.done(self.request(Method::DELETE, Path::new("agents").id(id))?).await
    }
}
