//! Derivations frozen as bytes, so that they can never change without a word: a store that was written yesterday would
//! not open today. The expected bytes were made by another implementation (Python's `hmac` and `cryptography`).

use super::*;

const AAD: &[u8] = b"where it stands";
const NUMBER: FileNumber = FileNumber(0x0102_0304_0506_0708);

/// Fills with 32, 33, 34, and so on: the salt of every vector here.
#[derive(Debug)]
struct FixedSalt;

impl Entropy for FixedSalt {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        (32..).zip(bytes).for_each(|(value, byte)| *byte = value);
        Ok(())
    }

    fn is_real(&self) -> bool {
        false
    }
}

fn secret() -> Secret {
    Secret::fill_with(|bytes| (0..).zip(bytes).for_each(|(value, byte)| *byte = value))
}

fn table_key() -> TableKey {
    let store = StoreId::from_bytes(std::array::from_fn(|i| 0xa0 + i as u8));
    let table = TableId::from_bytes(std::array::from_fn(|i| 0xb0 + i as u8));
    TableKey::new(secret(), store, table, Generation(7))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn commitment_is_frozen() {
    // Otherwise every existing key would be reported as wrong.
    let expected = "328727298ba2dae29f53275abaf241ab3aab54ddcac498d2a73b8b66248f6371";
    assert_eq!(hex(table_key().commitment().as_bytes()), expected);
}

#[test]
fn header_tags_are_frozen() {
    // Otherwise every existing file would be reported as tampered with.
    for (suite, expected) in [
        (Suite::Aes256Gcm, "26727adc7b47366abac86d802f9d4927"),
        (Suite::ChaCha20Poly1305, "2fd787c370948ab9d81d15bc811da45b"),
    ] {
        let key = table_key().sealing_key(suite, FileKind::Table, NUMBER, &FixedSalt).unwrap();
        assert_eq!(hex(&key.header_tag(b"a header in clear")), expected);
    }
}

#[test]
fn frames_of_files_are_frozen() {
    // Otherwise no existing sorted table, manifest or key file would open.
    for (suite, expected) in [
        (
            Suite::Aes256Gcm,
            [
                "fb30a07d31c1ddb04df2111e0d37013924e451b1f9382df434265cfaf54d17faec91845f",
                "772032967d9138094e5f577a17aa7b7cfb90a48c90f57e04366b5a3881cabd47f651c64e",
            ],
        ),
        (
            Suite::ChaCha20Poly1305,
            [
                "5324432d64dda9e59df1985d0f9cfedc4152684cba612dee5de553580214f6cba80b9225",
                "119cdd6d78744200fcb86e86f8e1e213138c133ed1bd7586ef7032b682d6982d50f5d7e4",
            ],
        ),
    ] {
        let key = table_key().sealing_key(suite, FileKind::Table, NUMBER, &FixedSalt).unwrap();
        for expected in expected {
            let mut body = PLAINTEXT.to_vec();
            let tag = key.seal(key.take().unwrap(), AAD, &mut body).unwrap();
            assert_eq!(hex(&[&body[..], &tag].concat()), expected);
        }
    }
}

#[test]
fn frames_of_logs_are_frozen() {
    // Otherwise no existing log would replay.
    for (suite, expected) in [
        (
            Suite::Aes256Gcm,
            [
                "c5346402b0d5f9784be846b520177d0e857b234b3ca606cc2e1b89b72754cea2c94c4a41",
                "49436f95704a9de98911effcc7dac6390f6a18774d3ab3e58efeba51ab415cac5858e141",
            ],
        ),
        (
            Suite::ChaCha20Poly1305,
            [
                "6a9895ce64703a76d0593b691c77d5e38f5862bfb919ee3e4bb7bd281f921dd220bb7f82",
                "e1115d6f95cc9b9465e2ed2cafb4309ab69218f5c6e2b041be47145793b7f29e4e8f52d0",
            ],
        ),
    ] {
        let ordinals = Ordinals::fresh(FileKind::Log, NUMBER, &FixedSalt).unwrap();
        let sealer = table_key().stream_sealer(suite, &ordinals);
        for expected in expected {
            let mut body = PLAINTEXT.to_vec();
            let tag = sealer.seal(ordinals.take().unwrap(), AAD, &mut body).unwrap();
            assert_eq!(hex(&[&body[..], &tag].concat()), expected);
        }
    }
}

#[test]
fn messages_are_frozen() {
    // Otherwise no existing keyring or wrapped key would open.
    let message = seal_once(&secret(), "a purpose", AAD, PLAINTEXT, &FixedSalt).unwrap();
    let expected = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\
        bdaac0e9f6063f0a7de858f66aafc8f511fb9bcf738f380eedee4b39d3ccc991\
        9638ccbf37b74f31369dde7d03219b843a2f93df6be10d60f4ceea984757417ef779fc9e";
    assert_eq!(hex(&message), expected);
}

#[test]
fn stretching_is_frozen() {
    // Otherwise the right passphrase would be refused.
    let mut salt = [0; 32];
    FixedSalt.fill(&mut salt).unwrap();
    for (stretching, passphrase, expected) in [
        (Stretching::LEAST, &b"correct horse"[..], "a12af06266d3c2076db0a2f41763a53c3e79142077a2419a877ad2de98d7b373"),
        (
            Stretching::new(20_000, 2, 3).unwrap(),
            b"",
            "189e8bed8754996d0bf7b8e51cf0e20d441606606d000fba491c901f50130428",
        ),
    ] {
        let secret = stretching.stretch(passphrase, &Salt::from_bytes(salt)).unwrap();
        assert_eq!(hex(secret.expose()), expected);
    }
}
