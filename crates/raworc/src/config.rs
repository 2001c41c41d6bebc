//! Settings. Flags override `RAWORC_*` variables, which override `DIR/raworc.toml`, which overrides the defaults.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Command, FromArgMatches as _, ValueEnum};
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format as _, Serialized, Toml};
use raworc_core::quantity::Bytes;
use raworc_server::Ceilings;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::output::Format;

/// The settings file in the data directory.
pub const FILE: &str = "raworc.toml";
/// The default listen address.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:9000";
const LOG_DEFAULT: &str = "info";
/// Default number of spare containers: enough for one person, and cheap (about 1.5 MiB each).
const SPARES_DEFAULT: u8 = 2;
/// Maximum number of spare containers.
const SPARES_MAX: i64 = 64;

/// Default connection limit: enough to follow a thousand sessions, and more.
const CONNECTIONS_DEFAULT: u32 = 4096;
/// Default connection limit per address.
const CONNECTIONS_PER_ADDRESS_DEFAULT: u32 = 256;
/// How long a client may take to send a request's head, or to read from an answer.
const CLIENT_TIMEOUT_SECONDS_DEFAULT: u32 = 30;

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// URL of the server [default: the one on this machine].
    #[arg(
        long,
        global = true,
        env = "RAWORC_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Common options"
    )]
    pub url: Option<String>,
    /// The token for the server [default: the administrator's, if this user may read it].
    #[arg(long, global = true, env = "RAWORC_TOKEN", hide_env_values = true, help_heading = "Common options")]
    pub token: Option<String>,
    /// The data directory of the server on this machine [default: /var/lib/raworc for root, else
    /// ~/.local/share/raworc].
    #[arg(
        long,
        global = true,
        env = "RAWORC_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        help_heading = "Common options"
    )]
    pub data_dir: Option<PathBuf>,
    /// Output format: text for people; json for programs, with streams as JSON lines.
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "text|json")]
    #[arg(hide_possible_values = true, help_heading = "Common options")]
    pub output: Format,
}

/// Options of a server. Each has an environment variable and a key in `raworc.toml`.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub struct ServeOptions {
    /// The address to listen on [default: 127.0.0.1:9000].
    #[arg(long, env = "RAWORC_LISTEN", hide_env_values = true, value_name = "ADDR:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Maximum number of client connections; never more than half the limit of open files [default: 4096].
    #[arg(long, env = "RAWORC_CONNECTIONS", hide_env_values = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Maximum number of connections per client address, except from this machine [default: 256].
    #[arg(long, env = "RAWORC_CONNECTIONS_PER_ADDRESS", hide_env_values = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_address: Option<u32>,
    /// Seconds until a client is disconnected that does not finish a request's head, or does not read its answer
    /// [default: 30].
    #[arg(long, env = "RAWORC_CLIENT_TIMEOUT_SECONDS", hide_env_values = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_timeout_seconds: Option<u32>,
    /// An OCI runtime program for starting containers, such as /usr/sbin/runc [default: the embedded one].
    #[arg(long, env = "RAWORC_OCI_RUNTIME", hide_env_values = true, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_runtime: Option<PathBuf>,
    /// Number of spare containers, 0 to 64, which let sessions with default resources start instantly [default: 2].
    #[arg(long, env = "RAWORC_SPARES", hide_env_values = true, value_name = "N", value_parser = clap::value_parser!(u8).range(..=SPARES_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spares: Option<u8>,
    /// A file of registry credentials, as written by `docker login` and `skopeo login`, for administrators and
    /// backups [default: none].
    #[arg(long, env = "RAWORC_REGISTRY_AUTH", hide_env_values = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<PathBuf>,
    /// Whether all accounts may use these credentials, and thereby everything they give access to [default: false].
    #[arg(long, env = "RAWORC_REGISTRY_AUTH_SHARED", hide_env_values = true, value_name = "true|false")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth_shared: Option<bool>,
    /// Registries to use without TLS, as HOST or HOST:PORT, separated by commas, besides those on this machine
    /// [default: none].
    #[arg(
        long,
        env = "RAWORC_REGISTRY_PLAIN_HTTP",
        hide_env_values = true,
        value_name = "HOSTS",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_plain_http: Option<Vec<String>>,
    /// Maximum size of all images and checkpoints that one member pulls or imports, such as 20Gi [default: half of
    /// the disk].
    #[arg(long, env = "RAWORC_IMAGES_MAX", hide_env_values = true, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_max: Option<Bytes>,
    /// Registries on this machine and in private networks that members may use, as HOST or HOST:PORT, separated by
    /// commas. Administrators may use any [default: none].
    #[arg(long, env = "RAWORC_REGISTRY_ALLOW", hide_env_values = true, value_name = "HOSTS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_allow: Option<Vec<String>>,
    /// A file of registry certificates (PEM) to trust besides the machine's [default: none].
    #[arg(long, env = "RAWORC_REGISTRY_CERTIFICATES", hide_env_values = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_certificates: Option<PathBuf>,
    /// Maximum number of processors per session [default: all of the machine].
    #[arg(long, env = "RAWORC_MAX_CPU_PER_SESSION", hide_env_values = true, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_per_session: Option<f64>,
    /// Maximum memory per session, such as 4Gi [default: all of the machine].
    #[arg(long, env = "RAWORC_MAX_MEMORY_PER_SESSION", hide_env_values = true, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_per_session: Option<Bytes>,
    /// Maximum number of processes and threads per session [default: a quarter of the machine's limit].
    #[arg(long, env = "RAWORC_MAX_PIDS_PER_SESSION", hide_env_values = true, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pids_per_session: Option<u32>,
    /// Maximum disk space per session, such as 20Gi; also applies to sessions without a limit [default: the size of
    /// the disk, and none for those].
    #[arg(long, env = "RAWORC_MAX_DISK_PER_SESSION", hide_env_values = true, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk_per_session: Option<Bytes>,
    /// Log level: error, warn, info, debug or trace, also per module: `info,raworc_server=debug` [default: info].
    #[arg(long, env = "RAWORC_LOG", hide_env_values = true, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Log format [default: text].
    #[arg(long, env = "RAWORC_LOG_FORMAT", hide_env_values = true, value_enum, value_name = "text|json")]
    #[arg(hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

