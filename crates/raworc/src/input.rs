//! Parses what people type.

use std::io::{IsTerminal as _, Read as _};

use raworc_core::checkpoints::Policy;
use raworc_core::limits::MESSAGE_BYTES_MAX;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::output::Ui;

/// Reads a text for an agent; `-` means standard input.
pub fn prompt(text: &str) -> Result<String> {
    let bytes = if text == "-" { standard_input()? } else { text.as_bytes().to_owned() };
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Failure::usage(format!("the text is longer than {MESSAGE_BYTES_MAX} bytes"))
            .help("Put it into a file of the session with `raworc session files put`."));
    }
    let content = String::from_utf8(bytes).map_err(|_| Failure::usage("standard input is not UTF-8 text"))?;
    if content.trim().is_empty() {
        return Err(
            Failure::usage("there is no text to send").help("Write it after the command, or pipe it in and write '-'.")
        );
    }
    Ok(content)
}

/// Reads standard input up to one byte above the limit.
pub fn standard_input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    std::io::stdin()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("standard input can't be read: {error}")))?;
    Ok(bytes)
}

/// Refuses a secret among the arguments, without repeating it; `instead` is the option to use.
pub fn no_secret_argument(is_there: bool, instead: &str) -> Result<()> {
    if !is_there {
        return Ok(());
    }
    let help = format!(
        "Use {instead}, and give it on standard input. If it was a real one, replace it where it came from: this one may be in your \
         shell's history."
    );
    Err(Failure::usage("a secret is no argument: everyone on this machine can see the arguments of programs")
        .help(help))
}

/// Reads a secret from standard input, if it is wanted, without the line break at its end.
pub fn secret(ui: &Ui, is_wanted: bool, bytes_max: usize) -> Result<Option<String>> {
    if !is_wanted {
        return Ok(None);
    }
    if std::io::stdin().is_terminal() {
        ui.note("paste it, then press Enter and Ctrl-D");
    }
    let mut text = String::new();
    // What is longer is refused by the server.
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(3);
    std::io::stdin()
        .take(limit)
        .read_to_string(&mut text)
        .map_err(|error| Failure::usage(format!("standard input can't be read as text: {error}")))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return Err(Failure::usage("there is nothing on standard input").help("Pipe it in: raworc … < FILE"));
    }
    Ok(Some(text.to_owned()))
}

/// Parses a span of time: seconds, or numbers with s, m, h, d or w, such as `90`, `10m`, `1h30m`.
pub fn seconds(text: &str) -> std::result::Result<u64, String> {
    let wrong = || "write seconds, or numbers with s, m, h, d or w, such as 90, 10m or 1h30m".to_owned();
    if let Ok(plain) = text.parse() {
        return Ok(plain);
    }
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..end].parse().map_err(|_| wrong())?;
        let mut after = rest[end..].chars();
        let unit: u64 = match after.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(unit).and_then(|span| total.checked_add(span)).ok_or_else(wrong)?;
        rest = after.as_str();
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Parses the name of a checkpoint policy.
pub fn policy(text: &str) -> std::result::Result<Policy, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| "write each_message, on_stop, every or manual".to_owned())
}

/// Parses a variable: `NAME=VALUE`.
pub fn variable(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".into()),
    }
}

/// Parses a JSON object.
pub fn object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|_| r#"write a JSON object, such as '{"project": "demo"}'"#.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        for (text, expected) in [
            ("90", Some(90)),
            ("0", Some(0)),
            ("10m", Some(600)),
            ("1h30m", Some(5400)),
            ("2d", Some(172_800)),
            ("1w", Some(604_800)),
            ("5s", Some(5)),
            ("", None),
            ("h", None),
            ("-1", None),
            ("1.5h", None),
            ("1h30", None),
            ("5 m", None),
            ("99999999999999999999d", None),
            ("9999999999999999999w", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn variables_and_objects() {
        assert_eq!(variable("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(variable("A=").unwrap(), ("A".into(), String::new()));
        assert!(variable("A").is_err() && variable("=b").is_err());
        assert!(object(r#"{"a": 1}"#).is_ok());
        assert!(object("[1]").is_err() && object("x").is_err());
    }

    #[test]
    fn prompts() {
        assert_eq!(prompt("ls").unwrap(), "ls");
        assert_eq!(prompt("  ").unwrap_err().exit_status(), 2);
        assert_eq!(prompt(&"x".repeat(MESSAGE_BYTES_MAX + 1)).unwrap_err().exit_status(), 2);
    }
}
