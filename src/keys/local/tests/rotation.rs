//! Rotations: asked for, on schedule, missed.

use std::time::Duration;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn version_of(wrapped: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| wrapped[17 + index]))
}

#[test]
fn after_any_number_of_rotations_old_wraps_open_and_new_ones_name_the_new_version() {
    // Or rotating a key would cost all data under it.
    let world = world();
    let kms = created(&world);
    let arn = kms.create_key(Some("alias/one"), "").unwrap().arn;
    let mut made = vec![generate(&kms, "alias/one").unwrap()];
    for version in 2..=26 {
        assert_eq!(kms.rotate("alias/one").unwrap(), version);
        made.push(generate(&kms, "alias/one").unwrap());
    }
    assert_eq!(kms.rotate("alias/one").unwrap_err().kind(), ErrorKind::LimitExceeded);
    assert_eq!(kms.rotation_status("alias/one").unwrap().on_demand_left, 0);
    // The schedule goes on all the same.
    kms.set_rotation_period("alias/one", Some(90)).unwrap();
    world.clock.advance(90 * DAY);
    made.push(generate(&kms, "alias/one").unwrap());

    let again = opened(&world).unwrap();
    for (index, made) in made.iter().enumerate() {
        assert_eq!((version_of(&made.ciphertext), &made.key_arn), (index as u32 + 1, &arn));
        let opened = decrypt(&again, &arn, &made.ciphertext, context("t")).unwrap();
        assert_eq!(opened.expose(), made.plaintext.expose());
    }
    // A version that there never was is no way in.
    let mut forged = made[0].ciphertext.clone();
    forged[17] = 200;
    assert_eq!(reason(decrypt(&again, &arn, &forged, context("t"))), ProviderReason::InvalidCiphertext);
}

#[test]
fn a_key_with_a_period_is_rotated_by_whoever_uses_it_next_and_once_for_all_it_missed() {
    let world = world();
    let kms = created(&world);
    kms.create_key(Some("alias/one"), "").unwrap();
    for days in [0, 89, 2561] {
        let error = kms.set_rotation_period("alias/one", Some(days)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    kms.set_rotation_period("alias/one", Some(90)).unwrap();
    let version = |kms: &LocalKms| version_of(&generate(kms, "alias/one").unwrap().ciphertext);
    world.clock.advance(89 * DAY);
    assert_eq!(version(&kms), 1);
    world.clock.advance(DAY);
    assert_eq!(version(&opened(&world).unwrap()), 2);
    assert_eq!(version(&kms), 2);

    // A disabled key is not rotated, and catches up when it is enabled: once.
    kms.disable("alias/one").unwrap();
    world.clock.advance(1000 * DAY);
    assert_eq!(kms.rotation_status("alias/one").unwrap().current_version, 2);
    kms.enable("alias/one").unwrap();
    assert_eq!(version(&kms), 3);
    let next_ms = kms.rotation_status("alias/one").unwrap().next_ms.unwrap();
    assert_eq!(next_ms, world.clock.wall_ms() + 90 * DAY.as_millis() as u64);

    kms.set_rotation_period("alias/one", None).unwrap();
    world.clock.advance(1000 * DAY);
    assert_eq!(version(&kms), 3);
}

#[test]
fn the_managed_key_is_rotated_every_year_and_the_owned_one_never() {
    let world = world();
    let kms = created(&world);
    let engine = EngineKeyRequest::new(Principal::Service);
    let (managed, owned) = (kms.managed_key(&engine).unwrap().arn, kms.owned_key(&engine).unwrap().arn);
    let made = generate(&kms, &managed).unwrap();
    for year in 1..=3 {
        world.clock.advance(365 * DAY);
        assert_eq!(version_of(&generate(&kms, &managed).unwrap().ciphertext), year + 1);
    }
    assert_eq!(version_of(&generate(&kms, &owned).unwrap().ciphertext), 1);
    decrypt(&kms, &managed, &made.ciphertext, context("t")).unwrap();
}
