//! Computes which parts of a log are the conversation of a session that went back to earlier points.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A session went back: at `at` in its log, to the point after `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    /// The number of the event that says so.
    pub at: u64,
    /// The last event that counted then.
    pub to: u64,
}

/// The events up to `until` that nothing before `until` has taken back, as ranges in order. `rewinds` are in order, each
/// with `to` before `at`.
///
/// What lies behind the newest rewind counts, together with what counted at the point it went back to; and so on.
#[must_use]
pub fn standing(until: u64, rewinds: &[Rewound]) -> Vec<RangeInclusive<u64>> {
    let mut ranges = Vec::new();
    let mut end = until;
    for rewind in rewinds.iter().rev() {
        if rewind.at <= end {
            ranges.push(rewind.at..=end);
            end = rewind.to;
        }
    }
    if end > 0 {
        ranges.push(1..=end);
    }
    ranges.reverse();
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rewind_can_be_undone_and_is_remembered() {
        let first = Rewound { at: 10, to: 3 };
        let back = Rewound { at: 15, to: 9 };
        assert_eq!(standing(8, &[]), [1..=8]);
        assert_eq!(standing(12, &[first]), [1..=3, 10..=12]);
        assert_eq!(standing(20, &[first, back]), [1..=9, 15..=20]);
        // To a point between the two: what the first one took back is still taken back.
        assert_eq!(standing(25, &[first, back, Rewound { at: 22, to: 12 }]), [1..=3, 10..=12, 22..=25]);
        assert_eq!(standing(5, &[Rewound { at: 2, to: 0 }]), [2..=5]);
    }

    proptest! {
        /// Against a machine that keeps the set of what stands, and a copy of it for each point.
        #[test]
        fn it_is_what_a_history_says(moves in prop::collection::vec(prop::option::weighted(0.3, 0.0..1.0_f64), 0..60)) {
            let (mut rewinds, mut history) = (Vec::new(), vec![BTreeSet::new()]);
            for (at, back) in (1_u64..).zip(moves) {
                let mut now = match back {
                    Some(part) => {
                        let to = (part * at as f64) as u64;
                        rewinds.push(Rewound { at, to });
                        history[to as usize].clone()
                    }
                    None => history[at as usize - 1].clone(),
                };
                now.insert(at);
                history.push(now);
            }
            for (until, expected) in (0_u64..).zip(&history) {
                let got: BTreeSet<u64> = standing(until, &rewinds).into_iter().flatten().collect();
                prop_assert_eq!(&got, expected);
            }
        }
    }
}
