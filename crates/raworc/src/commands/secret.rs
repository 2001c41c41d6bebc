//! `raworc secret`.

use clap::{Args, Subcommand};
use raworc_api::secret::{Secret as Record, SecretDefinition, SecretValue};
use raworc_core::limits::SECRET_VALUE_BYTES_MAX;
use serde_json::json;

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::Result;
use crate::input;
use crate::output::{fields, table};
use crate::text::{ago, at_and_ago, clean};

const ADD_EXAMPLES: &str = "\
Examples:
  raworc secret add github --host api.github.com --value-stdin < token.txt
  raworc secret add gitlab --host gitlab.example.org --header PRIVATE-TOKEN --format '{}' --value-stdin < token.txt
  raworc secret add db --env DATABASE_PASSWORD --value-stdin < password.txt";

/// Commands about secrets.
#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Add a secret of your own.
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// The name: letters, digits, '-', '_' and '.'.
        name: String,
        #[command(flatten)]
        fields: Fields,
    },
    /// List your secrets. Their values are never shown.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc secret list")]
    List(Paging),
    /// Show one secret. Its value is never shown.
    #[command(after_help = "Example:\n  raworc secret get github")]
    Get {
        /// The secret's name.
        secret: String,
    },
    /// Change the given settings of a secret; the others stay.
    #[command(after_help = "Example:\n  raworc secret update github --value-stdin < new-token.txt")]
    Update {
        /// The secret's name.
        secret: String,
        /// The new name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        fields: Fields,
    },
    /// Delete a secret.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc secret delete github")]
    Delete {
        /// The secret's name.
        secret: String,
    },
}

/// The settings of a secret.
#[derive(Debug, Args)]
pub struct Fields {
    /// A host that it is for, such as api.github.com; may be repeated. Replaces all earlier ones.
    #[arg(long = "host", value_name = "HOST[:PORT]", conflicts_with = "env")]
    hosts: Vec<String>,
    /// The header of requests to these hosts that it is put into [default: Authorization].
    #[arg(long, value_name = "HEADER", conflicts_with = "env")]
    header: Option<String>,
    /// The value of the header, with {} in the secret's place [default: 'Bearer {}'].
    #[arg(long, value_name = "TEXT", conflicts_with = "env")]
    format: Option<String>,
    /// The environment variable in containers that it is put into; everything there can read it.
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
    /// Read the value from standard input; one line break at its end is left out.
    #[arg(long)]
    value_stdin: bool,
    /// Not a way to give a value.
    #[arg(long, hide = true, value_name = "VALUE", num_args = 0..=1)]
    value: Option<Option<String>>,
}

impl Fields {
    fn apply(self, to: &mut SecretDefinition) {
        if let Some(env) = self.env {
            *to =
                SecretDefinition { env: Some(env), name: std::mem::take(&mut to.name), ..SecretDefinition::default() };
        }
        if !self.hosts.is_empty() {
            (to.hosts, to.env) = (self.hosts, None);
        }
        to.header = self.header.or(to.header.take());
        to.format = self.format.or(to.format.take());
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Secret) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Secret::Add { name, fields } => {
            input::no_secret_argument(fields.value.is_some(), "--value-stdin")?;
            let value = input::secret(&ui, fields.value_stdin, SECRET_VALUE_BYTES_MAX)?;
            let mut definition = SecretDefinition { name, ..SecretDefinition::default() };
            fields.apply(&mut definition);
            definition.value = value.map(SecretValue);
            ui.show(&client.create_secret(&definition).await?, |secret| format!("Added secret {}", clean(&secret.name)))
        }
        Secret::List(paging) => {
            let page = paging.fetch(async |query| client.list_secrets(&query).await).await?;
            list::show(context, &page, "you have no secrets", rows)
        }
        Secret::Get { secret } => ui.show(&client.get_secret(&secret).await?, details),
        Secret::Update { secret, name, fields } => {
            input::no_secret_argument(fields.value.is_some(), "--value-stdin")?;
            let value = input::secret(&ui, fields.value_stdin, SECRET_VALUE_BYTES_MAX)?;
            let Record { name: old_name, hosts, header, format, env, .. } = client.get_secret(&secret).await?;
            let name = name.unwrap_or(old_name);
            let mut definition = SecretDefinition { name, value: None, hosts, header, format, env };
            fields.apply(&mut definition);
            definition.value = value.map(SecretValue);
            ui.show(&client.update_secret(&secret, &definition).await?, details)
        }
        Secret::Delete { secret } => {
            client.delete_secret(&secret).await?;
            ui.show(&json!({}), |_| format!("Deleted secret {}", clean(&secret)))
        }
    }
}

fn place(secret: &Record) -> String {
    match &secret.env {
        Some(env) => format!("{} (in the container)", clean(env)),
        None => secret.hosts.iter().map(|host| clean(host)).collect::<Vec<_>>().join(" "),
    }
}

fn rows(secrets: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |secret: &Record| {
        let header = secret.header.as_deref().map_or_else(|| "-".into(), clean);
        vec![clean(&secret.name), place(secret), header, ago(secret.updated_at, now)]
    };
    table(&["NAME", "FOR", "HEADER", "UPDATED"], secrets.iter().map(row).collect())
}

fn details(secret: &Record) -> String {
    fields(&[
        ("name", clean(&secret.name)),
        ("id", secret.id.to_string()),
        ("for", place(secret)),
        ("header", secret.header.as_deref().map(clean).unwrap_or_default()),
        ("format", secret.format.as_deref().map(clean).unwrap_or_default()),
        ("created", at_and_ago(secret.created_at)),
        ("updated", at_and_ago(secret.updated_at)),
    ])
}
