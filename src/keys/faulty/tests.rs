//! A fault that does not happen as planned lets a test pass that should not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::format::keyfile::WRAPPED_BYTES_MAX;
use crate::io::Clock;
use crate::io::sim::Simulation;
use crate::keys::LocalKms;

/// A local keyring with two tenants' keys, and faults over it.
struct Scene {
    simulation: Simulation,
    faulty: FaultyProvider,
    mine: String,
    theirs: String,
    context: EncryptionContext,
}

fn scene() -> Scene {
    let simulation = Simulation::new(1);
    let kms = LocalKms::in_memory(simulation.environment()).unwrap();
    let mine = kms.create_key(Some("alias/mine"), "").unwrap().arn;
    let theirs = kms.create_key(Some("alias/theirs"), "").unwrap().arn;
    let faulty = FaultyProvider::new(kms).in_environment(&simulation.environment());
    let context = EncryptionContext::from_pairs([("table", "1")]).unwrap();
    Scene { simulation, faulty, mine, theirs, context }
}

impl Scene {
    fn generate(&self) -> ProviderResult<GeneratedDataKey> {
        let request = GenerateDataKeyRequest::new(self.mine.clone(), self.context.clone(), Principal::Owner);
        self.faulty.generate_data_key(&request)
    }

    fn let_the_service_decrypt(&self) {
        let operations = vec![GrantOperation::Decrypt];
        let request = CreateGrantRequest::new(self.mine.clone(), Principal::Service, operations, Principal::Owner);
        self.faulty.create_grant(&request).unwrap();
    }

    fn decrypt(&self, made: &GeneratedDataKey, principal: Principal) -> ProviderResult<DecryptedDataKey> {
        self.faulty.decrypt(&DecryptRequest::new(
            made.key_arn.clone(),
            made.ciphertext.clone(),
            self.context.clone(),
            principal,
        ))
    }
}

fn reason<T: fmt::Debug>(answer: ProviderResult<T>) -> ProviderReason {
    answer.unwrap_err().reason
}

#[test]
fn without_a_rule_it_is_the_provider_beneath_in_every_operation() {
    let scene = scene();
    let made = scene.generate().unwrap();
    assert_eq!(scene.decrypt(&made, Principal::Owner).unwrap().plaintext.expose(), made.plaintext.expose());
    let faulty = &scene.faulty;
    let described = faulty.describe_key(&DescribeKeyRequest::new("alias/mine", Principal::Owner)).unwrap();
    assert_eq!(described.arn, scene.mine);
    let moved = faulty
        .re_encrypt(&ReEncryptRequest::new(
            scene.mine.clone(),
            made.ciphertext.clone(),
            scene.context.clone(),
            scene.theirs.clone(),
            scene.context.clone(),
            Principal::Owner,
        ))
        .unwrap();
    assert_eq!(moved.key_arn, scene.theirs);
    let key = DataKey::from_fn(|key| key.fill(1));
    let encrypt = EncryptRequest::new(scene.mine.clone(), key, scene.context.clone(), Principal::Owner);
    assert_eq!(faulty.encrypt(&encrypt).unwrap().key_arn, scene.mine);
    let engine = EngineKeyRequest::new(Principal::Owner);
    assert_ne!(faulty.managed_key(&engine).unwrap().arn, faulty.owned_key(&engine).unwrap().arn);
    assert_eq!(faulty.describe().tells_principals_apart, faulty.inner.describe().tells_principals_apart);
    assert_eq!((faulty.count_all(), faulty.count(Operation::ReEncrypt)), (7, 1));
    assert!(faulty.requests().iter().all(|asked| asked.outcome == Some(Ok(()))), "{:?}", faulty.requests());
}

#[test]
fn a_rule_befalls_the_requests_that_it_names_and_no_others() {
    let scene = scene();
    let made = scene.generate().unwrap();
    scene.let_the_service_decrypt();
    let denied = Rule::on(Operation::Decrypt).principal(Principal::Service).key(&*scene.mine).nth(2);
    scene.faulty.inject(denied.fail(ProviderReason::Denied));
    for (principal, refused) in [
        (Principal::Service, false),
        (Principal::Owner, false),
        (Principal::Service, true),
        (Principal::Service, false),
        (Principal::Owner, false),
    ] {
        let answer = scene.decrypt(&made, principal.clone());
        assert_eq!(answer.err().map(|error| error.reason), refused.then_some(ProviderReason::Denied), "{principal}");
    }
    scene.faulty.inject(Rule::on_any().always().key(&*scene.theirs).fail(ProviderReason::KeyDisabled));
    scene.generate().unwrap();
    assert_eq!(scene.faulty.count_by(Operation::Decrypt, &Principal::Service), 3);
    assert_eq!(scene.faulty.count(Operation::Decrypt), 5);
}

#[test]
fn a_transient_failure_passes_and_a_later_one_begins() {
    let scene = scene();
    scene.faulty.inject(Rule::on(Operation::GenerateDataKey).first(2).fail(ProviderReason::Throttled));
    scene.faulty.inject(Rule::on(Operation::GenerateDataKey).from_nth(4).fail(ProviderReason::KeyPendingDeletion));
    assert_eq!(reason(scene.generate()), ProviderReason::Throttled);
    assert_eq!(reason(scene.generate()), ProviderReason::Throttled);
    scene.generate().unwrap();
    assert_eq!(reason(scene.generate()), ProviderReason::KeyPendingDeletion);
    assert_eq!(reason(scene.generate()), ProviderReason::KeyPendingDeletion);
    scene.faulty.heal();
    scene.generate().unwrap();
}

