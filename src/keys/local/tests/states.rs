//! States of keys, against a small model: every operation in every state is allowed, or refused for the one right reason.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is done to one of the keys.
#[derive(Clone, Debug)]
enum Step {
    Enable,
    Disable,
    Schedule(u32),
    Cancel,
    Rotate,
    SetPeriod(Option<u32>),
    /// Bytes by number, and the days until they expire.
    Import(u8, Option<u64>),
    DeleteMaterial,
    AddAlias,
    RemoveAlias,
    Describe,
    PutPolicy,
    CreateGrant,
    RevokeGrants,
    Generate,
    /// Time passes, in days.
    Pass(u64),
    /// Another process goes on.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        2 => Just(Step::Enable),
        1 => Just(Step::Disable),
        1 => (7_u32..=30).prop_map(Step::Schedule),
        2 => Just(Step::Cancel),
        2 => Just(Step::Rotate),
        1 => prop_oneof![Just(None), (90_u32..200).prop_map(Some)].prop_map(Step::SetPeriod),
        3 => (1_u8..=2, prop_oneof![Just(None), (1_u64..40).prop_map(Some)]).prop_map(|(bytes, days)| Step::Import(bytes, days)),
        1 => Just(Step::DeleteMaterial),
        1 => Just(Step::AddAlias),
        1 => Just(Step::RemoveAlias),
        1 => Just(Step::Describe),
        1 => Just(Step::PutPolicy),
        1 => Just(Step::CreateGrant),
        1 => Just(Step::RevokeGrants),
        2 => Just(Step::Generate),
        2 => (1_u64..120).prop_map(Step::Pass),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec((any::<bool>(), step), 1..60)
}

/// What a key ought to be. Times in days.
#[derive(Clone, Debug)]
struct Model {
    imported: bool,
    state: KeyState,
    gone: bool,
    /// Whether there are bytes, and which the first ones were.
    material: bool,
    first_bytes: Option<u8>,
    expiry: Option<u64>,
    deletion: Option<u64>,
    versions: usize,
    on_demand: usize,
    rotation: Option<(u32, u64)>,
    alias: bool,
    grants: usize,
}

type Outcome = std::result::Result<(), ProviderReason>;

impl Model {
    fn new(imported: bool) -> Model {
        Model {
            imported,
            state: if imported { KeyState::PendingImport } else { KeyState::Enabled },
            gone: false,
            material: !imported,
            first_bytes: None,
            expiry: None,
            deletion: None,
            versions: usize::from(!imported),
            on_demand: 0,
            rotation: None,
            alias: false,
            grants: 0,
        }
    }

    fn time_is(&mut self, now: u64) {
        if self.deletion.is_some_and(|day| day <= now) {
            self.gone = true;
        }
        if self.expiry.is_some_and(|day| day <= now) {
            self.take_material();
        }
        if let Some((period, next)) = &mut self.rotation
            && self.state == KeyState::Enabled
            && *next <= now
        {
            *next = now + u64::from(*period);
            self.versions += 1;
        }
    }

    fn take_material(&mut self) {
        self.material = false;
        self.versions = 0;
        self.expiry = None;
        if self.state != KeyState::PendingDeletion {
            self.state = KeyState::PendingImport;
        }
    }

    fn usable(&self) -> Outcome {
        match self.state {
            _ if self.gone => Err(ProviderReason::KeyNotFound),
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => Err(ProviderReason::KeyDisabled),
            KeyState::PendingDeletion => Err(ProviderReason::KeyPendingDeletion),
            KeyState::PendingImport => Err(ProviderReason::KeyPendingImport),
            KeyState::Unavailable => unreachable!(),
        }
    }

    fn not_going(&self) -> Outcome {
        match self.state {
            KeyState::PendingDeletion => self.usable(),
            _ => Ok(()),
        }
    }

