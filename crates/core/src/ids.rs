//! Typed identifiers. On the wire and in the store they are hyphenated lower-case UUIDs (version 7).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(/// A session.
    SessionId);
id!(/// An agent definition in the registry.
    AgentId);
id!(/// A message of a conversation.
    MessageId);
id!(/// A turn: one attempt of one agent at one message. It is what a host runs, reports on and cancels.
    TurnId);
id!(/// A person or program that may use the server.
    AccountId);
id!(/// A bearer token of an account (its record, not its secret).
    TokenId);

id!(/// A call of a model by a program in a session.
    ModelCallId);
id!(/// A layer of workspaces: what one checkpoint changed, or what a session is writing now.
    LayerId);

id!(/// An image that is here.
    ImageId);
id!(/// A provider of models.
    ProviderId);
id!(/// A secret of an account.
    SecretId);

/// How many containers a session has had; the newest one's number fences off every older one.
pub type Generation = u32;

/// One container: a session has at most one at a time, so session and generation name it for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId {
    /// Whose container it is.
    pub session: SessionId,
    /// Which of the session's containers, counted from 1.
    pub generation: Generation,
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.generation)
    }
}

/// The text is not `UUID-GENERATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a container is named SESSION-GENERATION")]
pub struct BadContainerId;

impl FromStr for ContainerId {
    type Err = BadContainerId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (session, generation) = text.rsplit_once('-').ok_or(BadContainerId)?;
        Ok(Self {
            session: session.parse().map_err(|_| BadContainerId)?,
            generation: generation.parse().map_err(|_| BadContainerId)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_id_survives_its_text() {
        let id = ContainerId { session: SessionId(Uuid::from_u128(7)), generation: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "7", "x-1", "00000000-0000-0000-0000-000000000007-", "00000000-0000-0000-0000-000000000007"] {
            assert_eq!(bad.parse::<ContainerId>(), Err(BadContainerId), "{bad}");
        }
    }
}
