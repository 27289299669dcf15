//! The command line as its user meets it: exit codes, messages, bytes in and out.
#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;
use tempfile::TempDir;

/// A folder with a store, its keyring and the key that opens it.
pub struct Desk {
    dir: TempDir,
}

impl Desk {
    /// Nothing but the key file: most tests do without the half second that a passphrase takes.
    pub fn empty() -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        fs::write(&key, [7; 32]).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        Desk { dir }
    }

    /// A store with one table `t`.
    pub fn with_table() -> Desk {
        let desk = Desk::empty();
        desk.ok(&["init"]);
        desk.ok(&["create-table", "t"]);
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    /// The command with this desk's store, keyring and key.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = bare();
        command.arg("--store").arg(self.path("store"));
        command.arg("--keyring").arg(self.path("keyring"));
        command.arg("--key-file").arg(self.path("key")).args(args);
        command
    }

    pub fn run(&self, args: &[&str], input: &[u8]) -> Output {
        feed(self.command(args), input)
    }

    /// Run, expect success, and give standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args, b"");
        assert!(output.status.success(), "{args:?}: {}", error_text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Run, expect this exit code and a message that says what to do, and give the message.
    pub fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args, b"");
        let message = error_text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains("what to do:"), "{args:?}: {message}");
        assert!(!message.contains("panicked"), "{args:?}: {message}");
        message
    }
}

fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.env_remove("STRONGROOM_PASSPHRASE");
    command
}

fn feed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input closes it early.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every regular file under `root`, by relative path, with its contents.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let name = entry.path().strip_prefix(root).unwrap().to_path_buf();
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

/// A small folder with what folders have: text, zeros, an empty file, a large one, odd names.
fn sample_folder(root: &Path) {
    fs::create_dir_all(root.join("deep/er/still")).unwrap();
    fs::write(
        root.join("deep/er/still/notes-on-everything.txt"),
        "the quick brown fox jumps over 12 lazy dogs\n".repeat(500),
    )
    .unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("zeros"), vec![0; 100_000]).unwrap();
    fs::write(root.join("new\nline and\ttab"), b"odd").unwrap();
    let large: Vec<u8> = (0..300_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(root.join("deep/large.bin"), large).unwrap();
}

