//! What can be typed: every command and option, with the help that is printed for it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use strongroom::keys::trail::Day;

use crate::bench::args::Bench;
use crate::kms::args::Kms;

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  get: there is no such key
   2  the command line or an argument is wrong
   3  there is no such store, table or file
   4  what was to be created exists already
   5  wrong passphrase or key
   6  a master key is not available (disabled, missing, unreachable)
   7  tampering, or an older copy of the store was put back
   8  damage: bit rot or a missing file
   9  the store or keyring is in use
  10  written by a newer version
  11  over a limit
  12  the operating system refused, or an earlier write failed
  13  demo, bench: what was read back differs, or plaintext was found

docs/CLI.md has the details.";

/// An embedded, encrypted key-value store: every table under its own key, every key under a master key.
#[derive(Parser)]
#[command(name = "strongroom", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the store and its keyring lie, and what opens the keyring.
#[derive(Args)]
pub struct Place {
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// File with the master keys, outside the store [default: strongroom/keyring in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Read the keyring's passphrase from this file (one trailing line break is not part of it). Without this and
    /// --key-file: from the variable STRONGROOM_PASSPHRASE if set, else asked for
    #[arg(long, global = true, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Open the keyring with the key in this file, 32 bytes or 64 hexadecimal digits, instead of a passphrase
    #[arg(long, global = true, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Record every use of a managed or customer key, and calls of tables, in this folder outside the store
    #[arg(long, global = true, value_name = "FOLDER")]
    pub trail: Option<PathBuf>,
    /// Show tables' names in the trail, beside their ids; it lies in clear
    #[arg(long, global = true, requires = "trail")]
    pub trail_names: bool,
    /// Use no key whose use could not be recorded in the trail
    #[arg(long, global = true, requires = "trail")]
    pub trail_required: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Create a store, and its keyring if there is none yet
    Init,
    /// Manage the keyring's master keys: states, rotation, import, grants, policies
    Kms(Kms),
    /// Create a table
    CreateTable(CreateTable),
    /// List the tables, by name
    ListTables,
    /// Print a table's description as JSON, in the shape of DynamoDB's
    DescribeTable { table: String },
    /// Drop a table and erase its wrapped key
    DropTable {
        table: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Have the table's master key, which nothing else may need, destroyed at its provider in so many days (7 to 30)
        #[arg(long, value_name = "DAYS")]
        destroy_key: Option<u32>,
    },
    /// Wrap a table's key under another master key, and begin a new generation of it
    UpdateTable(UpdateTable),
    /// Begin a new generation of a table's key, or of the system key, and write everything anew under it
    Rotate(Rotate),
    /// What is sealed under which generation of which key, and who delays the end of an old one
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Set a key's value: from the argument, from --file, or else from standard input
    Put(Put),
    /// Write a key's value to standard output, byte for byte; exit code 1 if there is none
    Get(Get),
    /// Delete a key
    Delete(Delete),
    /// Print a table's entries in key order
    Scan(Scan),
    /// Read entries into a table
    #[command(subcommand)]
    Import(Import),
    /// Write a table's entries out
    #[command(subcommand)]
    Export(Export),
    /// Check every seal of a store, with its keys; changes nothing
    Verify,
    /// Check every checksum of a store, without any key; changes nothing
    Scrub,
    /// What the store holds and how it is: levels, log, metadata, keys
    Stats {
        /// As JSON, with every figure of docs/METRICS.md
        #[arg(long)]
        json: bool,
    },
    /// Describe one file of a store, frame by frame; never shows a value
    Dump(Dump),
    /// Read, count and check the audit trail in the folder that --trail names
    Trail(Trail),
    /// Try it all on a folder of yours: import, read back, compare, search the store for plaintext
    Demo(Demo),
    /// Measure how fast the engine is here and what its encryption costs, on stores made for it
    Bench(Box<Bench>),
}

#[derive(Args)]
pub struct Trail {
    #[command(subcommand)]
    pub command: TrailCommand,
    /// Print one JSON object to a line: calls as they stand in the trail
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum TrailCommand {
    /// All calls of a day, in the order of time
    Calls {
        /// The day, in UTC
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        day: Day,
        /// Only calls of tables, or only requests for keys
        #[arg(long, value_enum)]
        source: Option<TrailSource>,
    },
    /// Requests for keys that the store made for a table, in the order of time
    Table {
        /// Its id; or its name, if the trail shows names or the store can be opened
        table: String,
    },
    /// How many calls there were of each kind
    Count {
        /// Only of this day, in UTC
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        day: Option<Day>,
    },
    /// Which tables use a master key, by the trail, and by the store if it can be opened
    Key {
        /// ARN, id or alias
        key: String,
    },
    /// Check that no record is missing, altered, moved or repeated
    Verify,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrailSource {
    Tables,
    Keys,
}

fn day(text: &str) -> Result<Day, &'static str> {
    Day::parse(text).ok_or("there is no such day; write it as YYYY-MM-DD")
}

#[derive(Args)]
pub struct CreateTable {
    pub table: String,
    /// What wraps the table's key: `owned` (the store's default), `managed` (the keyring's key for this engine), or a
    /// master key by id, ARN or alias
    #[arg(long, value_name = "KEY", default_value = "owned")]
    pub master_key: String,
    #[command(flatten)]
    pub layout: Layout,
}

#[derive(Args)]
pub struct UpdateTable {
    pub table: String,
    /// `owned`, `managed`, or a master key by id, ARN or alias
    #[arg(long, value_name = "KEY")]
    pub master_key: String,
    /// Keep the table's key and only wrap it anew
    #[arg(long)]
    pub rewrap_only: bool,
}

#[derive(Args)]
pub struct Rotate {
    /// The table
    #[arg(required_unless_present = "system", conflicts_with = "system")]
    pub table: Option<String>,
    /// The system key, which seals the store's own metadata
    #[arg(long)]
    pub system: bool,
    /// Not now, but by itself every so many days while the store is open; 0 ends it
    #[arg(long, value_name = "DAYS")]
    pub every_days: Option<u32>,
}

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Of one table, or of all
    Status(Keys),
}

