//! The JSON shape of key policies and constraints, after AWS's.
//!
//! ```json
//! {
//!   "Statement": [
//!     {
//!       "Sid": "the tenant's service",
//!       "Effect": "Allow",
//!       "Principal": ["service", "principal/ada"],
//!       "Action": ["kms:DescribeKey", "kms:Decrypt"],
//!       "Condition": { "EncryptionContextSubset": { "strongroom:store": "..." } }
//!     }
//!   ]
//! }
//! ```
//! `Principal` is `*`, `owner`, `service` or `principal/NAME`, `Action` an operation behind `kms:`, or `kms:*`; both can be one text or
//! several. `Sid` and `Condition` may be missing; a condition is `EncryptionContextEquals` or `EncryptionContextSubset`. Anything
//! else is refused: a policy that is not understood must not be half obeyed.

use serde_json::{Map, Value as Json, json};
use strongroom::keys::{
    EncryptionContext, GrantConstraint, KeyOperation, KeyPolicy, PolicyEffect, PolicyPrincipal, PolicyStatement,
};

use super::args::{principal, principal_text};

const SERVICE: &str = "kms:";
const EVERYTHING: &str = "kms:*";
const EVERYONE: &str = "*";
const EQUALS: &str = "EncryptionContextEquals";
const SUBSET: &str = "EncryptionContextSubset";

/// The policy that this document stands for, or what is wrong with it.
pub fn parse(text: &[u8]) -> Result<KeyPolicy, String> {
    let document: Json = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let document = object("the policy", &document)?;
    only(document, &["Statement"])?;
    let statements = document.get("Statement").and_then(Json::as_array).ok_or("\"Statement\" is not a list")?;
    Ok(KeyPolicy::new(statements.iter().map(statement).collect::<Result<Vec<_>, _>>()?))
}

/// As [`parse`] reads it.
pub fn document(policy: &KeyPolicy) -> Json {
    json!({ "Statement": policy.statements.iter().map(statement_json).collect::<Vec<_>>() })
}

/// A constraint as a condition of a policy, or as the constraints of a grant.
pub fn constraint_json(constraint: &GrantConstraint) -> Json {
    let (name, context) = match constraint {
        GrantConstraint::Equals(context) => (EQUALS, context),
        GrantConstraint::Contains(context) => (SUBSET, context),
        // What a later version may know.
        _ => return Json::Null,
    };
    let pairs: Map<String, Json> = context.pairs().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({ name: pairs })
}

fn statement(json: &Json) -> Result<PolicyStatement, String> {
    let fields = object("a statement", json)?;
    only(fields, &["Sid", "Effect", "Principal", "Action", "Condition"])?;
    let principals = texts(fields, "Principal")?.into_iter().map(policy_principal).collect::<Result<Vec<_>, _>>()?;
    let mut operations = Vec::new();
    for action in texts(fields, "Action")? {
        operations.extend(action_operations(action)?);
    }
    let mut statement = match fields.get("Effect").and_then(Json::as_str) {
        Some("Allow") => PolicyStatement::allow(principals, operations),
        Some("Deny") => PolicyStatement::deny(principals, operations),
        _ => return Err("\"Effect\" is neither \"Allow\" nor \"Deny\"".to_owned()),
    };
    if let Some(sid) = fields.get("Sid") {
        statement = statement.named(sid.as_str().ok_or("\"Sid\" is not a text")?);
    }
    if let Some(condition) = fields.get("Condition") {
        statement = statement.with(constraint(condition)?);
    }
    Ok(statement)
}

fn constraint(json: &Json) -> Result<GrantConstraint, String> {
    let fields = object("\"Condition\"", json)?;
    let mut fields = fields.iter();
    let (Some((kind, pairs)), None) = (fields.next(), fields.next()) else {
        return Err("\"Condition\" does not hold exactly one condition".to_owned());
    };
    let pairs = object(kind, pairs)?.iter().map(|(name, value)| match value {
        Json::String(value) => Ok((name.clone(), value.clone())),
        _ => Err(format!("the value of {name:?} is not a text")),
    });
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    let context = EncryptionContext::from_pairs(pairs).map_err(|error| error.to_string())?;
    match kind.as_str() {
        EQUALS => Ok(GrantConstraint::Equals(context)),
        SUBSET => Ok(GrantConstraint::Contains(context)),
        _ => Err(format!("{kind:?} is no condition; {EQUALS} and {SUBSET} are")),
    }
}

