//! Formats text for people: times, spans, sizes, and untrusted text.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use raworc_core::names::is_invisible;

/// Makes untrusted text safe for one line of a terminal: no control characters, escape sequences, invisible
/// characters or changes of writing direction.
pub fn clean(text: &str) -> String {
    let is_harmful = |c: char| c.is_control() || is_invisible(c);
    text.chars().flat_map(|c| if is_harmful(c) { shown(c) } else { vec![c] }).collect()
}

/// As [`clean`], but keeps lines, tabs, and the characters that scripts and emoji need.
pub fn clean_lines(text: &str) -> String {
    let keep = |c: char| matches!(c, '\n' | '\t') || !is_harmful(c);
    text.chars().flat_map(|c| if keep(c) { vec![c] } else { shown(c) }).collect()
}

fn shown(c: char) -> Vec<char> {
    c.escape_default().collect()
}

fn is_harmful(c: char) -> bool {
    let is_of_writing = c.is_whitespace() || matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}');
    c.is_control() || (is_invisible(c) && !is_of_writing)
}

/// The beginning of the first line, in characters.
pub fn brief(text: &str, characters_max: usize) -> String {
    let trimmed = text.trim();
    let line = trimmed.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(characters_max).collect();
    if short.len() < trimmed.len() {
        short.push('…');
    }
    clean_lines(&short)
}

/// A span of time in its two largest units.
pub fn span(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    if !(0.0..1e15).contains(&seconds) {
        return "?".into();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 59.95 {
        let text = format!("{seconds:.1}");
        return format!("{} s", text.strip_suffix(".0").unwrap_or(&text));
    }
    let (large, small, large_name, small_name) = match seconds.round() as u64 {
        s if s < HOUR => (s / MINUTE, s % MINUTE, "min", "s"),
        s if s < DAY => (s / HOUR, s % HOUR / MINUTE, "h", "min"),
        s => (s / DAY, s % DAY / HOUR, "d", "h"),
    };
    if small == 0 { format!("{large} {large_name}") } else { format!("{large} {large_name} {small} {small_name}") }
}

/// Roughly how long ago.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let passed = now.duration_since(at);
    if passed < SignedDuration::from_secs(1) && passed > SignedDuration::from_secs(-1) {
        return "now".into();
    }
    let (distance, is_future) = if passed.is_negative() { (-passed, true) } else { (passed, false) };
    let seconds = distance.as_secs();
    let text = match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    if is_future { format!("in {text}") } else { format!("{text} ago") }
}

/// A local time.
pub fn at(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The local time of day with milliseconds.
pub fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string()
}

/// A local time, and how long ago it is.
pub fn at_and_ago(time: Timestamp) -> String {
    format!("{} ({})", at(time), ago(time, Timestamp::now()))
}

/// A size in bytes.
pub fn bytes(amount: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if amount < 1024 {
        return format!("{amount} B");
    }
    let (mut value, mut unit) = (amount as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_controls_the_terminal() {
        for (text, line, lines) in [
            ("größe 日本", "größe 日本", "größe 日本"),
            ("a\u{1b}[31mb", "a\\u{1b}[31mb", "a\\u{1b}[31mb"),
            ("a\nb\tc\r", "a\\nb\\tc\\r", "a\nb\tc\\r"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\u{202e}b", "a\\u{202e}b", "a\\u{202e}b"),
            ("❤\u{fe0f}\u{3000}", "❤\\u{fe0f}\\u{3000}", "❤\u{fe0f}\u{3000}"),
            ("a\u{200b}\u{feff}b", "a\\u{200b}\\u{feff}b", "a\\u{200b}\\u{feff}b"),
        ] {
            assert_eq!((clean(text).as_str(), clean_lines(text).as_str()), (line, lines), "{text:?}");
        }
    }

    #[test]
    fn brief_texts() {
        for (text, expected) in
            [("ls", "ls"), ("  ls -la\nrm x\n", "ls -l…"), ("a\nb", "a…"), ("", ""), ("12345\n", "12345")]
        {
            assert_eq!(brief(text, 5), expected, "{text:?}");
        }
    }

    #[test]
    fn spans() {
        for (seconds, expected) in [
            (0.0, "0 ms"),
            (0.0034, "3 ms"),
            (0.9999, "1 s"),
            (1.25, "1.2 s"),
            (59.99, "1 min"),
            (61.0, "1 min 1 s"),
            (3600.0, "1 h"),
            (9000.0, "2 h 30 min"),
            (90_000.0, "1 d 1 h"),
            (-1.0, "?"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn how_long_ago() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (seconds, expected) in [
            (0, "now"),
            (5, "5 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7200, "2 h ago"),
            (200_000, "2 d ago"),
            (-30, "in 30 s"),
        ] {
            assert_eq!(ago(now - SignedDuration::from_secs(seconds), now), expected, "{seconds}");
        }
    }

    #[test]
    fn amounts_of_bytes() {
        for (amount, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (512 << 20, "512 MiB"),
            (1_600_000, "1.5 MiB"),
            ((1 << 20) - 1, "1 MiB"),
        ] {
            assert_eq!(bytes(amount), expected, "{amount}");
        }
    }
}
