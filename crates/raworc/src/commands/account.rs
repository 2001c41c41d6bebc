//! `raworc account` and `raworc me`.

use clap::Subcommand;
use raworc_api::account::{Account as Record, CreateAccount};
use raworc_core::permissions::Role;
use serde_json::{Value, json};

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::Result;
use crate::output::{fields, table};
use crate::text::{ago, at_and_ago, clean};

/// Commands about accounts.
#[derive(Debug, Subcommand)]
pub enum Account {
    /// Create an account; create a token for it next.
    #[command(after_help = "Example:\n  raworc account create alice && raworc token create laptop --account alice")]
    Create {
        /// The name: letters, digits, '-', '_' and '.'.
        name: String,
        /// admin: full access; member: its own sessions only.
        #[arg(long, default_value = "member", value_parser = role, value_name = "ROLE")]
        role: Role,
    },
    /// List accounts.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc account list")]
    List(Paging),
    /// Show one account.
    #[command(after_help = "Example:\n  raworc account get alice")]
    Get {
        /// The account's id or name.
        account: String,
    },
    /// Close an account: its tokens stop working, its sessions stay.
    #[command(after_help = "Example:\n  raworc account close alice")]
    Close {
        /// The account's id or name.
        account: String,
    },
}

fn role(text: &str) -> std::result::Result<Role, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| "there are 'admin' and 'member'".into())
}

fn role_word(role: Role) -> String {
    serde_json::to_value(role).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Runs the command.
pub async fn run(context: &Context, command: Account) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Account::Create { name, role } => {
            let account = client.create_account(&CreateAccount { name, role }).await?;
            ui.show(&account, |account| format!("Created account {} ({})", clean(&account.name), account.id))?;
            ui.note(&format!("it has no token yet: raworc token create NAME --account {}", clean(&account.name)));
            Ok(())
        }
        Account::List(paging) => {
            let page = paging.fetch(async |query| client.list_accounts(&query).await).await?;
            list::show(context, &page, "there are no accounts", rows)
        }
        Account::Get { account } => ui.show(&client.get_account(&account).await?, details),
        Account::Close { account } => {
            client.close_account(&account).await?;
            ui.show(&json!({}), |_| format!("Closed account {}", clean(&account)))
        }
    }
}

/// Shows the account of the token in use.
pub async fn me(context: &Context) -> Result<()> {
    context.ui.show(&context.client()?.me().await?, details)
}

fn rows(accounts: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |account: &Record| {
        let closed = account.closed_at.map_or_else(|| "-".into(), |closed| ago(closed, now));
        vec![
            clean(&account.name),
            role_word(account.role),
            ago(account.created_at, now),
            closed,
            account.id.to_string(),
        ]
    };
    table(&["NAME", "ROLE", "CREATED", "CLOSED", "ID"], accounts.iter().map(row).collect())
}

fn details(account: &Record) -> String {
    fields(&[
        ("name", clean(&account.name)),
        ("id", account.id.to_string()),
        ("role", role_word(account.role)),
        ("created", at_and_ago(account.created_at)),
        ("closed", account.closed_at.map(at_and_ago).unwrap_or_default()),
    ])
}
