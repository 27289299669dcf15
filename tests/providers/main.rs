//! Providers against the real thing: `.ci/providers` installs and starts what they need, names it in environment variables, and runs
//! this binary. Without them its tests say what they left out.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests prepare and inspect files as a user or an attacker would, with threads and clocks of their own"
)]

mod aws;
mod expectations;
mod pkcs11;

use strongroom::error::ProviderReason;
use strongroom::keys::{KeyProvider, MANAGED_ALIAS};
use strongroom::{Error, ErrorKind, MasterKey, Store, TableOptions};

/// What a variable names, or `None` if it is not set: then the test is left out, unless that is a failure here.
fn real_thing(variable: &str) -> Option<String> {
    match std::env::var(variable) {
        Ok(value) => Some(value),
        Err(_) if std::env::var("STRONGROOM_PROVIDERS").is_ok_and(|value| value == "required") => {
            panic!("{variable} is not set, and STRONGROOM_PROVIDERS says that it must be")
        }
        Err(_) => {
            println!("LEFT OUT: {variable} is not set; .ci/providers sets it");
            None
        }
    }
}

/// The reason of a store's refusal.
fn reason_of(error: &Error) -> Option<ProviderReason> {
    match error {
        Error::KeyUnavailable { source, .. }
        | Error::MasterKeyUnavailable { source, .. }
        | Error::TableInaccessible { source, .. }
        | Error::StoreInaccessible { source, .. } => Some(source.reason),
        _ => None,
    }
}

/// A whole store on a provider, opened twice; `destroy` makes a customer key of the provider's unusable in between.
fn store_lives_on<P: KeyProvider + 'static>(
    provider: impl Fn() -> P,
    new_key: impl Fn() -> String,
    make_unusable: impl Fn(&str),
    expected: ProviderReason,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (lives, dies) = (new_key(), new_key());

    let store = Store::builder(&path).key_provider(provider()).create().unwrap();
    let tables = [
        ("owned", MasterKey::owned()),
        ("managed", MasterKey::managed()),
        ("lives", MasterKey::customer(&lives)),
        ("dies", MasterKey::customer(&dies)),
    ];
    for (name, master_key) in tables.clone() {
        let table = store.create_table(name, TableOptions::new().master_key(master_key)).unwrap();
        for number in 0..100 {
            table.put(format!("{name} {number}"), format!("value {number}")).unwrap();
        }
    }
    let refused = store.create_table("none", TableOptions::new().master_key(MasterKey::customer("alias/none")));
    assert_eq!(reason_of(&refused.unwrap_err()), Some(ProviderReason::KeyNotFound));
    let arn = store.describe_table("lives").unwrap().sse.master_key_arn.unwrap();
    let described = strongroom::keys::DescribeKeyRequest::new(MANAGED_ALIAS, strongroom::keys::Principal::Owner);
    assert!(provider().describe_key(&described).is_ok(), "the managed key was made");
    store.close().unwrap();

    make_unusable(&dies);

    let store = Store::builder(&path).key_provider(provider()).open().unwrap();
    for (name, _) in tables {
        let table = store.table(name).unwrap();
        let answer = table.get(format!("{name} 7"));
        if name == "dies" {
            let error = answer.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::KeyUnavailable, "{error}");
            assert_eq!(reason_of(&error), Some(expected), "{error}");
        } else {
            assert_eq!(answer.unwrap().as_deref(), Some(&b"value 7"[..]), "{name}");
            assert_eq!(table.iter().count(), 100);
        }
    }
    assert_eq!(store.describe_table("lives").unwrap().sse.master_key_arn.unwrap(), arn);
    store.close().unwrap();
}
