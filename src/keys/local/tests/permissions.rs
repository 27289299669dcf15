//! Policies and grants: who may do what, with which context.

use super::*;

fn ada() -> Principal {
    Principal::Named("ada".to_owned())
}

fn bob() -> Principal {
    Principal::Named("bob".to_owned())
}

fn one() -> EncryptionContext {
    EncryptionContext::from_pairs([("store", "s")]).unwrap()
}

/// With one pair more than [`one`].
fn two() -> EncryptionContext {
    EncryptionContext::from_pairs([("store", "s"), ("table", "t")]).unwrap()
}

fn other() -> EncryptionContext {
    EncryptionContext::from_pairs([("store", "S"), ("table", "t")]).unwrap()
}

fn contexts() -> [EncryptionContext; 4] {
    [EncryptionContext::new(), one(), two(), other()]
}

fn memory() -> LocalKms {
    LocalKms::in_memory(Simulation::new(1).environment()).unwrap()
}

fn owners() -> PolicyStatement {
    PolicyStatement::allow([Principal::Owner], KeyOperation::ALL)
}

/// A key that the owner may use, and nobody else.
fn owners_key(kms: &LocalKms) -> String {
    let arn = kms.create_key(None, "").unwrap().arn;
    kms.put_policy(&arn, KeyPolicy::new([owners()])).unwrap();
    arn
}

fn owners_wrap(kms: &LocalKms, key: &str, context: &EncryptionContext) -> Vec<u8> {
    kms.generate_data_key(&GenerateDataKeyRequest::new(key, context.clone(), Principal::Owner)).unwrap().ciphertext
}

/// Whether this principal is let do it. `wrapped` was wrapped under the key with this context.
fn may(
    kms: &LocalKms,
    key: &str,
    who: &Principal,
    operation: KeyOperation,
    context: &EncryptionContext,
    wrapped: &[u8],
) -> bool {
    let (who, here) = (who.clone(), context.clone());
    let answer = match operation {
        KeyOperation::DescribeKey => kms.describe_key(&DescribeKeyRequest::new(key, who)).map(drop),
        KeyOperation::GenerateDataKey => kms.generate_data_key(&GenerateDataKeyRequest::new(key, here, who)).map(drop),
        KeyOperation::Encrypt => kms.encrypt(&EncryptRequest::new(key, DataKey::from_fn(|_| {}), here, who)).map(drop),
        KeyOperation::Decrypt => kms.decrypt(&DecryptRequest::new(key, wrapped, here, who)).map(drop),
        KeyOperation::ReEncryptFrom | KeyOperation::ReEncryptTo => {
            // The other key is everybody's, so that it is this one that decides.
            let free = kms.create_key(None, "").unwrap().arn;
            let everyone = PolicyStatement::allow([PolicyPrincipal::Everyone], KeyOperation::ALL);
            kms.put_policy(&free, KeyPolicy::new([everyone])).unwrap();
            let (from, wrapped, to) = match operation {
                KeyOperation::ReEncryptFrom => (key, wrapped.to_vec(), &*free),
                _ => (&*free, owners_wrap(kms, &free, context), key),
            };
            kms.re_encrypt(&ReEncryptRequest::new(from, wrapped, here.clone(), to, here, who)).map(drop)
        }
        _ => unreachable!("no operation with data keys"),
    };
    match answer {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.reason, ProviderReason::Denied, "{error}");
            false
        }
    }
}

type Rule = Box<dyn Fn(&Principal, KeyOperation, &EncryptionContext) -> bool>;

/// Try every principal, operation and context with this policy and these grants.
fn matrix(name: &str, statements: &[PolicyStatement], grants: &[CreateGrantRequest], expected: Rule) {
    let kms = memory();
    let key = owners_key(&kms);
    let contexts = contexts().map(|context| (owners_wrap(&kms, &key, &context), context));
    kms.put_policy(&key, KeyPolicy::new(statements.to_vec())).unwrap();
    for grant in grants {
        let mut grant = grant.clone();
        grant.key.clone_from(&key);
        kms.create_grant(&grant).unwrap();
    }
    for who in [Principal::Owner, Principal::Service, ada(), bob()] {
        for operation in KeyOperation::DATA_KEYS {
            for (wrapped, context) in &contexts {
                assert_eq!(
                    may(&kms, &key, &who, operation, context, wrapped),
                    expected(&who, operation, context),
                    "{name}: {who} {operation:?} {context:?}"
                );
            }
        }
    }
}

