//! A spinner on standard error, shown on terminals only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Ui;
use crate::text::clean;

/// A spinner; removed on drop.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// Shows a spinner with this text.
    pub fn start(ui: &Ui, what: &str) -> Self {
        let spinner = ui.shows_progress().then(|| {
            let template = if ui.error_colour() {
                "{spinner:.cyan} {msg:.dim} {elapsed:.dim}"
            } else {
                "{spinner} {msg} {elapsed}"
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style).with_message(clean(what));
            spinner.enable_steady_tick(Duration::from_millis(80));
            spinner
        });
        Self { spinner }
    }

    /// Changes the text.
    pub fn set_text(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(clean(what));
        }
    }

    /// Removes the spinner.
    pub fn stop(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}