    fn step(&mut self, step: &Step, now: u64) -> Outcome {
        match step {
            Step::Pass(_) | Step::Reopen => {}
            _ if self.gone => return Err(ProviderReason::KeyNotFound),
            Step::Enable | Step::Disable => match self.state {
                KeyState::Enabled | KeyState::Disabled => {
                    let enable = matches!(step, Step::Enable);
                    self.state = if enable { KeyState::Enabled } else { KeyState::Disabled };
                }
                _ => self.usable()?,
            },
            Step::Schedule(days) => {
                self.not_going()?;
                self.state = KeyState::PendingDeletion;
                self.deletion = Some(now + u64::from(*days));
            }
            Step::Cancel => {
                let Some(_) = self.deletion.take() else { return Err(ProviderReason::InvalidRequest) };
                self.state = if self.material { KeyState::Disabled } else { KeyState::PendingImport };
            }
            Step::Rotate | Step::SetPeriod(_) if self.imported => return Err(ProviderReason::Unsupported),
            Step::Rotate => {
                self.usable()?;
                if self.on_demand == LocalKms::ROTATIONS_ON_DEMAND_MAX {
                    return Err(ProviderReason::LimitExceeded);
                }
                self.on_demand += 1;
                self.versions += 1;
            }
            Step::SetPeriod(days) => {
                self.usable()?;
                self.rotation = days.map(|days| (days, now + u64::from(days)));
            }
            Step::Import(..) | Step::DeleteMaterial if !self.imported => return Err(ProviderReason::Unsupported),
            Step::Import(bytes, days) => {
                self.not_going()?;
                if *self.first_bytes.get_or_insert(*bytes) != *bytes {
                    return Err(ProviderReason::InvalidRequest);
                }
                self.material = true;
                self.versions = 1;
                self.expiry = days.map(|days| now + days);
                if self.state == KeyState::PendingImport {
                    self.state = KeyState::Enabled;
                }
            }
            Step::DeleteMaterial => self.take_material(),
            Step::AddAlias => {
                self.not_going()?;
                if std::mem::replace(&mut self.alias, true) {
                    return Err(ProviderReason::InvalidRequest);
                }
            }
            Step::RemoveAlias => {
                if !std::mem::take(&mut self.alias) {
                    return Err(ProviderReason::KeyNotFound);
                }
            }
            Step::Describe => self.not_going()?,
            Step::CreateGrant => {
                self.usable()?;
                self.grants += 1;
            }
            Step::RevokeGrants => self.grants = 0,
            Step::Generate => self.usable()?,
            Step::PutPolicy => {}
        }
        Ok(())
    }
}

/// A key, what it ought to be, and what was wrapped under it.
struct Subject {
    arn: String,
    alias: &'static str,
    model: Model,
    wraps: Vec<GeneratedDataKey>,
}

impl Subject {
    fn step(&mut self, kms: &LocalKms, simulation: &Simulation, step: &Step) -> Outcome {
        let key = self.arn.as_str();
        let done = match step {
            Step::Enable => kms.enable(key),
            Step::Disable => kms.disable(key),
            Step::Schedule(days) => kms.schedule_deletion(key, *days).map(drop),
            Step::Cancel => kms.cancel_deletion(key),
            Step::Rotate => kms.rotate(key).map(drop),
            Step::SetPeriod(days) => kms.set_rotation_period(key, *days),
            Step::Import(number, days) => {
                let expiry_ms = days.map(|days| simulation.clock.wall_ms() + days * DAY.as_millis() as u64);
                kms.import_material(key, expiry_ms, |bytes| bytes.fill(*number)).map(drop)
            }
            Step::DeleteMaterial => kms.delete_imported_material(key),
            Step::AddAlias => kms.add_alias(key, self.alias),
            Step::RemoveAlias => kms.remove_alias(self.alias),
            Step::Describe => kms.set_description(key, "new words"),
            Step::PutPolicy => kms.policy(key).and_then(|policy| kms.put_policy(key, policy)),
            Step::CreateGrant => {
                let operations = vec![GrantOperation::Decrypt];
                return reason_of(kms.create_grant(&CreateGrantRequest::new(
                    key,
                    Principal::Service,
                    operations,
                    Principal::Owner,
                )));
            }
            Step::RevokeGrants => kms.list_grants(key).map(|grants| {
                for grant in grants {
                    kms.revoke_grant(&EndGrantRequest::new(key, grant.id, Principal::Owner)).unwrap();
                }
            }),
            Step::Generate => return reason_of(generate(kms, key).map(|made| self.wraps.push(made))),
            Step::Pass(_) | Step::Reopen => Ok(()),
        };
        reason_of(done.map_err(refusal))
    }

    /// What can be seen of the key is what ought to be.
    fn check(&self, kms: &LocalKms) {
        let model = &self.model;
        for made in &self.wraps {
            let opened = decrypt(kms, &self.arn, &made.ciphertext, context("t"));
            match (&opened, model.usable()) {
                (Ok(opened), Ok(())) => assert_eq!(opened.expose(), made.plaintext.expose()),
                (opened, usable) => assert_eq!(opened.as_ref().map(drop).map_err(|error| error.reason), usable),
            }
        }
        if model.gone {
            assert_eq!(reason_of(kms.key(&self.arn).map_err(refusal)), Err(ProviderReason::KeyNotFound));
            assert_eq!(reason_of(kms.key(self.alias).map_err(refusal)), Err(ProviderReason::KeyNotFound));
            return;
        }
        let found = kms.key(&self.arn).unwrap();
        assert_eq!(found.state, model.state);
        assert_eq!(found.deletion_ms.is_some(), model.deletion.is_some());
        assert_eq!(found.expiry_ms.is_some(), model.expiry.is_some());
        assert_eq!(found.aliases.len(), usize::from(model.alias));
        let rotation = kms.rotation_status(&self.arn).unwrap();
        assert_eq!(rotation.versions, model.versions);
        assert_eq!(rotation.period_days, model.rotation.map(|(days, _)| days));
        assert_eq!(kms.list_grants(&self.arn).unwrap().len(), model.grants);
    }
}