fn grant(to: Principal, operations: &[GrantOperation], constraint: Option<GrantConstraint>) -> CreateGrantRequest {
    let mut request = CreateGrantRequest::new("", to, operations.to_vec(), Principal::Owner);
    request.constraint = constraint;
    request
}

#[test]
fn every_principal_operation_and_context_meets_policy_grants_and_denials_as_written() {
    // A permission too many is a leak, one too few an outage.
    use KeyOperation as K;
    let is_owner = |who: &Principal| *who == Principal::Owner;

    matrix("the owner's alone", &[owners()], &[], Box::new(move |who, _, _| is_owner(who)));

    let everyone_decrypts = PolicyStatement::allow([PolicyPrincipal::Everyone], [K::Decrypt]);
    matrix(
        "a statement for everyone, in some contexts",
        &[owners(), everyone_decrypts.clone().with(GrantConstraint::Contains(one()))],
        &[],
        Box::new(move |who, operation, context| {
            is_owner(who) || operation == K::Decrypt && context.contains_all(&one())
        }),
    );
    matrix(
        "a statement for everyone, in one context exactly",
        &[owners(), everyone_decrypts.clone().with(GrantConstraint::Equals(one()))],
        &[],
        Box::new(move |who, operation, context| is_owner(who) || operation == K::Decrypt && *context == one()),
    );

    let ada_all = PolicyStatement::allow([ada()], K::DATA_KEYS);
    let nobody_elsewhere =
        PolicyStatement::deny([PolicyPrincipal::Everyone], K::ALL).with(GrantConstraint::Equals(other()));
    matrix(
        "a denial in one context wins over every permission, and leaves alone what has no context",
        &[nobody_elsewhere.clone(), owners(), ada_all.clone()],
        &[],
        Box::new(move |who, operation, context| {
            (is_owner(who) || *who == ada()) && (operation == K::DescribeKey || *context != other())
        }),
    );
    matrix(
        "a permission in some contexts is none for what has no context",
        &[owners(), ada_all.clone().with(GrantConstraint::Contains(one()))],
        &[],
        Box::new(move |who, operation, context| {
            is_owner(who) || *who == ada() && operation != K::DescribeKey && context.contains_all(&one())
        }),
    );

    use GrantOperation as G;
    let all = [G::DescribeKey, G::GenerateDataKey, G::Decrypt, G::Encrypt, G::ReEncryptFrom, G::ReEncryptTo];
    matrix(
        "a grant, in some contexts; describing has none",
        &[owners()],
        &[grant(ada(), &all, Some(GrantConstraint::Contains(one())))],
        Box::new(move |who, operation, context| {
            is_owner(who) || *who == ada() && (operation == K::DescribeKey || context.contains_all(&one()))
        }),
    );
    matrix(
        "several grants add up",
        &[owners()],
        &[
            grant(ada(), &[G::Decrypt], Some(GrantConstraint::Equals(one()))),
            grant(ada(), &[G::Decrypt], Some(GrantConstraint::Equals(two()))),
            grant(ada(), &[G::Encrypt], None),
            grant(Principal::Service, &[G::GenerateDataKey], None),
        ],
        Box::new(move |who, operation, context| match operation {
            _ if is_owner(who) => true,
            K::Decrypt => *who == ada() && (*context == one() || *context == two()),
            K::Encrypt => *who == ada(),
            K::GenerateDataKey => *who == Principal::Service,
            _ => false,
        }),
    );
    matrix(
        "a denial wins over a grant, and is the denied one's alone",
        &[owners(), PolicyStatement::deny([ada()], [K::Decrypt])],
        &[grant(ada(), &all, None), grant(bob(), &[G::Decrypt], None)],
        Box::new(move |who, operation, _| {
            is_owner(who) || *who == ada() && operation != K::Decrypt || *who == bob() && operation == K::Decrypt
        }),
    );
    matrix(
        "the owner can be denied the use of a key, and manages it all the same",
        &[owners(), PolicyStatement::deny([Principal::Service], K::ALL), ada_all],
        &[grant(Principal::Service, &all, None)],
        Box::new(move |who, _, _| is_owner(who) || *who == ada()),
    );
}

