//! `raworc provider` and `raworc model`.

use clap::{Args, Subcommand};
use raworc_api::provider::{
    ApiKey, Model as Listed, ModelPrice, Provider as Record, ProviderDefinition, ProviderModel, ProviderTest,
};
use raworc_core::known_providers::{self, KNOWN_PROVIDERS, KnownProvider};
use raworc_core::limits::API_KEY_BYTES_MAX;
use raworc_core::models::ProviderKind;
use serde_json::{Value, json};

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::input;
use crate::output::{Ui, fields, table};
use crate::text::{ago, at_and_ago, clean, span};

const ADD_EXAMPLES: &str = "\
Examples:
  raworc provider add openai --key-stdin < key.txt
  raworc provider add ollama
  raworc provider add work --kind openai --base-url http://10.0.0.1:8000/v1 --model llama-70b=big,llama

openai, anthropic, gemini, openrouter and ollama are known: their addresses, and some models of the first three. \
Without --model, others take every name: PROVIDER/MODEL.";

const UPDATE_EXAMPLES: &str = "\
Examples:
  raworc provider update openai --key-stdin < new-key.txt
  raworc provider update openai --add-model gpt-6=best --price gpt-6=2.5,10";

/// Commands about providers.
#[derive(Debug, Subcommand)]
pub enum Provider {
    /// Add a provider of models.
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// The name: letters, digits, '-', '_' and '.'.
        #[arg(value_name = "NAME|KIND")]
        name: String,
        /// The models, in place of those that are known; may be repeated.
        #[arg(long = "model", value_name = "ID[=ALIAS,…]", value_parser = model)]
        models: Vec<ProviderModel>,
        #[command(flatten)]
        fields: Fields,
    },
    /// List providers.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc provider list")]
    List(Paging),
    /// Show one provider. Its key is never shown.
    #[command(after_help = "Example:\n  raworc provider get openai")]
    Get {
        /// The provider's name.
        provider: String,
    },
    /// Change the given settings of a provider; the others stay.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update {
        /// The provider's name.
        provider: String,
        /// The new name.
        #[arg(long)]
        name: Option<String>,
        /// Remove the key.
        #[arg(long, conflicts_with = "key_stdin")]
        no_key: bool,
        /// A model to add, or to change the aliases of; may be repeated.
        #[arg(long = "add-model", value_name = "ID[=ALIAS,…]", value_parser = model)]
        models: Vec<ProviderModel>,
        /// A model to remove; may be repeated.
        #[arg(long = "remove-model", value_name = "ID")]
        removed: Vec<String>,
        #[command(flatten)]
        fields: Fields,
    },
    /// Ask a provider once, to see whether it works.
    #[command(after_help = "Example:\n  raworc provider test openai")]
    Test {
        /// The provider's name.
        provider: String,
    },
    /// Delete a provider and its key.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc provider delete openai")]
    Delete {
        /// The provider's name.
        provider: String,
    },
}

/// Commands about models.
#[derive(Debug, Subcommand)]
pub enum Model {
    /// List the models that agents may name.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc model list --all")]
    List(Paging),
    /// Show the model that a name means.
    #[command(after_help = "Example:\n  raworc model get gpt-4")]
    Get {
        /// PROVIDER/MODEL, or an id or alias that one provider has.
        model: String,
    },
}

/// The settings of a provider.
#[derive(Debug, Args)]
pub struct Fields {
    /// The API that it speaks: openai, anthropic, gemini or replay [default: that of the known provider of this name].
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Option<ProviderKind>,
    /// Where it is [default: where the kind is at home].
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Read the key from standard input.
    #[arg(long)]
    key_stdin: bool,
    /// Not a way to give a key.
    #[arg(long, hide = true, value_name = "KEY", num_args = 0..=1)]
    key: Option<Option<String>>,
    /// The price of a million tokens read and of a million written, in your currency; may be repeated.
    #[arg(long = "price", value_name = "ID=INPUT,OUTPUT", value_parser = price)]
    prices: Vec<(String, ModelPrice)>,
    /// How long it may be silent, such as 90 or 10m [default: 5m].
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    timeout: Option<u64>,
}

