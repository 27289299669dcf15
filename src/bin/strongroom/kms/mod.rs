//! `strongroom kms`: master keys of the local keyring, their states, policies and grants. None of these commands needs, or opens, a store.
//!
//! Whoever opens the keyring is its holder, and acts as the owner. A process that has it open notices what was changed here with its next
//! request.

pub mod args;
mod policy;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};
use strongroom::error::{ProviderError, ProviderReason};
use strongroom::keys::{
    CreateGrantRequest, EncryptionContext, EndGrantRequest, GrantConstraint, GrantDescription, KeyDescription,
    KeyManager, KeyOrigin, KeyProvider, KeyState, Principal, RotationStatus,
};
use strongroom::{Error, LocalKms};
use zeroize::Zeroizing;

use self::args::{AliasCommand, CreateGrant, CreateKey, GrantCommand, Kms, KmsCommand, PolicyCommand, principal_text};
use crate::args::Place;
use crate::failure::{Failure, Result};
use crate::output::{finish, line, stdout};
use crate::session;
use crate::tables::seconds;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

pub fn run(place: &Place, Kms { json, command }: Kms) -> Result<()> {
    // Before a passphrase is asked for: a file that is not right is the quicker thing to say.
    let bytes = match &command {
        KmsCommand::CreateKey(CreateKey { import_from: Some(file), .. }) | KmsCommand::Import { file, .. } => {
            Some(key_bytes(file)?)
        }
        _ => None,
    };
    let kms = session::keyring(place)?;
    match command {
        KmsCommand::CreateKey(args) => create(&kms, args, bytes.as_deref(), json),
        KmsCommand::List => list(&kms, json),
        KmsCommand::Describe { key } => describe(&kms, &key, json),
        KmsCommand::SetDescription { key, text } => Ok(kms.set_description(&key, &text)?),
        KmsCommand::Alias(AliasCommand::Add { alias, key }) => Ok(kms.add_alias(&key, &alias)?),
        KmsCommand::Alias(AliasCommand::Move { alias, key }) => Ok(kms.update_alias(&alias, &key)?),
        KmsCommand::Alias(AliasCommand::Remove { alias }) => Ok(kms.remove_alias(&alias)?),
        KmsCommand::Enable { key } => Ok(kms.enable(&key)?),
        KmsCommand::Disable { key } => Ok(kms.disable(&key)?),
        KmsCommand::Rotate { key } => rotate(&kms, &key, json),
        KmsCommand::RotationPeriod { key, days, never } => rotation_period(&kms, &key, days, never, json),
        KmsCommand::ScheduleDeletion { key, days } => schedule_deletion(&kms, &key, days, json),
        KmsCommand::CancelDeletion { key } => {
            kms.cancel_deletion(&key)?;
            if json { print(&json!({ "KeyId": kms.key(&key)?.arn })) } else { Ok(()) }
        }
        KmsCommand::Import { key, expire_in, .. } => import(&kms, &key, bytes.as_deref(), expire_in),
        KmsCommand::DeleteMaterial { key } => Ok(kms.delete_imported_material(&key)?),
        KmsCommand::Grant(GrantCommand::Create(args)) => create_grant(&kms, args, json),
        KmsCommand::Grant(GrantCommand::List { key }) => list_grants(&kms, &key, json),
        KmsCommand::Grant(GrantCommand::Retire { key, grant }) => {
            end_grant(&kms, &key, &grant, |request| kms.retire_grant(request))
        }
        KmsCommand::Grant(GrantCommand::Revoke { key, grant }) => {
            end_grant(&kms, &key, &grant, |request| kms.revoke_grant(request))
        }
        KmsCommand::Policy(PolicyCommand::Get { key }) => print(&policy::document(&kms.policy(&key)?)),
        KmsCommand::Policy(PolicyCommand::Put { key, file }) => put_policy(&kms, &key, &file),
    }
}

fn create(kms: &LocalKms, args: CreateKey, bytes: Option<&[u8; 32]>, json: bool) -> Result<()> {
    let (alias, text) = (args.alias.as_deref(), args.description.as_str());
    let mut key = match args.no_material || bytes.is_some() {
        true => kms.create_key_without_material(alias, text)?,
        false => kms.create_key(alias, text)?,
    };
    if let Some(bytes) = bytes {
        key = kms.import_material(&key.arn, None, |fill| fill.copy_from_slice(bytes))?;
    }
    if json { print(&json!({ "KeyMetadata": metadata(&key) })) } else { line(key.arn) }
}

