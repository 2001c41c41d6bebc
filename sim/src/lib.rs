//! The simulator: the server's real verbs, routes, loops and host link, with simulated containers, disk and
//! time. Everything follows from a seed, so a run can be repeated.
//!
//! Servers are killed and restarted, hosts die, hang and lose connections, starts fail, observations arrive late or
//! twice, disks are slow or full, and the clock jumps. Layers are real directories, and any step of work on them may
//! fail. At the end all must be in its wanted state, and [`check`] verifies records and files.

mod agent;
mod check;
mod disk;
mod fault_injection;
mod host;
mod oracle;
mod people;
mod races;
mod records;
mod runtime;
mod tree;
mod versions;
mod world;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use raworc_core::layers::Lengths;
use raworc_server::engine::{Engine, Parts};
use raworc_store::Store;
use raworc_workspace::failpoints;
use tokio::time::Instant;

use disk::SimDisk;
use fault_injection::SimFaultInjector;
use oracle::WorkspaceOracle;
use runtime::SimRuntime;
use world::World;

/// How long it takes at most until all is in its wanted state, without further faults: a hanging start times out
/// after a minute.
const SETTLED: Duration = Duration::from_secs(150);
/// How long nothing must change before compaction and garbage collection count as done, too.
const REST: Duration = Duration::from_secs(1);
/// Requests during the life of one server.
const ACTS: usize = 25;
const MANY_ACTS: usize = 100;
/// Short chains of layers, so that layers are often merged.
const LENGTHS: Lengths = Lengths { merged_at: 4, max: 6, kept: 1 };
/// A file system in memory, where flushing is free.
const MEMORY: &str = "/dev/shm";

/// The result of a seed.
pub struct SeedRun {
    /// The log of the run.
    pub trace: Vec<String>,
    /// Whether all checks passed.
    pub result: anyhow::Result<()>,
}

/// Runs a seed with faults.
pub fn run(seed: u64, is_loud: bool) -> SeedRun {
    let (ground, oracle) = match PersistentState::new(seed) {
        Ok(found) => found,
        Err(error) => return SeedRun { trace: Vec::new(), result: Err(error) },
    };
    let world = World::new(seed, is_loud, oracle);
    fault_injection::watch(&world);
    let result = live(&world, &ground);
    let _ = failpoints::set_handler(None);
    if let Err(error) = &result {
        world.log(&format!("seed {seed}: {error:#}"));
    }
    let trace = std::mem::take(&mut world.state().trace);
    SeedRun { trace, result }
}

/// Runs a seed without faults, in which requests race with the server's background work; no errors are allowed.
pub fn run_race(seed: u64, is_loud: bool) -> SeedRun {
    let (ground, oracle) = match PersistentState::new(seed) {
        Ok(found) => found,
        Err(error) => return SeedRun { trace: Vec::new(), result: Err(error) },
    };
    let world = World::new(seed, is_loud, oracle);
    world.state().has_faults = false;
    fault_injection::watch(&world);
    let result = hurry(&world, &ground);
    let _ = failpoints::set_handler(None);
    if let Err(error) = &result {
        world.log(&format!("hasty seed {seed}: {error:#}"));
    }
    let trace = std::mem::take(&mut world.state().trace);
    SeedRun { trace, result }
}

fn hurry(world: &World, ground: &PersistentState) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        world.begin(false);
        let engine = start(world, ground).await?;
        let router = engine.router();
        races::act(world, &router).await?;
        races::went_well(world, &router).await?;
        quiesce(world, &engine).await
    })
}

/// The state that outlives a server.
struct PersistentState {
    directory: tempfile::TempDir,
    /// Name of the in-memory database.
    memory: String,
}

impl PersistentState {
    /// Layers are in memory, if possible.
    fn new(seed: u64) -> anyhow::Result<(Self, WorkspaceOracle)> {
        let directory = match tempfile::tempdir_in(MEMORY) {
            Ok(directory) if tree::can_hold_layers(directory.path()) => directory,
            _ => tempfile::tempdir()?,
        };
        let memory = format!("raworc-sim-{}-{seed}-{:p}", std::process::id(), &directory);
        // Keeps the database while no server runs.
        let records = rusqlite::Connection::open(format!("file:/{memory}?vfs=memdb"))?;
        let oracle = WorkspaceOracle::new(raworc_workspace::layers_in(directory.path()), records);
        Ok((Self { directory, memory }, oracle))
    }
}

fn live(world: &World, ground: &PersistentState) -> anyhow::Result<()> {
    let servers = 1 + world.below(4);
    for server in 0..servers {
        let is_last = server + 1 == servers;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let lived = runtime.block_on(serve(world, ground, is_last))?;
        // Everything in progress is cut off.
        drop(runtime);
        let pause = world.millis(if world.chance(0.2) { 20_000 } else { 500 });
        world.end(lived, pause);
    }
    Ok(())
}

