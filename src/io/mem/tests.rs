//! The promises of `io/mem.rs`.
