//! Compares a workspace with a plain directory: after the same operations they are equal, even if the workspace is
//! saved, remounted, captured live, merged, restored, exported and imported in between. Programs follow from their
//! seeds. Prints SKIPPED if it may not mount.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod tree;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use raworc_core::ids::LayerId;
use raworc_oci::{Bounds, Format, Ids, pack, unpack};
use raworc_workspace::layers::capture::{CaptureOptions, TIMESTAMP_GRANULARITY};
use raworc_workspace::layers::{OverlayXattrs, capture, seal, squash};
use raworc_workspace::{LayerStack, LayerStore, Mounter, layers_in};
use tree::{Op, Random, apply, differences, fingerprint};
use uuid::Uuid;

/// Seeds that found bugs.
const FOUND: &[u64] = &[];
/// How many further seeds are tried, and for how long.
const SEEDS: u64 = 25;
const TIME_MAX: Duration = Duration::from_secs(20);
/// Steps of one program.
const STEPS: usize = 60;
/// How long a failing program is minimized.
const SHORTENING_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
enum Step {
    Do(Op),
    /// Seals the writable layer while it is not mounted.
    Seal,
    /// Seals it while it is mounted and also mounted read-only.
    SealMounted,
    /// Captures it while it stays writable.
    Copy,
    /// Remounts it.
    Wake,
    /// Merges a run of layers.
    Merge(usize, usize),
    /// Restores another version and continues from there, as a remix does.
    Restore(usize),
    /// Packs the layers into archives and unpacks these.
    Export,
}

fn program(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut step = || match random.below(40) {
        0..=2 => Step::Seal,
        3..=4 => Step::SealMounted,
        5..=7 => Step::Copy,
        8 => Step::Wake,
        9 => Step::Merge(random.below(8), random.below(4) + 2),
        10 => Step::Restore(random.below(8)),
        11 => Step::Export,
        _ => Step::Do(Op::any(&mut random)),
    };
    (0..STEPS).map(|_| step()).collect()
}

/// A saved version: its layers, topmost first, and a copy as a plain directory.
struct Saved {
    layers: Vec<LayerId>,
    plain: PathBuf,
}

struct World {
    directory: tempfile::TempDir,
    layer_store: LayerStore,
    plain: PathBuf,
    layers: Vec<LayerId>,
    writable: LayerId,
    root: Option<OwnedFd>,
    /// The last capture: its layers and listing.
    copied: Option<(Vec<LayerId>, PathBuf)>,
    saved: Vec<Saved>,
    began: i64,
}

fn new_layer() -> LayerId {
    LayerId(Uuid::new_v4())
}

