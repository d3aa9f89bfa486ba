//! Error bodies (OCI distribution specification, "Error Codes").

use alloc::{string::String, vec, vec::Vec};
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Longest error body in bytes, read or written.
pub const MAX_ERROR_BODY: usize = 64 * 1024;
/// Most entries that are kept of a body.
const MAX_ENTRIES: usize = 16;
/// Longest message of a written entry, and most that is shown of a foreign one, in bytes.
const MAX_MESSAGE: usize = 1024;

/// The class of an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The registry does not have the blob.
    BlobUnknown,
    /// An upload cannot go on as asked.
    BlobUploadInvalid,
    /// There is no such upload session.
    BlobUploadUnknown,
    /// A digest is malformed, or not that of the content.
    DigestInvalid,
    /// A manifest names a blob or a manifest that the registry does not have.
    ManifestBlobUnknown,
    /// A manifest is malformed.
    ManifestInvalid,
    /// The repository has no such manifest.
    ManifestUnknown,
    /// A repository name is malformed.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// A length is not what was announced, or beyond a cap.
    SizeInvalid,
    /// Log in first.
    Unauthorized,
    /// Logged in, and not allowed.
    Denied,
    /// The registry does not do this.
    Unsupported,
    /// Later, please.
    TooManyRequests,
    /// A chunk does not continue its upload.
    RangeInvalid,
    /// `n` is no number.
    PaginationNumberInvalid,
    /// The condition of a request does not hold.
    PreconditionFailed,
    /// The disk is full.
    StorageFull,
    /// The registry is not ready.
    Unavailable,
    /// The registry failed.
    Unknown,
    /// A code of another registry.
    Other(String),
}

impl ErrorCode {
    /// The word in the body.
    pub fn as_str(&self) -> &str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::StorageFull => "STORAGE_FULL",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::Other(word) => word,
        }
    }

    /// The code that a word stands for.
    pub fn from_word(word: &str) -> Self {
        match word {
            "BLOB_UNKNOWN" => Self::BlobUnknown,
            "BLOB_UPLOAD_INVALID" => Self::BlobUploadInvalid,
            "BLOB_UPLOAD_UNKNOWN" => Self::BlobUploadUnknown,
            "DIGEST_INVALID" => Self::DigestInvalid,
            "MANIFEST_BLOB_UNKNOWN" => Self::ManifestBlobUnknown,
            "MANIFEST_INVALID" => Self::ManifestInvalid,
            "MANIFEST_UNKNOWN" => Self::ManifestUnknown,
            "NAME_INVALID" => Self::NameInvalid,
            "NAME_UNKNOWN" => Self::NameUnknown,
            "SIZE_INVALID" => Self::SizeInvalid,
            "UNAUTHORIZED" => Self::Unauthorized,
            "DENIED" => Self::Denied,
            "UNSUPPORTED" => Self::Unsupported,
            "TOOMANYREQUESTS" => Self::TooManyRequests,
            "RANGE_INVALID" => Self::RangeInvalid,
            "PAGINATION_NUMBER_INVALID" => Self::PaginationNumberInvalid,
            "PRECONDITION_FAILED" => Self::PreconditionFailed,
            "STORAGE_FULL" => Self::StorageFull,
            "UNAVAILABLE" => Self::Unavailable,
            "UNKNOWN" => Self::Unknown,
            other => Self::Other(clean(other, 64)),
        }
    }

    /// The status a server answers with, where nothing more special applies (`SIZE_INVALID` of
    /// something too long is a 413).
    pub fn status(&self) -> u16 {
        match self {
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::PaginationNumberInvalid
            | Self::SizeInvalid => 400,
            Self::Unauthorized => 401,
            Self::Denied => 403,
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => 404,
            Self::Unsupported => 405,
            Self::PreconditionFailed => 412,
            Self::RangeInvalid => 416,
            Self::TooManyRequests => 429,
            Self::Unknown | Self::Other(_) => 500,
            Self::Unavailable => 503,
            Self::StorageFull => 507,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|word| Self::from_word(&word))
    }
}

