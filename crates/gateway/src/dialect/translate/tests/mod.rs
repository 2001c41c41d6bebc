mod requests;
mod roundtrips;
mod streams;

use serde_json::Value;

use super::*;
use crate::dialect::{Observed, Observer};

const CHAT: Dialect = Dialect::ChatCompletions;
const RESPONSES: Dialect = Dialect::Responses;
const MESSAGES: Dialect = Dialect::Messages;
const THREE: [Dialect; 3] = [CHAT, RESPONSES, MESSAGES];

/// Every pair of a client's dialect and a provider's.
fn directions() -> impl Iterator<Item = (Dialect, Dialect)> {
    THREE.into_iter().flat_map(|client| THREE.map(|provider| (client, provider))).filter(|(a, b)| a != b)
}

fn exchange(client: Dialect, provider: Dialect) -> Exchange {
    let request = Json::read(br#"{"model":"asked","stream":true}"#).unwrap();
    let echo = if client == RESPONSES { answers::echo(&request) } else { Json::Null };
    Exchange {
        client,
        provider,
        model: "asked".to_owned(),
        created: 1_700_000_000,
        is_usage_asked: true,
        freeform: Vec::new(),
        echo,
    }
}

fn observe(dialect: Dialect, bytes: &[u8]) -> Observed {
    let mut observer = Observer::new(dialect, true);
    observer.push(bytes);
    Observed { told: None, ..observer.finish() }
}

/// The translated request.
fn translated(from: Dialect, to: Dialect, body: &Value) -> Value {
    let translated = request(from, to, body.to_string().as_bytes(), "model-x", None).unwrap();
    serde_json::from_slice(&translated.body).unwrap()
}
