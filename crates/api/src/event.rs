//! Events: the log of a session.

use jiff::Timestamp;
use raworc_core::events::{self, Kind, LogEvent};
use raworc_core::ids::{Generation, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{Discriminator, OneOfBuilder};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

/// One entry of a session's log. `type` says what `data` has: [`raworc_core::events`] has every kind there is, and its schema is that
/// of the document.
///
/// Kinds of a newer server are read like any other, with their data as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// 1, 2, 3, … without gaps.
    pub seq: u64,
    /// Whose log.
    pub session_id: SessionId,
    /// `noun.verb`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// Who: the name of an account, `agent:NAME`, or `system`.
    pub actor: String,
    /// In which container.
    pub generation: Generation,
    /// Depends on the type.
    pub data: Map<String, Value>,
}

impl Event {
    /// What it says. None where it is of a kind that is not known here, or has not the data that it should.
    #[must_use]
    pub fn known(&self) -> Option<LogEvent> {
        LogEvent::read(&self.kind, &self.data)
    }
}

impl PartialSchema for Event {
    fn schema() -> RefOr<Schema> {
        let names: Vec<_> = events::kinds().into_iter().map(|kind| (kind.name, schema_name(&kind))).collect();
        let description = "One entry of a session's log; `type` says what `data` has. New types and new fields may come: ignore what \
                           you do not know. Events of earlier builds may lack fields that came later.";
        let mapping = names.iter().map(|(kind, name)| (*kind, Ref::from_schema_name(name).ref_location));
        let one_of = OneOfBuilder::new().description(Some(description));
        let one_of = one_of.discriminator(Some(Discriminator::with_mapping("type", mapping)));
        names.iter().fold(one_of, |one_of, (_, name)| one_of.item(Ref::from_schema_name(name))).into()
    }
}

impl ToSchema for Event {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.extend(events::kinds().into_iter().map(|kind| (schema_name(&kind), entry(kind))));
    }
}

fn schema_name(kind: &Kind) -> String {
    format!("{}Event", kind.type_name)
}

/// The schema of an entry of this kind.
fn entry(kind: Kind) -> RefOr<Schema> {
    let schema = json!({
        "type": "object",
        "description": kind.description,
        "required": ["seq", "session_id", "type", "at", "actor", "generation", "data"],
        "properties": {
            "seq": { "type": "integer", "format": "int64", "minimum": 1, "description": "1, 2, 3, … without gaps." },
            "session_id": { "type": "string", "format": "uuid", "description": "Whose log." },
            "type": { "type": "string", "enum": [kind.name] },
            "at": { "type": "string", "format": "date-time", "description": "When." },
            "actor": { "type": "string", "description": "Who: the name of an account, `agent:NAME`, or `system`." },
            "generation": { "type": "integer", "format": "int32", "minimum": 0, "description": "In which container." },
            "data": kind.data,
        },
    });
    // What is wrong with a declaration, a test finds: it reads all of them.
    serde_json::from_value(schema).unwrap_or_default()
}

/// Query of `GET …/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    /// Only events with a greater `seq`. As SSE, also those after `Last-Event-ID` only: of the two, the greater counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Rows of a page, 1 to 500; 50 where absent. Not for SSE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_in_the_document() {
        let mut schemas = Vec::new();
        Event::schemas(&mut schemas);
        let kinds = events::kinds();
        assert_eq!(schemas.len(), kinds.len());
        for (kind, (name, schema)) in kinds.iter().zip(&schemas) {
            let schema = serde_json::to_value(schema).unwrap();
            assert_eq!(schema["properties"]["type"]["enum"], json!([kind.name]), "{name}");
            let fields =
                |data: &Value| data["properties"].as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
            let (told, mut known) = (fields(&schema["properties"]["data"]), fields(&kind.data));
            assert_eq!(told.unwrap_or_default(), known.take().unwrap_or_default(), "{name}");
        }
        let event = serde_json::to_value(Event::schema()).unwrap();
        assert_eq!(event["oneOf"].as_array().unwrap().len(), kinds.len());
        assert_eq!(event["discriminator"]["mapping"]["message.delta"], "#/components/schemas/MessageDeltaEvent");
    }

    #[test]
    fn a_kind_that_is_not_known_is_kept_as_it_is() {
        let text = json!({
            "seq": 7, "session_id": uuid(1), "type": "agent.thought", "at": "2026-01-01T00:00:00Z", "actor": "agent:a",
            "generation": 1, "data": { "text": "hm", "depth": [1, 2] }, "more": "of a newer server",
        });
        let event: Event = serde_json::from_value(text.clone()).unwrap();
        assert_eq!((event.known(), &event.data["depth"]), (None, &json!([1, 2])));
        let known = Event { kind: "message.requeued".into(), ..event };
        assert_eq!(known.known(), None, "its data is another's");
        let Value::Object(data) = json!({ "message_id": uuid(2), "attempts": 1 }) else { panic!() };
        let requeued = Event { data, ..known };
        assert!(matches!(requeued.known(), Some(LogEvent::MessageRequeued(event)) if event.turn_id.is_none()));
    }

    fn uuid(number: u32) -> String {
        format!("00000000-0000-0000-0000-{number:012}")
    }
}