fn kind(text: &str) -> std::result::Result<ProviderKind, String> {
    serde_json::from_value(Value::from(text))
        .map_err(|_| "there are 'openai', 'anthropic', 'gemini' and 'replay'".into())
}

fn kind_word(kind: ProviderKind) -> String {
    serde_json::to_value(kind).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn model(text: &str) -> std::result::Result<ProviderModel, String> {
    let (id, aliases) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err("write ID, or ID=ALIAS,ALIAS".into());
    }
    let aliases = aliases.split(',').filter(|alias| !alias.is_empty()).map(str::to_owned).collect();
    Ok(ProviderModel { id: id.to_owned(), aliases, ..ProviderModel::default() })
}

fn price(text: &str) -> std::result::Result<(String, ModelPrice), String> {
    let parsed = || {
        let (id, prices) = text.rsplit_once('=')?;
        let (input, output) = prices.split_once(',')?;
        let price = ModelPrice { input_per_million: input.parse().ok()?, output_per_million: output.parse().ok()? };
        let is_finite = price.input_per_million.is_finite() && price.output_per_million.is_finite();
        (is_finite && !id.is_empty()).then(|| (id.to_owned(), price))
    };
    parsed().ok_or_else(|| "write ID=INPUT,OUTPUT, such as gpt-4o=2.5,10".into())
}

impl Fields {
    fn apply(self, to: &mut ProviderDefinition, ui: Ui) -> Result<()> {
        if let Some(key) = input::secret(&ui, self.key_stdin, API_KEY_BYTES_MAX)? {
            to.api_key = Some(Some(ApiKey(key.trim().to_owned())));
        }
        to.kind = self.kind.unwrap_or(to.kind);
        to.base_url = self.base_url.or(to.base_url.take());
        to.timeout_seconds = self.timeout.or(to.timeout_seconds);
        for (id, price) in self.prices {
            let model = to.models.iter_mut().find(|model| model.id == id);
            let unknown = || {
                let message = format!("the provider has no model {id:?} that could have a price");
                Failure::usage(message).help("Name the model first: --model ID, or --add-model ID of update.")
            };
            model.ok_or_else(unknown)?.price = Some(price);
        }
        Ok(())
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Provider) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Provider::Add { name, models, fields } => {
            input::no_secret_argument(fields.key.is_some(), "--key-stdin")?;
            let mut definition = new_definition(name, models, fields.kind, fields.base_url.is_some())?;
            let needs_key = known_providers::by_name(&definition.name).is_some_and(|known| known.needs_key);
            fields.apply(&mut definition, ui)?;
            let provider = client.create_provider(&definition).await?;
            ui.show(&provider, |provider| format!("Added provider {}", clean(&provider.name)))?;
            if needs_key && !provider.has_key {
                ui.note(&format!("it has no key yet: raworc provider update {} --key-stdin", clean(&provider.name)));
            }
            Ok(())
        }
        Provider::List(paging) => {
            let page = paging.fetch(async |query| client.list_providers(&query).await).await?;
            list::show(context, &page, "there are no providers", rows)
        }
        Provider::Get { provider } => ui.show(&client.get_provider(&provider).await?, details),
        Provider::Update { provider, name, no_key, models, removed, fields } => {
            input::no_secret_argument(fields.key.is_some(), "--key-stdin")?;
            let mut definition = definition_of(client.get_provider(&provider).await?);
            definition.name = name.unwrap_or(definition.name);
            definition.api_key = no_key.then_some(None);
            change_models(&mut definition.models, models, &removed)?;
            fields.apply(&mut definition, ui)?;
            ui.show(&client.update_provider(&provider, &definition).await?, details)
        }
        Provider::Test { provider } => {
            let tested = client.test_provider(&provider).await?;
            ui.show(&tested, |tested| described(&provider, tested))?;
            if tested.works { Ok(()) } else { Err(Failure::Status(EXIT_FAILED)) }
        }
        Provider::Delete { provider } => {
            client.delete_provider(&provider).await?;
            ui.show(&json!({}), |_| format!("Deleted provider {}", clean(&provider)))
        }
    }
}

