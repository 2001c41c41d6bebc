//! `raworc token`.

use clap::Subcommand;
use raworc_api::account::{CreateToken, Token as Record};
use raworc_api::client::Client;
use raworc_core::ids::TokenId;
use serde_json::json;

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::Result;
use crate::input;
use crate::output::table;
use crate::text::{ago, clean};

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Create a token; its secret is shown only once.
    #[command(after_help = "Examples:\n  raworc token create laptop\n  \
                            raworc token create ci --account builder --expires-in 30d > token")]
    Create {
        /// What the token is for.
        name: String,
        /// The account [default: yours].
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
        /// Expire after this long, such as 12h or 30d [default: never].
        #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
        expires_in: Option<u64>,
    },
    /// List tokens, without their secrets.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc token list --account alice")]
    List {
        /// The account [default: yours].
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Revoke a token: it stops working at once.
    #[command(after_help = "Example:\n  raworc token revoke 0192f1d2-0000-7000-8000-000000000000 --account alice")]
    Revoke {
        /// The token's id, as shown by `raworc token list`.
        token_id: TokenId,
        /// The account [default: yours].
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: Token) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Token::Create { name, account, expires_in } => {
            let account = owner(&client, account).await?;
            let token = client.create_token(&account, &CreateToken { name, expires_in_seconds: expires_in }).await?;
            ui.show(&token, |token| clean(&token.token))?;
            ui.note("this is shown only now; use it as RAWORC_TOKEN");
            Ok(())
        }
        Token::List { account, paging } => {
            let account = owner(&client, account).await?;
            let page = paging.fetch(async |query| client.list_tokens(&account, &query).await).await?;
            list::show(context, &page, "there are no tokens", rows)
        }
        Token::Revoke { token_id, account } => {
            let account = owner(&client, account).await?;
            client.revoke_token(&account, token_id).await?;
            ui.show(&json!({}), |_| format!("Revoked token {token_id}"))
        }
    }
}

async fn owner(client: &Client, account: Option<String>) -> Result<String> {
    match account {
        Some(account) => Ok(account),
        None => Ok(client.me().await?.id.to_string()),
    }
}

fn rows(tokens: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |token: &Record| {
        let state = match (token.revoked_at, token.expires_at) {
            (Some(revoked), _) => format!("revoked {}", ago(revoked, now)),
            (None, Some(expires)) if expires <= now => format!("expired {}", ago(expires, now)),
            (None, Some(expires)) => format!("expires {}", ago(expires, now)),
            (None, None) => "valid".to_owned(),
        };
        vec![clean(&token.name), state, ago(token.created_at, now), token.id.to_string()]
    };
    table(&["NAME", "STATE", "CREATED", "ID"], tokens.iter().map(row).collect())
}
