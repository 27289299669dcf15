//! Standard output for results, standard error for everything else. Neither panics when nobody reads it.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use crate::failure::{Failure, Result};

/// Say something on standard error. `eprintln!` would panic when it is closed.
macro_rules! note {
    ($($arg:tt)*) => { $crate::output::write_note(format_args!($($arg)*)) };
}
pub(crate) use note;

pub fn write_note(text: fmt::Arguments<'_>) {
    // Nowhere is left to complain to.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Buffered standard output. Finish with [`finish`].
pub fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 << 10, io::stdout().lock())
}

/// Write out what is still buffered.
pub fn finish(mut out: impl Write) -> Result<()> {
    out.flush().map_err(Failure::output)
}

/// One line of output.
pub fn line(text: impl fmt::Display) -> Result<()> {
    let mut out = stdout();
    writeln!(out, "{text}").map_err(Failure::output)?;
    finish(out)
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes for people: `512 bytes`, `12.3 MB` (millions of bytes).
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three_from_the_right() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
