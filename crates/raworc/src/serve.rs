//! Starts a server in this process. The only place that picks backends.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use miette::{IntoDiagnostic, WrapErr, miette};
use raworc_core::limits::{CPU_DEFAULT, MEMORY_BYTES_DEFAULT, PIDS_DEFAULT};
use raworc_runtime::native::{NativeConfig, NativeRuntime, rootless};
use raworc_runtime::{Resources, Runtime as _};
use raworc_server::{Bounds, Config, Registries, Reserve, Server, StartError};
use raworc_workspace::layers::OverlayXattrs;
use raworc_workspace::{Mounter, layers_in};
use rustix::process::{Resource, Rlimit};

use crate::config::Settings;
use crate::connect::URL_FILE;

/// The host program, built by build.rs.
const HOST: &[u8] = include_bytes!(env!("RAWORC_HOST"));

/// A server in this process.
pub struct Running {
    /// Its URL.
    pub url: String,
    /// The administrator's token.
    pub token: String,
    server: Server,
    runtime: Arc<NativeRuntime>,
    url_file: PathBuf,
}

/// Starts a server with the native runtime.
pub async fn start(settings: &Settings) -> miette::Result<Running> {
    let data_dir = &settings.data_dir;
    prepare(data_dir)?;
    raise_open_files();
    let lock = raworc_server::lock(data_dir).map_err(advise)?;
    Reserve::of(data_dir).give_up_if_full();
    let xattrs = if rootless::is_root() { OverlayXattrs::Trusted } else { OverlayXattrs::User };
    let layers = layers_in(data_dir);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&layers)
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be made", layers.display()))?;
    let mounter = Mounter::start(&layers, xattrs).map_err(|error| {
        miette!(help = "`raworc doctor` says what this machine lacks", "nothing can be mounted: {error}")
    })?;
    let registries = Registries {
        auth_file: settings.registry_auth.clone(),
        auth_is_shared: settings.registry_auth_shared,
        plain_http: settings.registry_plain_http.clone(),
        allowed: settings.registry_allow.clone(),
        certificates: settings.registry_certificates.clone(),
    };
    registries.check().map_err(|problem| miette!("{problem}"))?;
    let runtime = NativeRuntime::open(NativeConfig {
        mounter: mounter.clone(),
        data_dir: data_dir.clone(),
        host_binary: HOST.to_vec(),
        // Not a path, because the file may be replaced by a newer release.
        launcher: PathBuf::from("/proc/self/exe"),
        oci_runtime: settings.oci_runtime.clone(),
        spares: settings.spares.into(),
        spare_resources: settings.ceilings.clamp(Resources {
            cpu: CPU_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            pids: PIDS_DEFAULT,
        }),
    })
    .await
    .map_err(|error| miette!(help = "`raworc doctor` says what this machine lacks", "{error}"))?;
    let config = Config {
        data_dir: data_dir.clone(),
        listen: settings.listen,
        host_socket: runtime.host_socket(),
        host_owner: Some(runtime.ids().base),
        agent_owner: Some(runtime.ids().agent()),
        xattrs,
        mounter,
        registries,
        images_bytes_max: settings.images_max.map(|bytes| bytes.0),
        ceilings: settings.ceilings,
        connections: Bounds {
            all: usize::try_from(settings.connections).unwrap_or(usize::MAX),
            per_address: usize::try_from(settings.connections_per_address).unwrap_or(usize::MAX),
            patience: Duration::from_secs(settings.client_timeout_seconds.into()),
        },
    };
    let runtime = Arc::new(runtime);
    let server = match Server::start(config, lock, runtime.clone()).await {
        Ok(server) => server,
        Err(error) => {
            // Otherwise its resources would stay until the next start.
            runtime.close().await;
            return Err(advise(error));
        }
    };
    let url = format!("http://{}", server.address());
    let url_file = data_dir.join(URL_FILE);
    write_whole(&url_file, &format!("{url}\n"))
        .into_diagnostic()
        .wrap_err_with(|| format!("{} cannot be written", url_file.display()))?;
    Ok(Running { url, token: server.admin_token().to_owned(), server, runtime, url_file })
}

/// Raises the limit of open files: a running session needs two descriptors, so the usual 1024 would suffice for five
/// hundred. A failure is ignored.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Replaces a file atomically.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

/// Creates the data directory. Containers must be able to traverse it, but not to list it.
pub fn prepare(data_dir: &Path) -> miette::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data_dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("the data directory {} cannot be made", data_dir.display()))?;
    // Files of sessions have any mode, so these directories keep other users out.
    for name in PRIVATE {
        let directory = data_dir.join(name);
        match fs::set_permissions(&directory, Permissions::from_mode(0o700)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error)
                    .into_diagnostic()
                    .wrap_err_with(|| format!("{} cannot be closed to others", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Directories that only the server may enter.
const PRIVATE: [&str; 5] = ["images", "layers", "run", "trash", "workspaces"];

/// The report code for a data directory in use.
const IN_USE: &str = "in_use";

/// Whether starting failed because another process uses the data directory.
pub fn is_in_use(report: &miette::Report) -> bool {
    report.code().is_some_and(|code| code.to_string() == IN_USE)
}

fn advise(error: StartError) -> miette::Report {
    match &error {
        StartError::InUse(_) => {
            miette!(code = IN_USE, help = "stop it first, or choose another directory with --data-dir", "{error}")
        }
        StartError::Listen(..) => miette!(help = "choose another address with --listen", "{error}"),
        StartError::File(..) | StartError::Store(_) | StartError::Other(_) => miette!("{error}"),
    }
}

impl Running {
    /// Shuts the server down.
    pub async fn shutdown(self) -> miette::Result<()> {
        // Removed first, so that nobody finds a server that is stopping.
        let _ = fs::remove_file(&self.url_file);
        self.server.stop().await;
        self.runtime.close().await;
        Ok(())
    }
}
