//! Foreign JSON.

use serde::de::{DeserializeOwned, Error as _};

/// Reads an object. The derived readers would take an array of the fields' values for one.
pub(crate) fn object<T: DeserializeOwned>(raw: &[u8]) -> Result<T, serde_json::Error> {
    if raw.trim_ascii_start().first() != Some(&b'{') {
        return Err(serde_json::Error::custom("it is not an object"));
    }
    serde_json::from_slice(raw)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct One {
        a: u8,
    }

    #[test]
    fn an_array_is_no_object() {
        assert_eq!(object::<One>(b" {\"a\":1}").unwrap(), One { a: 1 });
        for text in ["", "[1]", "{", "1", "null"] {
            assert!(object::<One>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
