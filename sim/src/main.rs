//! `cargo run --release -p raworc-sim`: runs seeds until one fails.

use std::process::ExitCode;

use clap::Parser;

/// Run the server in simulations with faults.
#[derive(Parser)]
struct Options {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Run only this seed, and print its log while it runs.
    #[arg(long, conflicts_with_all = ["from", "seeds"])]
    seed: Option<u64>,
    /// Run races without faults.
    #[arg(long)]
    hasty: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let run: fn(u64, bool) -> raworc_sim::SeedRun = if options.hasty { raworc_sim::run_race } else { raworc_sim::run };
    let seeds = options.seed.map_or(options.from..options.from + options.seeds, |seed| seed..seed + 1);
    let (first, mut passed, mut steps) = (seeds.start, 0_u64, 0);
    for seed in seeds {
        let story = run(seed, options.seed.is_some());
        steps += story.trace.len();
        if let Err(error) = story.result {
            eprintln!("seed {seed} fails: {error:#}\nsee it with --seed {seed}");
            return ExitCode::FAILURE;
        }
        passed += 1;
        if passed.is_multiple_of(1_000) {
            eprintln!("{passed} seeds from {first} on have passed, {steps} things happened in them");
        }
    }
    eprintln!("{passed} seeds from {first} on have passed, {steps} things happened in them");
    ExitCode::SUCCESS
}
