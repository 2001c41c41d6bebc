//! The raworc program.
fn main() {}