/// The body of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What is wrong, at least one entry in a body that a registry sends.
    pub errors: Vec<ErrorEntry>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorEntry {
    /// Its class.
    pub code: ErrorCode,
    /// For a human; one line.
    pub message: String,
    /// For a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
}

impl ErrorBody {
    /// A body with one entry.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            errors: vec![ErrorEntry {
                code,
                message: message.into(),
                detail: None,
            }],
        }
    }

    /// Adds a detail to the last entry.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        if let Some(entry) = self.errors.last_mut() {
            entry.detail = Some(detail);
        }
        self
    }

    /// The JSON to send, at most [`MAX_ERROR_BODY`] bytes: beyond it details are left out and
    /// messages are cut.
    pub fn to_json(&self) -> Vec<u8> {
        match serde_json::to_vec(self) {
            Ok(json) if json.len() <= MAX_ERROR_BODY => json,
            _ => {
                let cut = |entry: &ErrorEntry| ErrorEntry {
                    code: entry.code.clone(),
                    message: clean(&entry.message, MAX_MESSAGE),
                    detail: None,
                };
                let errors = self.errors.iter().take(MAX_ENTRIES).map(cut).collect();
                serde_json::to_vec(&Self { errors }).unwrap_or_default()
            }
        }
    }

    /// Reads a body of any server on the way: the form of the specification, and the single
    /// messages of token servers and gateways (`error_description`, `message`, `details`, `error`).
    ///
    /// `None` for anything else, and for more than [`MAX_ERROR_BODY`] bytes. Messages come back as
    /// single lines of bounded length.
    pub fn parse(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_ERROR_BODY {
            return None;
        }
        let Value::Object(body) = serde_json::from_slice(body).ok()? else {
            return None;
        };
        let text = |value: &Value| value.as_str().map(|text| clean(text, MAX_MESSAGE));
        if let Some(Value::Array(entries)) = body.get("errors") {
            let errors: Vec<_> = entries
                .iter()
                .filter_map(Value::as_object)
                .take(MAX_ENTRIES)
                .map(|entry| ErrorEntry {
                    code: ErrorCode::from_word(
                        entry
                            .get("code")
                            .and_then(Value::as_str)
                            .unwrap_or("UNKNOWN"),
                    ),
                    message: entry.get("message").and_then(text).unwrap_or_default(),
                    detail: entry
                        .get("detail")
                        .filter(|detail| !detail.is_null())
                        .cloned(),
                })
                .collect();
            return (!errors.is_empty()).then_some(Self { errors });
        }
        ["error_description", "message", "details", "error"]
            .iter()
            .find_map(|key| body.get(*key).and_then(text))
            .map(|message| Self::new(ErrorCode::Unknown, message))
    }

    /// Whether one of the entries has this code.
    pub fn has(&self, code: &ErrorCode) -> bool {
        self.errors.iter().any(|entry| entry.code == *code)
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let colon = if entry.message.is_empty() { "" } else { ": " };
            write!(f, "{separator}{}{colon}{}", entry.code, entry.message)?;
        }
        Ok(())
    }
}