#[test]
fn no_policy_locks_the_owner_out_of_managing() {
    // Nobody could ever repair such a policy.
    let kms = memory();
    let arn = kms.create_key(None, "").unwrap().arn;
    let before = kms.policy(&arn).unwrap();
    let manage = PolicyStatement::allow([Principal::Owner], [KeyOperation::Manage]);
    let without: Vec<KeyOperation> =
        KeyOperation::ALL.into_iter().filter(|&operation| operation != KeyOperation::Manage).collect();
    for statements in [
        vec![],
        vec![PolicyStatement::allow([Principal::Owner], without)],
        vec![PolicyStatement::allow([ada()], KeyOperation::ALL)],
        vec![manage.clone().with(GrantConstraint::Contains(one()))],
        vec![owners(), PolicyStatement::deny([Principal::Owner], [KeyOperation::Manage])],
        vec![owners(), PolicyStatement::deny([PolicyPrincipal::Everyone], KeyOperation::ALL)],
        // And these mean nothing.
        vec![owners(), PolicyStatement::allow([ada()], [])],
        vec![owners(), PolicyStatement::allow(Vec::<Principal>::new(), KeyOperation::ALL)],
        vec![owners(), PolicyStatement::allow([Principal::Named(String::new())], KeyOperation::ALL)],
        vec![owners().named("")],
    ] {
        let error = kms.put_policy(&arn, KeyPolicy::new(statements)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(kms.policy(&arn).unwrap(), before);
    }
    let long = Principal::Named("x".repeat(257));
    let error =
        kms.put_policy(&arn, KeyPolicy::new([owners(), PolicyStatement::allow([long], [KeyOperation::Decrypt])]));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::LimitExceeded);

    kms.put_policy(&arn, KeyPolicy::new([manage])).unwrap();
    assert_eq!(reason(generate(&kms, &arn)), ProviderReason::Denied);
    kms.disable(&arn).unwrap();
    kms.put_policy(&arn, before).unwrap();
    kms.enable(&arn).unwrap();
    generate(&kms, &arn).unwrap();
}

#[test]
fn asking_for_a_grant_again_finds_it_and_writes_nothing() {
    // A store with 10,000 tables under one key asks for its grant 10,000 times.
    let world = world();
    let kms = created(&world);
    let arn = owners_key(&kms);
    let mut request = grant(Principal::Service, &[GrantOperation::Decrypt], Some(GrantConstraint::Contains(one())));
    request.key.clone_from(&arn);
    request.name = Some("store".to_owned());
    let first = kms.create_grant(&request).unwrap();
    assert_eq!((first.key_arn.as_str(), first.id.len()), (arn.as_str(), 32));
    let (written, events) = (world.vfs.read(RING).unwrap(), world.vfs.events());
    for _ in 0..100 {
        assert_eq!(kms.create_grant(&request).unwrap(), first);
    }
    assert_eq!(opened(&world).unwrap().create_grant(&request).unwrap(), first);
    assert_eq!((world.vfs.read(RING).unwrap(), world.vfs.events()), (written, events));

    // The same name for something else is a mistake; the same contents without a name are another grant.
    let mut wider = request.clone();
    wider.constraint = None;
    assert_eq!(reason(kms.create_grant(&wider)), ProviderReason::InvalidRequest);
    let mut nameless = request.clone();
    nameless.name = None;
    assert_ne!(kms.create_grant(&nameless).unwrap().id, first.id);
    assert_ne!(kms.create_grant(&nameless).unwrap().id, first.id);
    assert_eq!(kms.list_grants(&arn).unwrap().len(), 3);
    // Order and repetition of operations are no contents.
    request.operations = vec![GrantOperation::Decrypt, GrantOperation::Decrypt];
    assert_eq!(kms.create_grant(&request).unwrap(), first);
}

