//! Simulated agents: changes to workspaces that matter for layers.

use crate::tree::{self, Change, Entry, Tree, join};
use crate::world::World;

/// Few names, so that changes often hit existing entries.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Maximum depth of directories.
const DEPTH: usize = 3;
/// Maximum number of changes at once.
const CHANGES: usize = 4;

/// Random successive changes to a workspace with the content `tree`.
pub fn changes(world: &World, mut tree: Tree) -> Vec<Change> {
    let count = 1 + world.below(CHANGES);
    let mut changes = Vec::new();
    for _ in 0..count {
        let change = change(world, &tree);
        tree::apply(&mut tree, &change);
        changes.push(change);
    }
    changes
}

fn change(world: &World, tree: &Tree) -> Change {
    let path = place(world, tree);
    match tree.get(&path) {
        None if world.chance(0.4) => Change::Make(path),
        Some(Entry::Directory) if world.chance(0.5) => {
            let to = place(world, tree);
            if tree.contains_key(&to) || tree::is_within(&to, &path) {
                Change::Remove(path)
            } else {
                Change::Rename(path, to)
            }
        }
        Some(Entry::Directory) => Change::Remove(path),
        Some(_) if world.chance(0.4) => Change::Remove(path),
        _ => Change::Put(path, world.below(1_000).to_string()),
    }
}

/// A path that exists or could exist.
fn place(world: &World, tree: &Tree) -> String {
    let is_open =
        |(path, entry): (&'_ String, &'_ Entry)| *entry == Entry::Directory && path.split('/').count() < DEPTH;
    let directories: Vec<&str> =
        std::iter::once("").chain(tree.iter().filter(|found| is_open(*found)).map(|(path, _)| path.as_str())).collect();
    join(directories[world.below(directories.len())], NAMES[world.below(NAMES.len())])
}
