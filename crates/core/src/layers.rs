//! Which layers of a workspace are made one, so that it never lies on too many.

use std::ops::Range;

use crate::limits::{LAYERS_KEPT, LAYERS_MAX, LAYERS_SQUASHED_AT};

/// What a layer costs beside its entries, in entries.
const LAYER_COST: u64 = 64;

/// How many layers workspaces lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// A chain of so many is made shorter in the background.
    pub merged_at: usize,
    /// A chain of so many is made shorter before anything more is laid on it.
    pub max: usize,
    /// So many of the newest stay as they are.
    pub kept: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { merged_at: LAYERS_SQUASHED_AT, max: LAYERS_MAX, kept: LAYERS_KEPT }
    }
}

/// The run of layers to make one, from the number of entries of each (the topmost first); it does not start at a layer for
/// which `may_start` is false, nor among the topmost `kept`. `None` where there are too few.
///
/// From the top down a layer joins the run if it is no larger than those before it together. So what was merged before, and
/// a large layer at the bottom, are left alone until as much has gathered above them: an entry is merged about as often as
/// the logarithm of their number, and there are about as many runs (a log-structured merge tree, size-tiered).
#[must_use]
pub fn run_to_merge(entries: &[u64], kept: usize, may_start: impl Fn(usize) -> bool) -> Option<Range<usize>> {
    let start = (kept..entries.len()).find(|start| may_start(*start))?;
    let mut sum: u64 = 0;
    let mut end = start;
    for entries in &entries[start..] {
        let cost = entries.saturating_add(LAYER_COST);
        if end - start >= 2 && cost > sum {
            break;
        }
        sum = sum.saturating_add(cost);
        end += 1;
    }
    (end - start >= 2).then_some(start..end)
}

/// The first run of layers that could be one, since nothing stands on any of them but on the topmost: what is overwritten in them
/// is of no use. `is_needed` says of each (the topmost first) whether anything but the layer above it stands on it.
#[must_use]
pub fn collapsible_run(is_needed: &[bool]) -> Option<Range<usize>> {
    let end = |start: usize| {
        let more = is_needed.get(start + 1..).unwrap_or_default().iter().take_while(|needed| !**needed).count();
        start + 1 + more
    };
    (0..is_needed.len()).map(|start| start..end(start)).find(|run| run.len() >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_stands_on_is_made_one_with_what_is_above() {
        let (yes, no) = (true, false);
        assert_eq!(collapsible_run(&[]), None);
        assert_eq!(collapsible_run(&[yes, yes, yes]), None);
        assert_eq!(collapsible_run(&[yes, no, no, yes]), Some(0..3));
        assert_eq!(collapsible_run(&[yes, yes, no]), Some(1..3));
        assert_eq!(collapsible_run(&[no, no]), Some(0..2));
    }

    #[test]
    fn few_layers_stay() {
        assert_eq!(run_to_merge(&[1; 9], LAYERS_KEPT, |_| true), None);
        assert_eq!(run_to_merge(&[1; 10], LAYERS_KEPT, |_| true), Some(8..10));
        assert_eq!(run_to_merge(&[], LAYERS_KEPT, |_| true), None);
    }

    #[test]
    fn a_large_one_at_the_bottom_is_left_alone() {
        let mut entries = vec![10; 24];
        entries[23] = 100_000;
        assert_eq!(run_to_merge(&entries, LAYERS_KEPT, |_| true), Some(8..23));
        assert_eq!(run_to_merge(&entries, LAYERS_KEPT, |start| start != 8), Some(9..23));
    }

    #[test]
    fn however_long_it_goes_on_there_are_few_layers_and_little_work() {
        let (mut chain, mut merged) = (vec![1_000_000_u64], 0);
        let writes = 20_000_u64;
        for n in 0..writes {
            chain.insert(0, 1 + n % 20);
            assert!(chain.len() <= LAYERS_SQUASHED_AT && chain.len() < LAYERS_MAX, "{chain:?}");
            if chain.len() >= LAYERS_SQUASHED_AT {
                let run = run_to_merge(&chain, LAYERS_KEPT, |_| true).unwrap();
                let sum: u64 = chain[run.clone()].iter().sum();
                merged += sum;
                chain.splice(run, [sum]);
            }
        }
        let written = (0..writes).map(|n| 1 + n % 20).sum::<u64>();
        assert!(merged < 8 * written + 2_000_000, "{merged} for {written}");
    }
}