#[test]
fn a_grant_is_given_up_by_its_parties_and_taken_away_by_who_may() {
    let kms = memory();
    let arn = owners_key(&kms);
    let new = || {
        let mut request = grant(ada(), &[GrantOperation::Decrypt], None);
        request.key.clone_from(&arn);
        request.retiring_principal = Some(Principal::Service);
        kms.create_grant(&request).unwrap().id
    };
    let retire = |id: &str, who| kms.retire_grant(&EndGrantRequest::new(arn.clone(), id, who));
    let revoke = |id: &str, who| kms.revoke_grant(&EndGrantRequest::new(arn.clone(), id, who));
    for party in [ada(), Principal::Service, Principal::Owner] {
        let id = new();
        assert_eq!(reason(retire(&id, bob())), ProviderReason::Denied);
        assert_eq!(reason(revoke(&id, bob())), ProviderReason::Denied);
        retire(&id, party.clone()).unwrap();
        assert_eq!(reason(retire(&id, party)), ProviderReason::GrantNotFound);
    }
    // A grant that lets its grantee retire grants means itself.
    let mut bobs = grant(bob(), &GrantOperation::ALL, None);
    bobs.key.clone_from(&arn);
    let bobs = kms.create_grant(&bobs).unwrap().id;
    let id = new();
    assert_eq!(reason(retire(&id, bob())), ProviderReason::Denied);
    retire(&bobs, bob()).unwrap();
    retire(&id, ada()).unwrap();

    // To take it away is the business of who manages the key, and of whom the policy names.
    let id = new();
    for party in [ada(), Principal::Service] {
        assert_eq!(reason(revoke(&id, party)), ProviderReason::Denied);
    }
    revoke(&id, Principal::Owner).unwrap();
    let bobs = PolicyStatement::allow([bob()], [KeyOperation::RevokeGrant]);
    let not_adas = PolicyStatement::deny([ada()], [KeyOperation::RetireGrant]);
    kms.put_policy(&arn, KeyPolicy::new([owners(), bobs, not_adas])).unwrap();
    let id = new();
    assert_eq!(reason(retire(&id, ada())), ProviderReason::Denied);
    revoke(&id, bob()).unwrap();
    assert!(kms.list_grants(&arn).unwrap().is_empty());

    // Both work whatever the key's state, or a grant could not be taken back from a disabled key.
    let (first, second) = (new(), new());
    kms.schedule_deletion(&arn, 7).unwrap();
    assert_eq!(kms.list_grants(&arn).unwrap().len(), 2);
    retire(&first, Principal::Service).unwrap();
    revoke(&second, Principal::Owner).unwrap();
}

#[test]
fn who_may_grant_by_a_grant_passes_on_what_he_has_or_less() {
    use GrantOperation as G;
    let kms = memory();
    let contains = |context| Some(GrantConstraint::Contains(context));
    let equals = |context| Some(GrantConstraint::Equals(context));
    let try_passing_on = |parent: &Option<GrantConstraint>, operations: &[G], constraint: &Option<GrantConstraint>| {
        let arn = owners_key(&kms);
        let mut own = grant(ada(), &[G::Decrypt, G::CreateGrant], parent.clone());
        own.key.clone_from(&arn);
        kms.create_grant(&own).unwrap();
        let mut passed = grant(bob(), operations, constraint.clone());
        passed.key = arn;
        passed.principal = ada();
        match kms.create_grant(&passed) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.reason, ProviderReason::Denied);
                false
            }
        }
    };
    for (parent, child, allowed) in [
        (None, None, true),
        (None, contains(one()), true),
        (contains(one()), None, false),
        (contains(one()), contains(one()), true),
        (contains(one()), contains(two()), true),
        (contains(two()), contains(one()), false),
        (contains(one()), equals(two()), true),
        (contains(one()), equals(other()), false),
        (equals(one()), equals(one()), true),
        (equals(one()), contains(one()), false),
        (equals(one()), equals(two()), false),
    ] {
        assert_eq!(try_passing_on(&parent, &[G::Decrypt], &child), allowed, "{parent:?} to {child:?}");
        assert!(!try_passing_on(&parent, &[G::Decrypt, G::Encrypt], &child));
    }
    assert!(try_passing_on(&None, &[G::CreateGrant], &None));
}

