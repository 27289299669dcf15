//! What a keyring refuses, and what it survives.
//!
//! ```text
//! mod.rs          wraps, names, the file and what happens to it, formats
//! states.rs       states of keys, against a model; deletion, import
//! rotation.rs     rotations
//! permissions.rs  policies and grants
//! ```

mod permissions;
mod rotation;
mod states;

use std::path::Path;

use super::*;
use crate::error::ErrorKind;
use crate::io::mem::{Loss, MemVfs};
use crate::io::sim::Simulation;
use crate::io::{Clock, Vfs};

const RING: &str = "/secure/ring";

/// A world with a folder for the keyring.
fn world() -> Simulation {
    let simulation = Simulation::new(1);
    simulation.vfs.create_dir(Path::new("/secure")).unwrap();
    simulation.vfs.sync_dir(Path::new("/")).unwrap();
    simulation
}

fn key() -> Unlock {
    Unlock::key(|key| key.fill(7))
}

fn created(simulation: &Simulation) -> LocalKms {
    LocalKms::create_in(simulation.environment(), RING, key()).unwrap()
}

fn opened(simulation: &Simulation) -> Result<LocalKms> {
    LocalKms::open_in(simulation.environment(), RING, key())
}

fn context(table: &str) -> EncryptionContext {
    EncryptionContext::from_pairs([("store", "s"), ("table", table)]).unwrap()
}

fn generate(kms: &LocalKms, key: &str) -> ProviderResult<GeneratedDataKey> {
    kms.generate_data_key(&GenerateDataKeyRequest::new(key, context("t"), Principal::Owner))
}

fn decrypt(kms: &LocalKms, arn: &str, ciphertext: &[u8], context: EncryptionContext) -> ProviderResult<DataKey> {
    kms.decrypt(&DecryptRequest::new(arn, ciphertext, context, Principal::Owner)).map(|opened| opened.plaintext)
}

fn reason<T: fmt::Debug>(answer: ProviderResult<T>) -> ProviderReason {
    answer.unwrap_err().reason
}

#[test]
fn a_data_key_opens_again_by_every_handle_with_its_key_and_context_alone() {
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(Some("alias/one"), "first").unwrap().arn;
    let other_arn = kms.create_key(Some("alias/two"), "second").unwrap().arn;
    let made = generate(&kms, "alias/one").unwrap();
    assert_eq!(made.key_arn, arn);

    let second = opened(&world).unwrap();
    let again = decrypt(&second, &arn, &made.ciphertext, context("t")).unwrap();
    assert_eq!(again.expose(), made.plaintext.expose());

    // Another context, no context, another key of the same ring, another ring.
    let invalid = ProviderReason::InvalidCiphertext;
    assert_eq!(reason(decrypt(&kms, &arn, &made.ciphertext, context("T"))), invalid);
    assert_eq!(reason(decrypt(&kms, &arn, &made.ciphertext, EncryptionContext::new())), invalid);
    assert_eq!(reason(decrypt(&kms, &other_arn, &made.ciphertext, context("t"))), invalid);
    let stranger = LocalKms::in_memory(world.environment()).unwrap();
    assert_eq!(reason(decrypt(&stranger, &arn, &made.ciphertext, context("t"))), ProviderReason::KeyNotFound);
}

#[test]
fn a_wrap_that_was_cut_or_changed_anywhere_is_refused() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    let arn = kms.create_key(None, "").unwrap().arn;
    let wrapped = generate(&kms, &arn).unwrap().ciphertext;
    assert_eq!(wrapped.len(), 133);
    for len in 0..wrapped.len() {
        assert_eq!(
            reason(decrypt(&kms, &arn, &wrapped[..len], context("t"))),
            ProviderReason::InvalidCiphertext,
            "cut to {len}"
        );
    }
    for index in 0..wrapped.len() {
        let mut changed = wrapped.clone();
        changed[index] ^= 1;
        assert_eq!(
            reason(decrypt(&kms, &arn, &changed, context("t"))),
            ProviderReason::InvalidCiphertext,
            "byte {index}"
        );
    }
}

