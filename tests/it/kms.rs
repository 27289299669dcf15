//! The local key management service, as providers are expected to answer and as its user meets it.

#[path = "../providers/expectations.rs"]
mod expectations;