#[test]
fn a_full_keyring_says_so_and_goes_on_working() {
    // Or the one grant too many would make a keyring that cannot be written any more.
    let kms = memory();
    let arn = owners_key(&kms);
    let request = |number: u32, len: usize| {
        let pairs = [("filler", "x".repeat(len)), ("number", number.to_string())];
        let context = EncryptionContext::from_pairs(pairs).unwrap();
        let mut request = grant(ada(), &[GrantOperation::Decrypt], Some(GrantConstraint::Contains(context)));
        request.key.clone_from(&arn);
        request
    };
    assert_eq!(reason(kms.create_grant(&request(0, 4096))), ProviderReason::LimitExceeded);
    // Filled from within, because 4,000 requests would each count what is there.
    {
        let mut state = kms.0.state.lock();
        let grant = |number| grant::GrantRecord::asked_for(&request(number, 4000), grant::GrantId([1; 16]), 0).unwrap();
        state.keyring.keys[0].grants.extend((0..4127).map(grant));
    }
    let mut number = 0;
    let refused = loop {
        number += 1;
        match kms.create_grant(&request(number, 3000)) {
            Ok(_) => {}
            Err(error) => break error.reason,
        }
        assert!(number < 100, "{} bytes", fuzz::contents(&kms).len());
    };
    assert_eq!(refused, ProviderReason::LimitExceeded);
    assert!(fuzz::contents(&kms).len() <= contents::KEYRING_BYTES_MAX);
    assert_eq!(kms.create_key(None, &"x".repeat(8000)).unwrap_err().kind(), ErrorKind::LimitExceeded);
    generate(&kms, &arn).unwrap();
    let id = kms.list_grants(&arn).unwrap()[0].id.clone();
    kms.revoke_grant(&EndGrantRequest::new(arn.clone(), id, Principal::Owner)).unwrap();
    kms.create_key(None, "").unwrap();
}

#[test]
fn requests_for_grants_that_cannot_be_meant_are_refused() {
    let kms = memory();
    let arn = owners_key(&kms);
    let mut none = grant(ada(), &[], None);
    let mut nobody = grant(Principal::Named(String::new()), &[GrantOperation::Decrypt], None);
    let mut nameless = grant(ada(), &[GrantOperation::Decrypt], None);
    nameless.name = Some(String::new());
    for request in [&mut none, &mut nobody, &mut nameless] {
        request.key.clone_from(&arn);
        assert_eq!(reason(kms.create_grant(request)), ProviderReason::InvalidRequest);
    }
    let unknown = grant(ada(), &[GrantOperation::Decrypt], None);
    assert_eq!(reason(kms.create_grant(&unknown)), ProviderReason::KeyNotFound);
}

#[test]
fn a_refusal_costs_no_look_at_the_passphrase_again() {
    // Stretching takes a third of a second: a principal who is denied could keep everybody else waiting.
    let world = world();
    let kms = created(&world);
    let arn = owners_key(&kms);
    kms.create_key(Some("alias/one"), "").unwrap();
    let certain = || kms.0.state.lock().filed.as_ref().unwrap().certain;
    assert!(certain());
    assert!(kms.create_key(Some("alias/one"), "").is_err());
    assert!(kms.cancel_deletion(&arn).is_err());
    let revoke = EndGrantRequest::new(arn, "none", ada());
    assert_eq!(reason(kms.revoke_grant(&revoke)), ProviderReason::Denied);
    assert!(certain());
}
