//! [`Pkcs11Provider`]: master keys in an HSM, a smart card or SoftHSM, through its vendor's PKCS#11 module. Feature `pkcs11`.
//!
//! ```text
//! mod.rs       the provider: names to keys, wrapping
//! session.rs   module, token, login, and a pool of sessions
//! trouble.rs   what each return value of a module means to the engine
//! ```
//!
//! A master key is an AES-256 key object on the token, sensitive and not extractable: the token uses it and shows it to nobody. Data keys come
//! from the token's random number generator, and are wrapped by the token with AES-256-GCM:
//! ```text
//! offset  size  field    meaning
//!      0     1  format   1
//!      1     1  id_len   n, bytes of the master key's id (1 to 255)
//!      2     n  id       CKA_ID of the master key
//!    2+n    12  iv       96 random bits from the token
//!   14+n    32  key      the data key, encrypted
//!   46+n    16  tag      associated data: the 2 + n bytes before the IV, and the canonical encryption context
//! ```
//! With random IVs of 96 bits **one master key may wrap 2^32 times** before two IVs are likelier to be the same than 2^-32. A wrap is
//! made per table and rotation, so that this takes longer than any token lasts; but do not give the key to another program that uses GCM with
//! it as well.
//!
//! A token knows one user, not principals, so that this provider does not tell them apart: owner and service are the same, others are refused.

mod session;
mod trouble;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;

pub use self::session::Pin;
use self::session::Token;
use self::trouble::{Outcome, Trouble};
use super::provider::*;
use crate::crypto::Wiped;
use crate::error::{ProviderError, ProviderReason};

/// Format of a wrapped data key.
const WRAP_FORMAT: u8 = 1;
/// Format and length of the id.
const WRAP_HEAD_BYTES: usize = 2;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// 8 bits a byte.
const TAG_BITS: Ulong = Ulong::new(8 * 16);
const MASTER_KEY_BYTES: Ulong = Ulong::new(32);
/// Length of the ids that this provider gives. Keys made elsewhere may have others.
const ID_BYTES: usize = 16;

/// A key provider whose master keys lie in a PKCS#11 token.
///
/// Cheap to clone; all clones share their sessions. Calls block for as long as the token takes: PKCS#11 knows no time
/// limit. Keys are named by label, by the hexadecimal digits of their `CKA_ID`, or by ARN:
/// `arn:strongroom:kms:pkcs11:<label of the token>:key/<id>`. A label that two keys have stands for neither.
///
/// [`re_encrypt`](KeyProvider::re_encrypt) is the contract's default: the data key is in this process's memory for a moment.
///
/// # Example
/// ```no_run
/// use strongroom::keys::{Pin, Pkcs11Provider};
/// use strongroom::{MasterKey, Store, TableOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pin = Pin::ask(|| Ok(std::env::var("HSM_PIN").unwrap_or_default()));
/// let hsm = Pkcs11Provider::open("/usr/lib/softhsm/libsofthsm2.so", "payments", pin)?;
/// hsm.create_key("orders")?;
/// let store = Store::builder("data").key_provider(hsm).create()?;
/// store.create_table("orders", TableOptions::new().master_key(MasterKey::customer("orders")))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pkcs11Provider(Arc<Token>);

/// A key object, as far as it matters here.
struct Found {
    object: ObjectHandle,
    id: Vec<u8>,
    label: String,
    /// May both encrypt and decrypt.
    enabled: bool,
    /// An AES-256 key that nobody can read out.
    fit: bool,
}

impl Pkcs11Provider {
    /// The token whose label (or, if no label is like that, serial number) is `token`, in a slot of the PKCS#11 module at `module`.
    /// Loads the module and logs in.
    ///
    /// A module is initialised once in a process, stays loaded, and knows one user of a token at a time: another provider for the same
    /// token in this process shares this one's login, whatever its PIN.
    ///
    /// # Errors
    /// [`ProviderReason::InvalidRequest`] if the module cannot be loaded or several tokens are called so,
    /// [`ProviderReason::Unreachable`] if there is no such token at present, [`ProviderReason::BadCredentials`] if the PIN is wrong.
    pub fn open(module: impl AsRef<Path>, token: &str, pin: Pin) -> ProviderResult<Pkcs11Provider> {
        Ok(Pkcs11Provider(Arc::new(Token::open(module.as_ref(), token, pin)?)))
    }

