//! The launcher as a program of its own, for this crate's tests and measurements; `raworc launcher` is the real one.

fn main() {
    std::process::exit(raworc_launcher::main());
}
