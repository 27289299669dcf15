//! Dependencies point down the list of `ARCHITECTURE.md` only.
//!
//! If they did not, a newcomer could not read the parts one after the other, and `inspect` could not
//! check a store that `db` refuses to open. Read are the paths that begin with `crate::` or `super::` in `src/`, without comments, texts and
//! what stands under `#[cfg(test)]`, which may look anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each line may use the lines before it, and no other part of its own line; the first line's parts see each other.
const LAYERS: [&[&str]; 10] = [
    &["types", "error", "options", "event", "cursor", "value", "sync", "metrics", "trace"],
    &["io"],
    &["crypto"],
    &["format"],
    &["keys"],
    &["wal", "memtable", "sstable"],
    &["merge", "version"],
    &["compaction"],
    &["db", "inspect"],
    &["fuzzing"],
];

#[test]
fn every_import_points_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = without_tests(&without_comments(&fs::read_to_string(src.join("lib.rs")).unwrap()));
    let exports = exports(&root);
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let module = module_path(file.strip_prefix(&src).unwrap());
        // The root names everything, and the command line is a crate of its own on the public API.
        let Some(part) = module.first().filter(|part| *part != "bin") else { continue };
        let text = without_tests(&without_comments(&fs::read_to_string(&file).unwrap()));
        for used in uses(&text, &module) {
            let used = exports.get(&used).unwrap_or(&used);
            if let Err(reason) = may_use(part, used) {
                wrong.push(format!("{}: {reason}", file.display()));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether code in `part` may name something in `used`.
fn may_use(part: &str, used: &str) -> Result<(), String> {
    let layer = |name: &str| {
        let place = LAYERS.iter().position(|parts| parts.contains(&name));
        place.ok_or_else(|| format!("`{name}` is in no layer: place it in tests/it/layers.rs and ARCHITECTURE.md"))
    };
    let (above, below) = (layer(part)?, layer(used)?);
    if part == used || below < above || above == 0 && below == 0 {
        return Ok(());
    }
    Err(format!("`{part}` (layer {above}) may not use `{used}` (layer {below})"))
}

/// All Rust files, except those of test modules: `tests.rs`, and what lies in a folder `tests`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        } else if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `wal/replay.rs` is the module `wal::replay`, `wal/mod.rs` the module `wal`, `lib.rs` the root.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> =
        file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    path.pop_if(|last| last == "mod" || last == "lib");
    path
}

/// Which part each name that the root exports comes from: `pub use error::{Error, Result}`.
fn exports(root: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for statement in root.split("use ").skip(1) {
        let path = statement.split(';').next().unwrap_or_default();
        let mut names = identifiers(path).into_iter().skip_while(|name| matches!(name.as_str(), "crate" | "self"));
        let Some(part) = names.next() else { continue };
        exports.extend(names.map(|name| (name, part.clone())));
    }
    exports
}

fn identifiers(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The first component of every path from the root: after `crate::`, or after enough `super::`.
fn uses(text: &str, module: &[String]) -> Vec<String> {
    let mut uses = Vec::new();
    let mut rest = text;
    while let Some((at, keyword)) = first_of(rest, &["crate::", "super::"]) {
        let inside_word = rest[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$'));
        rest = &rest[at..];
        if inside_word {
            rest = &rest[keyword.len()..];
            continue;
        }
        let mut depth = if keyword == "crate::" { 0 } else { module.len() };
        while let Some(after) = rest.strip_prefix("super::") {
            depth = depth.saturating_sub(1);
            rest = after;
        }
        rest = rest.strip_prefix("crate::").unwrap_or(rest);
        if depth > 0 {
            uses.push(module[0].clone());
        } else {
            uses.extend(heads(rest));
        }
    }
    uses
}

fn first_of<'a>(text: &str, words: &[&'a str]) -> Option<(usize, &'a str)> {
    words.iter().filter_map(|word| text.find(word).map(|at| (at, *word))).min()
}

/// `io::Vfs` has the head `io`; `{io::Vfs, types::{Seq, TableId}}` has `io` and `types`.
fn heads(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return identifiers(path).into_iter().take(1).collect();
    };
    let (mut heads, mut depth, mut at_head) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            c if at_head && (c.is_alphabetic() || c == '_') => {
                heads.extend(identifiers(&group[at..]).into_iter().take(1));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

/// `text` with spaces for comments and for what stands between quotation marks. Braces in character literals go too.
fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            'r' if raw_text(rest).is_some() && !clean.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                raw_text(rest).unwrap_or(1)
            }
            '"' => quoted(rest, '"'),
            '\'' if is_character(rest) => quoted(rest, '\''),
            c => {
                clean.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        clean.push(' ');
        rest = &rest[skipped..];
    }
    clean
}

/// How long the raw string is that `text` begins with.
fn raw_text(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    body.find(&end).map(|at| 1 + hashes + 1 + at + end.len())
}

/// How long the string or character is that `text` begins with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Whether an apostrophe begins a character and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut next = text.chars().skip(1);
    match next.next() {
        Some('\\') => true,
        Some(_) => next.next() == Some('\''),
        None => false,
    }
}

/// `text` without the items that stand under `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn without_tests(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((at, attribute)) = first_of(rest, &["#[cfg(test)]", "#[cfg(all(test"]) {
        clean.push_str(&rest[..at]);
        rest = &rest[at + attribute.len()..];
        // The item ends with its block or, if it has none, with its semicolon.
        let Some(end) = rest.find(['{', ';']) else { return clean };
        rest = if rest[end..].starts_with(';') { &rest[end + 1..] } else { behind_block(&rest[end..]) };
    }
    clean + rest
}

/// What follows the block that `text` begins with.
fn behind_block(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return &text[at + 1..],
            '}' => depth -= 1,
            _ => {}
        }
    }
    ""
}

/// A reader that overlooks an import lets the layers rot.
#[test]
fn imports_are_found_where_they_stand_and_nowhere_else() {
    let check = |text: &str, expected: &[&str]| {
        let module = ["wal".to_owned(), "replay".to_owned()];
        let text = without_tests(&without_comments(text));
        assert_eq!(uses(&text, &module), expected, "{text}");
    };
    check("use crate::io::Vfs;", &["io"]);
    check("use crate::{io::{self, Vfs}, types::Seq, Error};", &["io", "types", "Error"]);
    check("use crate::{\n    format::log,\n};\nfn f() -> crate::error::Result<()> {}", &["format", "error"]);
    check(
        "use super::Segment; use super::super::sstable; super::super::{db, wal::x};",
        &["wal", "sstable", "db", "wal"],
    );
    check("// crate::db\n/// [`crate::db`]\n/* crate::db */ let s = \"crate::db\"; r#\"crate::db \"# ; '\"' ", &[]);
    check("macro!($crate::db); pub(crate) fn f<'a>(x: &'a str, c: '{') {} crate::io::f()", &["io"]);
    check("#[cfg(test)]\nmod tests { use crate::db; fn f() {} }\nuse crate::io;", &["io"]);
    check("#[cfg(test)] mod tests;\n#[cfg(all(test, unix))] use crate::db::{A, B};\nuse crate::io;", &["io"]);
    check("#[cfg(not(test))] use crate::db;", &["db"]);
    assert_eq!(exports("pub use error::{Error, Result}; use crate::value::Value;")["Value"], "value");
    assert!(may_use("db", "io").is_ok() && may_use("wal", "wal").is_ok() && may_use("types", "error").is_ok());
    assert!(may_use("io", "db").is_err() && may_use("wal", "memtable").is_err() && may_use("new", "io").is_err());
}
