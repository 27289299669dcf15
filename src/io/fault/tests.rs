//! The promises of `io/fault.rs`.
