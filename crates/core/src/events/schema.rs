//! How kinds of events are declared, and the JSON Schema that follows from a declaration.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::ids::{AgentId, MessageId, ModelCallId, SessionId, TurnId};

/// A kind of event, for documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Its `type` on the wire, `noun.verb`.
    pub name: &'static str,
    /// The name of its type here.
    pub type_name: &'static str,
    /// What it says.
    pub description: String,
    /// The JSON Schema of its `data`, an object.
    pub data: Value,
}

/// A type that a field of an event can have.
pub trait Described {
    /// Its JSON Schema.
    fn schema() -> Value;

    /// Its JSON Schema where there is a value: what an `Option` is of.
    fn present() -> Value {
        Self::schema()
    }
}

/// One field of `data`, or of something in it.
pub(super) struct Field {
    pub name: &'static str,
    /// The lines of its comment.
    pub doc: Vec<&'static str>,
    /// It is left out where there is none of it.
    pub is_omitted: bool,
    /// Its own fields stand in its place.
    pub is_flat: bool,
    /// With its value, and where it may be null, without.
    pub schema: Value,
    pub present: Value,
}

/// The JSON Schema of an object.
pub(super) fn object(fields: Vec<Field>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::<Value>::new());
    for field in fields {
        if field.is_flat {
            if let Value::Object(inner) = &field.present["properties"] {
                properties.extend(inner.clone());
            }
            // Of an optional object nothing is required.
            let always = field.schema["required"].as_array().filter(|_| field.schema["type"] == "object");
            required.extend(always.into_iter().flatten().cloned());
            continue;
        }
        let mut schema = if field.is_omitted { field.present } else { field.schema };
        schema["description"] = text(&field.doc).into();
        properties.insert(field.name.to_owned(), schema);
        if !field.is_omitted {
            required.push(field.name.into());
        }
    }
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

/// The lines of a comment as one text.
pub(super) fn text(doc: &[&str]) -> String {
    let lines: Vec<&str> = doc.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

macro_rules! described {
    ($($type:ty => $schema:tt),+ $(,)?) => {
        $(impl Described for $type {
            fn schema() -> Value {
                json!($schema)
            }
        })+
    };
}

described! {
    String => { "type": "string" },
    bool => { "type": "boolean" },
    i32 => { "type": "integer", "format": "int32" },
    u16 => { "type": "integer", "format": "int32", "minimum": 0 },
    u32 => { "type": "integer", "format": "int32", "minimum": 0 },
    u64 => { "type": "integer", "format": "int64", "minimum": 0 },
    Value => { "type": ["object", "string"] },
    f64 => { "type": "number", "format": "double" },
    Timestamp => { "type": "string", "format": "date-time" },
    Uuid => { "type": "string", "format": "uuid" },
    AgentId => { "type": "string", "format": "uuid" },
    MessageId => { "type": "string", "format": "uuid" },
    ModelCallId => { "type": "string", "format": "uuid" },
    SessionId => { "type": "string", "format": "uuid" },
    TurnId => { "type": "string", "format": "uuid" },
}

impl<T: Described> Described for Vec<T> {
    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }
}

impl<T: Described> Described for BTreeMap<String, T> {
    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }
}

impl<T: Described> Described for Option<T> {
    fn schema() -> Value {
        let mut schema = T::schema();
        if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
            words.push(Value::Null);
        }
        schema["type"] = json!([schema["type"], "null"]);
        schema
    }

    fn present() -> Value {
        T::schema()
    }
}

/// The schema of an enum of plain words. One that is missing in the list does not compile.
macro_rules! words {
    ($type:ident: $($variant:ident),+ $(,)?) => {
        impl $crate::events::Described for $type {
            fn schema() -> serde_json::Value {
                let _exhaustive = |word: $type| match word {
                    $($type::$variant => (),)+
                };
                serde_json::json!({ "type": "string", "enum": [$($type::$variant),+] })
            }
        }
    };
}