#[test]
fn a_key_disabled_through_another_handle_is_refused_from_the_next_call_on() {
    // Or revoking a key from the command line would do nothing to the process that should lose it.
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(Some("alias/one"), "").unwrap().arn;
    let wrapped = generate(&kms, "alias/one").unwrap().ciphertext;
    let command_line = opened(&world).unwrap();
    command_line.disable("alias/one").unwrap();
    assert_eq!(reason(generate(&kms, &arn)), ProviderReason::KeyDisabled);
    assert_eq!(reason(decrypt(&kms, &arn, &wrapped, context("t"))), ProviderReason::KeyDisabled);
    let request = DescribeKeyRequest::new("alias/one", Principal::Owner);
    assert_eq!(kms.describe_key(&request).unwrap().state, KeyState::Disabled);
    command_line.enable(&arn).unwrap();
    decrypt(&kms, &arn, &wrapped, context("t")).unwrap();
}

#[test]
fn an_older_copy_put_back_does_not_bring_a_disabled_key_back_to_a_process_that_knows_better() {
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(None, "").unwrap().arn;
    let older = world.vfs.read(RING).unwrap();
    kms.disable(&arn).unwrap();
    world.vfs.plant(RING, &older).unwrap();
    assert_eq!(reason(generate(&kms, &arn)), ProviderReason::Unreachable);
    // A new process cannot know; the documentation says so.
    let unknowing = opened(&world).unwrap();
    generate(&unknowing, &arn).unwrap();
    // Nor does the old copy become a newer one by growing as old as what was seen.
    unknowing.create_key(None, "").unwrap();
    assert_eq!(reason(generate(&kms, &arn)), ProviderReason::Unreachable);
}

#[test]
fn all_four_forms_of_a_name_stand_for_the_same_key() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    let key = kms.create_key(Some("alias/one"), "words").unwrap();
    let alias_arn = key.arn.replace(&format!("key/{}", key.id), "alias/one");
    for name in [&key.arn, &key.id, "alias/one", &alias_arn] {
        assert_eq!(kms.key(name).unwrap(), key);
    }
    let foreign = "arn:strongroom:kms:local:00000000000000000000000000000000:";
    for name in ["", "alias/", "one", "key/", &format!("{foreign}key/{}", key.id), &format!("{foreign}alias/one")] {
        assert_eq!(kms.key(name).unwrap_err().kind(), ErrorKind::KeyUnavailable, "{name}");
    }
    assert_eq!(key.id.len(), 36);
}

#[test]
fn an_alias_that_moves_on_leaves_old_wraps_readable() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    let old = kms.create_key(Some("alias/one"), "").unwrap();
    let made = generate(&kms, "alias/one").unwrap();
    kms.remove_alias("alias/one").unwrap();
    let new = kms.create_key(Some("alias/one"), "").unwrap();
    assert_eq!(generate(&kms, "alias/one").unwrap().key_arn, new.arn);
    assert_eq!(made.key_arn, old.arn);
    decrypt(&kms, &made.key_arn, &made.ciphertext, context("t")).unwrap();
}

#[test]
fn bad_names_and_the_engines_keys_are_refused() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    kms.create_key(Some("alias/one"), "").unwrap();
    let long = format!("alias/{}", "x".repeat(251));
    for alias in ["one", "alias/", "alias/a b", "alias/ä", "alias/one", MANAGED_ALIAS, OWNED_ALIAS, &long] {
        assert!(kms.create_key(Some(alias), "").is_err(), "{alias}");
        assert!(kms.add_alias("alias/one", alias).is_err(), "{alias}");
    }
    assert_eq!(kms.list_keys().unwrap().len(), 1);

    let engine = EngineKeyRequest::new(Principal::Service);
    let managed = kms.managed_key(&engine).unwrap();
    let owned = kms.owned_key(&engine).unwrap();
    assert_eq!(kms.managed_key(&engine).unwrap(), managed);
    assert_eq!(kms.owned_key(&engine).unwrap(), owned);
    for arn in [&managed.arn, &owned.arn] {
        assert_eq!(kms.disable(arn).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    // The managed key is in the user's sight, the owned one is not.
    assert_eq!(kms.list_keys().unwrap().len(), 2);
    assert!(kms.list_keys().unwrap().contains(&managed));
}

#[test]
fn a_named_principal_to_whom_nothing_was_allowed_is_denied_rather_than_taken_for_the_owner() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    assert!(kms.describe().tells_principals_apart);
    let arn = kms.create_key(None, "").unwrap().arn;
    let ada = Principal::Named("ada".to_owned());
    let request = GenerateDataKeyRequest::new(arn, context("t"), ada.clone());
    assert_eq!(reason(kms.generate_data_key(&request)), ProviderReason::Denied);

    // The engine's two keys are everybody's to whom the store gives a session.
    let engine_key = EngineKeyRequest::new(ada.clone());
    for key in [kms.owned_key(&engine_key).unwrap(), kms.managed_key(&engine_key).unwrap()] {
        kms.generate_data_key(&GenerateDataKeyRequest::new(key.arn, context("t"), ada.clone())).unwrap();
    }
}