    /// Make a master key of this label: AES-256, sensitive, not extractable, for nothing but encryption and decryption.
    ///
    /// # Errors
    /// [`ProviderReason::InvalidRequest`] if the label is empty, reserved or taken; what the token says.
    pub fn create_key(&self, label: &str) -> ProviderResult<KeyDescription> {
        let refuse = |detail: &str| {
            let message = format!("the label {label:?} {detail}");
            Err(Trouble::from(ProviderError::new(ProviderReason::InvalidRequest, message)))
        };
        self.0.with(|session| match label {
            "" => refuse("is empty"),
            MANAGED_ALIAS | OWNED_ALIAS => refuse("is the engine's"),
            label if !find(session, &[Attribute::Label(label.into())])?.is_empty() => refuse("is taken"),
            label => Ok(self.description(&make(session, label)?)),
        })
    }

    /// The token, as the user whom this principal is.
    fn user_of(&self, principal: &Principal) -> ProviderResult<&Token> {
        match principal {
            Principal::Owner | Principal::Service => Ok(&self.0),
            Principal::Named(_) => {
                let message = format!("a token knows one user, who is not {principal}");
                Err(ProviderError::new(ProviderReason::PrincipalUnsupported, message))
            }
        }
    }

    fn engine_key(&self, alias: &str, principal: &Principal) -> ProviderResult<KeyDescription> {
        let wanted = [Attribute::Label(alias.into())];
        self.user_of(principal)?.with(|session| {
            if let Some(found) = find(session, &wanted)?.first() {
                return Ok(self.description(found));
            }
            make(session, alias)?;
            // Another process may have made one at the same time. Both look again, and both take the first.
            find(session, &wanted)?.first().map(|found| self.description(found)).ok_or_else(|| missing(alias).into())
        })
    }

    /// The one key that a name stands for.
    fn key(&self, session: &Session, name: &str) -> Outcome<Found> {
        let id = match name.strip_prefix(self.0.arn_prefix()) {
            Some(digits) => Some(from_hex(digits).ok_or_else(|| missing(name))?),
            None if name.starts_with("arn:") => return Err(missing(name).into()),
            None => None,
        };
        if let Some(id) = id {
            return one_of(find(session, &[Attribute::Id(id)])?, name);
        }
        let mut labelled = find(session, &[Attribute::Label(name.into())])?;
        if matches!(name, MANAGED_ALIAS | OWNED_ALIAS) {
            labelled.truncate(1);
        }
        match from_hex(name) {
            Some(id) if labelled.is_empty() => one_of(find(session, &[Attribute::Id(id)])?, name),
            _ => one_of(labelled, name),
        }
    }

    fn arn(&self, id: &[u8]) -> String {
        format!("{}{}", self.0.arn_prefix(), hex(id))
    }

    fn description(&self, found: &Found) -> KeyDescription {
        let state = if found.enabled { KeyState::Enabled } else { KeyState::Disabled };
        let mut description = KeyDescription::new(self.arn(&found.id), hex(&found.id), state);
        description.aliases.extend((!found.label.is_empty()).then(|| found.label.clone()));
        description
    }