fn described(provider: &str, tested: &ProviderTest) -> String {
    let name = clean(provider);
    match (&tested.error, tested.duration_seconds) {
        (Some(error), _) => format!("{name} does not work: {}", clean(error)),
        (None, took) => {
            let models = tested.models.map(|count| format!(", and has {count} models")).unwrap_or_default();
            format!("{name} works: it answered after {}{models}", span(took.unwrap_or_default()))
        }
    }
}

/// Runs a command about models.
pub async fn run_model(context: &Context, command: Model) -> Result<()> {
    let client = context.client()?;
    match command {
        Model::List(paging) => {
            let page = paging.fetch(async |query| client.list_models(&query).await).await?;
            let empty = "no models are listed; `raworc provider add openai --key-stdin` adds some";
            list::show(context, &page, empty, model_rows)
        }
        Model::Get { model } => context.ui.show(&client.get_model(&model).await?, model_details),
    }
}

/// What is added: a known provider of this name or kind, as far as nothing else is said.
fn new_definition(
    name: String,
    models: Vec<ProviderModel>,
    kind: Option<ProviderKind>,
    has_url: bool,
) -> Result<ProviderDefinition> {
    let known = known_providers::by_name(&name).filter(|known| kind.is_none_or(|kind| kind == known.kind));
    let Some(kind) = kind.or(known.map(|known| known.kind)) else {
        let names: Vec<&str> = KNOWN_PROVIDERS.iter().map(|known| known.name).collect();
        let help = format!("Say what it speaks with --kind, or name one that is known: {}.", names.join(", "));
        return Err(Failure::usage(format!("{:?} is no known provider", clean(&name))).help(help));
    };
    // Elsewhere there are other models.
    let known = known.filter(|_| !has_url);
    let models = if models.is_empty() { known.map(known_models).unwrap_or_default() } else { models };
    let base_url = known.map(|known| known.base_url.to_owned());
    Ok(ProviderDefinition { name, kind, base_url, api_key: None, models, timeout_seconds: None })
}

fn known_models(known: &KnownProvider) -> Vec<ProviderModel> {
    let models = known.models.iter().map(|model| ProviderModel {
        id: model.id.to_owned(),
        aliases: model.aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        context_tokens: Some(model.context_tokens),
        max_output_tokens: Some(model.max_output_tokens),
        price: None,
    });
    models.collect()
}

/// What a provider is, without its key. It stays where it is, whatever kind it becomes: its key is for there.
fn definition_of(provider: Record) -> ProviderDefinition {
    ProviderDefinition {
        name: provider.name,
        kind: provider.kind,
        base_url: provider.base_url,
        api_key: None,
        models: provider.models,
        timeout_seconds: Some(provider.timeout_seconds),
    }
}

fn change_models(models: &mut Vec<ProviderModel>, added: Vec<ProviderModel>, removed: &[String]) -> Result<()> {
    for id in removed {
        let before = models.len();
        models.retain(|model| model.id != *id);
        if models.len() == before {
            return Err(Failure::usage(format!("the provider has no model {:?}", clean(id))));
        }
    }
    for model in added {
        match models.iter_mut().find(|other| other.id == model.id) {
            Some(other) => other.aliases = model.aliases,
            None => models.push(model),
        }
    }
    Ok(())
}

fn rows(providers: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |provider: &Record| {
        vec![
            clean(&provider.name),
            kind_word(provider.kind),
            provider.base_url.as_deref().map_or_else(|| "-".into(), clean),
            if provider.has_key { "yes" } else { "-" }.to_owned(),
            if provider.models.is_empty() { "any".to_owned() } else { provider.models.len().to_string() },
            if provider.builtin { "built-in".to_owned() } else { ago(provider.created_at, now) },
        ]
    };
    table(&["NAME", "KIND", "URL", "KEY", "MODELS", "CREATED"], providers.iter().map(row).collect())
}