fn list(kms: &LocalKms, json: bool) -> Result<()> {
    let keys = kms.list_keys()?;
    if json {
        let keys: Vec<Json> = keys.iter().map(|key| json!({ "KeyId": key.id, "KeyArn": key.arn })).collect();
        return print(&json!({ "Keys": keys, "Truncated": false }));
    }
    let mut out = stdout();
    for key in keys {
        writeln!(out, "{}\t{}\t{}\t{}", key.arn, state(key.state), key.aliases.join(" "), key.description)
            .map_err(Failure::output)?;
    }
    finish(out)
}

/// As JSON it is AWS's `describe-key`, with the aliases, which AWS gives elsewhere, and the rotation besides.
fn describe(kms: &LocalKms, name: &str, json: bool) -> Result<()> {
    let key = kms.key(name)?;
    let rotation = kms.rotation_status(name)?;
    if json {
        return print(&json!({
            "KeyMetadata": metadata(&key),
            "Aliases": key.aliases,
            "Rotation": rotation_json(&key, &rotation),
        }));
    }
    let mut out = stdout();
    let mut say = |what: &str, value: String| writeln!(out, "{what:<12} {value}").map_err(Failure::output);
    say("arn", key.arn)?;
    say("state", state(key.state).to_owned())?;
    let customers = key.manager == Some(KeyManager::Customer);
    say("manager", if customers { "customer" } else { "strongroom" }.to_owned())?;
    say("aliases", key.aliases.join(" "))?;
    say("description", key.description)?;
    say("origin", if key.origin == Some(KeyOrigin::Imported) { "imported" } else { "generated" }.to_owned())?;
    for (what, ms) in [("created", key.created_ms), ("deletion", key.deletion_ms), ("expiry", key.expiry_ms)] {
        if let Some(ms) = ms {
            say(what, moment(ms))?;
        }
    }
    say("rotation", rotation_text(&rotation))?;
    finish(out)
}

fn rotate(kms: &LocalKms, key: &str, json: bool) -> Result<()> {
    let version = kms.rotate(key)?;
    if json {
        return print(&json!({ "KeyId": kms.key(key)?.id, "KeyVersion": version }));
    }
    line(format_args!("version {version} wraps from now on; the earlier ones still open what they wrapped"))
}

fn rotation_period(kms: &LocalKms, key: &str, days: Option<u32>, never: bool, json: bool) -> Result<()> {
    if days.is_some() || never {
        kms.set_rotation_period(key, days)?;
    }
    let status = kms.rotation_status(key)?;
    if json { print(&rotation_json(&kms.key(key)?, &status)) } else { line(rotation_text(&status)) }
}

fn schedule_deletion(kms: &LocalKms, key: &str, days: u32, json: bool) -> Result<()> {
    let key = kms.schedule_deletion(key, days)?;
    let deletion_ms = key.deletion_ms.unwrap_or(0);
    if json {
        return print(&json!({
            "KeyId": key.arn,
            "DeletionDate": seconds(deletion_ms),
            "KeyState": state_name(key.state),
            "PendingWindowInDays": days,
        }));
    }
    line(format_args!("{} is refused from now on and will be erased {}", key.arn, moment(deletion_ms)))
}

fn import(kms: &LocalKms, key: &str, bytes: Option<&[u8; 32]>, expire_in: Option<u32>) -> Result<()> {
    let bytes = bytes.ok_or_else(|| Failure::usage("there are no bytes to import", "name a file with 32 bytes"))?;
    let expiry_ms = expire_in.map(|days| now_ms().saturating_add(u64::from(days) * DAY_MS));
    kms.import_material(key, expiry_ms, |fill| fill.copy_from_slice(bytes))?;
    Ok(())
}

