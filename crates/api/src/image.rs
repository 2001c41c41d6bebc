//! Images for containers, and checkpoints in the form of images.

use jiff::Timestamp;
use raworc_core::ids::ImageId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /images`: pull an image from a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`. It is also the image's name on this server.
    pub reference: String,
    /// Credentials for the registry. Absent: those in the server's credentials file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// `POST /sessions/{id}/checkpoints/{n}/push`: push a checkpoint to a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushCheckpoint {
    /// `REGISTRY/REPOSITORY:TAG`.
    pub reference: String,
    /// Credentials for the registry. Absent: those in the server's credentials file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// Credentials for a registry. Used for this call only, and not stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryCredentials {
    /// The user name.
    pub username: String,
    /// The password, or a token.
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
    /// The image's name. Absent: the name in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Query of `GET /images`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListImages {
    /// Page size, 1 to 500; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// An image on this server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub id: ImageId,
    /// Its name.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Size of all files in bytes.
    pub size_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// The checkpoint it contains, for creating sessions (`from`). Absent: an image for containers (`image`).
    pub checkpoint: Option<ImageCheckpoint>,
    /// Whether every account may use it: true for images that administrators bring in, but not for checkpoints.
    pub shared: bool,
    /// Who pulled or imported it.
    pub created_by: String,
    /// When it was pulled or imported.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A checkpoint of another server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageCheckpoint {
    /// The name of its session.
    pub session: String,
    /// Its number in the session.
    pub n: u64,
    /// Its label.
    pub label: Option<String>,
    /// Number of messages in its conversation.
    pub messages: u64,
    /// When it was taken.
    #[schema(value_type = String, format = DateTime)]
    pub taken_at: Timestamp,
}

/// The result of an import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// The images of the archive.
    pub items: Vec<Image>,
}

/// The result of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pushed {
    /// The reference that was pushed.
    pub reference: String,
    /// The digest of its manifest. A reference with it in place of the tag never changes its meaning.
    pub digest: String,
    /// The number of the checkpoint.
    pub n: u64,
    /// Number of entries and attributes without a form in images: sockets, devices, names with prefix `.wh.`,
    /// attributes with `=` in their names. The server's log names the first ones.
    pub left_out: u64,
}

/// The header of an export with the number of omitted entries, as in [`Pushed`].
pub const LEFT_OUT_HEADER: &str = "raworc-left-out";

/// The progress of a push, pull or import: the event `progress` of its stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferProgress {
    /// What is being done, and to what.
    pub what: String,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Total bytes; 0 if unknown.
    pub total_bytes: u64,
}

/// The image of a session, as it was when the session was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionImage {
    /// Its name.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
}