fn details(provider: &Record) -> String {
    let models = provider.models.iter().map(|model| clean(&model.id));
    let models = if provider.models.is_empty() { "any".to_owned() } else { models.collect::<Vec<_>>().join(" ") };
    fields(&[
        ("name", clean(&provider.name)),
        ("id", provider.id.to_string()),
        ("kind", kind_word(provider.kind)),
        ("url", provider.base_url.as_deref().map(clean).unwrap_or_default()),
        ("key", if provider.has_key { "yes, it is not shown" } else { "none" }.to_owned()),
        ("models", models),
        ("timeout", span(provider.timeout_seconds as f64)),
        ("built-in", if provider.builtin { "yes, it can't be changed".into() } else { String::new() }),
        ("created", at_and_ago(provider.created_at)),
        ("updated", at_and_ago(provider.updated_at)),
    ])
}

fn model_rows(models: &[Listed]) -> String {
    let row = |model: &Listed| {
        vec![clean(&model.id), names(&model.aliases), tokens(model.context_tokens), price_text(model.price)]
    };
    table(&["MODEL", "ALIASES", "CONTEXT", "PRICE"], models.iter().map(row).collect())
}

fn model_details(model: &Listed) -> String {
    fields(&[
        ("model", clean(&model.id)),
        ("aliases", if model.aliases.is_empty() { String::new() } else { names(&model.aliases) }),
        ("kind", kind_word(model.kind)),
        ("context", tokens(model.context_tokens)),
        ("longest answer", tokens(model.max_output_tokens)),
        ("price", price_text(model.price)),
    ])
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.iter().map(|name| clean(name)).collect::<Vec<_>>().join(" ") }
}

fn tokens(tokens: Option<u64>) -> String {
    tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string())
}

/// Of a million tokens read, and of a million written.
fn price_text(price: Option<ModelPrice>) -> String {
    price.map_or_else(|| "-".to_owned(), |price| format!("{} / {}", price.input_per_million, price.output_per_million))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_prices_are_parsed() {
        let parsed = |text: &str| model(text).map(|model| (model.id, model.aliases.join(" ")));
        for (text, id, aliases) in [
            ("gpt-4o", "gpt-4o", ""),
            ("gpt-4o=gpt-4,best", "gpt-4o", "gpt-4 best"),
            ("vendor/x:free=", "vendor/x:free", ""),
        ] {
            assert_eq!(parsed(text), Ok((id.into(), aliases.into())), "{text}");
        }
        assert!(model("").is_err() && model("=a").is_err());
        let (id, found) = price("gpt-4o=2.5,10").unwrap();
        assert_eq!((id.as_str(), found.input_per_million, found.output_per_million), ("gpt-4o", 2.5, 10.0));
        for text in ["gpt-4o", "gpt-4o=1", "gpt-4o=1,x", "=1,2", "gpt-4o=nan,1", "gpt-4o=1,inf"] {
            assert!(price(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_known_need_not_be_said() {
        let new = |name: &str, kind, has_url| new_definition(name.into(), Vec::new(), kind, has_url);
        let openai = new("openai", None, false).unwrap();
        assert_eq!(openai.kind, ProviderKind::Openai);
        assert!(openai.base_url.is_some() && openai.models.iter().any(|model| model.aliases.contains(&"gpt-4".into())));
        assert!(openai.models.iter().all(|model| model.price.is_none()), "prices are the user's to say");
        assert_eq!(new("ollama", None, false).unwrap().kind, ProviderKind::Openai);
        assert!(new("openai", None, true).unwrap().models.is_empty());
        assert!(new("anthropic", Some(ProviderKind::Openai), false).unwrap().models.is_empty());
        assert_eq!(new("mine", Some(ProviderKind::Gemini), false).unwrap().base_url, None);
        assert_eq!(new("mine", None, true).unwrap_err().exit_status(), 2);
    }

    #[test]
    fn models_are_added_changed_and_removed() {
        let mut models = vec![model("a=x").unwrap(), model("b").unwrap()];
        models[0].context_tokens = Some(1);
        change_models(&mut models, vec![model("a=y").unwrap(), model("c").unwrap()], &["b".into()]).unwrap();
        let shown: Vec<_> = models.iter().map(|model| (model.id.as_str(), model.aliases.join(" "))).collect();
        assert_eq!(shown, [("a", "y".to_owned()), ("c", String::new())]);
        assert_eq!(models[0].context_tokens, Some(1));
        assert!(change_models(&mut models, Vec::new(), &["none".into()]).is_err());
    }
}