/// What an attribute of a field says: its line of comment, whether it is left out where there is none, whether it is flat.
macro_rules! attribute {
    (doc $docs:ident doc = $text:literal) => {
        $docs.push($text);
    };
    (doc $docs:ident serde $rest:tt) => {};
    (is_omitted doc = $text:literal) => {
        false
    };
    (is_omitted serde(flatten)) => {
        false
    };
    (is_omitted serde(default, skip_serializing_if = "Option::is_none")) => {
        true
    };
    (is_flat doc = $text:literal) => {
        false
    };
    (is_flat serde(flatten)) => {
        true
    };
    (is_flat serde(default, skip_serializing_if = "Option::is_none")) => {
        false
    };
}

/// Declares an object with its schema: fields with comments, and `serde(flatten)` or
/// `serde(default, skip_serializing_if = "Option::is_none")`, no other attributes.
macro_rules! object {
    (
        $(#[doc = $doc:literal])+
        $name:ident { $( $(#[$($attribute:tt)+])+ $field:ident: $type:ty, )* }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $( $(#[$($attribute)+])+ pub $field: $type, )*
        }

        impl $crate::events::Described for $name {
            #[allow(clippy::vec_init_then_push, reason = "attributes other than comments add nothing")]
            fn schema() -> serde_json::Value {
                $crate::events::schema::object(vec![$( $crate::events::schema::Field {
                    name: stringify!($field),
                    doc: {
                        #[allow(unused_mut, reason = "a field without a comment does not compile")]
                        let mut docs: Vec<&'static str> = Vec::new();
                        $( attribute!(doc docs $($attribute)+); )+
                        docs
                    },
                    is_omitted: false $(|| attribute!(is_omitted $($attribute)+))+,
                    is_flat: false $(|| attribute!(is_flat $($attribute)+))+,
                    schema: <$type as $crate::events::Described>::schema(),
                    present: <$type as $crate::events::Described>::present(),
                }, )*])
            }
        }
    };
}

/// Declares every kind of event, `"noun.verb" Name { fields }`, and [`LogEvent`] of them all.
macro_rules! events {
    ($(
        $(#[doc = $doc:literal])+
        $kind:literal $name:ident { $( $(#[$($attribute:tt)+])+ $field:ident: $type:ty, )* }
    )+) => {
        $(
            object! {
                $(#[doc = $doc])+
                $name { $( $(#[$($attribute)+])+ $field: $type, )* }
            }

            impl $name {
                /// Its `type` on the wire.
                pub const KIND: &'static str = $kind;
            }

            impl From<$name> for LogEvent {
                fn from(event: $name) -> Self {
                    LogEvent::$name(event)
                }
            }
        )+

        /// An entry of a session's log: its kind and data.
        #[derive(Clone, Debug, PartialEq)]
        pub enum LogEvent {
            $( $(#[doc = $doc])+ $name($name), )+
        }

        impl LogEvent {
            /// Its `type` on the wire.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self {
                    $( LogEvent::$name(_) => $kind, )+
                }
            }

            /// Its `data` on the wire.
            ///
            /// # Errors
            /// Never, as long as JSON has what the fields are.
            pub fn data(&self) -> serde_json::Result<serde_json::Map<String, serde_json::Value>> {
                let data = match self {
                    $( LogEvent::$name(event) => serde_json::to_value(event)?, )+
                };
                match data {
                    serde_json::Value::Object(data) => Ok(data),
                    _ => Ok(serde_json::Map::new()),
                }
            }

            /// Reads an entry. None where its kind is not known here, as of a newer server, or where its data is not what it should be:
            /// whoever reads goes on with it as it is.
            #[must_use]
            pub fn read(kind: &str, data: &serde_json::Map<String, serde_json::Value>) -> Option<LogEvent> {
                match kind {
                    $( $kind => serde::Deserialize::deserialize(data).ok().map(LogEvent::$name), )+
                    _ => None,
                }
            }
        }

        /// Every kind there is, in the order of their declaration.
        #[must_use]
        pub fn kinds() -> Vec<$crate::events::Kind> {
            vec![$( $crate::events::Kind {
                name: $kind,
                type_name: stringify!($name),
                description: $crate::events::schema::text(&[$($doc),+]),
                data: <$name as $crate::events::Described>::schema(),
            }, )+]
        }
    };
}
