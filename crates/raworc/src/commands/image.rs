//! `raworc image`, and what it shares with `raworc checkpoint`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::stream::{BoxStream, StreamExt as _};
use raworc_api::client::{Client, ClientError};
use raworc_api::image::{
    Image as Record, ImportImages, Imported, ListImages, PullImage, RegistryCredentials, TransferProgress,
};
use raworc_api::page::PageQuery;
use raworc_api::problem::Code;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::session::files;
use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::{Ui, table};
use crate::progress::Progress;
use crate::text::{ago, bytes, clean};

/// Maximum length of a password, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;
/// The files and directories of an OCI image layout.
const LAYOUT: [&str; 3] = ["oci-layout", "index.json", "blobs"];
/// Bytes of a layout that are read ahead of sending.
const LAYOUT_BUFFER_BYTES: usize = 256 * 1024;

/// Manage images. IMAGE is an id or a name.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Pull an image from a registry.
    #[command(after_help = "Example:\n  raworc image pull registry.example:5000/tools:3")]
    Pull {
        /// The source: REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST. It is also the image's name on this
        /// server.
        reference: String,
        #[command(flatten)]
        login: Login,
    },
    /// Import the images of an OCI archive, a `docker save` archive (compressed or not), or an OCI layout.
    #[command(after_help = "Examples:\n  docker save tools:3 | raworc image import - --name tools:3\n  \
                            skopeo copy docker-daemon:tools:3 oci-archive:tools.tar && raworc image import tools.tar\n  \
                            raworc image import path/to/layout --name tools:3")]
    Import {
        /// The file, or the directory of an OCI layout; '-' is standard input.
        file: PathBuf,
        /// Its name on this server [default: the name in the archive].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List images, oldest first.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc image list")]
    List(Paging),
    /// Show one image.
    #[command(after_help = "Example:\n  raworc image get tools:3 --output json")]
    Get {
        /// The image's id or name.
        image: String,
    },
    /// Delete an image. Sessions that use it keep it.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc image delete tools:3")]
    Delete {
        /// The image's id or name.
        image: String,
    },
}

/// Credentials for a registry.
#[derive(Debug, Args)]
pub struct Login {
    /// User name at the registry [default: from the server's credentials file].
    #[arg(long, value_name = "USER", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Login {
    /// The credentials, if there are any.
    pub fn credentials(self) -> Result<Option<RegistryCredentials>> {
        let Some(username) = self.username else { return Ok(None) };
        let mut password = String::new();
        std::io::stdin()
            .take(PASSWORD_BYTES_MAX)
            .read_to_string(&mut password)
            .map_err(|error| Failure::usage(format!("the password can't be read from standard input: {error}")))?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(RegistryCredentials { username, password }))
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Image) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Image::Pull { reference, login } => pull(context, reference, login).await,
        Image::Import { file, name } => import(context, &file, name).await,
        Image::List(paging) => {
            let fetch = async |page: PageQuery| {
                client.list_images(&ListImages { limit: page.limit, cursor: page.cursor }).await
            };
            list::show(context, &paging.fetch(fetch).await?, "there are no images", rows)
        }
        Image::Get { image } => ui.show(&client.get_image(&image).await?, |image| rows(std::slice::from_ref(image))),
        Image::Delete { image } => {
            client.delete_image(&image).await?;
            ui.show(&serde_json::json!({ "deleted": image }), |_| format!("Deleted image {}", clean(&image)))
        }
    }
}

/// Pulls an image or checkpoint from a registry.
pub async fn pull(context: &Context, reference: String, login: Login) -> Result<()> {
    let client = context.client()?;
    let body = PullImage { reference, credentials: login.credentials()? };
    let image = transfer(&context.ui, "pulling", async |tell| client.pull_image(&body, tell).await).await?;
    context.ui.show(&image, sentence)
}

