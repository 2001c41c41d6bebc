//! `/sessions/{id}/terminal`, `/sessions/{id}/terminals`, and `/sessions/{id}/exec` as a WebSocket

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use raworc_api::page::Page;
use raworc_api::problem::{Code, Problem};
use raworc_api::terminal::{ClientFrame, OpenTerminal, SUBPROTOCOL, Terminal};
use raworc_api::workspace::Exec;
use raworc_core::limits::{PIECE_BYTES_MAX, START_BYTES_MAX};
use raworc_store::streams::StreamRow;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
use crate::error::Failure;
use crate::http::extract::{Caller, Path, Query};
use crate::http::page::page;
use crate::http::problems::Problems;
use crate::http::relay::{self, Kind, Right};
use crate::policy::lease::Lease;
use crate::verbs::streams;

/// A client says what to run by then.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Gathered before it is written to a client, or decoded after it is read, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(open)).routes(routes!(list)).routes(routes!(close)).routes(routes!(exec))
}

/// Open a terminal, or attach to one: a WebSocket. Binary frames are bytes, both ways. Wakes a session that rests.
#[utoipa::path(get, path = "/sessions/{id}/terminal", tag = "workspace",
    params(("id" = String, Path, description = "Id or name"), OpenTerminal),
    responses((status = 101, description = "Text frames from the client are `ClientFrame`, from the server `Notice`"),
              Problems))]
async fn open(
    State(app): State<Shared>,
    lease: Lease,
    Path(id): Path<String>,
    Query(query): Query<OpenTerminal>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let upgrade = websocket(upgrade, PIECE_BYTES_MAX)?;
    let right = Right { place: app.budgets.attached(lease.account())?, lease };
    let attached = streams::terminal(&app, &right.lease, id, query).await?;
    let tracker = app.tasks.clone();
    Ok(upgrade
        .on_upgrade(move |socket| tracker.track_future(relay::relay(app, right, socket, attached, Kind::Terminal))))
}

/// Run a command whose streams are attached: a WebSocket. The first frame is a text frame with what to run. Wakes a
/// session that rests.
#[utoipa::path(get, path = "/sessions/{id}/exec", tag = "workspace", operation_id = "attach_exec",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 101, description = "The first byte of a binary frame names its stream: 0 is standard input, 1 \
               standard output, 2 standard error"), Problems))]
async fn exec(
    State(app): State<Shared>,
    lease: Lease,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let upgrade = websocket(upgrade, START_BYTES_MAX)?;
    let right = Right { place: app.budgets.attached(lease.account())?, lease };
    streams::may_run(&app, right.lease.actor(), &id).await?;
    let tracker = app.tasks.clone();
    Ok(upgrade.on_upgrade(move |socket| tracker.track_future(run(app, right, id, socket))))
}

async fn run(app: Shared, right: Right, id: String, mut socket: WebSocket) {
    let first = tokio::select! {
        first = tokio::time::timeout(START_TIMEOUT, first(&mut socket)) => first,
        failure = right.lease.ended() => return relay::refuse(socket, failure).await,
        () = app.stopping.cancelled() => return,
    };
    let wrong = || {
        let like = r#"the first frame must be text like {"start": {"command": ["ls", "-l"]}}"#;
        Problem::new(Code::InvalidBody, format!("{like}, of {START_BYTES_MAX} bytes at most"))
    };
    let started = match first {
        Ok(Some(body)) => tokio::select! {
            started = streams::command(&app, &right.lease, id, body) => started,
            failure = right.lease.ended() => Err(failure),
        },
        Ok(None) | Err(_) => Err(wrong().into()),
    };
    match started {
        Ok(attached) => relay::relay(app, right, socket, attached, Kind::Exec).await,
        Err(failure) => relay::refuse(socket, failure).await,
    }
}

async fn first(socket: &mut WebSocket) -> Option<Exec> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ClientFrame::Start(body)) => return Some(body),
                Ok(_) | Err(_) => return None,
            },
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) => return None,
        }
    }
}

/// The terminals that are open.
#[utoipa::path(get, path = "/sessions/{id}/terminals", tag = "workspace", operation_id = "list_terminals",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Page<Terminal>), Problems))]
async fn list(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Page<Terminal>>, Failure> {
    let found = streams::list(&app, &actor, &id).await?;
    Ok(axum::Json(page(found, u32::MAX, |row| row.id.to_string(), shown)))
}

/// Close a terminal, for everyone who is attached; what runs in it is hung up.
#[utoipa::path(delete, path = "/sessions/{id}/terminals/{terminal}", tag = "workspace",
    operation_id = "close_terminal",
    params(("id" = String, Path, description = "Id or name"), ("terminal" = String, Path)),
    responses((status = 204, description = "It is being ended"), Problems))]
async fn close(
    State(app): State<Shared>,
    Caller(actor): Caller,
    Path((id, terminal)): Path<(String, String)>,
) -> Result<StatusCode, Failure> {
    streams::close(&app, &actor, &id, &terminal).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown(row: StreamRow) -> Terminal {
    Terminal {
        id: row.id.to_string(),
        command: row.command,
        opened_by: row.actor,
        opened_at: row.opened_at.to_timestamp(),
    }
}

fn websocket(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    frame_bytes_max: usize,
) -> Result<WebSocketUpgrade, Failure> {
    let upgrade = upgrade.map_err(|rejection| {
        let detail = format!("this call opens a WebSocket: {}", rejection.body_text());
        Failure::new(Code::InvalidRequest, detail)
    })?;
    let upgrade = upgrade.read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
    Ok(upgrade.max_message_size(frame_bytes_max).max_frame_size(frame_bytes_max).protocols([SUBPROTOCOL]))
}
