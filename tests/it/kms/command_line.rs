//! `strongroom kms` as its user meets it.

use std::fs;

use serde_json::{Value as Json, json};
use strongroom::keys::{EncryptionContext, GenerateDataKeyRequest, KeyProvider, Principal};
use strongroom::{LocalKms, Unlock};

use crate::cli::Desk;

fn desk() -> Desk {
    let desk = Desk::empty();
    desk.ok(&["init"]);
    desk
}

fn kms(desk: &Desk, args: &[&str]) -> String {
    desk.ok(&[&["kms"][..], args].concat())
}

fn json(desk: &Desk, args: &[&str]) -> Json {
    serde_json::from_str(&kms(desk, &[args, &["--json"]].concat())).unwrap()
}

/// The same keyring in this process.
fn opened(desk: &Desk) -> LocalKms {
    LocalKms::open(desk.path("keyring"), Unlock::key_file(desk.path("key")).unwrap()).unwrap()
}

#[test]
fn a_key_goes_through_its_life_and_a_running_process_sees_each_step() {
    let desk = desk();
    let arn = kms(&desk, &["create-key", "--alias", "alias/ratings", "--description", "for the ratings"]);
    let arn = arn.trim_end();
    let process = opened(&desk);
    let refused = || {
        let request = GenerateDataKeyRequest::new(arn, EncryptionContext::new(), Principal::Owner);
        process.generate_data_key(&request).map(drop).map_err(|error| error.reason.to_string())
    };
    let because = |reason: &str| Err(reason.to_owned());
    assert_eq!(refused(), Ok(()));
    kms(&desk, &["disable", "alias/ratings"]);
    assert_eq!(refused(), because("master key disabled"));
    kms(&desk, &["enable", arn]);
    assert_eq!(refused(), Ok(()));
    kms(&desk, &["rotate", "alias/ratings"]);
    assert!(kms(&desk, &["schedule-deletion", "alias/ratings", "--days", "7"]).contains("in 7.0 days"));
    assert_eq!(refused(), because("master key pending deletion"));
    desk.fails(&["kms", "enable", "alias/ratings"], 6);
    desk.fails(&["kms", "schedule-deletion", "alias/ratings"], 6);
    kms(&desk, &["cancel-deletion", "alias/ratings"]);
    assert_eq!(refused(), because("master key disabled"));
    desk.fails(&["kms", "cancel-deletion", "alias/ratings"], 6);
    desk.fails(&["kms", "schedule-deletion", "alias/ratings", "--days", "5"], 2);

    let list = kms(&desk, &["list"]);
    assert_eq!(list, format!("{arn}\tdisabled\talias/ratings\tfor the ratings\n"));
    let described = kms(&desk, &["describe", "alias/ratings"]);
    for part in ["disabled", "customer", "generated", "never by itself; version 2; on demand 24 more times"] {
        assert!(described.contains(part), "{described}");
    }
    kms(&desk, &["enable", arn]);
    kms(&desk, &["set-description", arn, "other words"]);
    assert!(kms(&desk, &["list"]).contains("other words"));
    desk.fails(&["kms", "describe", "alias/none"], 6);
}

