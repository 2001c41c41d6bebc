//! Formats results as a table or JSON.

use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

/// The name of the result that others are compared with.
const OURS: &str = "raworc: create → READY";

/// Durations of repeated measurements.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a duration.
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The quantile of `share` (0 to 1), by nearest rank.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// All results in order.
pub struct Report {
    times: Vec<(String, Samples)>,
    figures: Vec<(String, f64, &'static str)>,
}

impl Report {
    /// An empty report.
    pub fn new() -> Self {
        Self { times: Vec::new(), figures: Vec::new() }
    }

    /// Adds durations.
    pub fn times(&mut self, name: &str, samples: Samples) {
        eprintln!("{name}: {:.2} ms", millis(samples.quantile(0.5)));
        self.times.push((name.to_owned(), samples));
    }

    /// Adds a number with its unit.
    pub fn figure(&mut self, name: &str, value: f64, unit: &'static str) {
        eprintln!("{name}: {value:.2} {unit}");
        self.figures.push((name.to_owned(), value, unit));
    }

    /// Prints it to standard output.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        let text = if as_json { serde_json::to_string_pretty(&self.json())? } else { self.text() };
        let mut out = std::io::stdout().lock();
        std::io::Write::write_all(&mut out, format!("{text}\n").as_bytes()).context("the result could not be written")
    }

    fn ours(&self) -> Option<Duration> {
        self.times.iter().find(|(name, _)| name == OURS).map(|(_, samples)| samples.quantile(0.5))
    }

    fn ratio(&self, samples: &Samples) -> Option<f64> {
        Some(samples.quantile(0.5).as_secs_f64() / self.ours().filter(|ours| !ours.is_zero())?.as_secs_f64())
    }

    fn text(&self) -> String {
        let mut times = table(&["", "median ms", "p99 ms", "min ms", "times as long as create → READY", "n"]);
        for (name, samples) in &self.times {
            let ratio = self.ratio(samples).map_or(String::new(), |ratio| format!("{ratio:.1}"));
            let ms = |share| format!("{:.2}", millis(samples.quantile(share)));
            times.add_row([name.clone(), ms(0.5), ms(0.99), ms(0.0), ratio, samples.0.len().to_string()]);
        }
        let mut figures = table(&["", "", ""]);
        for (name, value, unit) in &self.figures {
            figures.add_row([name.clone(), format!("{value:.2}"), (*unit).to_owned()]);
        }
        let tables = [(self.times.len(), times), (self.figures.len(), figures)];
        let shown: Vec<String> =
            tables.iter().filter(|(rows, _)| *rows > 0).map(|(_, table)| table.to_string()).collect();
        shown.join("\n\n")
    }

    fn json(&self) -> Value {
        let time = |(name, samples): &(String, Samples)| {
            let value = json!({
                "median_ms": millis(samples.quantile(0.5)), "p99_ms": millis(samples.quantile(0.99)),
                "min_ms": millis(samples.quantile(0.0)), "ratio": self.ratio(samples), "n": samples.0.len(),
            });
            (name.clone(), value)
        };
        let figure =
            |(name, value, unit): &(String, f64, &'static str)| (name.clone(), json!({ "value": value, "unit": unit }));
        let times: Map<String, Value> = self.times.iter().map(time).collect();
        let figures: Map<String, Value> = self.figures.iter().map(figure).collect();
        json!({ "times": times, "figures": figures })
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