/// One line of at most `limit` bytes, without control characters: foreign text ends up on
/// terminals.
fn clean(text: &str, limit: usize) -> String {
    let mut cleaned = String::new();
    for letter in text.trim().chars() {
        if cleaned.len() + letter.len_utf8() > limit {
            break;
        }
        cleaned.push(if letter.is_control() { ' ' } else { letter });
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CODES: [ErrorCode; 20] = [
        ErrorCode::BlobUnknown,
        ErrorCode::BlobUploadInvalid,
        ErrorCode::BlobUploadUnknown,
        ErrorCode::DigestInvalid,
        ErrorCode::ManifestBlobUnknown,
        ErrorCode::ManifestInvalid,
        ErrorCode::ManifestUnknown,
        ErrorCode::NameInvalid,
        ErrorCode::NameUnknown,
        ErrorCode::SizeInvalid,
        ErrorCode::Unauthorized,
        ErrorCode::Denied,
        ErrorCode::Unsupported,
        ErrorCode::TooManyRequests,
        ErrorCode::RangeInvalid,
        ErrorCode::PaginationNumberInvalid,
        ErrorCode::PreconditionFailed,
        ErrorCode::StorageFull,
        ErrorCode::Unavailable,
        ErrorCode::Unknown,
    ];

    #[test]
    fn codes_keep_their_words_and_statuses() {
        for code in CODES {
            assert_eq!(ErrorCode::from_word(code.as_str()), code);
            assert!((400..600).contains(&code.status()));
        }
        assert_eq!(ErrorCode::ManifestUnknown.status(), 404);
        assert_eq!(ErrorCode::TooManyRequests.as_str(), "TOOMANYREQUESTS");
        assert_eq!(ErrorCode::from_word("x\ny"), ErrorCode::Other("x y".into()));
    }

    #[test]
    fn the_form_of_the_specification() {
        let body = ErrorBody::new(ErrorCode::NameUnknown, "no repository a/b")
            .with_detail(json!({"name": "a/b"}));
        let json = body.to_json();
        assert_eq!(
            core::str::from_utf8(&json).unwrap(),
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no repository a/b","detail":{"name":"a/b"}}]}"#
        );
        assert_eq!(ErrorBody::parse(&json), Some(body.clone()));
        assert_eq!(body.to_string(), "NAME_UNKNOWN: no repository a/b");
        assert!(body.has(&ErrorCode::NameUnknown) && !body.has(&ErrorCode::Denied));
    }

    #[test]
    fn bodies_of_other_servers() {
        let parse = |body: &str| ErrorBody::parse(body.as_bytes()).map(|body| body.to_string());
        for (body, shown) in [
            (
                r#"{"errors":[{"code":"A"},{"code":"DENIED","message":"m","detail":null}]}"#,
                Some("A; DENIED: m"),
            ),
            (r#"{"errors":[{"message":"m"},7]}"#, Some("UNKNOWN: m")),
            (
                r#"{"details":"incorrect username or password"}"#,
                Some("UNKNOWN: incorrect username or password"),
            ),
            (
                r#"{"error":"invalid_grant","error_description":"no"}"#,
                Some("UNKNOWN: no"),
            ),
            (r#"{"errors":[]}"#, None),
            (r#"{"errors":{}}"#, None),
            ("[]", None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(parse(body).as_deref(), shown, "{body}");
        }
    }

    #[test]
    fn foreign_text_cannot_draw_on_the_terminal() {
        let body =
            json!({"errors": [{"code": "X\u{1b}[31m", "message": "a\r\n\u{1b}]0;b\u{9b}c"}]});
        let shown = ErrorBody::parse(body.to_string().as_bytes())
            .unwrap()
            .to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }

    #[test]
    fn caps_in_both_directions() {
        let long = "é".repeat(MAX_ERROR_BODY);
        let body = ErrorBody::new(ErrorCode::Unknown, long.clone()).with_detail(long.into());
        let json = body.to_json();
        assert!(json.len() < 2 * MAX_MESSAGE);
        assert!(ErrorBody::parse(&json).unwrap().has(&ErrorCode::Unknown));

        let mut padded = ErrorBody::new(ErrorCode::Denied, "m").to_json();
        padded.resize(MAX_ERROR_BODY, b' ');
        assert!(ErrorBody::parse(&padded).is_some());
        padded.push(b' ');
        assert_eq!(ErrorBody::parse(&padded), None);

        let many = json!({"errors": vec![json!({"code": "A"}); 1000]});
        assert_eq!(
            ErrorBody::parse(many.to_string().as_bytes())
                .unwrap()
                .errors
                .len(),
            MAX_ENTRIES
        );
    }

    proptest! {
        #[test]
        fn round_trip(
            code in proptest::sample::select(&CODES[..]),
            message in "[!-~]([ -~é]{0,30}[!-~])?",
        ) {
            let body = ErrorBody::new(code, message);
            prop_assert_eq!(ErrorBody::parse(&body.to_json()), Some(body));
        }

        #[test]
        fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ErrorBody::parse(&body);
        }
    }
}