#[test]
fn answers_as_json_have_the_shape_of_aws_kms() {
    // Whoever has scripts for `aws kms` can keep them.
    let desk = desk();
    let made = json(&desk, &["create-key", "--alias", "alias/ratings", "--description", "words"]);
    let metadata = &made["KeyMetadata"];
    let (id, arn) = (metadata["KeyId"].as_str().unwrap(), metadata["Arn"].as_str().unwrap());
    assert_eq!(arn, kms(&desk, &["list"]).split('\t').next().unwrap());
    assert!(metadata["CreationDate"].as_f64().unwrap() > 1.7e9);
    let mut rest = metadata.clone();
    for field in ["KeyId", "Arn", "CreationDate"] {
        rest.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(
        rest,
        json!({
            "Enabled": true, "Description": "words", "KeyUsage": "ENCRYPT_DECRYPT", "KeyState": "Enabled",
            "Origin": "AWS_KMS", "KeyManager": "CUSTOMER", "KeySpec": "SYMMETRIC_DEFAULT",
        })
    );
    assert_eq!(json(&desk, &["describe", "alias/ratings"])["KeyMetadata"], *metadata);
    assert_eq!(json(&desk, &["list"]), json!({ "Keys": [{ "KeyId": id, "KeyArn": arn }], "Truncated": false }));
    assert_eq!(json(&desk, &["rotate", arn]), json!({ "KeyId": id, "KeyVersion": 2 }));
    let rotation = json(&desk, &["rotation-period", arn, "365"]);
    assert_eq!((&rotation["KeyRotationEnabled"], &rotation["RotationPeriodInDays"]), (&json!(true), &json!(365)));
    assert!(rotation["NextRotationDate"].as_f64().unwrap() > 1.7e9);
    assert_eq!(json(&desk, &["rotation-period", arn, "--never"])["KeyRotationEnabled"], false);
    desk.fails(&["kms", "rotation-period", arn, "89"], 2);

    let going = json(&desk, &["schedule-deletion", arn]);
    assert_eq!((&going["KeyState"], &going["PendingWindowInDays"]), (&json!("PendingDeletion"), &json!(30)));
    assert_eq!(json(&desk, &["describe", arn])["KeyMetadata"]["DeletionDate"], going["DeletionDate"]);
    assert_eq!(json(&desk, &["cancel-deletion", arn]), json!({ "KeyId": arn }));
}

#[test]
fn an_alias_is_added_moved_and_removed() {
    let desk = desk();
    let one = kms(&desk, &["create-key"]).trim_end().to_owned();
    let two = kms(&desk, &["create-key"]).trim_end().to_owned();
    kms(&desk, &["alias", "add", "alias/a", &one]);
    desk.ok(&["create-table", "t", "--master-key", "alias/a"]);
    desk.ok(&["put", "t", "k", "v"]);
    kms(&desk, &["alias", "move", "alias/a", &two]);
    assert_eq!(json(&desk, &["describe", "alias/a"])["KeyMetadata"]["Arn"], *two);
    // What was wrapped names the key, not the alias.
    assert_eq!(desk.ok(&["get", "t", "k"]), "v");
    kms(&desk, &["alias", "remove", "alias/a"]);
    desk.fails(&["kms", "describe", "alias/a"], 6);
    for alias in ["a", "alias/aws/dynamodb", "alias/strongroom"] {
        desk.fails(&["kms", "alias", "add", alias, &one], 2);
    }
}

#[test]
fn bytes_of_ones_own_are_imported_taken_away_and_imported_again() {
    let desk = desk();
    fs::write(desk.path("bytes"), [5; 32]).unwrap();
    fs::write(desk.path("others"), [6; 32]).unwrap();
    fs::write(desk.path("short"), [5; 31]).unwrap();
    let arn = kms(&desk, &["create-key", "--import-from", &desk.text("bytes"), "--alias", "alias/mine"]);
    let arn = arn.trim_end();
    let metadata = &json(&desk, &["describe", arn])["KeyMetadata"];
    assert_eq!(metadata["Origin"], "EXTERNAL");
    assert_eq!(metadata["ExpirationModel"], "KEY_MATERIAL_DOES_NOT_EXPIRE");
    desk.ok(&["create-table", "t", "--master-key", "alias/mine"]);
    desk.ok(&["put", "t", "k", "v"]);
    kms(&desk, &["delete-material", arn]);
    let message = desk.fails(&["get", "t", "k"], 6);
    assert!(message.contains("pending import"), "{message}");
    desk.fails(&["kms", "import", arn, &desk.text("short")], 2);
    desk.fails(&["kms", "import", arn, &desk.text("none")], 3);
    desk.fails(&["kms", "import", arn, &desk.text("others")], 6);
    desk.fails(&["kms", "rotate", arn], 6);
    kms(&desk, &["import", arn, &desk.text("bytes"), "--expire-in", "10"]);
    assert_eq!(desk.ok(&["get", "t", "k"]), "v");
    let metadata = &json(&desk, &["describe", arn])["KeyMetadata"];
    assert_eq!(metadata["ExpirationModel"], "KEY_MATERIAL_EXPIRES");
    assert!(metadata["ValidTo"].as_f64().unwrap() > 1.7e9);

    // A file that is not right makes no key.
    desk.fails(&["kms", "create-key", "--import-from", &desk.text("short")], 2);
    assert_eq!(kms(&desk, &["list"]).lines().count(), 1);
    let empty = json(&desk, &["create-key", "--no-material"]);
    assert_eq!(empty["KeyMetadata"]["KeyState"], "PendingImport");
}

#[test]
fn grants_are_made_listed_and_ended() {
    let desk = desk();
    let arn = kms(&desk, &["create-key", "--alias", "alias/a"]).trim_end().to_owned();
    let create = ["grant", "create", "alias/a", "--to", "principal/ada", "--operation", "Decrypt"];
    let context = ["--context", "store=s", "--operation", "DescribeKey", "--name", "one", "--retiring", "service"];
    let create_with_context = [&create[..], &context].concat();
    let id = kms(&desk, &create_with_context).trim_end().to_owned();
    assert_eq!(kms(&desk, &create_with_context).trim_end(), id);
    // The same name for something else.
    desk.fails(&[&["kms"][..], &create, &["--name", "one"]].concat(), 2);
    let second = json(&desk, &create)["GrantId"].as_str().unwrap().to_owned();
    let lines = kms(&desk, &["grant", "list", &arn]);
    let first_line =
        format!("{id}\tprincipal/ada\tDescribeKey Decrypt\t{{\"EncryptionContextSubset\":{{\"store\":\"s\"}}}}\tone");
    assert_eq!(lines.lines().next(), Some(&*first_line));
    let listed = json(&desk, &["grant", "list", &arn]);
    let mut first = listed["Grants"][0].clone();
    assert!(first["CreationDate"].as_f64().unwrap() > 1.7e9);
    first.as_object_mut().unwrap().remove("CreationDate");
    assert_eq!(
        first,
        json!({
            "KeyId": arn, "GrantId": id, "Name": "one", "GranteePrincipal": "principal/ada", "RetiringPrincipal": "service",
            "Operations": ["DescribeKey", "Decrypt"], "Constraints": { "EncryptionContextSubset": { "store": "s" } },
        })
    );
    kms(&desk, &["grant", "retire", "alias/a", &id]);
    kms(&desk, &["grant", "revoke", "alias/a", &second]);
    let message = desk.fails(&["kms", "grant", "revoke", "alias/a", &second], 2);
    assert!(message.contains("grant list"), "{message}");
    assert_eq!(kms(&desk, &["grant", "list", &arn]), "");
    desk.fails(&["kms", "grant", "create", "alias/none", "--to", "owner", "--operation", "Decrypt"], 6);
}

#[test]
fn a_policy_is_read_and_replaced_and_one_that_locks_the_owner_out_is_refused() {
    let desk = desk();
    kms(&desk, &["create-key", "--alias", "alias/a"]);
    let get = || -> Json { serde_json::from_str(&kms(&desk, &["policy", "get", "alias/a"])).unwrap() };
    let put = |policy: &Json| fs::write(desk.path("policy"), policy.to_string()).unwrap();
    let before = get();
    let policy = json!({ "Statement": [
        { "Sid": "owner", "Effect": "Allow", "Principal": ["owner"], "Action": ["kms:*"] },
        {
            "Effect": "Allow", "Principal": ["service", "principal/ada"], "Action": ["kms:GenerateDataKey", "kms:Decrypt"],
            "Condition": { "EncryptionContextSubset": { "store": "s" } },
        },
        { "Effect": "Deny", "Principal": ["*"], "Action": ["kms:Encrypt"] },
    ]});
    put(&policy);
    kms(&desk, &["policy", "put", "alias/a", &desk.text("policy")]);
    assert_eq!(get(), policy);

    put(&json!({ "Statement": [{ "Effect": "Allow", "Principal": "owner", "Action": "kms:Decrypt" }] }));
    let message = desk.fails(&["kms", "policy", "put", "alias/a", &desk.text("policy")], 2);
    assert!(message.contains("lock the owner out"), "{message}");
    put(&json!({ "Statement": [{ "Effect": "Allow", "Principal": "ada", "Action": "kms:Decrypt" }] }));
    let message = desk.fails(&["kms", "policy", "put", "alias/a", &desk.text("policy")], 2);
    assert!(message.contains("principal/NAME"), "{message}");
    assert_eq!(get(), policy);
    // What was printed can be given back.
    put(&before);
    kms(&desk, &["policy", "put", "alias/a", &desk.text("policy")]);
    assert_eq!(get(), before);
}
