use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_a_line_and_an_example() {
    fn check(command: &clap::Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} has no description");
        let children: Vec<_> = command.get_subcommands().collect();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(!children.is_empty() || help.contains("Example"), "{path} has no example");
        for child in children.into_iter() {
            check(child, &format!("{path} {}", child.get_name()));
        }
    }
    check(&Cli::command(), "raworc");
}

#[test]
fn common_options_may_come_last() {
    let cli =
        Cli::try_parse_from(["raworc", "session", "get", "demo", "--output", "json", "--url", "http://x"]).unwrap();
    assert_eq!(cli.global.output, crate::output::Format::Json);
    assert_eq!(cli.global.url.as_deref(), Some("http://x"));
}

#[test]
fn examples_in_the_help_can_be_parsed() {
    for line in [
        "raworc run --keep --name demo x",
        "raworc run - --agent shell --output json",
        "raworc session create --name demo --prompt x --memory 2Gi --cpu 2",
        "raworc session create --agent shell --agent other --ttl 8h --env CI=1 --no-wait",
        "raworc session exec demo ls -l",
        "raworc session exec demo --directory /workspace/src --env CI=1 --timeout 10m -- cargo test",
        "raworc session exec demo --script x",
        "raworc session files ls demo",
        "raworc session files put demo - now.txt",
        "raworc session list --state busy --match x --all",
        "raworc session follow demo --from-start",
        "raworc session agents assign demo shell builder",
        "raworc session delete a b",
        "raworc agent update builder --timeout 1h --name big-builder",
        "raworc provider add openai --key-stdin",
        "raworc provider add work --kind openai --base-url http://10.0.0.1:8000/v1 --model llama-70b=big,llama",
        "raworc provider update openai --add-model gpt-6=best --price gpt-6=2.5,10",
        "raworc model get gpt-4",
        "raworc secret add github --host api.github.com --value-stdin",
        "raworc secret add db --env DATABASE_PASSWORD --value-stdin",
        "raworc account create alice --role member",
        "raworc token create ci --account builder --expires-in 30d",
        "raworc serve --data-dir ./d --listen 127.0.0.1:9100 --oci-runtime /usr/sbin/runc --log debug --log-format json",
        "raworc doctor --output json",
        "raworc completions zsh",
    ] {
        let parsed = Cli::try_parse_from(line.split(' '));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn wrong_options_are_refused() {
    for line in [
        "raworc",
        "raworc session",
        "raworc session send demo",
        "raworc session send demo x --wait 1 --no-wait",
        "raworc session create --memory lots",
        "raworc session create --env novalue",
        "raworc session list --state SLEEPING",
        "raworc session list --limit 0",
        "raworc session exec demo",
        "raworc token revoke not-an-id",
        "raworc provider update openai --no-key --key-stdin",
        "raworc provider add x --kind telegraph",
        "raworc secret add db --env A --host b.test",
        "raworc account create a --role king",
        "raworc serve --listen nowhere",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}
