//! The examples do what they say: who copies one that does not work gives up on the rest.

#[path = "../../examples/own_provider.rs"]
mod own_provider;

#[test]
fn a_provider_of_ones_own_carries_a_store() {
    own_provider::main().unwrap();
}
