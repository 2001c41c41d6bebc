//! The queue of reports: numbered, and kept until the server has acknowledged them.

use std::collections::VecDeque;

use raworc_core::limits::UNACKED_BYTES_MAX;
use raworc_core::link::{HostFrame, Report, WorkId};

struct Unacked {
    n: u64,
    line: String,
    /// Set on the last report of a work.
    finished: Option<WorkId>,
}

/// All reports that are not acknowledged.
#[derive(Default)]
pub struct Reports {
    unacked: VecDeque<Unacked>,
    bytes: usize,
    /// The number of the newest report.
    last: u64,
    /// How many at the end were not sent over this connection.
    unsent: usize,
}

impl Reports {
    /// Queues a report.
    pub fn add(&mut self, report: Report) {
        let finished = if let Report::Finished { work, .. } = &report { Some(*work) } else { None };
        let n = self.last + 1;
        let Some(line) = line(&HostFrame::Report { n, report }) else { return };
        self.last = n;
        self.bytes += line.len();
        self.unsent += 1;
        self.unacked.push_back(Unacked { n, line, finished });
    }

    /// Removes the reports up to and including number `n`, which are stored.
    pub fn acknowledge(&mut self, n: u64) {
        while let Some(report) = self.unacked.pop_front_if(|report| report.n <= n) {
            self.bytes -= report.line.len();
        }
        self.unsent = self.unsent.min(self.unacked.len());
    }

    /// Marks every report as unsent, for a new connection.
    pub fn mark_unsent(&mut self) {
        self.unsent = self.unacked.len();
    }

    /// Sends the reports that were not sent over this connection.
    pub fn send(&mut self, mut send: impl FnMut(&str)) {
        let sent = self.unacked.len() - std::mem::take(&mut self.unsent);
        for report in self.unacked.range(sent..) {
            send(&report.line);
        }
    }

    /// Whether the queue is full, so that agents' output is not read.
    pub fn is_full(&self) -> bool {
        self.bytes >= UNACKED_BYTES_MAX
    }

    /// Whether every report is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Work that has ended but may not be known to the server as ended.
    pub fn finished(&self) -> impl Iterator<Item = WorkId> {
        self.unacked.iter().filter_map(|report| report.finished)
    }
}

/// A frame as a line of JSON.
pub fn line(frame: &HostFrame) -> Option<String> {
    // Serializing these frames cannot fail.
    serde_json::to_string(frame).ok().map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use raworc_core::link::{Ending, OutputStream};

    use super::*;

    fn sent(reports: &mut Reports) -> usize {
        let mut count = 0;
        reports.send(|_| count += 1);
        count
    }

    #[test]
    fn each_is_sent_once_over_a_connection_and_kept_until_stored() {
        let work = WorkId::Exec(uuid::Uuid::nil());
        let mut reports = Reports::default();
        for _ in 0..3 {
            reports.add(Report::Output { work, stream: OutputStream::Stdout, text: "x".into() });
        }
        assert_eq!([sent(&mut reports), sent(&mut reports)], [3, 0]);
        reports.add(Report::Finished {
            work,
            ending: Ending::Exited(0),
            duration_micros: 1,
            dropped_bytes: 0,
            output_file: None,
        });
        reports.acknowledge(2);
        assert_eq!(sent(&mut reports), 1);
        reports.mark_unsent();
        assert_eq!(sent(&mut reports), 2);
        assert_eq!(reports.finished().collect::<Vec<_>>(), [work]);
        reports.mark_unsent();
        reports.acknowledge(9);
        assert_eq!((sent(&mut reports), reports.bytes, reports.is_empty()), (0, 0, true));
    }
}
