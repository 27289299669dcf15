//! One event of the trail, in the shape of a CloudTrail record, and the one text that it is written as.
//!
//! ```text
//! {"eventVersion":"1.11","userIdentity":{"type":"Principal","principalId":"ada","arn":"..","invokedBy":"strongroom"},
//!  "eventTime":"2026-11-21T09:14:03.512Z","eventSource":"kms.strongroom","eventName":"Decrypt","awsRegion":"local",
//!  "sourceIPAddress":"strongroom","userAgent":"strongroom/0.1.0","errorCode":..,"errorMessage":..,
//!  "requestParameters":{"keyId":"..","encryptionContext":{..}},"responseElements":null,"additionalEventData":null,
//!  "requestID":"..","eventID":"..","readOnly":true,"resources":[{"ARN":"..","type":"AWS::KMS::Key"}],
//!  "eventType":"AwsApiCall","recipientAccountId":"<store id>","eventCategory":"Management",
//!  "strongroom":{"sequence":12,"generation":1,"previous":"<64 hex>","mac":"<64 hex>"}}
//! ```
//! On one line, members in this order; `errorCode` and `errorMessage` only of a failure, as at CloudTrail. The last member is the store's own and
//! the record's place in the chain (`chain.rs`): the MAC is over every byte of the text before it. So there is one encoding, and what was
//! checked is what a query reads. The writer is a page long and needs no other crate; a test holds it against one.

use std::fmt::Write;

use super::calendar;
use crate::types::StoreId;

/// The engine, wherever CloudTrail names a service: as a source of events, of requests, and as who acts on a principal's behalf.
pub const ENGINE: &str = "strongroom";
/// The event source of requests to a key provider, whichever it is.
pub const KMS: &str = "kms.strongroom";
/// The source of table calls: the program that embeds the store.
pub const PROGRAM: &str = "in-process";

const EVENT_VERSION: &str = "1.11";
/// The most of a provider's words that is kept, in bytes, as at CloudTrail.
const MESSAGE_BYTES_MAX: usize = 1024;

/// One event of the trail.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TrailRecord {
    /// Who asked.
    pub identity: TrailIdentity,
    /// When the answer was there, in milliseconds since 1970-01-01 00:00 UTC.
    pub time_ms: u64,
    /// [`KMS`] for requests to a key provider, [`ENGINE`] for calls of tables.
    pub source: String,
    /// What was asked for, as KMS or DynamoDB calls it.
    pub name: String,
    /// Region in the key's ARN; `local` if there is none.
    pub region: String,
    /// Where the request came from: [`ENGINE`] for those that the engine made, [`PROGRAM`] for calls of tables.
    pub source_address: String,
    /// Why it failed, if it did: the name of the reason, and its words.
    pub error: Option<(String, Option<String>)>,
    /// What was asked with: names and numbers, never key bytes.
    pub request: TrailValue,
    /// What came back, for calls that change something; nothing for cryptographic ones.
    pub response: TrailValue,
    /// More about the event.
    pub additional: TrailValue,
    /// Identifies the request.
    pub request_id: String,
    /// Identifies the event.
    pub event_id: String,
    /// Whether the call changes nothing.
    pub read_only: bool,
    /// What was used: the key that was asked first; for [`KMS`]'s `ReEncrypt` the old key, then the new one.
    pub resources: Vec<TrailResource>,
    /// `AwsApiCall`, or `AwsServiceEvent` for what nobody asked for.
    pub kind: String,
    /// The store.
    pub store: StoreId,
    /// The record's place in the chain.
    pub link: TrailLink,
}

/// Who stands in a record.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TrailIdentity {
    /// `Owner`, `Service` or `Principal`.
    pub kind: String,
    /// The principal's name.
    pub id: String,
    /// The engine, when it asked on a principal's behalf.
    pub invoked_by: Option<String>,
}

/// Something that a call was about.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TrailResource {
    /// Its ARN.
    pub arn: String,
    /// What it is: `AWS::KMS::Key` or `Strongroom::Table`.
    pub kind: String,
}

impl TrailResource {
    pub(super) fn key(arn: &str) -> TrailResource {
        TrailResource { arn: arn.to_owned(), kind: "AWS::KMS::Key".to_owned() }
    }

    pub(super) fn table(store: StoreId, table: impl std::fmt::Display) -> TrailResource {
        TrailResource {
            arn: format!("arn:strongroom:store:local:{store}:table/{table}"),
            kind: "Strongroom::Table".into(),
        }
    }
}

/// A record's place in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TrailLink {
    /// Its number: 1 for the store's first record ever, one more for each.
    pub sequence: u64,
    /// Generation of the system key that the chain's key is derived from.
    pub generation: u32,
    /// MAC of the record before it; zeros for the first.
    pub previous: [u8; 32],
    /// MAC of this record.
    pub mac: [u8; 32],
}

/// A value in a record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum TrailValue {
    /// Nothing.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Values in a row.
    List(Vec<TrailValue>),
    /// Values by name, in the order in which they are written.
    Object(Vec<(String, TrailValue)>),
}

