//! Counters for Prometheus. Never a session's id as a label.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of the container start histogram, in seconds.
const START_SECONDS: [f64; 10] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// All counters.
pub struct Metrics {
    registry: Registry,
    starts: Histogram,
    requests: Family<Vec<(String, String)>, Counter>,
    sessions: Family<Vec<(String, String)>, Gauge<i64>>,
    hosts: Gauge<i64>,
    spares: Gauge<i64>,
    uptime: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("raworc");
        let starts = Histogram::new(START_SECONDS);
        let requests = Family::default();
        let sessions = Family::default();
        let hosts = Gauge::default();
        let spares = Gauge::default();
        let uptime = Gauge::default();
        registry.register("container_start_seconds", "Time the runtime took to start a container", starts.clone());
        registry.register("http_requests", "Requests answered, by status", requests.clone());
        registry.register("sessions", "Sessions that are not deleted, by state", sessions.clone());
        registry.register("hosts_connected", "Hosts connected now", hosts.clone());
        registry.register("spare_containers", "Containers prepared for sessions to come", spares.clone());
        registry.register("uptime_seconds", "Time since the server started", uptime.clone());
        Self { registry, starts, requests, sessions, hosts, spares, uptime }
    }
}

impl Metrics {
    /// A container was started.
    pub fn container_start(&self, took: Duration) {
        self.starts.observe(took.as_secs_f64());
    }

    /// A request was answered.
    pub fn request(&self, status: u16) {
        self.requests.get_or_create(&vec![("status".to_owned(), status.to_string())]).inc();
    }

    /// Everything as Prometheus text.
    pub fn text(&self, sessions: &BTreeMap<String, u64>, hosts: usize, spares: usize, uptime: Duration) -> String {
        for state in raworc_core::session::State::ALL {
            let count = sessions.get(state.as_str()).copied().unwrap_or(0);
            let label = vec![("state".to_owned(), state.as_str().to_owned())];
            self.sessions.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.hosts.set(i64::try_from(hosts).unwrap_or(i64::MAX));
        self.spares.set(i64::try_from(spares).unwrap_or(i64::MAX));
        self.uptime.set(uptime.as_secs_f64());
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}