#[test]
fn re_encrypting_moves_a_data_key_to_another_master_key_and_context() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    let from = kms.create_key(None, "").unwrap().arn;
    let to = kms.create_key(None, "").unwrap().arn;
    let made = generate(&kms, &from).unwrap();
    let request =
        ReEncryptRequest::new(from.clone(), made.ciphertext, context("t"), to.clone(), context("u"), Principal::Owner);
    let moved = kms.re_encrypt(&request).unwrap();
    assert_eq!(moved.key_arn, to);
    let opened = decrypt(&kms, &to, &moved.ciphertext, context("u")).unwrap();
    assert_eq!(opened.expose(), made.plaintext.expose());
    assert!(decrypt(&kms, &from, &moved.ciphertext, context("u")).is_err());
}

#[test]
fn a_wrong_passphrase_is_told_from_damage_and_writes_nothing() {
    let world = world();
    let create = |unlock| LocalKms::create_with(world.environment(), Path::new(RING), unlock, Stretching::LEAST);
    let open = |unlock| LocalKms::open_in(world.environment(), RING, unlock);
    assert_eq!(create(Unlock::passphrase("")).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let kms = create(Unlock::passphrase("correct horse")).unwrap();
    kms.create_key(Some("alias/one"), "").unwrap();
    assert_eq!(create(key()).unwrap_err().kind(), ErrorKind::AlreadyExists);

    let before = world.vfs.snapshot();
    for unlock in [Unlock::passphrase("correct hors"), Unlock::passphrase("Correct horse"), key()] {
        assert_eq!(open(unlock).unwrap_err().kind(), ErrorKind::WrongPassphrase);
    }
    assert_eq!(open(Unlock::passphrase("")).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(world.vfs.snapshot(), before);
    assert_eq!(open(Unlock::passphrase("correct horse")).unwrap().list_keys().unwrap().len(), 1);
    assert!(!format!("{kms:?}").contains("correct"));
}

#[test]
fn the_secret_can_be_changed_and_the_old_one_opens_nothing_any_more() {
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(None, "").unwrap().arn;
    let bystander = opened(&world).unwrap();
    kms.change_unlock(Unlock::key(|key| key.fill(8))).unwrap();
    generate(&kms, &arn).unwrap();
    assert_eq!(opened(&world).unwrap_err().kind(), ErrorKind::WrongPassphrase);
    assert_eq!(reason(generate(&bystander, &arn)), ProviderReason::BadCredentials);
}

#[test]
fn no_changed_byte_of_a_keyring_goes_unseen() {
    let world = world();
    created(&world).create_key(Some("alias/one"), "").unwrap();
    let good = world.vfs.read(RING).unwrap();
    let outcome = |bytes: &[u8]| {
        world.vfs.plant(RING, bytes).unwrap();
        let outcome = opened(&world);
        assert_eq!(world.vfs.read(RING).unwrap(), bytes, "a file that does not open must stay as it is");
        outcome.map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(outcome(&good), Ok(()));
    for index in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[index] ^= 1 << bit;
            assert_eq!(outcome(&bad), Err(ErrorKind::BitRot), "byte {index}, bit {bit}");
        }
    }
    for len in 0..good.len() {
        assert_eq!(outcome(&good[..len]), Err(ErrorKind::BitRot), "cut to {len}");
    }
    assert_eq!(outcome(&[&good[..], &[0]].concat()), Err(ErrorKind::BitRot));

    // And with checksums put right, by somebody who knows how.
    for index in (0..92).chain(file::HEADER_BYTES..good.len()) {
        let mut bad = good.clone();
        bad[index] ^= 1;
        let body_crc = crc32fast::hash(&bad[file::HEADER_BYTES..]);
        bad[92..96].copy_from_slice(&body_crc.to_le_bytes());
        let header_crc = crc32fast::hash(&bad[..96]);
        bad[96..100].copy_from_slice(&header_crc.to_le_bytes());
        let expected = match index {
            // Byte 91 makes the length go beyond its limit, the others make it differ from the file.
            0..8 | 88..91 => ErrorKind::BitRot,
            8..17 => ErrorKind::UnknownVersion,
            // The kind of unlocking, and salt and check of the sealed message.
            17 | 100..164 => ErrorKind::WrongPassphrase,
            _ => ErrorKind::Tampering,
        };
        match outcome(&bad) {
            Err(ErrorKind::UnknownVersion) if index == 17 => {}
            other => assert_eq!(other, Err(expected), "byte {index}"),
        }
    }
}

#[test]
fn settings_of_the_passphrase_outside_their_limits_are_refused_before_work() {
    let world = world();
    let unlock = || Unlock::passphrase("secret");
    LocalKms::create_with(world.environment(), Path::new(RING), unlock(), Stretching::LEAST).unwrap();
    let good = world.vfs.read(RING).unwrap();
    // Memory in KiB, passes, lanes: too little would be cheap to guess, too much would take the machine down.
    for (offset, value) in [(20, (19 << 10) - 1), (20, (1 << 20) + 1), (24, 0), (24, 17), (28, 0), (28, u32::MAX)] {
        let mut bad = good.clone();
        bad[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        let header_crc = crc32fast::hash(&bad[..96]);
        bad[96..100].copy_from_slice(&header_crc.to_le_bytes());
        world.vfs.plant(RING, &bad).unwrap();
        let error = LocalKms::open_in(world.environment(), RING, unlock()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tampering);
    }
}

/// All that can be seen of a keyring.
fn everything(kms: &LocalKms) -> String {
    let keys = kms.list_keys().unwrap();
    let more: Vec<_> = keys
        .iter()
        .map(|key| (kms.policy(&key.arn), kms.list_grants(&key.arn), kms.rotation_status(&key.arn)))
        .map(|(policy, grants, rotation)| (policy.unwrap(), grants.unwrap(), rotation.unwrap()))
        .collect();
    format!("{keys:?} {more:?}")
}

#[test]
fn a_power_cut_during_a_rewrite_leaves_the_old_keyring_or_the_new_one() {
    // Or a crash while a key is made would take all other keys, and with them all stores, along; and one while a grant is revoked could
    // bring back what was decided long before.
    let world = world();
    let mut acknowledged = vec![(world.vfs.events(), "nothing".to_owned())];
    let kms = created(&world);
    acknowledged.push((world.vfs.events(), everything(&kms)));
    let grant = || {
        let operations = vec![GrantOperation::Decrypt];
        CreateGrantRequest::new("alias/one", Principal::Service, operations, Principal::Owner)
    };
    let revoke = |kms: &LocalKms| {
        let key = kms.key("alias/one").unwrap().arn;
        let grant = kms.list_grants(&key).unwrap()[0].id.clone();
        kms.revoke_grant(&EndGrantRequest::new(key, grant, Principal::Owner)).unwrap();
    };
    let month = std::time::Duration::from_secs(30 * 24 * 60 * 60);
    let steps: [&dyn Fn(&LocalKms); 10] = [
        &|kms| drop(kms.create_key(Some("alias/one"), "").unwrap()),
        &|kms| drop(kms.create_grant(&grant()).unwrap()),
        &|kms| assert_eq!(kms.rotate("alias/one").unwrap(), 2),
        &revoke,
        &|kms| kms.put_policy("alias/one", KeyPolicy::default_policy()).unwrap(),
        &|kms| drop(kms.create_key_without_material(Some("alias/two"), "").unwrap()),
        &|kms| drop(kms.import_material("alias/two", None, |bytes| bytes.fill(1)).unwrap()),
        &|kms| kms.delete_imported_material("alias/two").unwrap(),
        &|kms| drop(kms.schedule_deletion("alias/one", 30).unwrap()),
        // The deletion itself: whoever looks does it.
        &|kms| {
            world.clock.advance(month);
            assert_eq!(kms.list_keys().unwrap().len(), 1);
        },
    ];
    for step in steps {
        step(&kms);
        acknowledged.push((world.vfs.events(), everything(&kms)));
    }
    for event in 0..=world.vfs.events() {
        let latest = acknowledged.iter().rposition(|(at, _)| *at <= event).unwrap_or(0);
        for loss in Loss::ALL {
            let disk: MemVfs = world.vfs.crash_at(event, loss, 5);
            let after = Simulation::over(disk, 2);
            let found = match opened(&after) {
                Ok(kms) => {
                    let found = everything(&kms);
                    // A leftover does not keep the next rewrite from its work.
                    kms.create_key(None, "").unwrap();
                    assert!(after.vfs.list().iter().all(|path| !path.ends_with("ring.tmp")));
                    found
                }
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => "nothing".to_owned(),
                Err(error) => panic!("after event {event} with {loss:?}: {error}"),
            };
            let allowed = &acknowledged[latest..(latest + 2).min(acknowledged.len())];
            assert!(allowed.iter().any(|(_, all)| *all == found), "event {event}, {loss:?}: {found}");
        }
    }
}

#[test]
fn a_rewrite_that_fails_changes_nothing_and_the_next_one_works() {
    use crate::io::fault::{FaultVfs, Operation, Rule};
    let world = world();
    let faults = Arc::new(FaultVfs::new(world.vfs.clone()));
    let environment = Environment { vfs: faults.clone(), ..world.environment() };
    let kms = LocalKms::create_in(environment, RING, key()).unwrap();
    kms.create_key(Some("alias/one"), "").unwrap();
    for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::Rename] {
        faults.inject(Rule::on(operation).always().fail(std::io::ErrorKind::StorageFull));
        assert_eq!(kms.disable("alias/one").unwrap_err().kind(), ErrorKind::Io);
        faults.clear();
        assert_eq!(kms.key("alias/one").unwrap().state, KeyState::Enabled, "{operation:?}");
        generate(&kms, "alias/one").unwrap();
    }
    kms.disable("alias/one").unwrap();
    assert_eq!(opened(&world).unwrap().key("alias/one").unwrap().state, KeyState::Disabled);
}

#[test]
fn the_file_that_a_rewrite_replaced_holds_nothing_any_more() {
    // Or a deleted key could be found in the free blocks of the disk.
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(None, "").unwrap().arn;
    let before = world.vfs.open(Path::new(RING)).unwrap();
    let mut bytes = vec![0; before.len_bytes().unwrap() as usize];
    before.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.starts_with(b"strongKR"));
    kms.disable(&arn).unwrap();
    before.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    assert_eq!(opened(&world).unwrap().key(&arn).unwrap().state, KeyState::Disabled);
}

