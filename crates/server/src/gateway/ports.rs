//! What the gateway asks of the server: which model a call gets, and what is recorded of it.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use raworc_core::ids::{ContainerId, TurnId};
use raworc_core::link::TURN_KEY_PREFIX;
use raworc_core::models::NoModel;
use raworc_gateway::ports::{Admission, Call, CallRecord, ListedModel, Ports, Refusal};
use raworc_store::{agents, messages, sessions};
use uuid::Uuid;

use super::calls::CallContext;
use crate::app::{App, Shared};
use crate::error::Failure;
use crate::models::catalog::{Models, Resolved, Unresolved};
use crate::record::{model_calls, take_message};

/// After how long a call is worth repeating that the server could not decide on.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The server, as the gateway sees it.
pub struct ServerPorts(OnceLock<Weak<App>>);

impl ServerPorts {
    /// Not connected to a server yet.
    pub fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Connects them, once.
    pub fn connect(&self, app: &Shared) {
        self.0.get_or_init(|| Arc::downgrade(app));
    }

    fn app(&self) -> Option<Shared> {
        self.0.get()?.upgrade()
    }
}

/// The turn in which a program runs, and its agent.
#[derive(Debug, Default)]
struct CallerAgent {
    turn: Option<TurnId>,
    name: Option<String>,
    /// The model that the agent is registered with.
    model: Option<String>,
}

#[async_trait]
impl Ports for ServerPorts {
    async fn models(&self, _container: ContainerId) -> Vec<ListedModel> {
        let Some(app) = self.app() else { return Vec::new() };
        match app.catalog.models(&app.store).await {
            Ok(models) => models.listed(),
            Err(error) => {
                tracing::warn!(%error, "the models could not be listed");
                Vec::new()
            }
        }
    }

    async fn admit(&self, call: &Call) -> Result<Admission, Refusal> {
        let app = self.app().ok_or_else(unavailable)?;
        let undecided = |error: Failure| {
            tracing::warn!(%error, container = %call.container, "a call of a model could not be decided on");
            unavailable()
        };
        let Some(caller) = caller(&app, call).await.map_err(undecided)? else { return Err(ended()) };
        let models = app.catalog.models(&app.store).await.map_err(|error| undecided(error.into()))?;
        let (resolved, requested) = choose(&models, call, &caller)?;
        let id = Uuid::now_v7();
        let context = CallContext {
            container: call.container,
            turn: caller.turn,
            agent: caller.name,
            provider: resolved.target.provider.clone(),
            model: resolved.target.model.clone(),
            requested,
            price: resolved.price,
        };
        Ok(Admission { id, cancelled: app.running_calls.begin(id, context), target: resolved.target })
    }

    async fn finished(&self, record: CallRecord) {
        let Some(app) = self.app() else { return };
        let Some(context) = app.running_calls.end(record.id) else { return };
        let (container, id) = (context.container, record.id);
        if let Err(error) = model_calls::record(&app, context, record).await {
            tracing::error!(%error, %container, call = %id, "a call of a model could not be recorded");
        }
    }
}

/// Who calls, as far as records tell; none where the container is not the session's present one.
async fn caller(app: &Shared, call: &Call) -> Result<Option<CallerAgent>, Failure> {
    let mut connection = app.store.read().await?;
    let session = call.container.session;
    let Some(row) = sessions::find(&mut connection, session).await? else { return Ok(None) };
    if row.machine.generation != call.container.generation {
        return Ok(None);
    }
    let key = call.key.as_deref().and_then(|key| key.strip_prefix(TURN_KEY_PREFIX));
    let claimed = key.and_then(|turn| turn.parse().ok());
    // A program of a turn before, which goes on in the background, calls for itself.
    let running = row.machine.running.filter(|running| Some(running.turn) == claimed);
    let message = match running {
        Some(running) => messages::find(&mut connection, session, running.message).await?,
        None => None,
    };
    let agent = match message {
        // Whose turn it is does not change with the session's agents.
        Some(message) => match take_message::beginning(&mut connection, &message).await? {
            Some(started) => take_message::agent_of(&mut connection, &started).await?,
            None => None,
        },
        // One that is damaged may be the first: nobody else speaks for it.
        None => {
            let assigned = agents::assigned(&mut connection, session).await?;
            assigned.rows.into_iter().next().filter(|_| assigned.damaged.is_empty())
        }
    };
    let turn = running.map(|running| running.turn);
    let Some(agent) = agent else { return Ok(Some(CallerAgent { turn, ..CallerAgent::default() })) };
    let name = turn.map(|_| agent.definition.name);
    Ok(Some(CallerAgent { turn, name, model: agent.definition.model }))
}

/// The model for a call, and what was asked for where that is another one.
fn choose(models: &Models, call: &Call, caller: &CallerAgent) -> Result<(Resolved, Option<String>), Refusal> {
    let asked = call.model.as_deref().map(|name| models.resolve(name));
    match (asked, &caller.model) {
        (Some(Ok(resolved)), _) => Ok((resolved, None)),
        // Agents ask for models of their own choice in the background, whatever they are configured with.
        (Some(Err(Unresolved::NoModel(NoModel::Unknown(_)))) | None, Some(own)) => match models.resolve(own) {
            Ok(resolved) => Ok((resolved, call.model.clone())),
            Err(error) => Err(no_model(format!("{error}; that is the agent's model"))),
        },
        (Some(Err(error)), _) => Err(no_model(error.to_string())),
        (None, None) => Err(no_model("the request names no model, and the agent has none".to_owned())),
    }
}

fn no_model(reason: String) -> Refusal {
    let message = format!(
        "{reason}. `raworc model list` has those there are; an administrator adds more with `raworc provider add`."
    );
    Refusal { status: StatusCode::NOT_FOUND, code: "model_not_found", message, retry_after: None }
}

fn unavailable() -> Refusal {
    let message = "the server cannot decide on this call right now; try again".to_owned();
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, code: "unavailable", message, retry_after: Some(RETRY_AFTER) }
}

fn ended() -> Refusal {
    let message = "this container is not the session's present one".to_owned();
    Refusal { status: StatusCode::FORBIDDEN, code: "fenced", message, retry_after: None }
}
