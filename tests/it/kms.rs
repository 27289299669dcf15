//! The local key management service, as providers are expected to answer and as its user meets it.

#[path = "../providers/expectations.rs"]
mod expectations;

#[cfg(feature = "cli")]
mod command_line;

use std::time::Duration;

use strongroom::LocalKms;
use strongroom::io::sim::Simulation;
use strongroom::keys::{GrantOperation, KeyOperation, KeyPolicy, PolicyStatement, Principal};

use self::expectations::{Provider, Situation, ada, arrange_grants, check};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn the_local_keyring_answers_as_every_provider_is_expected_to() {
    // Or what is shown with it would not hold for a table whose key lies in a KMS or an HSM.
    let simulation = Simulation::new(1);
    let kms = LocalKms::in_memory(simulation.environment()).unwrap();
    let import = |key: &str| kms.import_material(key, None, |bytes| bytes.fill(5)).unwrap();
    let new_key = |situation| {
        if !matches!(situation, Situation::MaterialTakenAway | Situation::MaterialBack) {
            return kms.create_key(None, "").unwrap().arn;
        }
        let arn = kms.create_key_without_material(None, "").unwrap().arn;
        import(&arn);
        arn
    };
    let arrange = |key: &str, situation| {
        match situation {
            Situation::Disabled => kms.disable(key).unwrap(),
            Situation::EnabledAgain => {
                kms.disable(key).unwrap();
                kms.enable(key).unwrap();
            }
            Situation::PendingDeletion => drop(kms.schedule_deletion(key, 30).unwrap()),
            Situation::DeletionCancelled => {
                kms.schedule_deletion(key, 30).unwrap();
                kms.cancel_deletion(key).unwrap();
            }
            Situation::Deleted => {
                kms.schedule_deletion(key, 7).unwrap();
                simulation.clock.advance(7 * DAY);
            }
            Situation::MaterialTakenAway => kms.delete_imported_material(key).unwrap(),
            Situation::MaterialBack => {
                kms.delete_imported_material(key).unwrap();
                import(key);
            }
            Situation::Rotated => drop(kms.rotate(key).unwrap()),
            Situation::AdaDenied => {
                let deny = PolicyStatement::deny([ada()], [KeyOperation::Decrypt]);
                let allow = PolicyStatement::allow([ada()], KeyOperation::DATA_KEYS);
                let owner = PolicyStatement::allow([Principal::Owner], KeyOperation::ALL);
                kms.put_policy(key, KeyPolicy::new([deny, allow, owner])).unwrap();
                return expectations::grant_to_ada(&kms, key, &GrantOperation::ALL);
            }
            _ => return arrange_grants(&kms, key, situation),
        }
        true
    };
    let skipped = check(&Provider { provider: &kms, new_key: &new_key, arrange: &arrange, exact: true });
    assert!(skipped.is_empty(), "{skipped:?}");
}