impl ServeOptions {
    /// Reads the variables, for a server that is not started by `raworc serve`.
    pub fn from_variables() -> Result<Self> {
        Self::augment_args(Command::new("raworc"))
            .try_get_matches_from(["raworc"])
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| {
                Failure::usage(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "))
            })
    }
}

/// Log formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// JSON lines.
    Json,
}

/// Settings of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The directory with all of the server's data.
    pub data_dir: PathBuf,
    /// The listen address.
    pub listen: SocketAddr,
    /// Maximum number of connections.
    pub connections: u32,
    /// Maximum number of connections per address.
    pub connections_per_address: u32,
    /// Timeout for slow clients.
    pub client_timeout_seconds: u32,
    /// An OCI runtime in place of the embedded one.
    pub oci_runtime: Option<PathBuf>,
    /// Number of spare containers.
    pub spares: u8,
    /// Registry credentials.
    pub registry_auth: Option<PathBuf>,
    /// Whether all accounts may use them.
    pub registry_auth_shared: bool,
    /// Registries used without TLS.
    pub registry_plain_http: Vec<String>,
    /// Maximum size of one member's images.
    pub images_max: Option<Bytes>,
    /// Registries in private networks that members may use.
    pub registry_allow: Vec<String>,
    /// Registry certificates.
    pub registry_certificates: Option<PathBuf>,
    /// Resource ceilings of a session.
    pub ceilings: Ceilings,
    /// Log level.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
}

/// The merged file and flags.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    listen: SocketAddr,
    connections: u32,
    connections_per_address: u32,
    client_timeout_seconds: u32,
    oci_runtime: Option<PathBuf>,
    spares: u8,
    registry_auth: Option<PathBuf>,
    #[serde(default)]
    registry_auth_shared: bool,
    #[serde(default)]
    registry_plain_http: Vec<String>,
    images_max: Option<Bytes>,
    #[serde(default)]
    registry_allow: Vec<String>,
    registry_certificates: Option<PathBuf>,
    max_cpu_per_session: Option<f64>,
    max_memory_per_session: Option<Bytes>,
    max_pids_per_session: Option<u32>,
    max_disk_per_session: Option<Bytes>,
    log: String,
    log_format: LogFormat,
}