#[test]
fn two_processes_that_make_keys_at_once_lose_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ring");
    LocalKms::create(&path, key()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let kms = LocalKms::open(&path, key()).unwrap();
                (0..10).for_each(|_| drop(kms.create_key(None, "").unwrap()));
            });
        }
    });
    assert_eq!(LocalKms::open(&path, key()).unwrap().list_keys().unwrap().len(), 20);
    assert_eq!(LocalKms::open(directory.path().join("none"), key()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn two_processes_that_change_one_key_at_once_lose_no_grant_and_no_version() {
    // A lost version is lost data; a lost revocation is an open door.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ring");
    let arn = LocalKms::create(&path, key()).unwrap().create_key(None, "").unwrap().arn;
    std::thread::scope(|scope| {
        for name in ["ada", "bob"] {
            let (path, arn) = (&path, &arn);
            scope.spawn(move || {
                let kms = LocalKms::open(path, key()).unwrap();
                let grantee = Principal::Named(name.to_owned());
                for _ in 0..10 {
                    let operations = vec![GrantOperation::Decrypt];
                    let request = CreateGrantRequest::new(arn.clone(), grantee.clone(), operations, Principal::Owner);
                    let first = kms.create_grant(&request).unwrap();
                    kms.create_grant(&request).unwrap();
                    kms.rotate(arn).unwrap();
                    let made = generate(&kms, arn).unwrap();
                    kms.revoke_grant(&EndGrantRequest::new(arn.clone(), first.id, Principal::Owner)).unwrap();
                    decrypt(&kms, arn, &made.ciphertext, context("t")).unwrap();
                }
            });
        }
    });
    let kms = LocalKms::open(&path, key()).unwrap();
    assert_eq!(kms.rotation_status(&arn).unwrap().current_version, 21);
    let grants = kms.list_grants(&arn).unwrap();
    assert_eq!(grants.len(), 20);
    assert_eq!(grants.iter().filter(|grant| grant.grantee == Principal::Named("ada".to_owned())).count(), 10);
}

#[test]
fn no_key_or_name_stands_in_clear_in_the_file() {
    let world = world();
    let kms = created(&world);
    kms.create_key(Some("alias/canary"), "canary words").unwrap();
    let bytes = world.vfs.read(RING).unwrap();
    let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(!has(b"canary") && !has(&[7; 8]));
    let state = kms.0.state.lock();
    let (_, secret) = state.keyring.keys[0].current().unwrap();
    assert!(!has(&secret.expose()[..8]));
}

#[test]
fn a_key_file_holds_32_bytes_or_64_digits_and_a_passphrase_file_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let plant = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        let file = Environment::os().vfs.create(&path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        path
    };
    let ring = directory.path().join("ring");
    LocalKms::create(&ring, key()).unwrap();
    let raw = plant("raw", &[7; 32]);
    let hex = plant("hex", format!("{}\n", "07".repeat(32)).as_bytes());
    for path in [raw, hex] {
        LocalKms::open(&ring, Unlock::key_file(path).unwrap()).unwrap();
    }
    for (name, bytes) in [("short", &[b'a'; 31][..]), ("digits", &[b'g'; 64]), ("empty", &[])] {
        assert_eq!(Unlock::key_file(plant(name, bytes)).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    let world = world();
    let create = |unlock| LocalKms::create_with(world.environment(), Path::new(RING), unlock, Stretching::LEAST);
    create(Unlock::passphrase_file(plant("line", b"correct horse\r\n")).unwrap()).unwrap();
    LocalKms::open_in(world.environment(), RING, Unlock::passphrase("correct horse")).unwrap();
}

/// Counts, so that what is written depends on nothing but the format.
#[derive(Debug, Default)]
struct Counting(std::sync::atomic::AtomicU8);

impl crate::io::Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill_with(|| self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// A keyring with something of everything that the contents can hold.
fn keyring_with_everything(environment: Environment) -> LocalKms {
    let unlock = Unlock::passphrase("correct horse");
    let kms = LocalKms::create_with(environment, Path::new(RING), unlock, Stretching::LEAST).unwrap();
    kms.create_key(Some("alias/golden"), "the first").unwrap();
    kms.rotate("alias/golden").unwrap();
    kms.set_rotation_period("alias/golden", Some(90)).unwrap();
    kms.owned_key(&EngineKeyRequest::new(Principal::Service)).unwrap();
    kms.managed_key(&EngineKeyRequest::new(Principal::Service)).unwrap();
    kms.create_key_without_material(Some("alias/imported"), "").unwrap();
    kms.import_material("alias/imported", Some(1_900_000_000_000), |bytes| bytes.fill(9)).unwrap();
    kms.create_key_without_material(Some("alias/empty"), "").unwrap();
    kms.create_key(Some("alias/going"), "").unwrap();
    kms.schedule_deletion("alias/going", 7).unwrap();
    kms.create_key(Some("alias/disabled"), "").unwrap();
    kms.disable("alias/disabled").unwrap();

    let ada = || Principal::Named("ada".to_owned());
    let policy = KeyPolicy::new([
        PolicyStatement::allow([Principal::Owner], KeyOperation::ALL).named("the owner"),
        PolicyStatement::deny([PolicyPrincipal::Everyone], [KeyOperation::Encrypt])
            .with(GrantConstraint::Contains(context("u"))),
        PolicyStatement::allow([Principal::Service, ada()], [KeyOperation::Decrypt])
            .with(GrantConstraint::Equals(EncryptionContext::new())),
    ]);
    // Every key gets it, so that these bytes do not depend on what the default is.
    for name in ["golden", "imported", "empty", "going", "disabled"] {
        kms.put_policy(&format!("alias/{name}"), policy.clone()).unwrap();
    }
    let operations = vec![GrantOperation::Decrypt, GrantOperation::DescribeKey];
    let mut grant = CreateGrantRequest::new("alias/golden", ada(), operations, Principal::Owner);
    kms.create_grant(&grant).unwrap();
    grant.name = Some("second".to_owned());
    grant.retiring_principal = Some(Principal::Service);
    grant.constraint = Some(GrantConstraint::Equals(context("t")));
    kms.create_grant(&grant).unwrap();
    kms
}

fn golden(name: &str, written: Option<&[u8]>) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if let Some(written) = written
        && std::env::var_os("STRONGROOM_WRITE_GOLDEN").is_some()
        && !path.exists()
    {
        std::fs::write(&path, written).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn keyrings_of_format_2_and_wraps_read_and_write_as_ever() {
    // Or a new version would lock everybody out of all their stores.
    let world = world();
    world.clock.set_wall_ms(1_800_000_000_000);
    let environment = Environment { entropy: Arc::new(Counting::default()), ..world.environment() };
    let kms = keyring_with_everything(environment.clone());
    let written = world.vfs.read(RING).unwrap();
    let made = generate(&kms, "alias/golden").unwrap();
    assert_eq!(written, golden("keyring-2", Some(&written)));
    let wrap = golden("data-key-wrap-1-rotated", Some(&made.ciphertext));
    assert_eq!(made.ciphertext, wrap);

    world.vfs.plant(RING, &golden("keyring-2", None)).unwrap();
    let again = LocalKms::open_in(environment, RING, Unlock::passphrase("correct horse")).unwrap();
    assert_eq!(again.list_keys().unwrap(), kms.list_keys().unwrap());
    for key in kms.list_keys().unwrap() {
        assert_eq!(again.policy(&key.arn).unwrap(), kms.policy(&key.arn).unwrap());
        assert_eq!(again.list_grants(&key.arn).unwrap(), kms.list_grants(&key.arn).unwrap());
        assert_eq!(again.rotation_status(&key.arn).unwrap(), kms.rotation_status(&key.arn).unwrap());
    }
    let opened = decrypt(&again, &made.key_arn, &wrap, context("t")).unwrap();
    assert_eq!(opened.expose(), made.plaintext.expose());
}

#[test]
fn keyrings_and_wraps_of_format_1_still_open_and_become_format_2_with_the_next_change() {
    // Or a new version would lock everybody out of all their stores.
    let world = world();
    world.clock.set_wall_ms(1_800_000_000_000);
    let ring = golden("keyring-1", None);
    world.vfs.plant(RING, &ring).unwrap();
    let open = || LocalKms::open_in(world.environment(), RING, Unlock::passphrase("correct horse")).unwrap();
    let kms = open();
    let key = kms.key("alias/golden").unwrap();
    assert_eq!((key.state, key.created_ms), (KeyState::Enabled, Some(1_800_000_000_000)));
    let wrap = golden("data-key-wrap-1", None);
    let opened = decrypt(&kms, &key.arn, &wrap, context("t")).unwrap();

    // Only looking leaves the file as it is. These keys were made before there were grants: the engine may use them without.
    assert_eq!(world.vfs.read(RING).unwrap(), ring);
    let request = DecryptRequest::new(key.arn.clone(), wrap.clone(), context("t"), Principal::Service);
    kms.decrypt(&request).unwrap();

    kms.rotate("alias/golden").unwrap();
    assert_eq!(world.vfs.read(RING).unwrap()[8], 2);
    let again = open();
    assert_eq!(decrypt(&again, &key.arn, &wrap, context("t")).unwrap().expose(), opened.expose());
    again.decrypt(&request).unwrap();
    assert_eq!(again.rotation_status(&key.arn).unwrap().current_version, 2);
}