fn reason_of<T>(answer: ProviderResult<T>) -> Outcome {
    answer.map(drop).map_err(|error| error.reason)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(192) })]

    #[test]
    fn every_operation_in_every_state_does_what_it_should_or_is_refused_for_the_right_reason(steps in steps()) {
        // A key that could be used while it is disabled, or enabled while it waits for its deletion, would make revoking a wish.
        let world = world();
        let mut kms = created(&world);
        let new = |arn, alias, imported| Subject { arn, alias, model: Model::new(imported), wraps: Vec::new() };
        let generated = kms.create_key(None, "").unwrap().arn;
        let imported = kms.create_key_without_material(None, "").unwrap().arn;
        let mut subjects = [new(generated, "alias/one", false), new(imported, "alias/two", true)];
        let mut now = 0;
        for (which, step) in steps {
            match step {
                Step::Pass(days) => {
                    world.clock.advance(DAY * days as u32);
                    now += days;
                }
                Step::Reopen => kms = opened(&world).unwrap(),
                _ => {}
            }
            subjects.iter_mut().for_each(|subject| subject.model.time_is(now));
            let subject = &mut subjects[usize::from(which)];
            let expected = subject.model.step(&step, now);
            prop_assert_eq!(subject.step(&kms, &world, &step), expected, "{:?} of {:?}", step, subject.model);
            // What `enable` brought about may be a rotation that was due.
            subjects.iter_mut().for_each(|subject| subject.model.time_is(now));
            subjects.iter().for_each(|subject| subject.check(&kms));
        }
    }
}

