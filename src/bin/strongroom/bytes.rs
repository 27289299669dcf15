//! Keys and values are bytes; people type and read text. The two ways between them.
//!
//! *Escaped* text is printable ASCII as it stands, except the backslash, and `\n`, `\r`, `\t`, `\\` and `\xNN` for
//! everything else: what `scan` prints can be given back with `--escaped`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::args::KeyForm;
use crate::failure::{Failure, Result};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The key that was typed.
pub fn key(typed: &OsStr, form: KeyForm) -> Result<Vec<u8>> {
    let typed = typed.as_bytes();
    if form.hex {
        parse_hex(typed).ok_or_else(|| {
            Failure::usage(
                "the key is not hexadecimal",
                "write two digits, 0-9 and a-f, for each byte, or leave --hex away",
            )
        })
    } else if form.escaped {
        parse_escaped(typed).ok_or_else(|| {
            Failure::usage("the key is not escaped text", "write \\xNN, \\n, \\r, \\t or \\\\, or leave --escaped away")
        })
    } else {
        Ok(typed.to_vec())
    }
}

/// Append `bytes` as escaped text.
pub fn escape_into(bytes: &[u8], text: &mut Vec<u8>) {
    for &byte in bytes {
        match byte {
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\r' => text.extend_from_slice(b"\\r"),
            b'\t' => text.extend_from_slice(b"\\t"),
            b'\\' => text.extend_from_slice(b"\\\\"),
            0x20..=0x7e => text.push(byte),
            _ => {
                text.extend_from_slice(b"\\x");
                hex_into(&[byte], text);
            }
        }
    }
}

/// `bytes` as escaped text, for messages.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len());
    escape_into(bytes, &mut text);
    // Printable ASCII is UTF-8.
    String::from_utf8_lossy(&text).into_owned()
}

/// Append `bytes` in lower-case hexadecimal.
pub fn hex_into(bytes: &[u8], text: &mut Vec<u8>) {
    for &byte in bytes {
        text.push(HEX[usize::from(byte >> 4)]);
        text.push(HEX[usize::from(byte & 15)]);
    }
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    hex_into(bytes, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn parse_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

fn parse_escaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'\\' => b'\\',
                b'x' => digit(rest.next()?)? << 4 | digit(rest.next()?)?,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    // At most 15, so the cast loses nothing.
    char::from(byte).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_from_escaped_text_and_from_hexadecimal() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(parse_escaped(escaped(&all).as_bytes()), Some(all.clone()));
        assert_eq!(parse_hex(hex(&all).as_bytes()), Some(all));
    }

    #[test]
    fn escaped_text_is_printable_and_stays_on_one_line() {
        assert_eq!(escaped(b"a\\b\n\t\xff \x00"), "a\\\\b\\n\\t\\xff \\x00");
    }

    #[test]
    fn half_an_escape_and_half_a_byte_are_refused() {
        for text in ["\\", "\\x", "\\x1", "\\xzz", "\\q"] {
            assert_eq!(parse_escaped(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_hex(b"abc"), None);
        assert_eq!(parse_hex(b"zz"), None);
    }
}
