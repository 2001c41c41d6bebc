//! Calls about what models were asked.

use raworc_core::ids::ModelCallId;

use super::path::Path;
use super::{Client, Result};
use crate::model_call::{ModelCall, SessionUsage};

impl Client {
    /// `GET /sessions/{id}/model-calls/{call}`.
    pub async fn get_model_call(&self, id: &str, call: ModelCallId) -> Result<ModelCall> {
        self.fetch(Path::new("sessions").id(id).then("model-calls").id(call.to_string()), &()).await
    }

    /// `GET /sessions/{id}/usage`.
    pub async fn get_usage(&self, id: &str) -> Result<SessionUsage> {
        self.fetch(Path::new("sessions").id(id).then("usage"), &()).await
    }
}