#[test]
fn what_was_put_is_got_byte_for_byte_and_a_missing_key_is_exit_code_1() {
    let desk = Desk::with_table();
    desk.ok(&["put", "t", "from-argument", "value"]);
    let all: Vec<u8> = (0..=255).collect();
    assert!(desk.run(&["put", "t", "from-stdin"], &all).status.success());
    fs::write(desk.path("file"), b"a\nb").unwrap();
    desk.ok(&["put", "t", "from-file", "--file", &desk.text("file")]);

    assert_eq!(desk.run(&["get", "t", "from-argument"], b"").stdout, b"value");
    assert_eq!(desk.run(&["get", "t", "from-stdin"], b"").stdout, all);
    assert_eq!(desk.run(&["get", "t", "from-file"], b"").stdout, b"a\nb");

    desk.ok(&["delete", "t", "from-file"]);
    let output = desk.run(&["get", "t", "from-file"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_scan_prints_ranges_both_ways_in_every_format() {
    let desk = Desk::with_table();
    for (key, value) in [("a", "1"), ("b1", "2"), ("b2", "x\ty"), ("c", "4")] {
        desk.ok(&["put", "t", key, value]);
    }
    desk.ok(&["put", "t", "--escaped", r"b\xff", "5"]);
    assert_eq!(desk.ok(&["scan", "t"]), "a\t1\nb1\t2\nb2\tx\\ty\nb\\xff\t5\nc\t4\n");
    assert_eq!(desk.ok(&["scan", "t", "--prefix", "b", "--keys-only"]), "b1\nb2\nb\\xff\n");
    assert_eq!(
        desk.ok(&["scan", "t", "--from", "b1", "--to", "c", "--reverse", "--limit", "2"]),
        "b\\xff\t5\nb2\tx\\ty\n"
    );
    assert_eq!(desk.ok(&["scan", "t", "--prefix", "62", "--hex", "--format", "hex", "--limit", "1"]), "6231\t32\n");
    assert_eq!(
        desk.ok(&["scan", "t", "--prefix", "b", "--format", "json", "--reverse"]),
        "{\"key_hex\":\"62ff\",\"value\":\"5\"}\n{\"key\":\"b2\",\"value\":\"x\\ty\"}\n{\"key\":\"b1\",\"value\":\"2\"}\n"
    );
    // What a scan printed can be given back.
    assert_eq!(desk.run(&["get", "t", "--escaped", r"b\xff"], b"").stdout, b"5");
    // A range that is empty, or the wrong way round, is no error.
    assert_eq!(desk.ok(&["scan", "t", "--from", "z", "--to", "a"]), "");
}

#[test]
fn a_reader_that_leaves_ends_a_scan_quietly() {
    let desk = Desk::with_table();
    let lines: String = (0..20_000).map(|number| format!("{{\"id\":{number}}}\n")).collect();
    assert!(desk.run(&["import", "lines", "t", "--key-field", "id"], lines.as_bytes()).status.success());
    let mut child = desk
        .command(&["scan", "t"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", error_text(&output));
    assert_eq!(error_text(&output), "");
}

#[test]
fn a_folder_comes_back_identical_and_links_are_reported_and_skipped() {
    let desk = Desk::with_table();
    let folder = desk.path("folder");
    sample_folder(&folder);
    symlink("/etc/passwd", folder.join("a-link")).unwrap();
    symlink("/etc", folder.join("deep/another-link")).unwrap();

    let output = desk.run(&["import", "folder", "t", &desk.text("folder")], b"");
    assert!(output.status.success(), "{}", error_text(&output));
    for skipped in ["a-link", "deep/another-link"] {
        assert!(error_text(&output).contains(skipped), "{}", error_text(&output));
    }
    desk.ok(&["export", "folder", "t", &desk.text("back")]);
    assert_eq!(contents(&desk.path("back")), contents(&folder));

    // Once more into the same folder would mix two states.
    let message = desk.fails(&["export", "folder", "t", &desk.text("back")], 4);
    assert!(message.contains("not empty"), "{message}");
}

#[test]
fn an_export_writes_nothing_outside_its_folder() {
    for key in ["../evil", "/etc/evil", "a/../../evil", "a//b", "dir/"] {
        let desk = Desk::with_table();
        desk.ok(&["put", "t", "aaa", "harmless, and first in order"]);
        desk.ok(&["put", "t", key, "evil"]);
        desk.fails(&["export", "folder", "t", &desk.text("out/inner")], 2);
        assert!(!desk.path("out").exists(), "{key}");
        assert!(!desk.path("evil").exists(), "{key}");
    }
}

#[test]
fn an_import_refuses_the_folder_that_the_store_lies_in() {
    let desk = Desk::with_table();
    let message = desk.fails(&["import", "folder", "t", desk.dir.path().to_str().unwrap()], 2);
    assert!(message.contains("inside the folder"), "{message}");
}

#[test]
fn values_over_the_limit_are_refused_by_name() {
    let desk = Desk::with_table();
    fs::create_dir(desk.path("folder")).unwrap();
    fs::write(desk.path("folder/fits"), b"small").unwrap();
    // A file of holes: it takes no room.
    fs::write(desk.path("folder/too-large"), b"").unwrap();
    fs::OpenOptions::new().write(true).open(desk.path("folder/too-large")).unwrap().set_len((512 << 20) + 1).unwrap();

    let message = desk.fails(&["put", "t", "k", "--file", &desk.text("folder/too-large")], 11);
    assert!(message.contains("too-large"), "{message}");
    let message = desk.fails(&["import", "folder", "t", &desk.text("folder")], 11);
    assert!(message.contains("too-large"), "{message}");
    assert_eq!(desk.ok(&["scan", "t"]), "");

    let output = desk.run(&["import", "folder", "t", &desk.text("folder"), "--skip-large"], b"");
    assert!(output.status.success());
    assert!(error_text(&output).contains("too-large"));
    assert_eq!(desk.ok(&["scan", "t"]), "fits\tsmall\n");
}

#[test]
fn json_lines_come_back_in_key_order_and_a_bad_line_is_named() {
    let desk = Desk::with_table();
    let lines = "{\"id\": \"b\",  \"spaces\":  \"kept\"}\n\n{\"id\":\"a\"}\n{\"id\": 7}";
    let output = desk.run(&["import", "lines", "t", "--key-field", "id"], lines.as_bytes());
    assert!(output.status.success(), "{}", error_text(&output));
    let expected = "{\"id\": 7}\n{\"id\":\"a\"}\n{\"id\": \"b\",  \"spaces\":  \"kept\"}\n";
    assert_eq!(desk.ok(&["export", "lines", "t"]), expected);
    desk.ok(&["export", "lines", "t", &desk.text("out.jsonl")]);
    assert_eq!(fs::read_to_string(desk.path("out.jsonl")).unwrap(), expected);
    desk.fails(&["export", "lines", "t", &desk.text("out.jsonl")], 4);

    fs::write(desk.path("bad.jsonl"), "{\"id\":1}\n{\"no\":1}\n").unwrap();
    let message = desk.fails(&["import", "lines", "t", &desk.text("bad.jsonl"), "--key-field", "id"], 2);
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn a_description_has_the_shape_of_dynamodbs() {
    let desk = Desk::empty();
    desk.ok(&["init"]);
    let arn = desk.ok(&["kms", "create-key", "--alias", "alias/ratings"]);
    desk.ok(&["create-table", "owned"]);
    desk.ok(&["create-table", "managed", "--master-key", "managed"]);
    let layout = ["--cipher", "chacha20-poly1305", "--compression", "none", "--block-size", "8192"];
    desk.ok(&[&["create-table", "customer", "--master-key", "alias/ratings"][..], &layout].concat());
    assert_eq!(desk.ok(&["list-tables"]), "customer\nmanaged\nowned\n");

    let described = |table: &str| -> Json { serde_json::from_str(&desk.ok(&["describe-table", table])).unwrap() };
    let owned = &described("owned")["Table"];
    let id = owned["TableId"].as_str().unwrap();
    assert_eq!(id.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    assert_eq!(owned["TableName"], "owned");
    assert_eq!(owned["TableStatus"], "ACTIVE");
    assert!(owned["CreationDateTime"].as_f64().unwrap() > 1.7e9);
    assert_eq!(owned["ItemCount"], 0);
    assert!(owned["TableSizeBytes"].is_u64());
    // The owned key is not the user's to see, as at DynamoDB.
    assert!(owned.get("SSEDescription").is_none());

    let managed = &described("managed")["Table"]["SSEDescription"];
    assert_eq!((&managed["Status"], &managed["SSEType"]), (&"ENABLED".into(), &"KMS".into()));
    assert_ne!(managed["KMSMasterKeyArn"], arn.trim_end());
    // The alias was resolved: what is recorded is the key's ARN.
    assert_eq!(described("customer")["Table"]["SSEDescription"]["KMSMasterKeyArn"], arn.trim_end());
}

#[test]
fn a_disabled_key_takes_down_its_own_table_only_until_it_is_enabled_again() {
    let desk = Desk::with_table();
    desk.ok(&["kms", "create-key", "--alias", "alias/k"]);
    desk.ok(&["create-table", "locked", "--master-key", "alias/k"]);
    desk.ok(&["put", "locked", "k", "v"]);
    desk.ok(&["kms", "disable", "alias/k"]);
    let message = desk.fails(&["get", "locked", "k"], 6);
    assert!(message.contains("disabled"), "{message}");
    desk.ok(&["put", "t", "k", "other"]);
    desk.ok(&["kms", "enable", "alias/k"]);
    assert_eq!(desk.ok(&["get", "locked", "k"]), "v");
    desk.fails(&["create-table", "never", "--master-key", "alias/none"], 6);
    assert_eq!(desk.ok(&["list-tables"]), "locked\nt\n");
}

#[test]
fn a_wrong_key_is_exit_code_5_and_changes_nothing() {
    let desk = Desk::with_table();
    desk.ok(&["put", "t", "k", "v"]);
    let before = contents(&desk.path("store"));
    fs::write(desk.path("key"), [8; 32]).unwrap();
    desk.fails(&["get", "t", "k"], 5);
    desk.fails(&["verify"], 5);
    assert!(contents(&desk.path("store")) == before);
}

#[test]
fn the_passphrase_comes_from_the_environment_or_a_file_and_is_the_same() {
    let desk = Desk::empty();
    let place = ["--store", &desk.text("store"), "--keyring", &desk.text("keyring")];
    let mut init = bare();
    init.args(place).arg("init").env("STRONGROOM_PASSPHRASE", "correct horse");
    assert!(feed(init, b"").status.success());

    fs::write(desk.path("passphrase"), "correct horse\n").unwrap();
    fs::set_permissions(desk.path("passphrase"), fs::Permissions::from_mode(0o600)).unwrap();
    let list = |extra: &[&str]| {
        let mut command = bare();
        command.args(place).args(extra).arg("list-tables");
        feed(command, b"")
    };
    assert_eq!(list(&["--passphrase-file", &desk.text("passphrase")]).status.code(), Some(0));
    fs::write(desk.path("passphrase"), "wrong horse\n").unwrap();
    assert_eq!(list(&["--passphrase-file", &desk.text("passphrase")]).status.code(), Some(5));
    // Nobody to ask: a message instead of waiting for ever.
    let output = list(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_text(&output).contains("STRONGROOM_PASSPHRASE"));
}

#[test]
fn a_keyring_inside_the_store_is_refused_before_anything_is_created() {
    let desk = Desk::empty();
    for keyring in ["store/keyring", "store/deeper/keyring", "other/../store/keyring"] {
        let mut command = bare();
        command.args(["--store", &desk.text("store"), "--keyring", &desk.text(keyring)]);
        command.args(["--key-file", &desk.text("key"), "init"]);
        let output = feed(command, b"");
        assert_eq!(output.status.code(), Some(2), "{}", error_text(&output));
        assert!(!desk.path("store").exists());
    }
}

#[test]
fn what_is_missing_or_there_already_has_exit_codes_of_its_own() {
    let desk = Desk::empty();
    desk.fails(&["list-tables"], 3);
    desk.ok(&["init"]);
    desk.fails(&["init"], 4);
    desk.fails(&["get", "none", "k"], 3);
    desk.fails(&["drop-table", "none", "--yes"], 3);
    desk.fails(&["scan", "none"], 3);
    desk.ok(&["create-table", "t"]);
    desk.fails(&["create-table", "t"], 4);
    desk.fails(&["put", "t", "", "empty key"], 2);
    desk.fails(&["drop-table", "t"], 2);
    desk.ok(&["drop-table", "t", "--yes"]);
    assert_eq!(desk.ok(&["list-tables"]), "");
    assert_eq!(desk.run(&["no-such-command"], b"").status.code(), Some(2));
    assert_eq!(desk.run(&["--help"], b"").status.code(), Some(0));
}

#[test]
fn a_flipped_bit_is_found_by_scrub_without_a_key_and_by_verify_with_it() {
    let desk = Desk::with_table();
    sample_folder(&desk.path("folder"));
    desk.ok(&["import", "folder", "t", &desk.text("folder")]);
    let scrub = || {
        let mut command = bare();
        command.arg("--store").arg(desk.path("store")).arg("scrub");
        feed(command, b"")
    };
    assert_eq!(scrub().status.code(), Some(0), "{}", error_text(&scrub()));
    assert!(desk.ok(&["verify"]).contains("no damage"));

    let (name, mut bytes) = contents(&desk.path("store")).into_iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(desk.path("store").join(&name), &bytes).unwrap();

    let output = scrub();
    assert_eq!(output.status.code(), Some(8), "{}", error_text(&output));
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(found.contains(name.file_name().unwrap().to_str().unwrap()), "{found}");
    desk.fails(&["verify"], 8);
}

#[test]
fn the_demonstration_keeps_its_promises_and_cleans_up() {
    let desk = Desk::empty();
    sample_folder(&desk.path("folder"));
    let demo = |extra: &[&str]| {
        let mut command = bare();
        command.args(["--store", &desk.text("demo")]).args(["demo", &desk.text("folder")]).args(extra);
        feed(command, b"")
    };
    let output = demo(&[]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{report}{}", error_text(&output));
    assert!(report.contains("every byte came back; no plaintext in the store"), "{report}");
    assert!(report.contains("\"TableName\": \"files\""), "{report}");
    assert!(!desk.path("demo").exists() && !desk.path("demo.keys").exists());

    let output = demo(&["--keep", "--compression", "none"]);
    assert!(output.status.success(), "{}", error_text(&output));
    let mut command = bare();
    command.args(["--store", &desk.text("demo"), "--keyring", &desk.text("demo.keys/keyring")]);
    command.args(["--key-file", &desk.text("demo.keys/key"), "get", "files", "zeros"]);
    assert_eq!(feed(command, b"").stdout, vec![0; 100_000]);

    // A second one does not write into the first one's store.
    assert_eq!(demo(&[]).status.code(), Some(4));
}

#[test]
fn a_trail_is_kept_read_and_checked() {
    // Who misused a key, or cleaned up behind himself, must be seen by whoever has nothing but the command.
    let desk = Desk::empty();
    let trail = desk.text("trail");
    let with_trail = |args: &[&str]| desk.ok(&[&["--trail", &trail], args].concat());
    desk.fails(&["trail", "count"], 2);
    desk.fails(&["--trail", &trail, "trail", "count"], 3);
    desk.fails(&["--trail", &desk.text("store/trail"), "init"], 2);
    with_trail(&["init"]);
    with_trail(&["--trail-names", "create-table", "t", "--master-key", "managed"]);
    with_trail(&["put", "t", "k", "v"]);
    desk.fails(&["--trail", &trail, "drop-table", "none", "--yes"], 3);
    let calls = with_trail(&["trail", "table", "t"]);
    assert!(
        calls.contains("GenerateDataKey") && calls.contains("Decrypt") && !calls.contains("DeleteTable"),
        "{calls}"
    );
    assert!(with_trail(&["trail", "count"]).contains("DeleteTable"));
    assert!(with_trail(&["trail", "key", "alias/strongroom"]).contains("in use"));
    assert!(with_trail(&["trail", "verify"]).contains("attested by the store"));
    assert_eq!(desk.run(&["--trail", &trail, "trail", "calls", "--day", "2026-02-30"], b"").status.code(), Some(2));

    // The last file, with the refused drop, goes.
    let (last, _) = contents(&desk.path("trail")).into_iter().next_back().unwrap();
    fs::remove_file(desk.path("trail").join(last)).unwrap();
    assert!(desk.fails(&["--trail", &trail, "trail", "verify"], 7).contains("trail"));
}

#[test]
fn stats_show_levels_log_and_keys_and_every_figure_as_json() {
    // Whoever has to say why a disk is full has this command and nothing else.
    let desk = Desk::with_table();
    desk.ok(&["put", "t", "canary-key", "canary-value"]);
    let text = desk.ok(&["stats"]);
    for part in ["store ", "tables     1", "manifest ", "log ", "generation 1", "closed in good order"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("canary"), "{text}");
    let json: Json = serde_json::from_str(&desk.ok(&["stats", "--json"])).unwrap();
    assert_eq!(json["ClosedCleanly"], Json::Bool(true));
    assert_eq!(json["Metrics"]["store.tables"], 1);
    assert_eq!(json["Metrics"]["provider.decrypt.ok"], 1, "the system key, and no table's");
    assert!(json["Metrics"]["opened.manifest_frames"].as_u64().unwrap() > 0);
    assert!(json["Metrics"]["writes.sampled_ns"]["p99"].is_number());
}