#[test]
fn an_outage_begins_with_the_answer_and_lasts_until_it_is_healed() {
    let scene = scene();
    let made = scene.generate().unwrap();
    // The key beneath is made all the same.
    scene.faulty.inject(Rule::on(Operation::ManagedKey).outage());
    assert_eq!(reason(scene.faulty.managed_key(&EngineKeyRequest::new(Principal::Owner))), ProviderReason::Unreachable);
    assert_eq!(reason(scene.decrypt(&made, Principal::Owner)), ProviderReason::Unreachable);
    scene.faulty.heal();
    let described = scene.faulty.describe_key(&DescribeKeyRequest::new(MANAGED_ALIAS, Principal::Owner)).unwrap();
    assert_eq!(described.state, KeyState::Enabled);
}

#[test]
fn delays_take_simulated_time_and_add_up_with_what_follows() {
    let scene = scene();
    let before = scene.simulation.clock.wall_ms();
    scene.faulty.inject(Rule::on_any().always().delay(Duration::from_secs(40)));
    scene.faulty.inject(Rule::on_any().nth(2).fail(ProviderReason::TimedOut));
    scene.generate().unwrap();
    assert_eq!(reason(scene.generate()), ProviderReason::TimedOut);
    assert_eq!(scene.simulation.clock.wall_ms() - before, 80_000);
    // Without an environment it is real time, however little.
    let real = FaultyProvider::over(scene.faulty.inner.clone());
    real.inject(Rule::on_any().delay(Duration::from_millis(1)));
    real.describe_key(&DescribeKeyRequest::new("alias/mine", Principal::Owner)).unwrap();
}

#[test]
fn wrong_answers_are_wrong_in_the_way_that_was_planned() {
    let scene = scene();
    let good = scene.generate().unwrap();
    let next = |rule: Rule| {
        scene.faulty.heal();
        scene.faulty.inject(rule);
    };

    next(Rule::on(Operation::Decrypt).key_bytes(31));
    assert_eq!(reason(scene.decrypt(&good, Principal::Owner)), ProviderReason::UnexpectedAnswer);

    next(Rule::on(Operation::Decrypt).other_data_key());
    assert_eq!(scene.decrypt(&good, Principal::Owner).unwrap().plaintext.expose(), &[7; 32]);

    next(Rule::on(Operation::Decrypt).other_arn("arn:x"));
    assert_eq!(scene.decrypt(&good, Principal::Owner).unwrap().key_arn, "arn:x");

    next(Rule::on(Operation::Decrypt).other_key("alias/theirs"));
    let theirs = scene.decrypt(&good, Principal::Owner).unwrap();
    assert_eq!(theirs.key_arn, scene.theirs);
    assert_ne!(theirs.plaintext.expose(), good.plaintext.expose());

    next(Rule::on(Operation::GenerateDataKey).other_key("alias/theirs"));
    assert_eq!(scene.generate().unwrap().key_arn, scene.theirs);

    next(Rule::on(Operation::Decrypt).ciphertext_bytes(good.ciphertext.len() - 1));
    assert_eq!(reason(scene.decrypt(&good, Principal::Owner)), ProviderReason::InvalidCiphertext);

    next(Rule::on(Operation::GenerateDataKey).ciphertext_bytes(WRAPPED_BYTES_MAX + 1));
    assert_eq!(scene.generate().unwrap().ciphertext.len(), WRAPPED_BYTES_MAX + 1);

    let mut lifetime = Lifetime::new();
    lifetime.expire_after = Some(Duration::from_secs(7));
    next(Rule::on(Operation::Decrypt).lifetime(lifetime));
    assert_eq!(scene.decrypt(&good, Principal::Owner).unwrap().lifetime, lifetime);
}

#[test]
fn a_panic_stays_visible_in_the_log_and_locks_nothing() {
    let scene = scene();
    scene.faulty.inject(Rule::on(Operation::GenerateDataKey).panic());
    catch_unwind(AssertUnwindSafe(|| scene.generate())).unwrap_err();
    scene.generate().unwrap();
    let outcomes: Vec<_> = scene.faulty.requests().iter().map(|asked| asked.outcome).collect();
    assert_eq!(outcomes, [None, Some(Ok(()))]);
}

#[test]
fn nothing_secret_is_in_the_log_or_in_what_is_printed() {
    let scene = scene();
    let made = scene.generate().unwrap();
    let _ = scene.decrypt(&made, Principal::Owner);
    let printed = format!("{:?} {:?}", scene.faulty, scene.faulty.requests());
    let shows = |bytes: &[u8]| printed.contains(&format!("{:?}", &bytes[..8]).replace(['[', ']'], ""));
    assert!(!shows(made.plaintext.expose()) && !shows(&made.ciphertext));
    assert!(printed.contains(&scene.mine) && printed.contains("GenerateDataKey"));
}

#[test]
fn the_log_keeps_the_latest_requests_and_the_counts_all() {
    let scene = scene();
    scene.faulty.inject(Rule::on_any().always());
    for _ in 0..LOG_MAX + 5 {
        assert!(scene.generate().is_err());
    }
    scene.faulty.heal();
    scene.generate().unwrap();
    let requests = scene.faulty.requests();
    assert_eq!((requests.len(), scene.faulty.count_all()), (LOG_MAX, LOG_MAX as u64 + 6));
    assert_eq!(requests.last().unwrap().outcome, Some(Ok(())));
}
