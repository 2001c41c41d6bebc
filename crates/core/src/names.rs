//! What may be called what. Each function answers with a sentence for the person who chose the name.

use crate::limits::{ENV_BYTES_MAX, ENV_VARIABLES_MAX, IMAGE_NAME_BYTES_MAX, NAME_CHARACTERS_MAX};

/// A title: of sessions and tokens. 1 to 128 characters, none of them a control character, not blank at either end, and
/// not a UUID (names work wherever ids do).
pub fn check_title(text: &str) -> Result<(), String> {
    check_length(text)?;
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    if text.trim() != text {
        return Err("must not begin or end with a space".into());
    }
    if uuid::Uuid::parse_str(text).is_ok() {
        return Err("must not be a UUID: names are accepted wherever ids are".into());
    }
    Ok(())
}

/// A label of a checkpoint: a title that cannot be taken for anything else that names one, alone or behind `SESSION@`.
pub fn check_label(text: &str) -> Result<(), String> {
    check_title(text)?;
    if text == "now" || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must not be a number, nor `now`: these name other checkpoints".into());
    }
    if text.contains('@') {
        return Err("must not contain '@', which stands between a session and a checkpoint".into());
    }
    Ok(())
}

/// A handle: of agents and accounts. Letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
pub fn check_handle(text: &str) -> Result<(), String> {
    check_title(text)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.starts_with(['-', '_', '.']) || !text.chars().all(allowed) {
        return Err("may contain ASCII letters, digits, '-', '_' and '.', and begins with a letter or digit".into());
    }
    Ok(())
}

/// An image: where it comes from, or what it was called when it was imported. Printable ASCII without spaces, and not a UUID.
pub fn check_image(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > IMAGE_NAME_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must be 1 to {IMAGE_NAME_BYTES_MAX} printable ASCII characters without spaces"));
    }
    if uuid::Uuid::parse_str(text).is_ok() {
        return Err("must not be a UUID: names are accepted wherever ids are".into());
    }
    Ok(())
}

/// Whether an environment variable may have this name: printable ASCII but '=', as Kubernetes and `docker run --env` have it. Shells
/// pass on what is no name of theirs (`my.setting`, `FOO-BAR`).
pub fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=')
}

/// Environment variables for work in a container.
pub fn check_env<'a>(variables: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), String> {
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in variables {
        if !is_variable(name) {
            return Err(format!("{name:?} is not a variable's name: use printable ASCII without spaces and '='"));
        }
        if name.starts_with("RAWORC_") {
            return Err(format!("{name} is taken: names beginning with RAWORC_ belong to Raworc"));
        }
        if value.contains('\0') {
            return Err(format!("the value of {name} contains a NUL byte"));
        }
        count += 1;
        bytes += name.len() + value.len();
    }
    if count > ENV_VARIABLES_MAX {
        return Err(format!("{count} variables, at most {ENV_VARIABLES_MAX} are allowed"));
    }
    if bytes > ENV_BYTES_MAX {
        return Err(format!("{bytes} bytes in all, at most {ENV_BYTES_MAX} are allowed"));
    }
    Ok(())
}

fn check_length(text: &str) -> Result<(), String> {
    let length = text.chars().count();
    if (1..=NAME_CHARACTERS_MAX).contains(&length) {
        Ok(())
    } else {
        Err(format!("must have 1 to {NAME_CHARACTERS_MAX} characters, has {length}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_handles() {
        let long = "x".repeat(NAME_CHARACTERS_MAX + 1);
        let table = [
            ("shell", true, true),
            ("customer-analysis-2025-01-15", true, true),
            ("Updated session name", true, false),
            ("größe", true, false),
            ("../x", true, false),
            (".x", true, false),
            ("", false, false),
            (" x", false, false),
            ("a\nb", false, false),
            ("a\u{1b}[31m", false, false),
            ("0192f1d2-0000-7000-8000-000000000000", false, false),
            (long.as_str(), false, false),
        ];
        for (text, title, handle) in table {
            assert_eq!((check_title(text).is_ok(), check_handle(text).is_ok()), (title, handle), "{text:?}");
        }
    }

    #[test]
    fn labels() {
        for (text, ok) in
            [("v1", true), ("1.0", true), ("+1", true), ("Now", true), ("now", false), ("12", false), ("a@b", false)]
        {
            assert_eq!(check_label(text).is_ok(), ok, "{text:?}");
        }
    }

    #[test]
    fn environments() {
        let check = |name: &str, value: &str| check_env([(&name.to_owned(), &value.to_owned())].into_iter()).is_ok();
        for (name, value, ok) in [
            ("A_1", "x", true),
            ("", "x", false),
            ("1A", "x", true),
            ("a.b-c", "x", true),
            ("a b", "x", false),
            ("a\nb", "x", false),
            ("ä", "x", false),
            ("A=B", "x", false),
            ("RAWORC_HOST_TOKEN", "x", false),
            ("A", "x\0", false),
            ("A", &"x".repeat(ENV_BYTES_MAX), false),
        ] {
            assert_eq!(check(name, value), ok, "{name}");
        }
    }
}