impl World {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let root = layers_in(directory.path());
        fs::create_dir_all(&root).unwrap();
        let mounter = match Mounter::start(&root, OverlayXattrs::Trusted) {
            Ok(mounter) if mounter.keeps_links() => mounter,
            Ok(_) => {
                eprintln!("SKIPPED: hard links are not kept together over layers here");
                return None;
            }
            Err(error) => {
                eprintln!("SKIPPED: nothing can be mounted: {error}");
                return None;
            }
        };
        let layer_store = LayerStore::open(directory.path(), None, OverlayXattrs::Trusted, Some(mounter)).unwrap();
        let plain = directory.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let began = tree::now();
        let (saved, layers, writable) = (Vec::new(), Vec::new(), new_layer());
        let mut world =
            Self { directory, layer_store, plain, layers, writable, root: None, copied: None, saved, began };
        world.mount();
        Some(world)
    }

    fn stack(&self) -> LayerStack {
        LayerStack { layers: self.layers.clone(), writable: Some(self.writable) }
    }

    fn mount(&mut self) {
        self.root = None;
        self.layer_store.create(&self.stack()).unwrap();
        let workspace = self.layer_store.mount(&self.stack()).unwrap();
        self.root = Some(workspace.root().try_clone_to_owned().unwrap());
    }

    fn path(&self) -> PathBuf {
        path_of(self.root.as_ref().unwrap())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Do(op) => {
                let (plain, shown) = (apply(&self.plain, op), apply(&self.path(), op));
                if plain != shown {
                    return Err(format!("the disk says {plain:?}, the workspace {shown:?}"));
                }
                return Ok(());
            }
            Step::Seal => self.seal(false),
            Step::SealMounted => self.seal(true),
            Step::Copy => self.copy(),
            Step::Wake => {
                self.root = None;
                self.layer_store.restore_hard_links_unmounted(&self.stack()).unwrap();
                self.look(&self.stack(), &self.plain)?;
                self.mount();
            }
            Step::Merge(start, length) => self.merge(*start, *length),
            Step::Restore(n) => self.restore(*n),
            Step::Export => self.export(),
        }
        self.compare(&self.path(), &self.plain)?;
        let Some(saved) = self.saved.last() else { return Ok(()) };
        self.look(&LayerStack { layers: saved.layers.clone(), writable: None }, &saved.plain)
    }

    /// Compares both from outside.
    fn look(&self, stack: &LayerStack, plain: &Path) -> Result<(), String> {
        let view = self.layer_store.mount_read_only(stack).unwrap();
        let root = view.root().try_clone_to_owned().unwrap();
        self.compare(&path_of(&root), plain)
    }

    fn compare(&self, shown: &Path, plain: &Path) -> Result<(), String> {
        let (plain, shown) = (fingerprint(plain, self.began), fingerprint(shown, self.began));
        let differ = differences(&plain, &shown);
        if differ.is_empty() { Ok(()) } else { Err(format!("on the disk / shown:\n{}", differ.join("\n"))) }
    }

    fn save(&mut self, layers: Vec<LayerId>) {
        let plain = self.directory.path().join(Uuid::new_v4().to_string());
        copy_layer(&self.plain, &plain);
        self.saved.push(Saved { layers, plain });
    }

    fn seal(&mut self, mounted: bool) {
        let stack = self.stack();
        let before = self.root.take();
        let root = before.as_ref().filter(|_| mounted).map(|root| root.try_clone().unwrap());
        // Who looks on keeps the mount.
        let before = before.filter(|_| mounted);
        let layer = self.layer_store.seal(&stack, root, new_layer()).unwrap();
        self.layers.insert(0, layer);
        self.writable = new_layer();
        self.copied = None;
        self.mount();
        drop(before);
        self.save(self.layers.clone());
    }

    fn copy(&mut self) {
        let files = self.layer_store.copied_up_files(self.writable).unwrap();
        self.layer_store.restore_hard_links(self.root.as_ref().unwrap(), self.writable, &files).unwrap();
        let (earlier, before) = self.copied.clone().unzip();
        let [first, second, whole] = [new_layer(), new_layer(), new_layer()];
        let mut listing = before;
        for (layer, is_still) in [(first, false), (second, true)] {
            let how = CaptureOptions { xattrs: OverlayXattrs::Trusted, is_still, doubtful: TIMESTAMP_GRANULARITY };
            let into = self.layer_store.create_empty(layer).unwrap();
            let new = self.directory.path().join(format!("{}.listing", Uuid::new_v4()));
            capture::capture(&self.layer_store.path(self.writable), &into, &new, listing.as_deref(), how).unwrap();
            seal::resolve_redirects(&into, &self.layer_store.paths(&self.layers), OverlayXattrs::Trusted).unwrap();
            listing = Some(new);
        }
        let below = earlier.unwrap_or_else(|| self.layers.clone());
        let parts = self.layer_store.paths(&[second, first]);
        let into = self.layer_store.create_empty(whole).unwrap();
        squash::squash(&parts, &self.layer_store.paths(&below), &into, OverlayXattrs::Trusted).unwrap();
        self.layer_store.detect_hard_links(whole).unwrap();
        [first, second].into_iter().for_each(|layer| self.layer_store.remove(layer).unwrap());
        let layers: Vec<LayerId> = [whole].into_iter().chain(below).collect();
        self.copied = Some((layers.clone(), listing.unwrap()));
        self.save(layers);
    }

    /// The writable layer lies on the merged one after it is remounted.
    fn merge(&mut self, start: usize, length: usize) {
        if self.layers.len() < 2 {
            return;
        }
        let start = start % (self.layers.len() - 1);
        let end = (start + length).min(self.layers.len());
        let merged = new_layer();
        let into = self.layer_store.create_empty(merged).unwrap();
        let (run, lower) =
            (self.layer_store.paths(&self.layers[start..end]), self.layer_store.paths(&self.layers[end..]));
        squash::squash(&run, &lower, &into, OverlayXattrs::Trusted).unwrap();
        self.layer_store.detect_hard_links(merged).unwrap();
        self.layers.splice(start..end, [merged]);
        self.mount();
    }

    fn restore(&mut self, n: usize) {
        if self.saved.is_empty() {
            return;
        }
        let saved = &self.saved[n % self.saved.len()];
        self.layers = saved.layers.clone();
        let plain = saved.plain.clone();
        fs::remove_dir_all(&self.plain).unwrap();
        copy_layer(&plain, &self.plain);
        self.writable = new_layer();
        self.copied = None;
        self.mount();
    }

    fn export(&mut self) {
        self.seal(false);
        let ids = Ids::UNMAPPED;
        let format = Format { xattrs: OverlayXattrs::Trusted, ids };
        let bounds = Bounds { bytes: 1 << 30, entries: 1 << 20 };
        let mut taken: Vec<LayerId> = Vec::new();
        for layer in self.layers.iter().rev() {
            let mut archive = Vec::new();
            let packed = pack(&self.layer_store.path(*layer), &format, &mut archive).unwrap();
            assert_eq!(packed.skipped.count, 0, "{:?}", packed.skipped);
            let new = new_layer();
            let into = self.layer_store.create_empty(new).unwrap();
            seal::prepare(&into, None, None).unwrap();
            unpack(&archive[..], &into, &format, &bounds, &mut |_| {}).unwrap();
            squash::trim(&into, &self.layer_store.paths(&taken), OverlayXattrs::Trusted).unwrap();
            self.layer_store.detect_hard_links(new).unwrap();
            taken.insert(0, new);
        }
        self.layers = taken;
        self.writable = new_layer();
        self.mount();
    }
}