#[derive(Args)]
pub struct Keys {
    pub table: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// How a new table's blocks are made.
#[derive(Args)]
pub struct Layout {
    /// Cipher suite [default: AES-256-GCM where the CPU has instructions for it]
    #[arg(long, value_enum)]
    pub cipher: Option<CipherName>,
    /// Compression before sealing
    #[arg(long, value_enum, default_value_t = CompressionName::Lz4)]
    pub compression: CompressionName,
    /// Size of a block before compression
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    pub block_size: usize,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum CipherName {
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum CompressionName {
    None,
    Lz4,
}

/// How keys on the command line are to be read. Without either: as they stand.
#[derive(Args, Clone, Copy)]
pub struct KeyForm {
    /// Keys are written as `scan` prints them: \xNN, \n, \r, \t and \\ stand for one byte
    #[arg(long)]
    pub escaped: bool,
    /// Keys are written in hexadecimal
    #[arg(long, conflicts_with = "escaped")]
    pub hex: bool,
}

#[derive(Args)]
pub struct Put {
    pub table: String,
    pub key: OsString,
    /// The value; without it and --file, standard input is read to its end
    pub value: Option<OsString>,
    /// Take the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub form: KeyForm,
}

#[derive(Args)]
pub struct Get {
    pub table: String,
    pub key: OsString,
    #[command(flatten)]
    pub form: KeyForm,
}

#[derive(Args)]
pub struct Delete {
    pub table: String,
    pub key: OsString,
    #[command(flatten)]
    pub form: KeyForm,
}

#[derive(Args)]
pub struct Scan {
    pub table: String,
    /// Only keys that begin so
    #[arg(long, value_name = "KEY", conflicts_with_all = ["from", "to"])]
    pub prefix: Option<OsString>,
    /// First key, itself included
    #[arg(long, value_name = "KEY")]
    pub from: Option<OsString>,
    /// Last key, itself not included
    #[arg(long, value_name = "KEY")]
    pub to: Option<OsString>,
    /// Last key first
    #[arg(long)]
    pub reverse: bool,
    /// At most so many entries
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<u64>,
    /// Keys without values
    #[arg(long)]
    pub keys_only: bool,
    /// How entries are printed, one to a line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    #[command(flatten)]
    pub form: KeyForm,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Key, tab, value; bytes that are not printable ASCII are escaped
    Text,
    /// An object with `key` and `value`, or `key_hex` and `value_hex` for what is not UTF-8
    Json,
    /// Key, tab, value in hexadecimal
    Hex,
}

#[derive(Subcommand)]
pub enum Import {
    /// Every regular file under a folder: its path is the key, its contents are the value
    Folder(ImportFolder),
    /// Every line of a file of JSON objects: one field is the key, the whole line is the value
    Lines(ImportLines),
}

#[derive(Subcommand)]
pub enum Export {
    /// Every entry as a file: the key is its path, the value its contents
    Folder(ExportFolder),
    /// Every value as a line
    Lines(ExportLines),
}

#[derive(Args)]
pub struct ImportFolder {
    pub table: String,
    pub folder: PathBuf,
    /// Report files over the limit of 512 MiB and go on, instead of refusing the import
    #[arg(long)]
    pub skip_large: bool,
}

#[derive(Args)]
pub struct ExportFolder {
    pub table: String,
    /// Must be empty, or not exist
    pub folder: PathBuf,
}

#[derive(Args)]
pub struct ImportLines {
    pub table: String,
    /// The file; standard input without it
    pub file: Option<PathBuf>,
    /// Field whose string or whole number is the key: a name, or a JSON pointer such as /user/id
    #[arg(long, value_name = "FIELD")]
    pub key_field: String,
}

#[derive(Args)]
pub struct ExportLines {
    pub table: String,
    /// The file, which must not exist; standard output without it
    pub file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Dump {
    /// The file, relative to the store, such as CURRENT or wal/000012.wal
    pub file: String,
    /// Open what is sealed, with the keyring
    #[arg(long)]
    pub open: bool,
    /// Show the table's keys, too
    #[arg(long, requires = "open")]
    pub keys: bool,
}

#[derive(Args)]
pub struct Demo {
    /// A folder with real files; it is only read
    pub folder: PathBuf,
    /// Leave the store and its keyring there, and say how to use them
    #[arg(long)]
    pub keep: bool,
    /// Report files over the limit of 512 MiB and go on, instead of refusing
    #[arg(long)]
    pub skip_large: bool,
    #[command(flatten)]
    pub layout: Layout,
}
