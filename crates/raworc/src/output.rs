//! All output to standard output and standard error.

use std::io::{self, ErrorKind, IsTerminal as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Result};

/// Output formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    #[default]
    Text,
    /// For programs: the API's document as one JSON value; streams as JSON lines.
    Json,
}

/// A text style, shown as a colour on terminals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Emphasized.
    Bold,
    /// Less important.
    Faint,
    /// Success.
    Good,
    /// Needs attention.
    Warning,
    /// Failure.
    Bad,
    /// A name.
    Name,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Bold => "1",
            Style::Faint => "2",
            Style::Good => "32",
            Style::Warning => "33",
            Style::Bad => "31",
            Style::Name => "36",
        }
    }
}

/// The output of a command.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    format: Format,
    out_colour: bool,
    error_colour: bool,
    error_terminal: bool,
}

impl Ui {
    /// The output to the streams of this process.
    pub fn new(format: Format) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let wanted = !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            format,
            out_colour: wanted && format == Format::Text && io::stdout().is_terminal(),
            error_colour: wanted && io::stderr().is_terminal(),
            error_terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether the output is JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether to show progress.
    pub fn shows_progress(&self) -> bool {
        self.format == Format::Text && self.error_terminal
    }

    /// Whether standard error has colours.
    pub fn error_colour(&self) -> bool {
        self.error_colour
    }

    /// Writes to standard output.
    pub fn out(&self, text: impl AsRef<[u8]>) -> Result<()> {
        write_all(&mut io::stdout().lock(), text.as_ref())
    }

    /// Writes a line to standard output.
    pub fn line(&self, text: &str) -> Result<()> {
        self.out(format!("{text}\n"))
    }

    /// Writes an indented JSON document.
    pub fn json(&self, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(document).map_err(|error| Failure::failed(error.to_string()))?;
        self.line(&text)
    }

    /// Writes a JSON document on one line.
    pub fn json_line(&self, document: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(document).map_err(|error| Failure::failed(error.to_string()))?;
        self.line(&text)
    }

    /// Writes the document as JSON, or as the text that `text` returns.
    pub fn show<T: Serialize>(&self, document: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.is_json() { self.json(document) } else { self.line(&text(document)) }
    }

    /// Writes a hint or warning to standard error, unless the output is JSON.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            self.error(format!("{}\n", self.paint_error(Style::Faint, text)));
        }
    }

    /// Writes to standard error. Failures are ignored.
    pub fn error(&self, text: impl AsRef<[u8]>) {
        let _ = write_all(&mut io::stderr().lock(), text.as_ref());
    }

    /// Colours a text if standard output has colours.
    pub fn paint(&self, style: Style, text: &str) -> String {
        painted(self.out_colour, style, text)
    }

    /// Colours a text if standard error has colours.
    pub fn paint_error(&self, style: Style, text: &str) -> String {
        painted(self.error_colour, style, text)
    }
}

fn painted(colour: bool, style: Style, text: &str) -> String {
    if colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
}

fn write_all(stream: &mut impl io::Write, bytes: &[u8]) -> Result<()> {
    match stream.write_all(bytes).and_then(|()| stream.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::PipeClosed),
        Err(error) => Err(Failure::failed(format!("the output could not be written: {error}"))),
    }
}

/// A table without borders. Cells must be [`clean`](crate::text::clean).
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Lines of names and values; pairs without a value are left out.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let lines: Vec<String> = shown().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_space_at_the_ends() {
        let text =
            table(&["NAME", "STATE"], vec![vec!["a".into(), "READY".into()], vec!["longer".into(), "IDLE".into()]]);
        assert_eq!(text, "NAME    STATE\na       READY\nlonger  IDLE");
    }

    #[test]
    fn fields_without_value_are_left_out() {
        assert_eq!(fields(&[("a", "1".into()), ("bcd", String::new()), ("ef", "2".into())]), "a   1\nef  2");
    }

    #[test]
    fn colours_only_where_wanted() {
        assert_eq!(painted(false, Style::Bad, "x"), "x");
        assert_eq!(painted(true, Style::Bad, "x"), "\x1b[31mx\x1b[0m");
    }

    #[test]
    fn a_closed_pipe_is_no_error_to_talk_about() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        assert!(matches!(write_all(&mut writer, b"x"), Err(Failure::PipeClosed)));
    }
}