fn statement_json(statement: &PolicyStatement) -> Json {
    let mut fields = Map::new();
    if let Some(sid) = &statement.sid {
        fields.insert("Sid".into(), sid.as_str().into());
    }
    let effect = match statement.effect {
        PolicyEffect::Allow => "Allow",
        PolicyEffect::Deny => "Deny",
    };
    fields.insert("Effect".into(), effect.into());
    fields.insert("Principal".into(), statement.principals.iter().map(policy_principal_text).collect());
    let actions = match statement.operations.len() == KeyOperation::ALL.len() {
        true => json!([EVERYTHING]),
        false => statement.operations.iter().map(|operation| format!("{SERVICE}{operation:?}")).collect(),
    };
    fields.insert("Action".into(), actions);
    if let Some(constraint) = &statement.constraint {
        fields.insert("Condition".into(), constraint_json(constraint));
    }
    Json::Object(fields)
}

fn policy_principal(text: &str) -> Result<PolicyPrincipal, String> {
    if text == EVERYONE { Ok(PolicyPrincipal::Everyone) } else { principal(text).map(PolicyPrincipal::One) }
}

fn policy_principal_text(principal: &PolicyPrincipal) -> String {
    match principal {
        PolicyPrincipal::One(principal) => principal_text(principal),
        _ => EVERYONE.to_owned(),
    }
}

fn action_operations(action: &str) -> Result<Vec<KeyOperation>, String> {
    if action == EVERYTHING {
        return Ok(KeyOperation::ALL.to_vec());
    }
    // The names are AWS's, and so are those of the variants.
    let named = |operation: &&KeyOperation| action.strip_prefix(SERVICE) == Some(&format!("{operation:?}"));
    match KeyOperation::ALL.iter().find(named) {
        Some(&operation) => Ok(vec![operation]),
        None => Err(format!("{action:?} is no action; {EVERYTHING} and {} are", known_actions())),
    }
}

fn known_actions() -> String {
    KeyOperation::ALL.map(|operation| format!("{SERVICE}{operation:?}")).join(", ")
}

fn object<'a>(what: &str, json: &'a Json) -> Result<&'a Map<String, Json>, String> {
    json.as_object().ok_or_else(|| format!("{what} is not an object"))
}

fn only(fields: &Map<String, Json>, known: &[&str]) -> Result<(), String> {
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(format!("{name:?} is not known; {} are", known.join(", "))),
    }
}

/// A field that holds a text or a list of texts.
fn texts<'a>(fields: &'a Map<String, Json>, name: &str) -> Result<Vec<&'a str>, String> {
    let wrong = || format!("{name:?} is neither a text nor a list of texts");
    match fields.get(name) {
        Some(Json::String(text)) => Ok(vec![text]),
        Some(Json::Array(list)) => list.iter().map(|text| text.as_str().ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use strongroom::keys::Principal;

    use super::*;

    #[test]
    fn a_policy_that_was_printed_reads_as_the_same_policy() {
        let context = EncryptionContext::from_pairs([("store", "s")]).unwrap();
        let ada = Principal::Named("ada".to_owned());
        let policy = KeyPolicy::new([
            PolicyStatement::allow([Principal::Owner], KeyOperation::ALL).named("the owner"),
            PolicyStatement::deny([PolicyPrincipal::Everyone], [KeyOperation::Encrypt])
                .with(GrantConstraint::Equals(EncryptionContext::new())),
            PolicyStatement::allow([Principal::Service, ada], [KeyOperation::Decrypt])
                .with(GrantConstraint::Contains(context)),
        ]);
        assert_eq!(parse(document(&policy).to_string().as_bytes()).unwrap(), policy);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        // Or a misspelt denial would deny nothing.
        let fine = r#"{"Effect":"Allow","Principal":"owner","Action":"kms:*"}"#;
        parse(format!(r#"{{"Statement":[{fine}]}}"#).as_bytes()).unwrap();
        for document in [
            "",
            "[]",
            "{}",
            r#"{"Statement":{}}"#,
            r#"{"Statement":[],"Version":"2012-10-17"}"#,
            r#"{"Statement":[{"Effect":"allow","Principal":"owner","Action":"kms:*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"ada","Action":"kms:*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"principal/","Action":"kms:*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"kms:decrypt"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"Decrypt"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"kms:*","NotAction":"kms:*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"kms:*","Condition":{}}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"kms:*","Condition":{"Bool":{"a":"b"}}}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"owner","Action":"kms:*","Condition":{"EncryptionContextEquals":{"a":1}}}]}"#,
        ] {
            assert!(parse(document.as_bytes()).is_err(), "{document}");
        }
    }
}
