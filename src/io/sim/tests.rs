//! The promises of `io/sim.rs`.
