//! Images: what containers run, and checkpoints on their way between servers.

use jiff::Timestamp;
use raworc_core::ids::ImageId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /images`: bring an image in from a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`. It is also what it is called here.
    pub reference: String,
    /// Who to be there. Absent: what the server's own file of credentials says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// `POST /sessions/{id}/checkpoints/{n}/push`: send a checkpoint to a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushCheckpoint {
    /// `REGISTRY/REPOSITORY:TAG`.
    pub reference: String,
    /// Who to be there. Absent: what the server's own file of credentials says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// Who to be at a registry. Used for this one call, and kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryCredentials {
    /// The user.
    pub username: String,
    /// Their password, or a token.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Query of `POST /images/import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportImages {
    /// What to call the image. Absent: what the archive calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Query of `GET /images`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListImages {
    /// Rows of a page, 1 to 500; 50 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: ImageId,
    /// What it is called.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// All files.
    pub files: u64,
    /// Of which checkpoint it is one: then sessions are made from it (`from`); otherwise containers run it (`image`).
    pub checkpoint: Option<ImageCheckpoint>,
    /// Whether every account may use it: what administrators bring in, but for checkpoints.
    pub shared: bool,
    /// Who brought it in.
    pub created_by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What is known of a checkpoint that comes from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageCheckpoint {
    /// The name of its session.
    pub session: String,
    /// Its number there.
    pub n: u64,
    /// Its name.
    pub label: Option<String>,
    /// Messages of the conversation that came with it.
    pub messages: u64,
    /// When it was taken.
    #[schema(value_type = String, format = DateTime)]
    pub taken_at: Timestamp,
}

/// What an archive brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// The images that were in it.
    pub items: Vec<Image>,
}

/// A checkpoint that is in a registry now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pushed {
    /// Where.
    pub reference: String,
    /// The digest of its manifest: with it in place of the tag, a reference means this one for ever.
    pub digest: String,
    /// Which checkpoint.
    pub n: u64,
    /// Entries and attributes that have no form in an image, and are not in it: sockets, devices, names that begin with `.wh.`,
    /// attributes with `=` in their names. The server's log names the first ones.
    pub left_out: u64,
}

/// The header of an export that says how much was left out, as in [`Pushed`].
pub const LEFT_OUT_HEADER: &str = "raworc-left-out";

/// How far a push, pull or import is: the event `progress` of its stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferProgress {
    /// What is being done, and with what.
    pub what: String,
    /// Bytes of it that are done.
    pub done_bytes: u64,
    /// All bytes of it; 0 where nobody knows.
    pub total_bytes: u64,
}

/// The image that a session has, as it was when the session was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionImage {
    /// What it was called.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
}
