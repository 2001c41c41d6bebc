//! What may be called what. Each function answers with a sentence for the person who chose the name.

use unicode_normalization::UnicodeNormalization as _;

use crate::limits::{
    ENV_BYTES_MAX, ENV_VARIABLES_MAX, IMAGE_NAME_BYTES_MAX, MODEL_NAME_BYTES_MAX, NAME_CHARACTERS_MAX,
};

/// A text of one line that is shown: 1 to 128 characters, each of which can be seen, but for spaces between others; composed as
/// Unicode's form NFC has it, so that what looks alike because letters are put together in another way is the same.
pub fn check_text(text: &str) -> Result<(), String> {
    check_length(text)?;
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    if let Some(c) = text.chars().find(|&c| is_invisible(c)) {
        return Err(format!("must not contain U+{:04X}, which cannot be seen", u32::from(c)));
    }
    if text.trim() != text {
        return Err("must not begin or end with a space".into());
    }
    if !unicode_normalization::is_nfc(text) {
        return Err("must be written with composed letters (Unicode's form NFC)".into());
    }
    Ok(())
}

/// A title: of sessions and tokens. A text that works in a path of a URL (so no `/`, `\\`, `.` or `..`), and no UUID (names work
/// wherever ids do).
pub fn check_title(text: &str) -> Result<(), String> {
    check_text(text)?;
    if text.contains(['/', '\\']) {
        return Err("must not contain '/' or '\\': names stand in the paths of URLs".into());
    }
    if matches!(text, "." | "..") {
        return Err("must not be '.' or '..': names stand in the paths of URLs".into());
    }
    if uuid::Uuid::parse_str(text).is_ok() {
        return Err("must not be a UUID: names are accepted wherever ids are".into());
    }
    Ok(())
}

/// A name of another time, without what is in no name any more.
pub fn tidied(name: &str) -> String {
    let shown = name.chars().filter(|&c| !c.is_control() && !is_invisible(c));
    let tidied: String = shown.map(|c| if matches!(c, '/' | '\\') { '-' } else { c }).nfc().collect();
    tidied.trim().to_owned()
}

/// Whether a character shows nothing of itself, or changes how others are shown: format characters (among them those for the
/// direction of writing), spaces other than the usual one, fillers, variation selectors, and what Unicode has not assigned or
/// leaves to private use.
pub fn is_invisible(c: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};
    let is_of_its_kind = matches!(
        c.general_category(),
        GeneralCategory::Format
            | GeneralCategory::Unassigned
            | GeneralCategory::PrivateUse
            | GeneralCategory::Surrogate
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    );
    let is_other_space = c.is_whitespace() && c != ' ';
    // What Unicode calls ignorable by default, and is in none of these categories; and a blank pattern.
    let is_ignorable = matches!(c, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}');
    is_of_its_kind || is_other_space || is_ignorable
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
    if text.contains('\\') || text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("must not contain '\\', nor a part between slashes that is empty, '.' or '..'".into());
    }
    if uuid::Uuid::parse_str(text).is_ok() {
        return Err("must not be a UUID: names are accepted wherever ids are".into());
    }
    Ok(())
}

/// A model's name or alias: printable ASCII without spaces, as providers have them.
pub fn check_model(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MODEL_NAME_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must be 1 to {MODEL_NAME_BYTES_MAX} printable ASCII characters without spaces"));
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
            ("日本 語", true, false),
            ("../x", false, false),
            ("a/b", false, false),
            ("a\\b", false, false),
            (".", false, false),
            ("..", false, false),
            ("...", true, false),
            (".x", true, false),
            ("gro\u{308}ße", false, false),
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
    fn what_cannot_be_seen_is_in_no_name() {
        for c in [
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{feff}',
            '\u{61c}',
            '\u{180e}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{a0}',
            '\u{2003}',
            '\u{3000}',
            '\u{e000}',
            '\u{378}',
            '\u{e0041}',
            '\u{e0101}',
            '\u{fffe}',
            '\u{10ffff}',
            '\u{2800}',
            '\u{0}',
            '\u{7f}',
            '\u{9b}',
        ] {
            for text in [format!("a{c}b"), format!("{c}a"), format!("a{c}"), c.to_string()] {
                let outcomes =
                    [check_text, check_title, check_label, check_handle, check_image].map(|check| check(&text));
                assert!(outcomes.iter().all(Result::is_err), "{text:?}");
            }
        }
        assert_eq!(tidied(" a/b\u{200b}\\gro\u{308}ße\n"), "a-b-größe");
        let why = check_title("a\u{200b}b").unwrap_err();
        assert!(why.contains("U+200B"), "{why}");
    }

    #[test]
    fn names_of_images() {
        for (text, ok) in [
            ("busybox", true),
            ("registry.example:5000/team/tools:3", true),
            ("registry.example/a@sha256:00", true),
            ("..", false),
            (".", false),
            ("a/../b", false),
            ("a/./b", false),
            ("a//b", false),
            ("/a", false),
            ("a/", false),
            ("a\\b", false),
            ("", false),
        ] {
            assert_eq!(check_image(text).is_ok(), ok, "{text:?}");
        }
    }

    #[test]
    fn names_of_models() {
        let (longest, longer) = ("m".repeat(MODEL_NAME_BYTES_MAX), "m".repeat(MODEL_NAME_BYTES_MAX + 1));
        for (text, ok) in [
            ("gpt-4o", true),
            ("vendor/model:free", true),
            ("hf.co/a/b:Q4_K_M", true),
            (longest.as_str(), true),
            (longer.as_str(), false),
            ("", false),
            ("a b", false),
            ("a\n", false),
            ("größe", false),
        ] {
            assert_eq!(check_model(text).is_ok(), ok, "{text:?}");
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