#[test]
fn the_engines_keys_have_no_states_that_anybody_could_change() {
    let kms = LocalKms::in_memory(Simulation::new(1).environment()).unwrap();
    let engine = EngineKeyRequest::new(Principal::Service);
    for arn in [kms.managed_key(&engine).unwrap().arn, kms.owned_key(&engine).unwrap().arn] {
        let before = kms.key(&arn).unwrap();
        let attempts = [
            kms.enable(&arn),
            kms.disable(&arn),
            kms.schedule_deletion(&arn, 7).map(drop),
            kms.cancel_deletion(&arn),
            kms.rotate(&arn).map(drop),
            kms.set_rotation_period(&arn, Some(90)),
            kms.import_material(&arn, None, |_| {}).map(drop),
            kms.delete_imported_material(&arn),
            kms.add_alias(&arn, "alias/mine"),
            kms.set_description(&arn, "mine"),
            kms.put_policy(&arn, KeyPolicy::default_policy()),
        ];
        for attempt in attempts {
            assert_eq!(attempt.unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        assert_eq!(kms.key(&arn).unwrap(), before);
    }
    for alias in [MANAGED_ALIAS, OWNED_ALIAS] {
        let other = kms.create_key(None, "").unwrap().arn;
        assert_eq!(kms.update_alias(alias, &other).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(kms.remove_alias(alias).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(kms.create_key(Some("alias/aws/dynamodb"), "").is_err());
}

#[test]
fn a_deleted_key_is_gone_from_the_file_and_its_alias_free_again() {
    // Or who deleted a key to destroy what is under it would have destroyed nothing.
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(Some("alias/one"), "").unwrap().arn;
    kms.create_grant(&CreateGrantRequest::new(
        arn.clone(),
        Principal::Service,
        vec![GrantOperation::Decrypt],
        Principal::Owner,
    ))
    .unwrap();
    let wrapped = generate(&kms, &arn).unwrap().ciphertext;
    let deletion_ms = kms.schedule_deletion("alias/one", 7).unwrap().deletion_ms.unwrap();
    assert_eq!(deletion_ms, world.clock.wall_ms() + 7 * DAY.as_millis() as u64);
    for days in [6, 31] {
        let error = kms.schedule_deletion("alias/one", days).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let contents = || {
        let file = KeyringFile::new(Path::new(RING), world.environment()).unwrap();
        file.load(&key()).unwrap().keyring.keys.len()
    };

    world.clock.set_wall_ms(deletion_ms - 1);
    assert_eq!(kms.key(&arn).unwrap().state, KeyState::PendingDeletion);
    assert_eq!(contents(), 1);
    world.clock.set_wall_ms(deletion_ms);
    assert_eq!(reason(decrypt(&kms, &arn, &wrapped, context("t"))), ProviderReason::KeyNotFound);
    assert_eq!(contents(), 0);
    // A clock that is set back afterwards brings nothing back.
    world.clock.set_wall_ms(deletion_ms - 1);
    assert_eq!(reason(decrypt(&kms, &arn, &wrapped, context("t"))), ProviderReason::KeyNotFound);
    let other = kms.create_key(Some("alias/one"), "").unwrap().arn;
    assert_ne!(other, arn);
    assert_eq!(reason(decrypt(&kms, &other, &wrapped, context("t"))), ProviderReason::InvalidCiphertext);
}

#[test]
fn opening_a_keyring_erases_what_fell_due_while_nobody_looked() {
    let world = world();
    let kms = created(&world);
    kms.create_key(Some("alias/one"), "").unwrap();
    kms.schedule_deletion("alias/one", 30).unwrap();
    drop(kms);
    world.clock.advance(40 * DAY);
    let before = world.vfs.read(RING).unwrap();
    assert!(opened(&world).unwrap().list_keys().unwrap().is_empty());
    assert!(world.vfs.read(RING).unwrap().len() < before.len());
}

#[test]
fn a_deletion_that_cannot_be_written_down_is_a_refusal_all_the_same() {
    // Or a full disk would keep a key alive that everybody believes to be gone.
    use crate::io::fault::{FaultVfs, Operation, Rule};
    let world = world();
    let faults = Arc::new(FaultVfs::new(world.vfs.clone()));
    let environment = Environment { vfs: faults.clone(), ..world.environment() };
    let kms = LocalKms::create_in(environment, RING, key()).unwrap();
    let arn = kms.create_key(None, "").unwrap().arn;
    let other = kms.create_key(None, "").unwrap().arn;
    kms.set_rotation_period(&other, Some(90)).unwrap();
    kms.schedule_deletion(&arn, 7).unwrap();
    world.clock.advance(100 * DAY);
    let before = world.vfs.read(RING).unwrap();
    for operation in [Operation::Lock, Operation::Create, Operation::Write, Operation::Sync, Operation::Rename] {
        faults.inject(Rule::on(operation).always().fail(std::io::ErrorKind::StorageFull));
        assert_eq!(reason(generate(&kms, &arn)), ProviderReason::KeyNotFound, "{operation:?}");
        // A version that might get lost wraps nothing.
        assert_eq!(generate(&kms, &other).unwrap().ciphertext[17], 1, "{operation:?}");
        assert_eq!(world.vfs.read(RING).unwrap(), before);
        faults.clear();
    }
    assert_eq!(generate(&kms, &other).unwrap().ciphertext[17], 2);
    assert_ne!(world.vfs.read(RING).unwrap(), before);
}

#[test]
fn a_clock_that_is_behind_delays_a_deletion_and_never_hastens_it() {
    // A machine that starts in 1970, schedules, and then learns the time, must not delete at once.
    let world = world();
    let kms = created(&world);
    kms.create_key(Some("alias/one"), "").unwrap();
    let true_ms = world.clock.wall_ms();
    world.clock.set_wall_ms(0);
    let deletion_ms = kms.schedule_deletion("alias/one", 7).unwrap().deletion_ms.unwrap();
    assert_eq!(deletion_ms, true_ms + 7 * DAY.as_millis() as u64);
    world.clock.set_wall_ms(true_ms + 6 * DAY.as_millis() as u64);
    kms.cancel_deletion("alias/one").unwrap();
}

#[test]
fn only_the_bytes_that_a_key_had_can_be_imported_again() {
    // Other bytes would make every wrap under the key unreadable, and nobody would know why.
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key_without_material(None, "").unwrap().arn;
    assert_eq!(reason(generate(&kms, &arn)), ProviderReason::KeyPendingImport);
    kms.import_material(&arn, None, |bytes| bytes.fill(1)).unwrap();
    let made = generate(&kms, &arn).unwrap();
    for missing in [true, false] {
        if missing {
            kms.delete_imported_material(&arn).unwrap();
        }
        let kms = opened(&world).unwrap();
        let error = kms.import_material(&arn, None, |bytes| bytes.fill(2)).unwrap_err();
        assert_eq!(refusal(error).reason, ProviderReason::InvalidRequest);
        kms.import_material(&arn, None, |bytes| bytes.fill(1)).unwrap();
        let opened = decrypt(&kms, &arn, &made.ciphertext, context("t")).unwrap();
        assert_eq!(opened.expose(), made.plaintext.expose());
    }
    let over = kms.import_material(&arn, Some(world.clock.wall_ms()), |bytes| bytes.fill(1)).unwrap_err();
    assert_eq!(over.kind(), ErrorKind::InvalidArgument);
    // The pin says nothing about the bytes, and the bytes are gone from the contents once they are taken away.
    kms.delete_imported_material(&arn).unwrap();
    let contents = fuzz::contents(&kms);
    assert!(!contents.windows(8).any(|window| window == [1; 8]));
}