fn path_of(root: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", root.as_fd().as_raw_fd()).into()
}

/// Copies a directory.
fn copy_layer(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The step that failed, and why.
fn run(program: &[Step]) -> Result<(), (usize, String)> {
    let Some(mut world) = World::new() else { return Ok(()) };
    for (n, step) in program.iter().enumerate() {
        world.step(step).map_err(|why| (n, why))?;
    }
    world.step(&Step::Seal).map_err(|why| (program.len() - 1, why))
}

fn check(seed: u64) {
    let mut program = program(seed);
    let Err((n, mut why)) = run(&program) else { return };
    program.truncate(n + 1);
    let began = Instant::now();
    let mut at = program.len();
    while at > 0 && began.elapsed() < SHORTENING_MAX {
        at -= 1;
        let mut shorter = program.clone();
        shorter.remove(at);
        if let Err((n, shorter_why)) = run(&shorter) {
            shorter.truncate(n + 1);
            (program, why) = (shorter, shorter_why);
            at = at.min(program.len());
        }
    }
    panic!("seed {seed}: {why}\n{program:#?}");
}

#[test]
fn a_workspace_is_what_a_plain_directory_would_be() {
    if World::new().is_none() {
        return;
    }
    FOUND.iter().for_each(|seed| check(*seed));
    if let Ok(seed) = std::env::var("RAWORC_FIDELITY_SEED") {
        return check(seed.parse().unwrap());
    }
    // Named, there are so many, however long that takes.
    let asked = std::env::var("RAWORC_FIDELITY_SEEDS").ok().map(|seeds| seeds.parse::<u64>().unwrap());
    let began = Instant::now();
    let goes_on = |_: &u64| asked.is_some() || began.elapsed() < TIME_MAX;
    let tried = (1..=asked.unwrap_or(SEEDS)).take_while(goes_on).inspect(|seed| check(*seed)).count();
    eprintln!("{tried} programs of {STEPS} steps");
}