    fn wrap(
        &self,
        session: &Session,
        key: &Found,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Outcome<Vec<u8>> {
        key.check_fit()?;
        key.check_enabled()?;
        let mut wrapped = Vec::with_capacity(WRAP_HEAD_BYTES + key.id.len() + IV_BYTES + DataKey::BYTES + TAG_BYTES);
        // `find` gives no key whose id is longer than 255 bytes.
        wrapped.extend([WRAP_FORMAT, key.id.len() as u8]);
        wrapped.extend(&key.id);
        let associated = [&wrapped[..], &context.canonical()].concat();
        let mut iv = [0; IV_BYTES];
        session.generate_random_slice(&mut iv)?;
        let sealed = {
            let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &associated, TAG_BITS)?);
            session.encrypt(&gcm, key.object, data_key.expose())?
        };
        if sealed.len() != DataKey::BYTES + TAG_BYTES {
            let message = format!("the token made {} bytes of 32 and a tag of 16", sealed.len());
            return Err(ProviderError::new(ProviderReason::UnexpectedAnswer, message).into());
        }
        // After the call: some tokens choose the IV themselves, and write it where ours stood.
        wrapped.extend(iv);
        wrapped.extend(sealed);
        Ok(wrapped)
    }
}

impl KeyProvider for Pkcs11Provider {
    fn describe(&self) -> ProviderDescription {
        ProviderDescription::new(format!("PKCS#11 token {}", self.0.name()), false)
    }

    fn describe_key(&self, request: &DescribeKeyRequest) -> ProviderResult<KeyDescription> {
        self.user_of(&request.principal)?.with(|session| {
            let found = self.key(session, &request.key)?;
            found.check_fit()?;
            Ok(self.description(&found))
        })
    }

    fn generate_data_key(&self, request: &GenerateDataKeyRequest) -> ProviderResult<GeneratedDataKey> {
        self.user_of(&request.principal)?.with(|session| {
            let key = self.key(session, &request.key)?;
            let plaintext = DataKey::try_from_fn(|bytes| session.generate_random_slice(bytes))?;
            let ciphertext = self.wrap(session, &key, &plaintext, &request.context)?;
            Ok(GeneratedDataKey::new(plaintext, ciphertext, self.arn(&key.id)))
        })
    }

    fn decrypt(&self, request: &DecryptRequest) -> ProviderResult<DecryptedDataKey> {
        self.user_of(&request.principal)?.with(|session| {
            let key = self.key(session, &request.key_arn)?;
            key.check_enabled()?;
            let mut wrap = Unpacked::parse(&request.ciphertext).ok_or_else(not_ours)?;
            if wrap.head[WRAP_HEAD_BYTES..] != key.id {
                return Err(not_ours().into());
            }
            let associated = [wrap.head, &request.context.canonical()].concat();
            let gcm = Mechanism::AesGcm(GcmParams::new(&mut wrap.iv, &associated, TAG_BITS)?);
            let opened = Wiped::from(session.decrypt(&gcm, key.object, wrap.sealed)?);
            Ok(DecryptedDataKey::new(DataKey::try_from_slice(&opened)?, self.arn(&key.id)))
        })
    }

    fn encrypt(&self, request: &EncryptRequest) -> ProviderResult<EncryptedDataKey> {
        self.user_of(&request.principal)?.with(|session| {
            let key = self.key(session, &request.key)?;
            let ciphertext = self.wrap(session, &key, &request.plaintext, &request.context)?;
            Ok(EncryptedDataKey::new(ciphertext, self.arn(&key.id)))
        })
    }

    fn managed_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(MANAGED_ALIAS, &request.principal)
    }

    fn owned_key(&self, request: &EngineKeyRequest) -> ProviderResult<KeyDescription> {
        self.engine_key(OWNED_ALIAS, &request.principal)
    }
}

impl fmt::Debug for Pkcs11Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Provider").field("token", &self.0.name()).finish_non_exhaustive()
    }
}

impl Found {
    /// Who sets `CKA_ENCRYPT` or `CKA_DECRYPT` to false disables the key.
    fn check_enabled(&self) -> Outcome<()> {
        if self.enabled {
            return Ok(());
        }
        let message = format!("key {} may not both encrypt and decrypt at present", hex(&self.id));
        Err(ProviderError::new(ProviderReason::KeyDisabled, message).into())
    }

