//! What each return value of a PKCS#11 module means to the engine.
//!
//! | return value | reason |
//! |---|---|
//! | session or login lost, token or device gone or out of order, out of memory | `Unreachable`, and the sessions are given up |
//! | `CKR_SESSION_COUNT` | `Throttled` |
//! | PIN wrong, locked, expired or not set; another user is logged in | `BadCredentials` |
//! | token write protected, rejected at the device, prohibited | `Denied` |
//! | key or object handle invalid | `KeyNotFound` |
//! | `CKR_KEY_FUNCTION_NOT_PERMITTED` | `KeyDisabled` |
//! | `C_Decrypt`: encrypted data invalid, and the general failures that many tokens give for a wrong GCM tag | `InvalidCiphertext` |
//! | no such mechanism or function, a template that the token does not take | `Unsupported` |
//! | module cannot be loaded, key of the wrong kind | `InvalidRequest` |
//! | token full | `LimitExceeded` |
//! | anything else | `UnexpectedAnswer` |

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::error::{ProviderError, ProviderReason};

/// What working in a session gives.
pub(super) type Outcome<T> = Result<T, Trouble>;

/// Why something did not work, and whether the sessions are of any use after it.
pub(super) struct Trouble {
    pub(super) error: ProviderError,
    pub(super) session_lost: bool,
}

impl From<ProviderError> for Trouble {
    fn from(error: ProviderError) -> Trouble {
        Trouble { error, session_lost: false }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        let reason = match &error {
            Error::Pkcs11(value, function) => reason_of(*value, *function),
            Error::LibraryLoading(_) | Error::MissingSymbol(_) => ProviderReason::InvalidRequest,
            Error::NullFunctionPointer | Error::NotSupported => ProviderReason::Unsupported,
            _ => ProviderReason::UnexpectedAnswer,
        };
        let session_lost = reason == ProviderReason::Unreachable;
        Trouble { error: ProviderError::new(reason, error.to_string()), session_lost }
    }
}

pub(super) fn reason_of(value: RvError, function: Function) -> ProviderReason {
    use ProviderReason::*;
    use RvError as Rv;
    match value {
        // Standard says `CKR_ENCRYPTED_DATA_INVALID`; SoftHSM says `CKR_GENERAL_ERROR`, others something in between.
        Rv::EncryptedDataInvalid
        | Rv::EncryptedDataLenRange
        | Rv::DataInvalid
        | Rv::DataLenRange
        | Rv::ArgumentsBad
        | Rv::SignatureInvalid
        | Rv::GeneralError
        | Rv::FunctionFailed
            if matches!(function, Function::Decrypt) =>
        {
            InvalidCiphertext
        }
        Rv::Cancel
        | Rv::FunctionCanceled
        | Rv::HostMemory
        | Rv::SlotIdInvalid
        | Rv::GeneralError
        | Rv::FunctionFailed
        | Rv::DeviceError
        | Rv::DeviceRemoved
        | Rv::OperationActive
        | Rv::OperationNotInitialized
        | Rv::SessionClosed
        | Rv::SessionHandleInvalid
        | Rv::TokenNotPresent
        | Rv::TokenNotRecognized
        | Rv::UserNotLoggedIn
        | Rv::CryptokiNotInitialized
        | Rv::FipsSelfTestFailed
        | Rv::VendorDefined(_) => Unreachable,
        Rv::SessionCount => Throttled,
        Rv::DeviceMemory => LimitExceeded,
        Rv::PinIncorrect
        | Rv::PinInvalid
        | Rv::PinLenRange
        | Rv::PinExpired
        | Rv::PinLocked
        | Rv::UserPinNotInitialized
        | Rv::UserTypeInvalid
        | Rv::UserAnotherAlreadyLoggedIn
        | Rv::UserTooManyTypes
        | Rv::SessionReadWriteSoExists => BadCredentials,
        Rv::ActionProhibited
        | Rv::FunctionRejected
        | Rv::TokenWriteProtected
        | Rv::SessionReadOnly
        | Rv::AttributeReadOnly => Denied,
        Rv::KeyHandleInvalid | Rv::ObjectHandleInvalid => KeyNotFound,
        Rv::KeyFunctionNotPermitted => KeyDisabled,
        Rv::MechanismInvalid
        | Rv::MechanismParamInvalid
        | Rv::FunctionNotSupported
        | Rv::RandomNoRng
        | Rv::TemplateIncomplete
        | Rv::TemplateInconsistent
        | Rv::AttributeTypeInvalid
        | Rv::AttributeValueInvalid => Unsupported,
        Rv::KeySizeRange | Rv::KeyTypeInconsistent | Rv::LibraryLoadFailed => InvalidRequest,
        _ => UnexpectedAnswer,
    }
}
