//! What can be typed behind `strongroom kms`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use strongroom::keys::{GrantOperation, Principal};

#[derive(Args)]
pub struct Kms {
    /// Print answers as JSON, in the shape of AWS KMS's where it has one
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: KmsCommand,
}

#[derive(Subcommand)]
pub enum KmsCommand {
    /// Make a master key, and print its ARN
    CreateKey(CreateKey),
    /// List the master keys: ARN, state, aliases, description
    List,
    /// Say everything about a master key
    Describe {
        /// Key id, ARN or alias
        key: String,
    },
    /// Change what a master key is said to be for
    SetDescription {
        /// Key id, ARN or alias
        key: String,
        text: String,
    },
    /// Names for master keys
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Let a disabled master key be used again
    Enable {
        /// Key id, ARN or alias
        key: String,
    },
    /// Refuse every use of a master key; its tables become inaccessible within five minutes
    Disable {
        /// Key id, ARN or alias
        key: String,
    },
    /// Give a master key new bytes; the earlier ones still open what they wrapped
    Rotate {
        /// Key id, ARN or alias
        key: String,
    },
    /// Rotate a master key by itself every so many days, or no more; without either, say when it will be rotated
    RotationPeriod {
        /// Key id, ARN or alias
        key: String,
        /// 90 to 2560
        days: Option<u32>,
        /// No more
        #[arg(long, conflicts_with = "days")]
        never: bool,
    },
    /// Refuse every use of a master key from now on, and erase it in some days: what is under it is then lost for good
    ScheduleDeletion {
        /// Key id, ARN or alias
        key: String,
        /// How long it can still be saved, 7 to 30
        #[arg(long, default_value_t = 30)]
        days: u32,
    },
    /// Call a deletion off; the key stays disabled
    CancelDeletion {
        /// Key id, ARN or alias
        key: String,
    },
    /// Give a key that was made without them its bytes, or give it the same bytes again
    Import {
        /// Key id, ARN or alias
        key: String,
        /// Holds 32 bytes
        file: PathBuf,
        /// Take them away again in so many days
        #[arg(long, value_name = "DAYS")]
        expire_in: Option<u32>,
    },
    /// Take a key's imported bytes away, until the same are imported again
    DeleteMaterial {
        /// Key id, ARN or alias
        key: String,
    },
    /// Permissions for single principals
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Who may do what with a master key, as JSON
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Args)]
pub struct CreateKey {
    /// Also give it this name, such as alias/ratings
    #[arg(long, value_name = "ALIAS")]
    pub alias: Option<String>,
    /// What it is for, in words of yours
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Use the 32 bytes in this file instead of random ones. Keep them: only they can be imported again
    #[arg(long, value_name = "FILE")]
    pub import_from: Option<PathBuf>,
    /// Make it without bytes, which `import` gives it
    #[arg(long, conflicts_with = "import_from")]
    pub no_material: bool,
}

#[derive(Subcommand)]
pub enum AliasCommand {
    /// Let a new alias stand for a key
    Add { alias: String, key: String },
    /// Let an alias stand for another key than before; what was wrapped under that one stays readable
    Move { alias: String, key: String },
    /// Let an alias stand for nothing any more
    Remove { alias: String },
}

#[derive(Subcommand)]
pub enum GrantCommand {
    /// Allow a principal some operations, and print the grant's id
    Create(CreateGrant),
    /// List a key's grants: id, grantee, operations, constraint, name
    List { key: String },
    /// Give a grant up
    Retire { key: String, grant: String },
    /// Take a grant away
    Revoke { key: String, grant: String },
}

#[derive(Args)]
pub struct CreateGrant {
    pub key: String,
    /// Who: owner, service, or principal/NAME
    #[arg(long, value_name = "PRINCIPAL", value_parser = principal)]
    pub to: Principal,
    /// What; can be given several times
    #[arg(long = "operation", value_name = "OPERATION", value_enum, required = true)]
    pub operations: Vec<OperationName>,
    /// Only with encryption contexts that hold this pair; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
    /// Only with the encryption context that holds the given pairs and no others
    #[arg(long, requires = "context")]
    pub exactly: bool,
    /// Who besides the grantee may give it up: owner, service, or principal/NAME
    #[arg(long, value_name = "PRINCIPAL", value_parser = principal)]
    pub retiring: Option<Principal>,
    /// Once more with the same name and contents finds the grant that is there
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Print a key's policy
    Get { key: String },
    /// Replace a key's policy by the one in a file
    Put { key: String, file: PathBuf },
}

/// An operation by AWS's name.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum OperationName {
    DescribeKey,
    GenerateDataKey,
    Decrypt,
    Encrypt,
    ReEncryptFrom,
    ReEncryptTo,
    CreateGrant,
    RetireGrant,
}

impl From<OperationName> for GrantOperation {
    fn from(name: OperationName) -> GrantOperation {
        match name {
            OperationName::DescribeKey => GrantOperation::DescribeKey,
            OperationName::GenerateDataKey => GrantOperation::GenerateDataKey,
            OperationName::Decrypt => GrantOperation::Decrypt,
            OperationName::Encrypt => GrantOperation::Encrypt,
            OperationName::ReEncryptFrom => GrantOperation::ReEncryptFrom,
            OperationName::ReEncryptTo => GrantOperation::ReEncryptTo,
            OperationName::CreateGrant => GrantOperation::CreateGrant,
            OperationName::RetireGrant => GrantOperation::RetireGrant,
        }
    }
}

/// A principal as it is written here: `owner`, `service`, or `principal/` and a name.
pub fn principal(text: &str) -> Result<Principal, String> {
    match text {
        "owner" => Ok(Principal::Owner),
        "service" => Ok(Principal::Service),
        _ => match text.strip_prefix("principal/") {
            Some(name) if !name.is_empty() => Ok(Principal::Named(name.to_owned())),
            _ => Err(format!("{text:?} is not owner, service, or principal/NAME")),
        },
    }
}

/// As [`principal`] reads it.
pub fn principal_text(principal: &Principal) -> String {
    match principal {
        Principal::Named(name) => format!("principal/{name}"),
        Principal::Owner => "owner".to_owned(),
        Principal::Service => "service".to_owned(),
        other => other.to_string(),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
