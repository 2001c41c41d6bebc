//! Calls of models, from the request to the answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use raworc_core::ids::ContainerId;
use serde_json::json;

use crate::answer::{self, Body};
use crate::body;
use crate::dialect::{Ask, Dialect};
use crate::failure::Problem;
use crate::gateway::Gateway;
use crate::headers;
use crate::plan::{self, Answers, Plan, malformed};
use crate::ports::{Admission, Call, CallEnd, Operation};
use crate::recorder::Recorder;
use crate::relay::Waiting;
use crate::rooms::{Place, Room};
use crate::route::CallRoute;
use crate::upstream;

/// Answers a call.
pub async fn call(
    gateway: &Arc<Gateway>,
    container: ContainerId,
    room: &Room,
    route: CallRoute,
    request: Request<Incoming>,
) -> Response<Body> {
    let key = headers::program_key(&request);
    let (head, incoming) = request.into_parts();
    let Some(place) = room.call() else {
        body::drain(incoming).await;
        return answer::problem(route.dialect, &too_many_calls());
    };
    match body::read(&head.headers, incoming, room).await {
        Ok(held) => Asked { container, route, headers: head.headers, key, held, place }.carry_out(gateway).await,
        Err(problem) => answer::problem(route.dialect, &problem),
    }
}

/// Answers a call of chat completions that the program around makes itself, for a container.
pub async fn own(
    gateway: &Arc<Gateway>,
    container: ContainerId,
    room: &Room,
    key: &str,
    body: Bytes,
) -> Response<Body> {
    let dialect = Dialect::ChatCompletions;
    let Some(place) = room.call() else { return answer::problem(dialect, &too_many_calls()) };
    let route = CallRoute { dialect, operation: Operation::Generate, gemini: None, query: None };
    let (headers, key) = (HeaderMap::new(), Some(key.to_owned()));
    let held = body::Held::unaccounted(body);
    Asked { container, route, headers, key, held, place }.carry_out(gateway).await
}

fn too_many_calls() -> Problem {
    let message = "too many calls are going on at the same time; try again when some are done";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_calls", message).retry_after(Duration::from_secs(1))
}

/// A call that nobody has decided on yet.
struct Asked {
    container: ContainerId,
    route: CallRoute,
    headers: HeaderMap,
    key: Option<String>,
    held: body::Held,
    place: Place,
}

impl Asked {
    async fn carry_out(self, gateway: &Arc<Gateway>) -> Response<Body> {
        let dialect = self.route.dialect;
        match Box::pin(self.admitted(gateway)).await {
            Ok((admitted, held)) => Box::pin(admitted.carry_out(gateway, held)).await,
            Err(problem) => answer::problem(dialect, &problem),
        }
    }

    async fn admitted(self, gateway: &Arc<Gateway>) -> Result<(Admitted, body::Held), Problem> {
        let Self { container, route, headers, key, held, place } = self;
        let Ask { model, is_streaming } = ask(&route, &held.bytes)?;
        let call = Call { container, key, dialect: route.dialect, operation: route.operation, model, is_streaming };
        let (admission, recorder) = admit(gateway, call.clone()).await?;
        Ok((Admitted { call, route, headers, admission, recorder, place }, held))
    }
}

fn ask(route: &CallRoute, body: &Bytes) -> Result<Ask, Problem> {
    let asked = route.dialect.read_request(body).map_err(|error| malformed(&error))?;
    Ok(match &route.gemini {
        Some(path) => Ask { model: Some(path.model.clone()), is_streaming: path.action == "streamGenerateContent" },
        None => asked,
    })
}

/// Asks for admission in a task of its own: should the program go away meanwhile, the call is admitted and recorded as ended.
async fn admit(gateway: &Arc<Gateway>, call: Call) -> Result<(Admission, Recorder), Problem> {
    let ports = gateway.ports.clone();
    let admitting = tokio::spawn(async move {
        let admission = ports.admit(&call).await?;
        let recorder = Recorder::new(ports, &admission);
        Ok((admission, recorder))
    });
    match admitting.await {
        Ok(admitted) => admitted.map_err(|refusal: crate::ports::Refusal| refusal.into()),
        Err(error) => {
            tracing::error!(%error, "a call was not decided on");
            let message = "the gateway has failed; the server's log says why";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message))
        }
    }
}

struct Admitted {
    call: Call,
    route: CallRoute,
    headers: HeaderMap,
    admission: Admission,
    recorder: Recorder,
    place: Place,
}

impl Admitted {
    async fn carry_out(mut self, gateway: &Arc<Gateway>, held: body::Held) -> Response<Body> {
        let target = &self.admission.target;
        let planned = plan::plan(target, &self.route, &self.call, &held.bytes, &self.headers);
        match planned {
            Err(problem) => {
                self.recorder.request(&held.bytes);
                self.recorder.end(CallEnd::Failed, Some(problem.message.to_string())).await;
                answer::problem(self.call.dialect, &problem)
            }
            Ok(Plan::Estimate(tokens)) => {
                self.recorder.request(&held.bytes);
                self.recorder.end(CallEnd::Complete, None).await;
                answer::json(StatusCode::OK, counted(self.call.dialect, tokens))
            }
            Ok(Plan::Replay { request, answers }) => {
                self.recorder.request(&request);
                self.recorder.attempt();
                let asked = gateway.recordings.answer(target, request, self.call.is_streaming);
                let replied = Box::pin(asked).await;
                if replied.is_ok() {
                    self.recorder.status(StatusCode::OK);
                }
                self.reply(answers, replied).await
            }
            Ok(Plan::Forward { outgoing, answers }) => {
                self.recorder.request(&outgoing.body);
                let Admission { target, cancelled, .. } = &self.admission;
                let sent = upstream::send(&gateway.client, &outgoing, target, cancelled, &mut self.recorder).await;
                // The request is not needed any more.
                drop((outgoing, held));
                self.reply(answers, sent).await
            }
        }
    }

    async fn reply(self, answers: Answers, reply: Result<upstream::Reply, crate::failure::Failure>) -> Response<Body> {
        let Self { call, admission, recorder, place, .. } = self;
        let waiting = Waiting::new(call.dialect, answers, recorder, place, &admission);
        match reply {
            Ok(reply) => Box::pin(waiting.pass(reply)).await,
            Err(failure) => waiting.fail(&failure).await,
        }
    }
}

/// A count of tokens, as the clients of a dialect read it.
fn counted(dialect: Dialect, tokens: usize) -> Bytes {
    let count = match dialect {
        Dialect::Gemini => json!({ "totalTokens": tokens }),
        Dialect::Messages | Dialect::ChatCompletions | Dialect::Responses => json!({ "input_tokens": tokens }),
    };
    count.to_string().into()
}
