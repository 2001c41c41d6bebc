//! Every bound in one place. Units are the last word of a name.

use std::time::Duration;

/// Longest name of a session, agent, account or token, in characters.
pub const NAME_CHARACTERS_MAX: usize = 128;
/// Longest content of one message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Largest JSON request body, in bytes: a message of the longest content, some of it escaped, and some room.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Read and dropped of the body of a request that is refused, in bytes, so that the client hears why.
pub const UNREAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Largest `metadata` of a session or message, as JSON, in bytes.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Largest file written through the API, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Largest archive that is unpacked into a workspace, in bytes, and the most that what is in it takes of the disk.
pub const ARCHIVE_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Entries of such an archive.
pub const ARCHIVE_ENTRIES_MAX: u64 = 4_000_000;
/// Entries in one directory listing.
pub const LISTING_ENTRIES_MAX: usize = 10_000;
/// Messages that wait in one session's queue.
pub const QUEUED_MESSAGES_MAX: u32 = 1_000;
/// Parts of others' conversations that a remix shares; one that would share more has a copy.
pub const CONVERSATION_SEGMENTS_MAX: usize = 256;
/// Agents assigned to one session.
pub const AGENTS_PER_SESSION_MAX: usize = 16;
/// Environment variables of a session.
pub const ENV_VARIABLES_MAX: usize = 256;
/// Total bytes of a session's environment, names and values.
pub const ENV_BYTES_MAX: usize = 64 * 1024;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Rows of one page unless asked otherwise, and at most.
pub const PAGE_ROWS_DEFAULT: u32 = 50;
/// Rows of one page at most.
pub const PAGE_ROWS_MAX: u32 = 500;
/// A page that has so many bytes ends, and leads on by its cursor: texts as they are stored, of which JSON may make six times
/// as many. One row that is longer is a page by itself.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Longest `wait_seconds`.
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// How often a message is tried before it fails: its host died under it each time.
pub const MESSAGE_ATTEMPTS_MAX: u32 = 3;
/// How often a session in ERROR restarts by itself before it waits for a person.
pub const RESTARTS_MAX: u32 = 3;
/// Wait before the first restart; doubles with each further one.
pub const RESTART_BACKOFF: Duration = Duration::from_millis(500);
/// A container that was ready for this long has worked: earlier restarts are forgotten.
pub const STABLE: Duration = Duration::from_secs(60);
/// A start that has not brought a polling host by then has failed.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// `waiting_timeout_seconds` of a session that names none.
pub const WAITING_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Shortest and longest `waiting_timeout_seconds`.
pub const WAITING_TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 1..=7 * 24 * 3600;
/// Shortest and longest `ttl_seconds`.
pub const TTL_SECONDS: std::ops::RangeInclusive<u64> = 1..=10 * 366 * 24 * 3600;

/// How often a host says that it lives.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// A host unheard of for this long is lost.
pub const LEASE: Duration = Duration::from_secs(8);
/// A host that finds no server for this long ends itself, so that nothing is orphaned.
pub const SERVERLESS_MAX: Duration = Duration::from_secs(600);
/// What processes get between SIGTERM and SIGKILL, whatever ends them: a cancel, a timeout, or the end of their container.
pub const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// What a container gets to end by itself before it is killed: its processes' grace, and time for its host to kill what is
/// left and to say so.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// Output kept of one message, in bytes of text: its beginning and its end; what is between them is counted and left out.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Output answered by one exec, in bytes, kept in the same way.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// Longest file with the whole of an output that is longer, in bytes.
pub const OUTPUT_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Such files in one workspace; the oldest ones go.
pub const OUTPUT_FILES_MAX: usize = 10;
/// Longest `timeout_seconds` of an exec.
pub const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Execs at the same time in one session.
pub const EXECS_MAX: usize = 32;
/// Terminals at the same time in one session.
pub const TERMINALS_MAX: usize = 16;
/// Clients that are attached to the terminals and commands of one session at the same time.
pub const ATTACHMENTS_MAX: usize = 64;
/// A terminal that no client is attached to ends after this long.
pub const DETACHED_MAX: Duration = Duration::from_secs(60);
/// Output that a terminal keeps for clients that attach later, in bytes.
pub const TERMINAL_REPLAY_BYTES: usize = 256 * 1024;
/// Longest piece of a stream between host and server, and longest binary frame from a client, in bytes.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;
/// Longest command whose streams are attached, in bytes of JSON.
pub const START_BYTES_MAX: usize = 256 * 1024;
/// Reports a host keeps until the server has stored them; then it stops reading its agents' output.
pub const UNACKED_BYTES_MAX: usize = 1024 * 1024;
/// Longest frame between host and server, in bytes: a message with its escapes, an agent with its instructions.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest text in one output report, in bytes.
pub const OUTPUT_CHUNK_BYTES_MAX: usize = 32 * 1024;