#[derive(Serialize)]
struct Defaults {
    listen: &'static str,
    connections: u32,
    connections_per_address: u32,
    client_timeout_seconds: u32,
    spares: u8,
    log: &'static str,
    log_format: LogFormat,
}

impl Settings {
    /// Loads the settings of a server with this data directory.
    pub fn load(data_dir: &Path, options: &ServeOptions) -> Result<Self> {
        let path = data_dir.join(FILE);
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::usage(format!("{} can't be read: {error}", path.display()))),
        };
        let defaults = Defaults {
            listen: LISTEN_DEFAULT,
            connections: CONNECTIONS_DEFAULT,
            connections_per_address: CONNECTIONS_PER_ADDRESS_DEFAULT,
            client_timeout_seconds: CLIENT_TIMEOUT_SECONDS_DEFAULT,
            spares: SPARES_DEFAULT,
            log: LOG_DEFAULT,
            log_format: LogFormat::Text,
        };
        let merged: FileSettings = Figment::from(Serialized::defaults(defaults))
            .merge(Toml::string(&file))
            .merge(Serialized::defaults(options))
            .extract()
            .map_err(|error| wrong_file(&path, error))?;
        if i64::from(merged.spares) > SPARES_MAX {
            return Err(wrong_value(&path, &format!("spares: must be 0 to {SPARES_MAX}")));
        }
        let ceilings = merged.ceilings(data_dir).map_err(|wrong| wrong_value(&path, &wrong))?;
        let counts = [
            ("connections", merged.connections),
            ("connections_per_address", merged.connections_per_address),
            ("client_timeout_seconds", merged.client_timeout_seconds),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Failure::usage(format!("{} is not right: {name}: must be 1 or more", path.display())));
        }
        Ok(Self {
            data_dir: data_dir.to_owned(),
            listen: merged.listen,
            connections: merged.connections,
            connections_per_address: merged.connections_per_address,
            client_timeout_seconds: merged.client_timeout_seconds,
            oci_runtime: merged.oci_runtime,
            spares: merged.spares,
            registry_auth: merged.registry_auth,
            registry_auth_shared: merged.registry_auth_shared,
            registry_plain_http: merged.registry_plain_http,
            images_max: merged.images_max,
            registry_allow: merged.registry_allow,
            registry_certificates: merged.registry_certificates,
            ceilings,
            log: merged.log,
            log_format: merged.log_format,
        })
    }
}

impl FileSettings {
    /// The machine's capacity, unless set otherwise.
    fn ceilings(&self, data_dir: &Path) -> std::result::Result<Ceilings, String> {
        let existing = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(data_dir);
        let machine = Ceilings::of_machine(existing);
        let set = Ceilings {
            cpu: self.max_cpu_per_session.unwrap_or(machine.cpu),
            memory_bytes: self.max_memory_per_session.map_or(machine.memory_bytes, |bytes| bytes.0),
            pids: self.max_pids_per_session.unwrap_or(machine.pids),
            disk_bytes: self.max_disk_per_session.map_or(machine.disk_bytes, |bytes| bytes.0),
            disk_is_always_limited: self.max_disk_per_session.is_some(),
        };
        set.check().map(|()| set)
    }
}

fn wrong_value(path: &Path, wrong: &str) -> Failure {
    Failure::usage(format!("the settings (options, variables or {}) are not right: {wrong}", path.display()))
}

fn wrong_file(path: &Path, error: figment::Error) -> Failure {
    let faults: Vec<String> = error
        .into_iter()
        .map(|fault| match (fault.path.join("."), fault.kind) {
            (_, Kind::UnknownField(key, _)) => format!("there is no key {key:?}"),
            (key, kind) if key.is_empty() => kind.to_string(),
            (key, kind) => format!("{key}: {kind}"),
        })
        .collect();
    Failure::usage(format!("{} is not right: {}", path.display(), faults.join("; "))).help(
        "The keys are listen, oci_runtime, spares, registry_auth, registry_auth_shared, registry_plain_http, registry_allow, \
         registry_certificates, images_max, max_cpu_per_session, max_memory_per_session, max_pids_per_session, \
         max_disk_per_session, log and log_format; `raworc serve --help` tells what they mean.",
    )
}

