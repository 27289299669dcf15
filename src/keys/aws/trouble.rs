//! What each of KMS's errors means to the engine.
//!
//! | error | reason |
//! |---|---|
//! | throttling, too many requests | `Throttled` |
//! | `KMSInternal`, `KeyUnavailable`, service unavailable, no connection | `Unreachable` |
//! | `DependencyTimeout`, time-outs of the client | `TimedOut` |
//! | `AccessDenied` | `Denied` |
//! | `InvalidGrantToken` | `NoGrant` |
//! | unknown, expired, missing credentials; wrong signature; clock too far off | `BadCredentials` |
//! | `Disabled` | `KeyDisabled` |
//! | `KMSInvalidState` | by its text `KeyPendingDeletion`, `KeyPendingImport`, otherwise `KeyDisabled` |
//! | `NotFound` | `KeyNotFound`; of a grant `GrantNotFound` |
//! | `InvalidCiphertext`, `IncorrectKey` | `InvalidCiphertext` |
//! | `InvalidGrantId` | `GrantNotFound` |
//! | `LimitExceeded` | `LimitExceeded` |
//! | `UnsupportedOperation` | `Unsupported` |
//! | `InvalidArn`, `InvalidKeyUsage`, `Validation`, and what else is wrong with a request | `InvalidRequest` |
//! | an answer that is none | by its HTTP status, otherwise `UnexpectedAnswer` |
//!
//! Some who speak for KMS (proxies, emulators, the layer that checks signatures) answer in XML or HTML; the code is looked for in
//! what they say, and the HTTP status decides if there is none. Nothing of a body is repeated in a message: it may hold a key.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

use crate::error::{ProviderError, ProviderReason};

/// How much of a body that is not JSON is looked at for a code.
const BODY_BYTES_MAX: usize = 16 << 10;

pub(super) fn trouble<E>(error: SdkError<E, HttpResponse>) -> ProviderError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let of = |reason, message: String| ProviderError::new(reason, message);
    match &error {
        SdkError::TimeoutError(_) => of(ProviderReason::TimedOut, "the client's time-out is past".to_owned()),
        SdkError::DispatchFailure(failure) => {
            let reason = match credentials(&error) {
                Some(reason) => reason,
                None if failure.is_timeout() => ProviderReason::TimedOut,
                None if failure.is_user() => ProviderReason::InvalidRequest,
                None => ProviderReason::Unreachable,
            };
            of(reason, chain(&error))
        }
        SdkError::ConstructionFailure(_) => {
            of(credentials(&error).unwrap_or(ProviderReason::InvalidRequest), chain(&error))
        }
        SdkError::ServiceError(service) => match service.err().code() {
            Some(code) => {
                let message = service.err().message().unwrap_or_default();
                of(reason_of(code, message, service.raw().status().as_u16()), format!("{code}: {message}"))
            }
            None => unreadable(service.raw()),
        },
        SdkError::ResponseError(response) => unreadable(response.raw()),
        _ => of(ProviderReason::UnexpectedAnswer, "an error that is not known here".to_owned()),
    }
}

/// An answer that is not what was asked for.
pub(super) fn unexpected(what: &str) -> ProviderError {
    ProviderError::new(ProviderReason::UnexpectedAnswer, format!("KMS's answer: {what}"))
}

pub(super) fn reason_of(code: &str, message: &str, status: u16) -> ProviderReason {
    use ProviderReason::*;
    // "KMSInvalidStateException" in JSON, "Throttling" in XML.
    match code.strip_suffix("Exception").unwrap_or(code) {
        "Throttling"
        | "Throttled"
        | "ThrottledRequest"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "ProvisionedThroughputExceeded"
        | "SlowDown"
        | "BandwidthLimitExceeded" => Throttled,
        "KMSInternal"
        | "KeyUnavailable"
        | "InternalFailure"
        | "InternalError"
        | "InternalServer"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableError" => Unreachable,
        "DependencyTimeout" | "RequestTimeout" => TimedOut,
        "AccessDenied" | "NotAuthorized" | "UnauthorizedOperation" | "OptInRequired" => Denied,
        "InvalidGrantToken" => NoGrant,
        "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "ExpiredToken"
        | "TokenRefreshRequired"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "AuthFailure"
        | "InvalidToken" => BadCredentials,
        "Disabled" => KeyDisabled,
        "KMSInvalidState" if message.contains("pending deletion") => KeyPendingDeletion,
        "KMSInvalidState" if message.contains("pending import") => KeyPendingImport,
        "KMSInvalidState" => KeyDisabled,
        "NotFound" => KeyNotFound,
        "InvalidCiphertext" | "IncorrectKey" => InvalidCiphertext,
        "InvalidGrantId" => GrantNotFound,
        "LimitExceeded" => LimitExceeded,
        "UnsupportedOperation" | "UnknownOperation" | "InvalidAction" => Unsupported,
        "InvalidArn"
        | "InvalidKeyUsage"
        | "Validation"
        | "ValidationError"
        | "InvalidAliasName"
        | "AlreadyExists"
        | "MalformedPolicyDocument"
        | "DryRunOperation"
        | "Tag"
        | "Serialization" => InvalidRequest,
        _ => reason_of_status(status).unwrap_or(InvalidRequest),
    }
}

fn reason_of_status(status: u16) -> Option<ProviderReason> {
    match status {
        401 => Some(ProviderReason::BadCredentials),
        403 => Some(ProviderReason::Denied),
        408 => Some(ProviderReason::TimedOut),
        429 => Some(ProviderReason::Throttled),
        500.. => Some(ProviderReason::Unreachable),
        _ => None,
    }
}

/// An answer without an error code where the protocol has it.
fn unreadable(response: &HttpResponse) -> ProviderError {
    let status = response.status().as_u16();
    let body = response.body().bytes().unwrap_or_default();
    let body = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code.trim());
    // What stands there is repeated only if it looks like a code.
    match code.filter(|code| !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric())) {
        Some(code) => ProviderError::new(reason_of(code, "", status), format!("{code} (HTTP status {status})")),
        None => {
            let reason = reason_of_status(status).unwrap_or(ProviderReason::UnexpectedAnswer);
            ProviderError::new(reason, format!("an answer that is not KMS's, with HTTP status {status}"))
        }
    }
}

/// What is wrong with the credentials, if that is why there was no request.
fn credentials(error: &(dyn Error + 'static)) -> Option<ProviderReason> {
    let error = causes(error).find_map(|cause| cause.downcast_ref::<CredentialsError>())?;
    Some(match error {
        CredentialsError::ProviderTimedOut(_) => ProviderReason::TimedOut,
        // Whoever gives the credentials could not be asked, or made no sense: nothing is known about the credentials.
        CredentialsError::ProviderError(_) | CredentialsError::Unhandled(_) => ProviderReason::Unreachable,
        // There are none, or not in a way that can be used.
        _ => ProviderReason::BadCredentials,
    })
}

/// What an error says and what its causes say, without their debugging output.
fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| <dyn Error>::source(*error))
}
