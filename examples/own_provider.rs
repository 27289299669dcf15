//! A key provider of one's own: the four operations that a provider has to have, and a whole store on it.
//!
//! ```sh
//! cargo run --example own_provider
//! ```
//!
//! `Vault` stands for whatever keeps keys where you are: a service behind a network, an operating system's keyring, a smart card. This one
//! keeps them in memory, so that its store is lost with the process. What a provider must do: wrap a data key so that nobody opens it without
//! the master key, bind the encryption context into the wrap, name the master key by an ARN that never stands for another, and choose
//! the right [`ProviderReason`] when it fails. It is never asked while the engine holds a lock, and nothing that it answers is believed
//! unchecked.

use std::collections::HashMap;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use strongroom::error::{ProviderError, ProviderReason};
use strongroom::io::Entropy;
use strongroom::io::os::OsEntropy;
use strongroom::keys::{
    DataKey, DecryptRequest, DecryptedDataKey, DescribeKeyRequest, GenerateDataKeyRequest, GeneratedDataKey,
    KeyDescription, KeyProvider, KeyState, MANAGED_ALIAS, OWNED_ALIAS, ProviderDescription, ProviderResult,
};
use strongroom::{MasterKey, Result, Store, TableOptions};
use zeroize::Zeroizing;

const ARN: &str = "arn:example:vault:";

#[derive(Debug)]
struct Vault {
    keys: HashMap<String, Aes256Gcm>,
}

impl KeyProvider for Vault {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new("an example", false)
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        let (alias, _) = self.find(&request.key)?;
        Ok(KeyDescription::new(format!("{ARN}{alias}"), alias, KeyState::Enabled))
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        let (alias, master) = self.find(&request.key)?;
        let plaintext = DataKey::generate(&OsEntropy::new()).map_err(failed)?;
        let mut nonce = [0; 12];
        OsEntropy::new().fill(&mut nonce).map_err(failed)?;
        let payload = Payload { msg: plaintext.expose(), aad: &request.context.canonical() };
        let sealed = master.encrypt(&Nonce::from(nonce), payload).map_err(failed)?;
        Ok(GeneratedDataKey::new(plaintext, [&nonce[..], &sealed].concat(), format!("{ARN}{alias}")))
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        let (alias, master) = self.find(&request.key_arn)?;
        let refused =
            || ProviderError::new(ProviderReason::InvalidCiphertext, "not wrapped by this key with this context");
        let (nonce, sealed) = request.ciphertext.split_first_chunk::<12>().ok_or_else(refused)?;
        let payload = Payload { msg: sealed, aad: &request.context.canonical() };
        let opened = Zeroizing::new(master.decrypt(&Nonce::from(*nonce), payload).map_err(|_| refused())?);
        Ok(DecryptedDataKey::new(DataKey::try_from_slice(&opened)?, format!("{ARN}{alias}")))
    }
}

impl Vault {
    /// The key that an alias or an ARN stands for, and its alias.
    fn find<'a>(&self, name: &'a str) -> ProviderResult<(&'a str, &Aes256Gcm)> {
        let alias = name.strip_prefix(ARN).unwrap_or(name);
        let key = self.keys.get(alias).ok_or_else(|| ProviderError::new(ProviderReason::KeyNotFound, alias))?;
        Ok((alias, key))
    }
}

/// What goes wrong here is nobody's fault and may pass.
fn failed(error: impl ToString) -> ProviderError {
    ProviderError::new(ProviderReason::Unreachable, error.to_string())
}

/// A store on the vault.
pub fn main() -> Result<()> {
    // The engine asks for the keys under these two aliases itself; a provider that can make keys would make them then.
    let aliases = [OWNED_ALIAS, MANAGED_ALIAS, "alias/orders"];
    let new_key = || DataKey::generate(&OsEntropy::new()).map(|key| Aes256Gcm::new(key.expose().into()));
    let keys = aliases.into_iter().map(|alias| Ok((alias.to_owned(), new_key()?))).collect::<std::io::Result<_>>();
    let vault = Vault { keys: keys.expect("the operating system gives random bytes") };

    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::builder(folder.path().join("store")).key_provider(vault).create()?;
    let orders = store.create_table("orders", TableOptions::new().master_key(MasterKey::customer("alias/orders")))?;
    orders.put("2026-1", "an apple")?;
    println!("{:?}", orders.get("2026-1")?.as_deref().map(String::from_utf8_lossy));
    println!("{:?}", orders.describe()?.sse.master_key_arn);

    // A table whose master key the provider does not have is refused, with the provider's own reason.
    let refused = store.create_table("none", TableOptions::new().master_key(MasterKey::customer("alias/none")));
    println!("{}", refused.expect_err("there is no such key"));
    store.close()
}