impl Global {
    /// The data directory as an absolute path.
    pub fn data_dir(&self) -> Result<PathBuf> {
        let chosen = match self.data_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => dir.clone(),
            None => {
                default_data_dir(rustix::process::geteuid().is_root(), |name| std::env::var_os(name).map(PathBuf::from))
                    .ok_or_else(|| {
                        Failure::usage("neither HOME nor XDG_DATA_HOME is set, so there is no default data directory")
                            .help("Name one with --data-dir or RAWORC_DATA_DIR.")
                    })?
            }
        };
        std::path::absolute(&chosen).map_err(|error| Failure::usage(format!("{}: {error}", chosen.display())))
    }
}

fn default_data_dir(is_root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if is_root {
        return Some("/var/lib/raworc".into());
    }
    // The XDG specification requires relative paths to be ignored.
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(base.join("raworc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, options: &ServeOptions) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), file).unwrap();
        Settings::load(dir.path(), options)
    }

    #[test]
    fn flags_win_over_the_file_and_that_over_the_defaults() {
        let file = "listen = \"127.0.0.1:1\"\nlog = \"debug\"\n";
        let options = ServeOptions { listen: Some("127.0.0.1:2".parse().unwrap()), ..ServeOptions::default() };
        let settings = load(file, &options).unwrap();
        assert_eq!(settings.listen, "127.0.0.1:2".parse().unwrap());
        assert_eq!(settings.log, "debug");
        assert_eq!(settings.log_format, LogFormat::Text);

        let settings = load(file, &ServeOptions::default()).unwrap();
        assert_eq!(settings.listen, "127.0.0.1:1".parse().unwrap());

        let nowhere = tempfile::tempdir().unwrap();
        let settings = Settings::load(nowhere.path(), &ServeOptions::default()).unwrap();
        assert_eq!(settings.listen, LISTEN_DEFAULT.parse().unwrap());
        assert_eq!((settings.oci_runtime, settings.log.as_str()), (None, "info"));
    }

    #[test]
    fn ceilings_are_the_machines_unless_set() {
        let machine = load("", &ServeOptions::default()).unwrap().ceilings;
        let file = "max_cpu_per_session = 4\nmax_memory_per_session = \"64Mi\"\nmax_disk_per_session = 5000000\n";
        let options = ServeOptions { max_cpu_per_session: Some(0.5), ..ServeOptions::default() };
        let set = load(file, &options).unwrap().ceilings;
        let expected = Ceilings {
            cpu: 0.5,
            memory_bytes: 64 << 20,
            pids: machine.pids,
            disk_bytes: 5_000_000,
            disk_is_always_limited: true,
        };
        assert_eq!(set, expected);
        assert!(!machine.disk_is_always_limited);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        for (file, named) in [
            ("lisen = \"127.0.0.1:1\"", "lisen"),
            ("listen = \"somewhere\"", "listen"),
            ("log = 7", "log"),
            ("max_cpu_per_session = -1", "max_cpu_per_session"),
            ("max_memory_per_session = \"1Ki\"", "max_memory_per_session"),
            ("max_pids_per_session = 3", "max_pids_per_session"),
            ("max_disk_per_session = \"much\"", "max_disk_per_session"),
            ("log_format = \"xml\"", "log_format"),
            ("listen = ", "listen"),
        ] {
            let failure = load(file, &ServeOptions::default()).unwrap_err();
            let Failure::Message { status: 2, message, .. } = failure else { panic!("{failure:?}") };
            assert!(message.contains(named) && message.contains(FILE), "{message}");
        }
    }

    #[test]
    fn data_directories() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| PathBuf::from(value))
        };
        for (is_root, variables, expected) in [
            (true, with(&[("HOME", "/root")]), Some("/var/lib/raworc")),
            (false, with(&[("HOME", "/home/a")]), Some("/home/a/.local/share/raworc")),
            (false, with(&[("HOME", "/home/a"), ("XDG_DATA_HOME", "/data")]), Some("/data/raworc")),
            (false, with(&[("HOME", "/home/a"), ("XDG_DATA_HOME", "data")]), Some("/home/a/.local/share/raworc")),
            (false, with(&[]), None),
        ] {
            assert_eq!(default_data_dir(is_root, variables), expected.map(PathBuf::from));
        }
    }
}