/// Imports an archive.
pub async fn import(context: &Context, file: &Path, name: Option<String>) -> Result<()> {
    let client = context.client()?;
    let archive = match file {
        _ if file == Path::new("-") => files::standard_input()?,
        _ if file.is_dir() => layout(file)?,
        _ => files::open(file).await?,
    };
    let query = ImportImages { name };
    let imported = transfer(&context.ui, "importing", async |tell| client.import_images(&query, archive, tell).await);
    context.ui.show(&imported.await?, |Imported { items }| items.iter().map(sentence).collect::<Vec<_>>().join("\n"))
}

/// Streams an OCI image layout as an archive.
fn layout(directory: &Path) -> Result<BoxStream<'static, std::io::Result<Bytes>>> {
    if !directory.join("index.json").is_file() {
        let what = format!("{} is a directory, but no OCI image layout", clean(&directory.display().to_string()));
        return Err(Failure::usage(what).help("It would have an index.json."));
    }
    let (writer, reader) = tokio::io::duplex(LAYOUT_BUFFER_BYTES);
    let (directory, writer) = (directory.to_owned(), SyncIoBridge::new(writer));
    let writing = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(writer);
        for name in LAYOUT {
            let path = directory.join(name);
            if path.is_dir() {
                archive.append_dir_all(name, path)?;
            } else {
                archive.append_path_with_name(path, name)?;
            }
        }
        archive.into_inner()?.shutdown()
    });
    // A read error fails the request instead of truncating the archive.
    let ended = futures::stream::once(async { writing.await.map_err(std::io::Error::other)? });
    let ended = ended.filter_map(async |outcome| outcome.err().map(Err));
    Ok(ReaderStream::new(reader).chain(ended).boxed())
}

/// Pulls the image of a new session if it is missing, and shows progress.
pub async fn ensure(context: &Context, client: &Client, name: &str) -> Result<()> {
    match client.get_image(name).await {
        // The server decides whether it is a valid reference.
        Err(ClientError::Problem(problem)) if problem.code == Code::NotFound && name.contains('/') => {
            let body = PullImage { reference: name.to_owned(), credentials: None };
            transfer(&context.ui, "pulling", async |tell| client.pull_image(&body, tell).await).await?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Shows the progress of a transfer.
pub async fn transfer<T>(
    ui: &Ui,
    what: &str,
    work: impl AsyncFnOnce(&mut dyn FnMut(TransferProgress)) -> std::result::Result<T, ClientError>,
) -> Result<T> {
    let progress = Progress::start(ui, what);
    let mut tell = |now: TransferProgress| {
        let done = match (now.done_bytes, now.total_bytes) {
            (0, 0) => String::new(),
            (done, 0) => format!(": {}", bytes(done)),
            (done, total) => format!(": {} of {}", bytes(done), bytes(total)),
        };
        progress.set_text(&format!("{}{done}", clean(&now.what)));
    };
    Ok(work(&mut tell).await?)
}

fn sentence(image: &Record) -> String {
    let (name, size) = (clean(&image.name), bytes(image.size_bytes));
    match &image.checkpoint {
        Some(of) => format!(
            "{name} is here: checkpoint {} of {}, {size} in {} files, {} messages\n`raworc session create --from {name}` \
             goes on from it",
            of.n,
            clean(&of.session),
            image.files,
            of.messages
        ),
        None => format!("{name} is here: {size} in {} files", image.files),
    }
}

fn rows(images: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |image: &Record| {
        let kind = match &image.checkpoint {
            Some(of) => format!("checkpoint {} of {}", of.n, clean(&of.session)),
            None if image.shared => "image, for everyone".to_owned(),
            None => "image".to_owned(),
        };
        vec![clean(&image.name), kind, bytes(image.size_bytes), clean(&image.created_by), ago(image.created_at, now)]
    };
    table(&["NAME", "WHAT", "SIZE", "BY", "BROUGHT IN"], images.iter().map(row).collect())
}