/// Checkpoints kept of a session that says nothing about it, beside labelled ones.
pub const CHECKPOINTS_KEPT_DEFAULT: u32 = 20;
/// Fewest and most checkpoints kept beside labelled ones.
pub const CHECKPOINTS_KEPT: std::ops::RangeInclusive<u64> = 1..=10_000;
/// Shortest and longest time between two checkpoints by the clock, in seconds.
pub const CHECKPOINT_EVERY_SECONDS: std::ops::RangeInclusive<u64> = 5..=7 * 24 * 3600;
/// Least time between two backups of a session that names none.
pub const BACKUP_EVERY_DEFAULT: Duration = Duration::from_secs(60);
/// Layers below a workspace at most: more do not fit into the options of one mount.
pub const LAYERS_MAX: usize = 64;
/// Layers at which a chain is made shorter in the background.
pub const LAYERS_SQUASHED_AT: usize = 24;
/// The newest layers stay as they are: they are most likely to be gone back to.
pub const LAYERS_KEPT: usize = 8;
/// Differences told of two checkpoints.
pub const DIFFERENCES_MAX: usize = 10_000;
/// Largest file of which a difference in text is told, in bytes.
pub const TEXT_DIFF_BYTES_MAX: u64 = 1024 * 1024;

/// Largest image or checkpoint that is taken in, in bytes of its uncompressed layers, and of an archive it comes in.
pub const IMAGE_BYTES_MAX: u64 = 256 << 30;
/// Files and directories of one layer of such an image.
pub const IMAGE_ENTRIES_MAX: u64 = 8_000_000;
/// Longest name of an image, in bytes.
pub const IMAGE_NAME_BYTES_MAX: usize = 512;

/// Providers of models.
pub const PROVIDERS_MAX: usize = 100;
/// Models that a provider lists.
pub const MODELS_PER_PROVIDER_MAX: usize = 500;
/// Other names of one model.
pub const ALIASES_PER_MODEL_MAX: usize = 32;
/// Longest name or alias of a model, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 256;
/// Fewest and most tokens that a model is said to take or to give.
pub const MODEL_TOKENS: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
/// Highest price of a million tokens, in millionths of the currency.
pub const PRICE_MICROS_MAX: u64 = 1_000_000 * 1_000_000;
/// Longest URL of a provider, in bytes.
pub const BASE_URL_BYTES_MAX: usize = 2048;
/// Longest key of a provider, in bytes.
pub const API_KEY_BYTES_MAX: usize = 4096;
/// `timeout_seconds` of a provider for which none is given.
pub const PROVIDER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Shortest and longest `timeout_seconds` of a provider.
pub const PROVIDER_TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;
/// Secrets of one account.
pub const SECRETS_PER_ACCOUNT_MAX: usize = 200;
/// Longest value of a secret, in bytes.
pub const SECRET_VALUE_BYTES_MAX: usize = 32 * 1024;
/// Hosts that one secret is for.
pub const SECRET_HOSTS_MAX: usize = 32;
/// Longest value of a header around a secret, in bytes.
pub const SECRET_FORMAT_BYTES_MAX: usize = 256;

/// CPUs of a session that names none.
pub const CPU_DEFAULT: f64 = 1.0;
/// Memory of a session that names none, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;
/// Least memory of a session, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Processes and threads of a session that names none.
pub const PIDS_DEFAULT: u32 = 256;
/// Fewest processes of a session: the host needs a few itself.
pub const PIDS_MIN: u32 = 16;

/// Connections of one container to the gateway; the next one waits to be accepted.
pub const GATEWAY_CONNECTIONS_MAX: usize = 256;
