//! A key provider that tests put between a store and a keyring, to see what passes and to come in between.
//!
//! What fails on a plan is [`FaultyProvider`](strongroom::keys::faulty::FaultyProvider)'s business; this is for what it does not show: contexts,
//! ciphertexts, the keys themselves, and calls into the store from within a request.

use std::fmt::{self, Debug};
use std::ops::Deref;

use strongroom::keys::{
    CreateGrantRequest, DecryptRequest, DecryptedDataKey, DescribeKeyRequest, EndGrantRequest, EngineKeyRequest,
    GenerateDataKeyRequest, GeneratedDataKey, Grant, KeyDescription, ProviderDescription, ProviderResult,
};
use strongroom::{KeyProvider, LocalKms};

/// What somebody does about requests.
pub trait Watch: Send + Sync {
    /// A new data key is asked for.
    fn before_generate(&self, _: &GenerateDataKeyRequest) -> ProviderResult<()> {
        Ok(())
    }

    /// One was made.
    fn generated(&self, _: &GenerateDataKeyRequest, _: &GeneratedDataKey) {}

    /// A data key is to be unwrapped.
    fn before_decrypt(&self, _: &DecryptRequest) -> ProviderResult<()> {
        Ok(())
    }

    /// One was.
    fn decrypted(&self, _: &DecryptRequest, _: &DecryptedDataKey) {}
}

/// A keyring, and who watches it.
pub struct Watched<W> {
    pub kms: LocalKms,
    watch: W,
}

impl<W> Watched<W> {
    pub fn new(kms: &LocalKms, watch: W) -> Watched<W> {
        Watched { kms: kms.clone(), watch }
    }
}

impl<W> Deref for Watched<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.watch
    }
}

impl<W> Debug for Watched<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl<W: Watch> KeyProvider for Watched<W> {
    fn describe(&self) -> ProviderDescription {
        self.kms.describe()
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.describe_key(request)
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        self.watch.before_generate(request)?;
        let made = self.kms.generate_data_key(request)?;
        self.watch.generated(request, &made);
        Ok(made)
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.watch.before_decrypt(request)?;
        let opened = self.kms.decrypt(request)?;
        self.watch.decrypted(request, &opened);
        Ok(opened)
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.managed_key(request)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.kms.owned_key(request)
    }

    fn create_grant(&self, request: &CreateGrantRequest) -> ProviderResult<Grant> {
        self.kms.create_grant(request)
    }

    fn retire_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.kms.retire_grant(request)
    }

    fn revoke_grant(&self, request: &EndGrantRequest) -> ProviderResult<()> {
        self.kms.revoke_grant(request)
    }
}
