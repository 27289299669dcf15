//! What needs no token. With one: `tests/providers/pkcs11.rs`.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use super::session::escaped;
use super::trouble::reason_of;
use super::*;
use crate::error::ProviderClass;

/// If a lost session counted as a lost key, a token that was pulled out for a minute would take every table down for good.
#[test]
fn each_return_value_concerns_whom_it_should() {
    let check = |value: RvError, function: Function, reason: ProviderReason| {
        assert_eq!(reason_of(value, function), reason, "{value:?} of {function}");
        let trouble = Trouble::from(Error::Pkcs11(value, function));
        assert_eq!(trouble.session_lost, reason == ProviderReason::Unreachable, "{value:?} of {function}");
    };
    for value in [RvError::GeneralError, RvError::FunctionFailed, RvError::EncryptedDataInvalid] {
        check(value, Function::Decrypt, ProviderReason::InvalidCiphertext);
    }
    // The same answer about anything but ciphertext is the token's own trouble.
    check(RvError::GeneralError, Function::GenerateRandom, ProviderReason::Unreachable);
    check(RvError::GeneralError, Function::DecryptInit, ProviderReason::Unreachable);
    for value in [RvError::SessionHandleInvalid, RvError::TokenNotPresent, RvError::UserNotLoggedIn] {
        for function in [Function::Decrypt, Function::EncryptInit, Function::FindObjectsInit] {
            check(value, function, ProviderReason::Unreachable);
        }
    }
    check(RvError::SessionCount, Function::OpenSession, ProviderReason::Throttled);
    check(RvError::PinIncorrect, Function::Login, ProviderReason::BadCredentials);
    check(RvError::PinLocked, Function::Login, ProviderReason::BadCredentials);
    check(RvError::KeyHandleInvalid, Function::EncryptInit, ProviderReason::KeyNotFound);
    check(RvError::ObjectHandleInvalid, Function::GetAttributeValue, ProviderReason::KeyNotFound);
    check(RvError::KeyFunctionNotPermitted, Function::DecryptInit, ProviderReason::KeyDisabled);
    check(RvError::TokenWriteProtected, Function::GenerateKey, ProviderReason::Denied);
    check(RvError::MechanismInvalid, Function::EncryptInit, ProviderReason::Unsupported);
    check(RvError::DeviceMemory, Function::GenerateKey, ProviderReason::LimitExceeded);
    check(RvError::VendorDefined(0x8000_0001), Function::Encrypt, ProviderReason::Unreachable);
}

#[test]
fn no_return_value_makes_a_good_key_forgotten_without_saying_so() {
    // Class key ends every permit: only what names the key itself may do that.
    for value in [RvError::KeyChanged, RvError::BufferTooSmall, RvError::UnknownErrorCode(7), RvError::NextOtp] {
        assert_eq!(reason_of(value, Function::Decrypt).class(), ProviderClass::Material, "{value:?}");
    }
}

#[test]
fn a_wrap_is_taken_apart_only_if_every_length_is_right() {
    let wrap = |id_len: u8, id: &[u8], rest: usize| [&[WRAP_FORMAT, id_len][..], id, &vec![9; rest]].concat();
    let good = wrap(3, b"abc", IV_BYTES + DataKey::BYTES + TAG_BYTES);
    let unpacked = Unpacked::parse(&good).unwrap();
    assert_eq!((unpacked.head, unpacked.iv, unpacked.sealed.len()), (&good[..5], [9; 12], 48));
    for len in 0..good.len() {
        assert!(Unpacked::parse(&good[..len]).is_none(), "{len} bytes");
    }
    assert!(Unpacked::parse(&[&good[..], &[0]].concat()).is_none());
    assert!(Unpacked::parse(&wrap(0, b"", IV_BYTES + DataKey::BYTES + TAG_BYTES)).is_none());
    assert!(Unpacked::parse(&wrap(255, b"abc", 60)).is_none());
    let mut other_format = good.clone();
    other_format[0] = WRAP_FORMAT + 1;
    assert!(Unpacked::parse(&other_format).is_none());
}

#[test]
fn ids_and_names_have_one_spelling_in_an_arn() {
    assert_eq!(hex(&[0, 0xab]), "00ab");
    assert_eq!(from_hex("00aB"), Some(vec![0, 0xab]));
    for text in ["", "0", "0g", "00a", "+1", "é0"] {
        assert_eq!(from_hex(text), None, "{text:?}");
    }
    assert_eq!(escaped("my-token.2_A"), "my-token.2_A");
    assert_eq!(escaped("a:b c/%é"), "a%3Ab%20c%2F%25%C3%A9");
}

#[test]
fn a_module_that_is_none_is_refused_with_a_reason() {
    let error = Pkcs11Provider::open("/no/such/module.so", "token", Pin::new("1234")).unwrap_err();
    assert_eq!(error.reason, ProviderReason::InvalidRequest);
    assert_eq!(format!("{:?}", Pin::new("1234")), "Pin(..)");
}