/// Runs one server; returns how long it lived.
async fn serve(world: &World, ground: &PersistentState, is_last: bool) -> anyhow::Result<Duration> {
    let born = Instant::now();
    let dies = world.begin(!is_last);
    world.log("a server starts");
    let life = async {
        let engine = start(world, ground).await?;
        let acts = world.below(if world.chance(0.2) { MANY_ACTS } else { ACTS });
        people::act(world, &engine.router(), acts).await?;
        if is_last { quiesce(world, &engine).await } else { Ok(()) }
    };
    if is_last {
        life.await?;
    } else {
        let death = world.millis([100, 12_000, 12_000, 40_000][world.below(4)]);
        tokio::select! {
            biased;
            () = dies.notified() => {}
            () = tokio::time::sleep(death) => {}
            lived = life => lived?,
        }
        world.log("the server is killed");
    }
    Ok(born.elapsed())
}

async fn start(world: &World, ground: &PersistentState) -> anyhow::Result<Arc<Engine>> {
    // A server cannot start with a full disk, so it is started again.
    for _ in 0..10 {
        let parts = Parts {
            data_dir: ground.directory.path(),
            runtime: Arc::new(SimRuntime::open(world)),
            agent_owner: None,
            xattrs: tree::XATTRS,
            mounter: None,
            ids: raworc_oci::Ids::UNMAPPED,
            registries: raworc_server::Registries::default(),
            images_bytes_max: None,
            ceilings: raworc_server::Ceilings::default(),
            clock: world.clock(),
            lengths: LENGTHS,
            reserve: None,
            fault_injector: Some(Arc::new(SimFaultInjector(world.clone()))),
        };
        let disk = Arc::new(SimDisk(world.clone()));
        match Engine::start(parts, |listener| Store::open_memory(&ground.memory, listener, disk)).await {
            Ok(engine) => {
                let engine = Arc::new(engine);
                let mut state = world.state();
                state.people.token = engine.admin_token().to_owned();
                state.engine = Some(Arc::clone(&engine));
                drop(state);
                SimRuntime::wake_hosts(world);
                return Ok(engine);
            }
            Err(error) => world.log(&format!("it cannot start: {error}")),
        }
    }
    bail!("the server never starts")
}

/// Stops injecting faults, waits until all is in its wanted state, and checks it.
async fn quiesce(world: &World, engine: &Engine) -> anyhow::Result<()> {
    world.state().has_faults = false;
    world.log("nothing goes wrong from here on");
    let router = engine.router();
    let deadline = Instant::now() + SETTLED;
    let mut since = Instant::now();
    while since.elapsed() < REST {
        if !check::is_quiescent(world, &router).await? {
            since = Instant::now();
        }
        if Instant::now() > deadline {
            bail!("not settled:\n{}", check::describe(world, &router).await?);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    check::invariants(world, &router).await.context("an invariant is broken")?;
    check::workspaces(world).context("a workspace is not what it should be")?;
    check::tidies(world, &router).await.context("what is not needed is not removed, or more is")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]
mod tests {
    use super::*;

    /// Seeds that found bugs, with a name for each.
    const FOUND: [(u64, &str); 8] = [
        (740, "a restart was planned by a clock that was then set back by an hour"),
        (18, "two connections of a host: the one that took the message was lost, the other waited for ever"),
        (436, "a message whose agent had been taken away was ended, but not the session's record of it"),
        (66, "a session whose files had been removed got a checkpoint, which was empty"),
        (450, "a copy of what something was writing was kept though its checkpoint had been given up"),
        (
            2051,
            "a checkpoint that a full disk cut off brought back files that had been deleted from a renamed directory",
        ),
        (
            4879,
            "a checkpoint did not have what had been written before it was asked for, while another one was being taken",
        ),
        (2280, "going back a second time brought back a message that going back the first time had taken back"),
    ];

    #[test]
    fn what_seeds_have_found_stays_found() {
        for (seed, what) in FOUND {
            run(seed, false).result.unwrap_or_else(|error| panic!("seed {seed} ({what}): {error:#}"));
        }
    }

    #[test]
    fn no_wish_between_two_steps_of_a_checkpoint_goes_wrong() {
        for seed in 0..200 {
            run_race(seed, false).result.unwrap_or_else(|error| panic!("hasty seed {seed}: {error:#}"));
        }
    }

    #[test]
    fn a_seed_is_one_story() {
        for seed in [18, 740].into_iter().chain(100_000..100_020) {
            assert_eq!(run(seed, false).trace, run(seed, false).trace);
        }
    }

    #[test]
    fn some_bad_days_end_well() {
        // The same ones each time; `cargo run --release -p raworc-sim` runs any number of others.
        for seed in 100_000..100_300 {
            run(seed, false).result.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        }
    }
}