/// The 32 bytes in a file, without a second copy of them.
fn key_bytes(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    let failed = |source| Failure::file("read", path, source);
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = Zeroizing::new([0; 32]);
    let mut more = Zeroizing::new([0; 1]);
    let fits = file.read_exact(&mut *bytes).is_ok() && file.read(&mut *more).map_err(failed)? == 0;
    if fits {
        return Ok(bytes);
    }
    let what = format!("{} does not hold exactly 32 bytes", path.display());
    Err(Failure::usage(what, "`head -c 32 /dev/urandom > FILE` makes such a file; keep a copy of it"))
}

fn create_grant(kms: &LocalKms, args: CreateGrant, json: bool) -> Result<()> {
    let key = kms.key(&args.key)?.arn;
    let operations = args.operations.into_iter().map(Into::into).collect::<Vec<_>>();
    let mut request = CreateGrantRequest::new(key.clone(), args.to, operations, Principal::Owner);
    if !args.context.is_empty() {
        let context = EncryptionContext::from_pairs(args.context).map_err(|error| refused(&key, error))?;
        request.constraint = Some(match args.exactly {
            true => GrantConstraint::Equals(context),
            false => GrantConstraint::Contains(context),
        });
    }
    request.retiring_principal = args.retiring;
    request.name = args.name;
    let grant = kms.create_grant(&request).map_err(|error| refused(&key, error))?;
    if json { print(&json!({ "GrantToken": grant.token, "GrantId": grant.id })) } else { line(grant.id) }
}

fn list_grants(kms: &LocalKms, key: &str, json: bool) -> Result<()> {
    let grants = kms.list_grants(key)?;
    if json {
        let arn = kms.key(key)?.arn;
        let grants: Vec<Json> = grants.iter().map(|grant| grant_json(&arn, grant)).collect();
        return print(&json!({ "Grants": grants, "Truncated": false }));
    }
    let mut out = stdout();
    for grant in grants {
        let operations: Vec<String> = grant.operations.iter().map(|operation| format!("{operation:?}")).collect();
        let constraint = grant.constraint.as_ref().map(|one| policy::constraint_json(one).to_string());
        writeln!(
            out,
            "{}\t{}\t{}\t{}\t{}",
            grant.id,
            principal_text(&grant.grantee),
            operations.join(" "),
            constraint.unwrap_or_default(),
            grant.name.unwrap_or_default()
        )
        .map_err(Failure::output)?;
    }
    finish(out)
}

fn end_grant(
    kms: &LocalKms,
    key: &str,
    grant: &str,
    end: impl FnOnce(&EndGrantRequest) -> Result<(), ProviderError>,
) -> Result<()> {
    let arn = kms.key(key)?.arn;
    end(&EndGrantRequest::new(arn.clone(), grant, Principal::Owner)).map_err(|error| refused(&arn, error))
}

fn put_policy(kms: &LocalKms, key: &str, file: &Path) -> Result<()> {
    let text = std::fs::read(file).map_err(|source| Failure::file("read", file, source))?;
    let policy = policy::parse(&text).map_err(|wrong| {
        let what = format!("{} is no policy: {wrong}", file.display());
        Failure::usage(what, "docs/CLI.md shows the shape of a policy; nothing was changed")
    })?;
    Ok(kms.put_policy(key, policy)?)
}

/// The provider's answer, as a mistake of the user's where it is one.
fn refused(key: &str, source: ProviderError) -> Failure {
    match source.reason {
        ProviderReason::InvalidRequest => Failure::usage(source.message, "correct the arguments; nothing was changed"),
        ProviderReason::GrantNotFound => {
            Failure::usage(source.message, "`strongroom kms grant list KEY` shows the grants that there are")
        }
        ProviderReason::LimitExceeded => {
            Failure::OverLimit { what: source.message, advice: "revoke what is not needed any more" }
        }
        _ => Failure::Store(Error::MasterKeyUnavailable { key: key.to_owned(), source }),
    }
}