    /// Refuse to wrap anything under a key that would not keep it.
    fn check_fit(&self) -> Outcome<()> {
        if self.fit {
            return Ok(());
        }
        let message = format!("key {} is not an AES-256 key that is sensitive and not extractable", hex(&self.id));
        Err(ProviderError::new(ProviderReason::InvalidRequest, message).into())
    }
}

/// The parts of a wrapped data key.
struct Unpacked<'a> {
    /// Format, length and id.
    head: &'a [u8],
    iv: [u8; IV_BYTES],
    sealed: &'a [u8],
}

impl<'a> Unpacked<'a> {
    fn parse(wrapped: &'a [u8]) -> Option<Unpacked<'a>> {
        let [WRAP_FORMAT, id_len, ..] = *wrapped else { return None };
        let (head, rest) = wrapped.split_at_checked(WRAP_HEAD_BYTES + usize::from(id_len))?;
        let (iv, sealed) = rest.split_first_chunk()?;
        (id_len > 0 && sealed.len() == DataKey::BYTES + TAG_BYTES).then_some(Unpacked { head, iv: *iv, sealed })
    }
}

/// The AES keys on the token that have these attributes and an id, in the order of their ids.
fn find(session: &Session, wanted: &[Attribute]) -> Outcome<Vec<Found>> {
    let mut template =
        vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES), Attribute::Token(true)];
    template.extend_from_slice(wanted);
    let mut found = Vec::new();
    for object in session.find_objects(&template)? {
        found.extend(look_at(session, object)?);
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// What a key is. `None` if it has no id to name it by, or one that a wrap has no room for.
fn look_at(session: &Session, object: ObjectHandle) -> Outcome<Option<Found>> {
    use AttributeType as Type;
    let types =
        [Type::Id, Type::Label, Type::Encrypt, Type::Decrypt, Type::Sensitive, Type::Extractable, Type::ValueLen];
    let (mut found, mut extractable, mut sensitive, mut long) =
        (Found { object, id: Vec::new(), label: String::new(), enabled: true, fit: false }, true, false, false);
    for attribute in session.get_attributes(object, &types)? {
        match attribute {
            Attribute::Id(id) => found.id = id,
            Attribute::Label(label) => found.label = String::from_utf8_lossy(&label).into_owned(),
            Attribute::Encrypt(may) | Attribute::Decrypt(may) => found.enabled &= may,
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::Extractable(is) => extractable = is,
            Attribute::ValueLen(len) => long = len == MASTER_KEY_BYTES,
            _ => {}
        }
    }
    found.fit = sensitive && !extractable && long;
    Ok((1..=usize::from(u8::MAX)).contains(&found.id.len()).then_some(found))
}

fn make(session: &Session, label: &str) -> Outcome<Found> {
    let mut id = vec![0; ID_BYTES];
    session.generate_random_slice(&mut id)?;
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(MASTER_KEY_BYTES),
        Attribute::Label(label.into()),
        Attribute::Id(id),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        // Whoever could wrap with it, or unwrap something known as a key, could have it do other things than these two.
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ];
    let object = session.generate_key(&Mechanism::AesKeyGen, &template)?;
    look_at(session, object)?.ok_or_else(|| missing(label).into())
}

fn one_of(mut found: Vec<Found>, name: &str) -> Outcome<Found> {
    if found.len() > 1 {
        let message = format!("{} keys are called {name:?}", found.len());
        return Err(ProviderError::new(ProviderReason::InvalidRequest, message).into());
    }
    found.pop().ok_or_else(|| missing(name).into())
}

fn missing(name: &str) -> ProviderError {
    ProviderError::new(ProviderReason::KeyNotFound, format!("the token has no AES key {name:?}"))
}

fn not_ours() -> ProviderError {
    ProviderError::new(ProviderReason::InvalidCiphertext, "this key did not wrap it")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that an even number of hexadecimal digits stands for, at least one byte.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    if digits.is_empty() || !pairs.remainder().is_empty() {
        return None;
    }
    Some(pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}
