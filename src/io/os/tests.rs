//! The promises of `io/os.rs`.