impl TrailValue {
    /// The value under this name, if this is an object that has one.
    pub fn member(&self, name: &str) -> Option<&TrailValue> {
        match self {
            TrailValue::Object(members) => members.iter().find(|(own, _)| own == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            TrailValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, TrailValue)>) -> TrailValue {
        TrailValue::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn write(&self, out: &mut String) {
        match self {
            TrailValue::Null => out.push_str("null"),
            TrailValue::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            TrailValue::Number(value) => write_number(*value, out),
            TrailValue::Text(text) => write_text(text, out),
            TrailValue::List(values) => {
                out.push('[');
                for (i, value) in values.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            TrailValue::Object(members) => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

impl From<&str> for TrailValue {
    fn from(text: &str) -> TrailValue {
        TrailValue::Text(text.to_owned())
    }
}

impl From<String> for TrailValue {
    fn from(text: String) -> TrailValue {
        TrailValue::Text(text)
    }
}

impl From<bool> for TrailValue {
    fn from(value: bool) -> TrailValue {
        TrailValue::Bool(value)
    }
}

impl From<u64> for TrailValue {
    fn from(value: u64) -> TrailValue {
        TrailValue::Number(value)
    }
}

/// What stands between a record's own members and its MAC, and behind it.
pub(super) const MAC_OPENS: &str = ",\"mac\":\"";
pub(super) const MAC_CLOSES: &str = "\"}}";
/// What stands before a record's place in the chain.
pub(super) const LINK_OPENS: &str = ",\"strongroom\":{\"sequence\":";

impl TrailRecord {
    /// The record on one line, without a line break: what a sink keeps, and what the chain is over.
    pub fn json(&self) -> String {
        let mut out = self.unsealed();
        out.push_str(MAC_OPENS);
        write_hex(&self.link.mac, &mut out);
        out.push_str(MAC_CLOSES);
        out
    }

    /// Id of the table that the call was about, in hexadecimal, if it was about one.
    pub fn table_id(&self) -> Option<&str> {
        let contexts = ["encryptionContext", "destinationEncryptionContext", "sourceEncryptionContext"];
        let in_context = |name: &&str| self.request.member(name)?.member("strongroom:table")?.text();
        contexts.iter().find_map(in_context).or_else(|| self.request.member("tableId")?.text())
    }

    /// Name of the table that the call was about, if the opener wants names in the trail.
    pub fn table_name(&self) -> Option<&str> {
        self.request.member("tableName")?.text()
    }

    /// The text up to the MAC: what the MAC is over.
    pub(super) fn unsealed(&self) -> String {
        let (code, message) = match &self.error {
            Some((code, message)) => (Some(code.as_str()), message.as_deref()),
            None => (None, None),
        };
        let resources = self.resources.iter().map(|resource| {
            TrailValue::object([("ARN", resource.arn.as_str().into()), ("type", resource.kind.as_str().into())])
        });
        let members = [
            ("eventVersion", Some(EVENT_VERSION.into())),
            ("userIdentity", Some(self.identity.value(self.store))),
            ("eventTime", Some(calendar::timestamp(self.time_ms).into())),
            ("eventSource", Some(self.source.as_str().into())),
            ("eventName", Some(self.name.as_str().into())),
            ("awsRegion", Some(self.region.as_str().into())),
            ("sourceIPAddress", Some(self.source_address.as_str().into())),
            ("userAgent", Some(concat!("strongroom/", env!("CARGO_PKG_VERSION")).into())),
            ("errorCode", code.map(TrailValue::from)),
            ("errorMessage", message.map(|text| shortened(text).into())),
            ("requestParameters", Some(self.request.clone())),
            ("responseElements", Some(self.response.clone())),
            ("additionalEventData", Some(self.additional.clone())),
            ("requestID", Some(self.request_id.as_str().into())),
            ("eventID", Some(self.event_id.as_str().into())),
            ("readOnly", Some(self.read_only.into())),
            ("resources", Some(TrailValue::List(resources.collect()))),
            ("eventType", Some(self.kind.as_str().into())),
            ("recipientAccountId", Some(self.store.to_string().into())),
            ("eventCategory", Some("Management".into())),
        ];
        let mut out = String::with_capacity(1024);
        TrailValue::object(members.into_iter().filter_map(|(name, value)| Some((name, value?)))).write(&mut out);
        // The object goes on with the place in the chain.
        out.pop();
        out.push_str(LINK_OPENS);
        write_number(self.link.sequence, &mut out);
        out.push_str(",\"generation\":");
        write_number(u64::from(self.link.generation), &mut out);
        out.push_str(",\"previous\":\"");
        write_hex(&self.link.previous, &mut out);
        out.push('"');
        out
    }
}

impl TrailIdentity {
    fn value(&self, store: StoreId) -> TrailValue {
        let arn = format!("arn:strongroom:store:local:{store}:principal/{}", self.id);
        let mut members =
            vec![("type", self.kind.as_str().into()), ("principalId", self.id.as_str().into()), ("arn", arn.into())];
        members.extend(self.invoked_by.as_deref().map(|engine| ("invokedBy", engine.into())));
        TrailValue::object(members)
    }
}

/// The beginning of `text`, no longer than a message may be.
fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn write_number(number: u64, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{number}");
}

fn write_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

/// A text in quotes. What could end a line, or be taken for more than text by whoever reads it as JavaScript, is escaped.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