/// AWS's `KeyMetadata`.
fn metadata(key: &KeyDescription) -> Json {
    let mut fields = Map::new();
    fields.insert("KeyId".into(), key.id.as_str().into());
    fields.insert("Arn".into(), key.arn.as_str().into());
    if let Some(ms) = key.created_ms {
        fields.insert("CreationDate".into(), seconds(ms));
    }
    fields.insert("Enabled".into(), (key.state == KeyState::Enabled).into());
    fields.insert("Description".into(), key.description.as_str().into());
    fields.insert("KeyUsage".into(), "ENCRYPT_DECRYPT".into());
    fields.insert("KeyState".into(), state_name(key.state).into());
    if let Some(ms) = key.deletion_ms {
        fields.insert("DeletionDate".into(), seconds(ms));
    }
    let imported = key.origin == Some(KeyOrigin::Imported);
    // AWS's word for a key that its service made stands for one that this keyring made.
    fields.insert("Origin".into(), if imported { "EXTERNAL" } else { "AWS_KMS" }.into());
    if imported && key.state != KeyState::PendingImport {
        let model = if key.expiry_ms.is_some() { "KEY_MATERIAL_EXPIRES" } else { "KEY_MATERIAL_DOES_NOT_EXPIRE" };
        fields.insert("ExpirationModel".into(), model.into());
    }
    if let Some(ms) = key.expiry_ms {
        fields.insert("ValidTo".into(), seconds(ms));
    }
    // At AWS the service, here the engine.
    let customers = key.manager == Some(KeyManager::Customer);
    fields.insert("KeyManager".into(), if customers { "CUSTOMER" } else { "AWS" }.into());
    fields.insert("KeySpec".into(), "SYMMETRIC_DEFAULT".into());
    Json::Object(fields)
}

/// AWS's answer to `get-key-rotation-status`.
fn rotation_json(key: &KeyDescription, status: &RotationStatus) -> Json {
    let mut fields = Map::new();
    fields.insert("KeyId".into(), key.arn.as_str().into());
    fields.insert("KeyRotationEnabled".into(), status.period_days.is_some().into());
    if let (Some(days), Some(ms)) = (status.period_days, status.next_ms) {
        fields.insert("RotationPeriodInDays".into(), days.into());
        fields.insert("NextRotationDate".into(), seconds(ms));
    }
    fields.insert("KeyVersion".into(), status.current_version.into());
    Json::Object(fields)
}

fn rotation_text(status: &RotationStatus) -> String {
    let by_itself = match (status.period_days, status.next_ms) {
        (Some(days), Some(ms)) => format!("every {days} days, next {}", moment(ms)),
        _ => "never by itself".to_owned(),
    };
    let RotationStatus { current_version, on_demand_left, .. } = status;
    format!("{by_itself}; version {current_version}; on demand {on_demand_left} more times")
}

/// An entry of AWS's answer to `list-grants`.
fn grant_json(arn: &str, grant: &GrantDescription) -> Json {
    let mut fields = Map::new();
    fields.insert("KeyId".into(), arn.into());
    fields.insert("GrantId".into(), grant.id.as_str().into());
    if let Some(name) = &grant.name {
        fields.insert("Name".into(), name.as_str().into());
    }
    fields.insert("CreationDate".into(), seconds(grant.created_ms));
    fields.insert("GranteePrincipal".into(), principal_text(&grant.grantee).into());
    if let Some(principal) = &grant.retiring_principal {
        fields.insert("RetiringPrincipal".into(), principal_text(principal).into());
    }
    let operations = grant.operations.iter().map(|operation| format!("{operation:?}"));
    fields.insert("Operations".into(), operations.collect());
    if let Some(constraint) = &grant.constraint {
        fields.insert("Constraints".into(), policy::constraint_json(constraint));
    }
    Json::Object(fields)
}

fn state(state: KeyState) -> &'static str {
    match state {
        KeyState::Enabled => "enabled",
        KeyState::Disabled => "disabled",
        KeyState::PendingDeletion => "pending deletion",
        KeyState::PendingImport => "pending import",
        KeyState::Unavailable => "unavailable",
        _ => "unknown",
    }
}

/// AWS's names.
fn state_name(state: KeyState) -> String {
    format!("{state:?}")
}

/// A time for people: how far away it is.
fn moment(ms: u64) -> String {
    let now_ms = now_ms();
    let days = |ms: u64| format!("{:.1} days", ms as f64 / DAY_MS as f64);
    match ms.checked_sub(now_ms) {
        Some(ahead) => format!("in {}", days(ahead)),
        None => format!("{} ago", days(now_ms - ms)),
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn print(json: &Json) -> Result<()> {
    line(format_args!("{json:#}"))
}
