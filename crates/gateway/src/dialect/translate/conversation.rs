//! A request in no dialect: what the reader of each dialect makes of a body, and what the writer of each makes a body of.

use super::exchange::Untranslatable;
use crate::dialect::json::Json;

/// A request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The conversation, its instructions included.
    pub turns: Vec<Turn>,
    /// The tools that the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it may or must call.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several at once.
    pub is_parallel: Option<bool>,
    /// Tokens of the answer, at most.
    pub max_tokens: Option<u64>,
    /// As given.
    pub temperature: Option<Json>,
    /// As given.
    pub top_p: Option<Json>,
    /// What ends the answer when the model writes it.
    pub stop: Vec<String>,
    /// Whether the answer is to be streamed.
    pub is_streaming: bool,
    /// Whether a stream is to tell its usage; some dialects always do.
    pub is_usage_asked: bool,
    /// What the text of the answer has to be.
    pub format: Option<Format>,
    /// How much to reason; OpenAI's dialects share its words.
    pub effort: Option<String>,
    /// How much to write; OpenAI's dialects share its words.
    pub verbosity: Option<String>,
    /// Members with the same name and meaning in OpenAI's dialects.
    pub shared: Vec<(&'static str, Json)>,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// The user, and the results of tools.
    User,
    /// The model.
    Assistant,
}

/// What somebody says.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// What.
    pub parts: Vec<Part>,
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image, in the detail that OpenAI's dialects know.
    Image(Source, Option<String>),
    /// A document, with its name.
    File(Source, Option<String>),
    /// A call of a tool, by the model.
    Call {
        /// Its id.
        id: String,
        /// The tool's name.
        name: String,
        /// Its arguments: JSON, if the model kept to the rules.
        arguments: String,
    },
    /// The result of a call.
    Result {
        /// The call's id.
        id: String,
        /// Texts, images and files.
        parts: Vec<Part>,
        /// Whether the tool failed.
        is_error: bool,
    },
}

/// Where content is.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// At an address.
    Url(String),
    /// Here, in base64.
    Data {
        /// Its type.
        media_type: String,
        /// Its bytes, in base64.
        data: String,
    },
}

/// A tool that the program offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub schema: Option<Json>,
    /// Whether arguments must keep to the schema.
    pub is_strict: Option<bool>,
    /// Whether the program wants plain text in place of arguments: [`FREEFORM_ARGUMENT`].
    pub is_freeform: bool,
}

/// The only argument of a tool that takes plain text, where it has to be a function.
pub const FREEFORM_ARGUMENT: &str = "input";

/// Which tools the model may or must call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// None.
    None,
    /// Any or none.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Tool(String),
}

/// What the text of an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// A JSON object.
    JsonObject,
    /// JSON of this schema.
    Schema {
        /// Its name.
        name: Option<String>,
        /// What it is for.
        description: Option<String>,
        /// The schema.
        schema: Json,
        /// Whether the answer must keep to it.
        is_strict: Option<bool>,
    },
}

impl Source {
    /// An address, or content that a `data:` URL has in it.
    #[must_use]
    pub fn from_url(url: &str) -> Self {
        let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
        match data {
            Some((media_type, data)) => {
                let media_type = media_type.split(';').next().unwrap_or_default();
                Self::Data { media_type: media_type.to_owned(), data: data.to_owned() }
            }
            None => Self::Url(url.to_owned()),
        }
    }

    /// The address, or a `data:` URL with the content in it.
    #[must_use]
    pub fn to_url(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Data { media_type, data } => format!("data:{media_type};base64,{data}"),
        }
    }
}

impl Request {
    /// Adds parts to the conversation; to its last turn, if that is of the same role.
    pub fn say(&mut self, role: Role, parts: Vec<Part>) {
        match self.turns.last_mut() {
            Some(last) if last.role == role && role != Role::System && parts_belong(&last.parts, &parts) => {
                last.parts.extend(parts);
            }
            _ => self.turns.push(Turn { role, parts }),
        }
    }

    /// Keeps the tools of these names: what is left is all that the model may call.
    pub fn keep_tools(&mut self, names: &[&str]) {
        self.tools.retain(|tool| names.contains(&tool.name.as_str()));
    }

    /// Refuses members of the body that ask for something and that no other dialect has.
    ///
    /// # Errors
    /// If one of them is there.
    pub fn refuse(body: &Json, names: &[(&str, &str)]) -> Result<(), Untranslatable> {
        match names.iter().find(|(name, _)| !body.get(name).is_empty()) {
            Some((name, why)) => Err(Untranslatable::new(*name, *why)),
            None => Ok(()),
        }
    }
}

/// Whether parts go on with a turn: calls and results that follow each other do, since one turn has all that happen side by side.
fn parts_belong(last: &[Part], next: &[Part]) -> bool {
    let is_tool = |part: &Part| matches!(part, Part::Call { .. } | Part::Result { .. });
    next.iter().all(is_tool) && (last.iter().any(is_tool) || matches!(next.first(), Some(Part::Call { .. })))
}

/// The text of parts, without what is no text.
#[must_use]
pub fn texts(parts: &[Part]) -> Vec<&str> {
    let mut texts = Vec::new();
    for part in parts {
        if let Part::Text(text) = part
            && !text.is_empty()
        {
            texts.push(text.as_str());
        }
    }
    texts
}
